"""Bad checkpoint folders: one sentence each, and nothing executed, downloaded or allocated."""

from __future__ import annotations

import json
import struct

import pytest
import torch
import transformers as hf
from models import randomised

from headway.hf.folder import read_folder
from headway.hf.loading import load
from headway.shapes import HeadwayError

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    randomised(hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)), torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture
def folder(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refused(folder, match):
    with pytest.raises(HeadwayError, match=match) as found:
        load(folder)
    assert "\n" not in str(found.value)


def configured(folder, **changed):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def headed(folder, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def shards(folder, **files):
    """Two shards, and an index that says something else where ``files`` does."""
    model = load(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="4KB")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= files
    (folder / INDEX).write_text(json.dumps(index))
    return model


def test_dtype_is_that_of_the_files_and_a_model_is_returned(folder):
    model = load(folder)
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert load(model) is model


def test_shards(folder):
    before = shards(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    after = load(folder).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.state_dict().items())


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "..", "a\\b.safetensors"]
)
def test_an_index_that_leads_elsewhere(folder, name):
    shards(folder, **{"lm_head.weight": name})
    refused(folder, "names of safetensors in the same folder")


def test_shards_that_are_missing_or_of_others(folder):
    shards(folder, nonsense="model-00001-of-00009.safetensors")
    refused(folder, "got none: copy the whole checkpoint")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["nonsense"] = index["weight_map"]["lm_head.weight"]
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, "the index is of other files")
    (folder / INDEX).write_text('{"weight_map": 3}')
    refused(folder, "expected a weight_map")


def test_links(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / WEIGHTS).rename(elsewhere / WEIGHTS)
    (folder / WEIGHTS).symlink_to(elsewhere / WEIGHTS)
    refused(folder, "itself, got a link to")
    cache = elsewhere / "snapshots" / "1"  # the cache of downloads keeps files beside, and links to them
    cache.mkdir(parents=True)
    (elsewhere / "blobs").mkdir()
    for name, origin in (("config.json", folder), (WEIGHTS, elsewhere)):
        (origin / name).rename(elsewhere / "blobs" / name)
        (cache / name).symlink_to(elsewhere / "blobs" / name)
    assert load(cache).dtype == torch.bfloat16


def test_folders_instead_of_files(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    refused(folder, "got a folder")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(folder, "with a config.json")


def test_pickles_and_adapters(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    refused(folder, "only pickles, which could run code")
    (folder / "pytorch_model.bin").rename(folder / "adapter_model.safetensors")
    refused(folder, "only adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, "got none")


def test_code_of_others(folder):
    (folder / "code.py").write_text("raise SystemExit('it was run')")
    mapped = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    configured(folder, auto_map=mapped)
    load(folder)  # an architecture of transformers: its own code is used
    configured(folder, architectures=["Model"])
    refused(folder, r"got 'Model'; its own code \(auto_map\) is never run")
    configured(folder, model_type="unheard_of")
    refused(folder, r"a config.json that transformers can read .*is never run")


@pytest.mark.parametrize(
    "changed",
    [{"attn_implementation": "someone/kernel"}, {"_attn_implementation": "a/b"}, {"transformers_weights": "x.bin"}],
)
def test_configurations_that_fetch(folder, changed):
    configured(folder, **changed)
    refused(folder, "code of others|expected weights in")


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"vocab_size": 41}, r"lm_head.weight of shape \[41, 16\].*got \[40, 16\]|embed_tokens"),
        ({"num_hidden_layers": 3}, r"every weight of LlamaForCausalLM.*model\.layers\.2\..* and 6 others"),
        ({"num_hidden_layers": 1}, r"layers that .* has, got others too: model\.layers\.1\."),
        ({"hidden_size": 10**9}, "of shape"),
        ({"vocab_size": 10**12}, "of shape"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers' of at most 10,000"),
        ({"num_hidden_layers": 9999}, "a model of 21 tensors"),
        ({"hidden_size": 10**19}, "at most"),
        ({"hidden_size": "many"}, "transformers can read|sizes that make"),
        ({"hidden_size": 15}, "transformers can read|sizes that make|of shape"),
        ({"num_attention_heads": 0}, "transformers can read|sizes that make"),
        ({"architectures": []}, "an architecture of transformers"),
        ({"architectures": ["GPT2LMHeadModel"]}, "sizes that make|every weight|about|fit"),
    ],
)
def test_configurations_that_disagree_with_the_weights(folder, changed, match):
    configured(folder, **changed)
    refused(folder, match)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"a": NaN}', "{" * 5000, '{"a":1,"a":2}'])
def test_configurations_that_are_no_json(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def one(begin, stop, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, stop]}


@pytest.mark.parametrize(
    ("header", "data", "length", "match"),
    [
        (b"", b"", 2**63, "truncated or damaged"),
        (b"{}", b"", 10**10, "truncated or damaged"),
        (b"{}", b"", 0, "truncated or damaged"),
        (b"nonsense", b"", None, "the header of"),
        (b"\xff\xfe{}", b"", None, "the header of"),
        (b"[" * 4000, b"", None, "the header of"),
        (b"[]", b"", None, "an object in the header"),
        ({"a": 3}, b"", None, "dtype, shape and data_offsets of 'a'"),
        ({"a": one(0, 8, dtype="F33")}, bytes(8), None, "dtype, shape and data_offsets"),
        ({"a": one(0, 8, shape=(-2,))}, bytes(8), None, "dtype, shape and data_offsets"),
        ({"a": one(0, 8, shape=(2.0,))}, bytes(8), None, "dtype, shape and data_offsets"),
        ({"a": one(0, 4)}, bytes(4), None, "expected 8 bytes of 'a'"),
        ({"a": one(0, 8), "b": one(4, 12)}, bytes(12), None, "overlap or leave a hole"),
        ({"a": one(0, 8), "b": one(16, 24)}, bytes(24), None, "overlap or leave a hole"),
        ({"a": one(0, 4 * 10**10, shape=(10**10,))}, bytes(8), None, "it is truncated"),
        ({"a": one(0, 8)}, bytes(9), None, "it is truncated"),
        ({"a": one(0, 0, shape=(2**33, 2**33, 0))}, b"", None, "every weight|about|fit"),
    ],
)
def test_hostile_headers(folder, header, data, length, match):
    headed(folder, header, data, length)
    refused(folder, match)


def test_truncated_at_every_part(folder):
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, 7, 8, 100, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(HeadwayError, match=r"truncated|damaged"):
            read_folder(folder)


def test_a_header_is_bounded(folder, monkeypatch):
    monkeypatch.setattr("headway.hf.safetensors.MOST", 100)
    refused(folder, "a safetensors header of 2 to 100 bytes")
