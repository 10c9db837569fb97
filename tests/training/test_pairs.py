from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import tiny_settings
from torch import Tensor
from typer.testing import CliRunner

from headway.cli import app
from headway.shapes import HeadwayError
from headway.training.batches import IGNORED, predict
from headway.training.checkpoint import model_tensors
from headway.training.decoding import beam_search, generate_batch, speculate
from headway.training.generation import begin, generate
from headway.training.pairs import EncodedPairs, PairBatches, Pairs, PairValidation, read_pairs
from headway.training.run import RunResult, load_model, open_run, train
from headway.training.settings import TrainSettings
from headway.training.text import Text
from headway.training.vocabularies import vocabulary_from_json
from headway.training.vocabulary import Bpe, Bytes, Delimited
from headway.transformer import Transformer

CONFIG: dict[str, Any] = {"kind": "encoder-decoder", "dim": 16, "layers": 1, "heads": 2}


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def of(*pairs: tuple[bytes, bytes], held_out: int = 1) -> Pairs:
    return Pairs([source for source, _ in pairs], [target for _, target in pairs], Text(b"", "some.tsv"), held_out)


def test_both_formats_are_read(tmp_path: Path) -> None:
    expected = [("eins", "one"), ("", "zero 0"), ("zwei 猫", ""), ("drei", "three")]
    tsv = "".join(f"{source}\t{target}\r\n" for source, target in expected)
    jsonl = "\n".join(json.dumps({"target": target, "source": source}) for source, target in expected)
    for path in (
        written(tmp_path / "a.tsv", tsv),
        written(tmp_path / "b.TSV", "\ufeff" + tsv.removesuffix("\r\n")),
        written(tmp_path / "c.jsonl", jsonl),
    ):
        pairs = read_pairs(path)
        assert [(s.decode(), t.decode()) for s, t in zip(pairs.sources, pairs.targets, strict=True)] == expected
        assert (len(pairs), pairs.held_out, pairs.trained_on) == (4, 1, "eins\n\nzwei 猫\none\nzero 0\n".encode())
    assert read_pairs(written(tmp_path / "d.tsv", b"\xff\tb\n" * 40)).held_out == 4
    assert read_pairs(written(tmp_path / "e.jsonl", '{"source": "\\ud800", "target": "a\\tb\\n"}\n' * 2)).targets[
        1
    ] == (b"a\tb\n")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a\tb\n" * 9, r"^expected a file of pairs for an encoder-decoder, \.tsv or \.jsonl, got .*a\.txt: "),
        ("a.tsv", "a\tb\nab\n", r"^expected a source, a tab and a target in line 2 of .*a\.tsv, got 1 columns$"),
        ("a.tsv", "a\tb\n\nc\td\n", r"in line 2 of .*, got 1 columns$"),
        ("a.tsv", "a\tb\tc\n", r"in line 1 of .*, got 3 columns$"),
        ("a.tsv", "a\tb\n", r"^expected at least two pairs, one to train on and one to validate on, got 1 in "),
        ("a.tsv", "", r"^expected text in .*, got an empty file"),
        ("a.jsonl", '{"source": "a"', r"^expected JSON in line 1 of .*a\.jsonl, got content that does not parse: "),
        ("a.jsonl", "[1]\n", r'^expected \{"source": "…", "target": "…"\} in line 1 of .*, got a list of 1$'),
        ("a.jsonl", '{"source": "a", "to": "b"}\n', r"in line 1 of .*, got an object of 'source, to'$"),
        ("a.jsonl", '{"source": "a", "target": 3}\n', r"^expected target to be a text in line 1 of .*, got 3$"),
    ],
)
def test_what_is_no_pair_is_named_by_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(HeadwayError, match=message):
        read_pairs(written(tmp_path / name, content))


def test_what_cannot_be_trained_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", "abc\tdefg\n" * 9)
    given: dict[str, Any] = {"out": tmp_path / "run", "model_config": CONFIG, "settings": tiny_settings(length=5)}
    with pytest.raises(HeadwayError, match=r"got none: write a source, a tab and a target on each line$"):
        train(None, **given)
    with pytest.raises(HeadwayError, match=r"length=4 tokens, start or end included, got a target of 5 in line 1 of "):
        train(path, **{**given, "settings": tiny_settings(length=4)})
    with pytest.raises(HeadwayError, match=r"^expected no watch and no log_dir for pairs"):
        train(path, **given, watch=1)
    assert train(path, **given).history.status == "done"


@pytest.mark.parametrize("position", ["rotary", "learned", "alibi", "t5", "none"])
def test_padding_changes_nothing(position: str) -> None:
    """The logits of a batch are those of each pair alone, and its loss is the mean over their targets and ends."""
    pairs = of((b"abcdefgh", b"x"), (b"", b"yz yz yz"), (b"q", b""), held_out=3)
    words = Delimited(Bytes())
    torch.manual_seed(0)
    model = Transformer(words.size, 16, layers=2, heads=2, kind="encoder-decoder", position=position).double().eval()
    encoded = EncodedPairs(pairs, words, 9)
    inputs, targets = encoded.examples(torch.arange(3))
    together = predict(model, inputs, torch.device("cpu"))
    losses: list[Tensor] = []
    for row, (source, target) in enumerate(zip(pairs.sources, pairs.targets, strict=True)):
        ids = torch.tensor([[256, *target, 257]])
        alone = model(ids[:, :-1], source=torch.tensor([[*source, 257]]))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-12, rtol=1e-12)
        assert targets[row].tolist() == [*target, 257] + [IGNORED] * (targets.shape[1] - len(alone))
        losses += [-alone.log_softmax(-1)[at, token] for at, token in enumerate(ids[0, 1:])]
    for batch in (1, 2, 3):
        assert PairValidation(encoded, batch)(model) == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_batches_are_a_function_of_seed_and_step_and_leave_out_what_is_held_out() -> None:
    pairs = EncodedPairs(of(*((bytes([i]), bytes([i])) for i in range(50)), held_out=10), Delimited(Bytes()), 4)
    seen: set[int] = set()
    for step in range(60):
        inputs, targets = PairBatches(pairs, 8, seed=1)(step)
        again, _ = PairBatches(pairs, 8, seed=1)(step)
        assert all(torch.equal(inputs[name], again[name]) for name in inputs)
        assert torch.equal(inputs["source"][:, 0], targets[:, 0])
        seen |= set(targets[:, 0].tolist())
    assert seen == set(range(40))
    assert not torch.equal(PairBatches(pairs, 8, seed=2)(0)[1], PairBatches(pairs, 8, seed=1)(0)[1])
    assert PairValidation(pairs, 4).index.tolist() == list(range(40, 50))


@pytest.mark.parametrize("words", [Bytes(), Bpe.train(b"the cat and the hat " * 9, size=260)])
def test_start_and_end_are_kept_apart_from_text(words: Bytes | Bpe) -> None:
    both = vocabulary_from_json(json.loads(json.dumps(Delimited(words).to_json())))
    assert isinstance(both, Delimited)
    assert both.to_json() == Delimited(words).to_json()
    assert (both.start, both.end, both.size) == (words.size, words.size + 1, words.size + 2)
    assert both.decode(both.target(b"the cat")) == b"the cat"
    assert both.bytes_per_token == words.bytes_per_token
    with pytest.raises(HeadwayError, match=rf"ids in 0 … {both.size - 1}, got {both.size}"):
        both.decode([both.size])
    with pytest.raises(HeadwayError, match=r"it is damaged"):
        vocabulary_from_json({"kind": "delimited", "words": both.to_json()})


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    dice = random.Random(1)
    lines = "".join(f"{'ab' * dice.randint(0, 3)}\t{'c' * dice.randint(0, 7)}\n" for _ in range(60))
    path = written(tmp_path / "a.tsv", lines)
    config = {**CONFIG, "dropout": 0.2, "attention_dropout": 0.1}
    given: dict[str, Any] = {"model_config": config, "settings": tiny_settings(length=8, validate_every=2)}
    for vocabulary in ("bytes", "bpe"):
        given |= {"vocabulary": vocabulary, "vocabulary_size": 260}
        whole = train(path, out=tmp_path / f"whole-{vocabulary}", **given)
        out = tmp_path / f"cut-{vocabulary}"
        stops = iter([False, False, True])
        assert train(path, out=out, stop=lambda: next(stops), **given).history.status == "interrupted"  # noqa: B023
        resumed = train(path, out=out, **given)
        assert resumed.resumed_from == 3
        assert resumed.history.loss == whole.history.loss
        assert resumed.history.validation_loss == whole.history.validation_loss
        tensors = model_tensors(resumed.model), model_tensors(whole.model), model_tensors(load_model(out)[0])
        assert all(torch.equal(one[name], tensors[0][name]) for one in tensors[1:] for name in tensors[0])
    with pytest.raises(HeadwayError, match=r"expected the text of the run in .*, got another"):
        train(written(path, lines + "a\tb\n"), out=out, **given)


@pytest.fixture(scope="module")
def reversing(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A model that learned to reverse short strings."""
    strings = ["".join(one) for size in range(1, 5) for one in itertools.product("abcdef", repeat=size)]
    random.Random(0).shuffle(strings)
    folder = tmp_path_factory.mktemp("pairs")
    path = written(folder / "reversed.tsv", "".join(f"{one}\t{one[::-1]}\n" for one in strings))
    settings = TrainSettings(
        steps=250, batch=32, length=5, lr=7e-3, warmup=20, validate_every=None, checkpoint_every=None
    )
    with torch.random.fork_rng([]):
        return train(path, out=folder / "run", model_config={**CONFIG, "dim": 32, "heads": 4}, settings=settings)


def test_it_learns_to_reverse_strings_it_has_not_seen(reversing: RunResult) -> None:
    model, words, run = load_model(reversing.run.path)
    assert isinstance(model, Transformer)
    assert isinstance(words, Delimited)
    new = read_pairs(run.text["name"]).sources[-155:]
    given = [begin(words, one.decode()) for one in new]
    rows = list(
        generate_batch(
            model, [one[0] for one in given], sources=[words.source(one) for one in new], tokens=6, temperature=0,
            stop=[words.end],
        )
    )  # fmt: skip
    found = [words.decode([row[i] or 0 for row in rows if row[i] is not None]) for i in range(len(new))]
    right = sum(one == source[::-1] for one, source in zip(found, new, strict=True))
    assert right > 0.9 * len(new)
    assert reversing.history.validation_loss[-1] < 0.1


def test_greedy_batches_and_beams_agree_with_the_formula(reversing: RunResult) -> None:
    model, words, _ = load_model(reversing.run.path)
    assert isinstance(model, Transformer)
    sources = ["abc", "f", "", "edcb"]
    expected = []
    for text in sources:
        prompt, source, end = begin(words, text)
        assert source is not None
        ids = prompt
        with torch.no_grad():
            while len(ids) < 8 and ids[-1] != end:  # without a cache
                ids = torch.cat([ids, model(ids[None], source=source[None])[0, -1].argmax()[None]])
        expected.append(ids[1:].tolist())
        greedy: dict[str, Any] = {"tokens": 7, "source": source}
        assert list(generate(model, prompt, temperature=0, stop=[end], **greedy)) == expected[-1]
        assert list(beam_search(model, prompt, beams=1, stop=end, **greedy)[0].ids) == expected[-1]
        best = beam_search(model, prompt, beams=4, stop=end, length_penalty=0, **greedy)[0]
        line = torch.tensor([[*prompt.tolist(), *best.ids]])
        with torch.no_grad():
            likely = model(line[:, :-1], source=source[None])[0].log_softmax(-1)
        assert best.score == pytest.approx(likely.gather(1, line[0, 1:, None]).sum().item(), abs=1e-4)
    given = [begin(words, text) for text in sources]
    rows = list(
        generate_batch(
            model, [one[0] for one in given], sources=[one[1] for one in given if one[1] is not None], tokens=7,
            temperature=0, stop=[given[0][2] or 0],
        )
    )  # fmt: skip
    assert [[row[i] for row in rows if row[i] is not None] for i in range(len(sources))] == expected


def test_generate_prints_the_target_alone(reversing: RunResult) -> None:
    run, path = CliRunner(), str(reversing.run.path)
    for more in (["--temperature", "0"], ["--beams", "3"], ["--temperature", "0.05", "--seed", "4"]):
        assert run.invoke(app, ["generate", path, "abcd", *more]).output == "dcba\n"
    piped = run.invoke(app, ["generate", path, "-", "--temperature", "0"], input="ab\nfed\n")
    assert piped.output == "ba\ndef\n"
    assert run.invoke(app, ["generate", path, "abcd", "--temperature", "0", "--tokens", "2"]).output == "dc\n"


def test_the_command_line_trains_on_pairs(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"source": "a", "target": "b"}\n' * 20)
    line = (
        f"train {path} --kind encoder-decoder --dim 16 --layers 1 --heads 2 --steps 2 --length 8 --out {tmp_path}/run"
    )
    found = CliRunner().invoke(app, line.split())
    assert found.exit_code == 0, found.output
    assert "after 2 steps" in found.output
    assert open_run(tmp_path / "run").config["kind"] == "encoder-decoder"


def test_a_source_is_asked_for_where_one_is_read(reversing: RunResult) -> None:
    model, words, _ = load_model(reversing.run.path)
    assert isinstance(model, Transformer)
    decoder = Transformer(vocab=9, dim=16, layers=1, heads=2)
    prompt, source, _ = begin(words, "ab")
    assert source is not None
    for call in (generate, generate_batch, beam_search):
        first: Any = [prompt] if call is generate_batch else prompt
        with pytest.raises(
            HeadwayError, match=r"got an encoder-decoder, which continues nothing without a source: give"
        ):
            call(model, first, tokens=1)
    with pytest.raises(HeadwayError, match=r"got an encoder-decoder"):
        speculate(model, model, prompt, tokens=1)
    with pytest.raises(HeadwayError, match=r"^expected no source for a decoder, "):
        generate(decoder, torch.tensor([1]), tokens=1, source=torch.tensor([1]))
    with pytest.raises(HeadwayError, match=r"^expected source ids in 0 … 257, got 258 … 258: "):
        generate(model, prompt, tokens=1, source=torch.tensor([258]))
    with pytest.raises(HeadwayError, match=r"^expected at least one source token, got none: end it, as "):
        generate(model, prompt, tokens=1, source=torch.tensor([], dtype=torch.long))
    with pytest.raises(HeadwayError, match=r"^expected a source for each of 2 prompts, got 1$"):
        generate_batch(model, [prompt, prompt], tokens=1, sources=[source])


def test_views_say_that_they_need_a_source(reversing: RunResult) -> None:
    for command in ("explain ab --model", "draw wall --text ab --model"):
        found = CliRunner().invoke(app, [*command.split(), str(reversing.run.path)])
        assert isinstance(found.exception, HeadwayError), found.output
        assert "expected a source, because this Transformer is an encoder-decoder" in str(found.exception)
