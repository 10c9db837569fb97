"""Extending: plain transformers loads what is written, nothing else changes, and undoing gives the same bits."""

from __future__ import annotations

import json
import signal
from unittest.mock import patch

import pytest
import tokenizers
import torch
import transformers as hf
from models import randomised
from transformers.modeling_utils import local_torch_dtype
from typer.testing import CliRunner

from headway.cli import app
from headway.hf import extend, load
from headway.hf.extend import rebuilt
from headway.hf.extend_report import as_json
from headway.hf.folder import read_folder
from headway.hf.long_texts import NAMES, Measuring, band_ends, effective_length, from_short, haystack, in_bands, losses
from headway.hf.own_text import OwnText, own_text
from headway.hf.stretching import WAYS, stretch
from headway.positions import extend as extended_position
from headway.positions import from_hf
from headway.shapes import HeadShape, HeadwayError

SIZES = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "head_dim": 16}
GEMMA = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
MODELS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZES)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**SIZES, **GEMMA)),
    "phi3": lambda: hf.Phi3ForCausalLM(
        hf.Phi3Config(**SIZES, original_max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=1)
    ),
}
POSITIONS = torch.tensor([[0, 1, 63, 64, 200, 255, 4095, 32767]])
CPU = torch.device("cpu")
TEXT = b"The cat sat on the mat, and the dog ate all of it. " * 120


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each model, with a file that belongs to its tokenizer, and ones that are left out."""
    made = {}
    for name, make in MODELS.items():
        made[name] = tmp_path_factory.mktemp(name)
        randomised(make(), torch.float32).save_pretrained(made[name], max_shard_size="30KB")
        (made[name] / "special_tokens_map.json").write_text('{"a":  1}')
        for left_out in ("pytorch_model.bin", "modeling.py", "adapter_model.safetensors"):
            (made[name] / left_out).write_bytes(b"nothing")
    return made


def plain(path):
    return hf.AutoModelForCausalLM.from_pretrained(path).eval()


def ways(name):
    return [how for how in WAYS if name != "phi3" or how not in ("dynamic", "drope")]


@pytest.mark.parametrize("name", MODELS)
def test_plain_transformers_loads_what_was_extended(name, folders, tmp_path):
    source = folders[name]
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    ids = torch.randint(3, 256, (1, 150), generator=torch.Generator().manual_seed(0))
    for how in ways(name):
        out = tmp_path / how
        done = extend(source, 256, how, out=out)
        assert done.measured is None
        written = {file.name: file.read_bytes() for file in out.iterdir()}
        old, new = (json.loads(files.pop("config.json")) for files in (dict(before), written))
        assert set(old) == set(new)
        assert {key for key in old if old[key] != new[key]} <= set(done.stretch.values)
        reports = {f"report.{kind}" for kind in ("html", "md", "json")}
        left_out = {"config.json", "pytorch_model.bin", "modeling.py", "adapter_model.safetensors"}
        assert set(written) - reports == set(before) - left_out
        assert all(before[file] == data for file, data in written.items() if file not in reports)
        loaded = plain(out)
        with torch.no_grad():
            assert torch.equal(loaded(input_ids=ids).logits, done.model(input_ids=ids).logits)
        if how != "dynamic":
            assert loaded.config.get_text_config().max_position_embeddings == 256
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


def angles(module, kind):
    """Frequencies that transformers computes, its float32 raised to float64, and its factor of cosines."""
    narrowed = torch.Tensor.float

    def wide(x, *args, **kwargs):
        return x.double() if x.dtype in (torch.int64, torch.float64) else narrowed(x, *args, **kwargs)

    one = torch.zeros(1, 1, 1, dtype=torch.float64)
    with (
        patch.object(torch, "float", torch.float64),
        patch.object(torch, "float32", torch.float64),
        patch.object(torch.Tensor, "float", wide),
        local_torch_dtype(torch.float64),
    ):
        made = type(module)(module.config)
        more = {} if kind is None else {"layer_type": kind}
        return made(one, POSITIONS, **more)


@pytest.mark.parametrize("name", MODELS)
def test_frequencies_are_those_of_headway_s_own_method(name, folders):
    kind = "full_attention" if name == "gemma3" else None
    before = from_hf(MODELS[name]().config, layer_type=kind)
    for how in ways(name):
        model = extend(folders[name], 256, how).model
        cos, sin = angles(model.base_model.rotary_emb, kind)
        position = from_hf(model.config, layer_type=kind)
        if how == "drope":
            assert bool((cos == 1).all())
            assert bool((sin == 0).all())
            assert position.spec() == "none"
            continue
        own = extended_position(before, 256, how if how in ("yarn", "linear") else "ntk", 64)
        if how == "longrope":
            position.attach(HeadShape.of(16, 1))
            rates = position.rates_for(32768.0, 16, CPU)
        else:  # the same whether or not it is written as another kind
            if how == "dynamic":
                own.factor = 1 + position.factor * (32768 / 64 - 1)
            rates = own.rates(16, CPU)
        angle = POSITIONS[0].double()[:, None] * rates
        amplitude = (own if how in ("yarn", "linear") else position).amplitude()
        assert position.amplitude() == amplitude
        assert float((cos[0, :, :8] - angle.cos() * amplitude).abs().max()) < 1e-10
        assert float((sin[0, :, :8] - angle.sin() * amplitude).abs().max()) < 1e-10


def test_longrope_begins_with_the_divisors_of_yarn_and_keeps_short_texts(folders):
    rope = extend(folders["llama"], 256, "longrope").stretch.values["rope_parameters"]
    yarn = from_hf(extend(folders["llama"], 256, "yarn").model.config)
    plain_rates = from_hf(load(folders["llama"]).config).rates(16, CPU)
    found = plain_rates / torch.tensor(rope["long_factor"], dtype=torch.float64)
    assert torch.allclose(found, yarn.rates(16, CPU), rtol=1e-14)
    assert set(rope["short_factor"]) == {1.0}


def test_a_model_is_extended_beside_itself_and_undone(folders):
    model = load(folders["llama"])
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(100)[None]
    before = model(input_ids=ids).logits
    done = extend(model, 256, "yarn")
    assert not torch.equal(done.model(input_ids=ids).logits, before)
    assert done.undo() is model
    assert torch.equal(model(input_ids=ids).logits, before)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert done.model.lm_head.weight is done.model.base_model.embed_tokens.weight
    assert done.model.lm_head.weight.data_ptr() == model.lm_head.weight.data_ptr()
    same = rebuilt(model, stretch(model.config, 256))
    assert torch.equal(same(input_ids=ids).logits, done.model(input_ids=ids).logits)


def test_a_model_without_a_folder_is_saved(folders, tmp_path):
    done = extend(load(folders["gemma3"]), 256, "linear", out=tmp_path / "out")
    assert torch.equal(plain(tmp_path / "out").lm_head.weight, done.model.lm_head.weight)
    assert plain(tmp_path / "out").config.rope_parameters == done.stretch.values["rope_parameters"]


def test_older_files_are_written_in_the_form_of_today(folders, tmp_path):
    for file in folders["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    linear = {"type": "linear", "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5, "rope_scaling": linear}))
    with pytest.raises(HeadwayError, match="pass trained="):
        extend(tmp_path, 256)
    done = extend(tmp_path, 256, trained=32, out=tmp_path / "out")
    assert "replaced, not scaled once more" in done.stretch.notes[0]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written.keys() == {*config, "rope_parameters"}
    assert from_hf(written).spec() == from_hf(plain(tmp_path / "out").config).spec()
    assert from_hf(written).spec() == "yarn(base=500000.0, factor=8.0, original=32)"


def test_layers_with_a_window_are_extended_if_asked():
    config = MODELS["gemma3"]().config
    kept = stretch(config, 256).values["rope_parameters"]
    assert kept["sliding_attention"] == config.rope_parameters["sliding_attention"]
    both = stretch(config, 256, windows_too=True).values["rope_parameters"]
    assert both["sliding_attention"]["factor"] == both["full_attention"]["factor"] == 4.0


@pytest.mark.parametrize(
    ("config", "more", "match"),
    [
        (hf.LlamaConfig(**SIZES), {"to": 64}, "above the present length, 64 tokens, got 64"),
        (hf.LlamaConfig(**SIZES), {"to": 60, "trained": 32}, "above the present length, 64 tokens, got 60"),
        (hf.LlamaConfig(**SIZES), {"how": "pi"}, "how"),
        (hf.FalconConfig(alibi=True), {"to": 9000}, "alibi, which reads texts of any length"),
        (hf.GPTJConfig(), {}, "no rope_parameters"),
        (hf.BloomConfig(), {}, "alibi, which reads texts of any length"),
        (hf.GPT2Config(), {}, "a table of 1,024 learned vectors"),
        (hf.GPTNeoXConfig(), {"how": "drope", "to": 9000}, "heads that rotate whole"),
        (MODELS["phi3"]().config, {"how": "dynamic"}, "an extension that phi3 reads, got rope_type 'dynamic'"),
        (MODELS["phi3"]().config, {"how": "drope"}, "an extension that phi3 reads, got rope_type 'proportional'"),
    ],
)
def test_what_cannot_be_extended(config, more, match):
    with pytest.raises(HeadwayError, match=match):
        stretch(config, **({"to": 256} | more))


def test_tuning_is_deterministic_resumes_and_is_written(folders, tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    given = {"text": tmp_path / "text.txt", "tune_steps": 3, "lr": 1e-3, "measuring": Measuring(2, 2, 2)}
    once = extend(folders["llama"], 256, **given, out=tmp_path / "a")

    def interrupt(line):
        if line.startswith("tuning: step 1"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(HeadwayError, match=r"3 steps of tuning, got 1 \(interrupted\): run the same command to resume"):
        extend(folders["llama"], 256, **given, out=tmp_path / "b", tell=interrupt)
    with pytest.raises(HeadwayError, match="the extension that"):
        extend(folders["llama"], 256, "linear", **given, out=tmp_path / "b")
    assert not (tmp_path / "b" / "config.json").exists()
    extend(folders["llama"], 256, **given, out=tmp_path / "b")
    files = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    assert not torch.equal(once.before.lm_head.weight, once.model.lm_head.weight)
    assert torch.equal(plain(tmp_path / "a").lm_head.weight, once.model.lm_head.weight)
    assert once.measured.after.at_trained < once.measured.before.at_trained - 1e-3
    report = json.loads(files["report.json"])
    assert report == json.loads(json.dumps(as_json(folders["llama"].name, once.stretch, once.measured)))
    assert once.measured.sentence["en"] in files["report.md"].decode()
    with pytest.raises(HeadwayError, match="a new folder for the extended model"):
        extend(folders["llama"], 256, out=tmp_path / "a")


def test_dynamic_is_unchanged_up_to_the_trained_length(folders):
    text = torch.randint(256, (4000,), generator=torch.Generator().manual_seed(0))
    found = extend(folders["llama"], 256, "dynamic", text=text, measuring=Measuring(2, 2, 1)).measured
    assert found.after.at_trained == found.before.at_trained
    assert found.after.needles[0] == found.before.needles[0]
    assert found.after.bands != found.before.bands


def test_losses_are_those_of_whole_logits_in_parts(folders):
    ids = torch.arange(130)
    for name in ("gemma3", "phi3"):
        model = load(folders[name]).double()
        with patch("headway.hf.long_texts.CHUNK", 50), torch.no_grad():
            found = losses(model, ids)
            logits = model(input_ids=ids[None, :-1]).logits[0]
        expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        assert float((found - expected).abs().max()) < 1e-10


def test_bands_and_effective_length():
    assert band_ends(64, 256) == tuple(range(16, 257, 16))
    assert len(band_ends(16, 2**14)) == 32
    bands, errors = in_bands(torch.tensor([[1.0, 1.0, 3.0, 5.0], [2.0, 2.0, 4.0, 4.0]]), (2, 4))
    assert bands == (1.5, 4.0)
    assert errors == pytest.approx((0.5, 0.0))
    near = torch.tensor([[2.0, 2.0, 2.0, 3.0, 1.0], [2.0, 2.0, 2.0, 1.0, 3.0]])
    worse = torch.tensor([0.5, 0.5, 0.5, 0.53, 0.6])  # than from a short text, at every position
    assert effective_length(near + worse, near, (1, 2, 3, 4, 5), 2) == 4
    uncertain = worse + torch.tensor([[0.0, 0, 0, 0, 0.1], [0.0, 0, 0, 0, -0.1]])
    assert effective_length(near + uncertain, near, (1, 2, 3, 4, 5), 2) == 5
    assert effective_length(near * float("nan"), near, (1, 2, 3, 4, 5), 2) == 2


def test_losses_from_a_short_text(folders):
    model = load(folders["llama"])
    ids = torch.cat((torch.tensor([7]), torch.arange(20, 61)))  # one id before every text
    with torch.no_grad():
        found = from_short(model, ids, 16, 1)
        assert found.shape == (41,)
        assert torch.equal(found[:16], losses(model, ids[:17]))
        for end in (24, 32, 40, 41):
            text = torch.cat((ids[:1], ids[end - 15 : end + 1]))
            assert torch.equal(found[end - 1], losses(model, text)[-1])


def test_needles_are_stated_once_and_asked_at_the_end():
    ids = torch.randint(20, 60, (4000,), generator=torch.Generator().manual_seed(0))
    text = OwnText("t", ids[:10], ids, (7, 8), lambda string: [1, *string.encode()[-6:]])
    depths = []
    for number in range(4):
        found, codes = haystack(text, 300, Measuring(2, 4, 11), number, 0)
        assert found.shape == (300,)
        assert found[:2].tolist() == [7, 8]
        question = found[-7:]
        places = [i for i in range(293) if torch.equal(found[i : i + 7], question)]
        assert len(places) == 1
        assert found[places[0] + 7] == codes[0]
        assert len(set(codes.tolist())) == 12
        depths.append(places[0])
    assert depths == sorted(depths)
    assert haystack(text, 20, Measuring(2, 4, 3), 0, 0) is None


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"tune_steps": 2}, "a text to tune on"),
        ({"text": torch.tensor([999])}, "ids from 0 to 255"),
        ({"text": torch.arange(100)}, "give more text"),
        ({"text": torch.arange(2000) % 250, "measuring": Measuring(distractors=16)}, "at most 15 distractors"),
    ],
)
def test_what_cannot_be_measured(more, match, folders):
    with pytest.raises(HeadwayError, match=match):
        extend(folders["llama"], 256, **more)


def test_the_end_of_ids_is_held_out():
    text = own_text(torch.arange(200), None, hf.LlamaConfig(**SIZES), length=20, windows=2)
    assert torch.equal(text.train, torch.arange(158))
    assert torch.equal(text.windows(20, 2), torch.arange(158, 200).view(2, 21))


def test_text_is_read_by_the_folder_s_own_tokenizer(folders, tmp_path):
    for file in folders["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    made = {"vocab_size": 250, "special_tokens": ["<s>"], "show_progress": False}
    words.train_from_iterator(
        [TEXT.decode(), "\nThe code of " + " ".join(NAMES)], tokenizers.trainers.BpeTrainer(**made)
    )
    begin = {"single": "<s> $A", "pair": "<s> $A $B", "special_tokens": [("<s>", words.token_to_id("<s>"))]}
    words.post_processor = tokenizers.processors.TemplateProcessing(**begin)
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_bytes(TEXT * 9)
    folder = read_folder(tmp_path)
    text = own_text(tmp_path / "text.txt", folder, load(tmp_path).config, length=128, windows=2)
    assert text.prefix == (words.token_to_id("<s>"),)
    assert text.encode("The cat") == words.encode("The cat", add_special_tokens=False).ids
    windows = text.windows(128, 2)
    assert windows.shape == (2, 129)
    assert (windows[:, 0] == text.prefix[0]).all()
    assert words.decode(windows[0, 1:].tolist()) in (TEXT * 9).decode()
    out = tmp_path / "out"
    done = extend(tmp_path, 128, text=tmp_path / "text.txt", measuring=Measuring(1, 1, 1), tune_steps=1, out=out)
    assert done.measured.text == "text.txt"
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_text_needs_a_tokenizer_unless_it_is_bytes(tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES | {"vocab_size": 300}))
    with pytest.raises(HeadwayError, match=r"expected tokenizer.json, .* got none in a model without a folder"):
        extend(model, 256, text=tmp_path / "text.txt")


def test_command(folders, tmp_path):
    (tmp_path / "text.txt").write_bytes(TEXT)
    options = ["--to", 128, "--how", "ntk", "--text", tmp_path / "text.txt", "--windows", 1, "--needles", 1]
    options += ["--distractors", 1, "--out", tmp_path / "out"]
    found = CliRunner().invoke(app, [str(each) for each in ("extend", folders["llama"], *options)])
    assert found.exit_code == 0, found.output
    assert "rotary → rotary(base=" in found.output
    assert "On text.txt, ntk without tuning" in found.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "各位置的损失" in page
    assert str(tmp_path) not in page
