"""Make the models that ship with the package: their text, their training, what is measured; what ``make models`` runs.

Usage: python docs/models.py WORDS FOLDER [NAME …]

WORDS is the archive of jieba (MIT), a list of Chinese words with their frequencies. FOLDER holds texts and runs; a run
that was broken off is resumed. Three texts are read, by these shares:

    english.txt   the language reference that ships with Python
    chinese.txt   pages of this project, as docs/models-zh.txt keeps them
    repeated.txt  two to thirty random words, over and over, in one of the languages: only what stood before predicts
                  them, so that heads learn to look for it
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from headway.inspect import MaskedPatterns, Patterns, masked_patterns, patterns
from headway.shipped import FOLDER, MEASURED, NAMES, OPENING, path_of
from headway.training import (
    Checkpoints,
    TrainSettings,
    Vocabulary,
    load_model,
    open_run,
    read_json,
    read_text,
    write_json_atomic,
)
from headway.training.masking import MaskedValidation
from headway.training.run import SETTINGS_SEAL
from headway.training.vocabulary import Masked

TEXTS = {"english.txt": 0.25, "chinese.txt": 0.1, "repeated.txt": 0.65}
TRAIN = {
    "vocabulary": "bpe",
    "vocabulary_size": 1024,
    "dim": 64,
    "layers": 2,
    "heads": 4,
    "head_dim": 32,
    "hidden": 128,
}
TRAIN |= {"bias": True, "qk_norm": True, "length": 128, "batch": 8, "lr": 0.008, "warmup": 50, "schedule": "constant"}
TRAIN |= {"validate_every": 500, "checkpoint_every": 500, "threads": 1}
"""Options of ``headway train``. Normalised queries and keys, and a bias, let heads form in few steps."""
STEPS = {"decoder-rotary": 6000, "decoder-t5": 4000, "encoder-sinusoidal": 6000}
MASKED: dict[str, Any] = {"kind": "encoder", "mask_share": 0.3, "lr": 0.004}
"""Options of an encoder: more tokens to learn from in each step, and the rate at which they are learned well."""
COMMON, LINES = 300, 20_000
HEADS = ("previous", "following", "local", "induction", "elsewhere")
"""What heads are measured by: induction of decoders, following and elsewhere of encoders, the others of both."""
SINGLE_BYTES = 256
"""Ids below are single bytes, which random tokens leave out."""
BANDS = ((1, 8), (8, 32), (32, 128))
"""Positions over which the loss on text is averaged."""


def write_texts(folder: Path, words: Path) -> None:
    """Write the three texts, the same at every call with one version of Python."""
    english = bytes(read_text().data).decode()
    chinese = Path(__file__).with_name("models-zh.txt").read_text(encoding="utf-8")
    found = {"english.txt": english, "chinese.txt": chinese, "repeated.txt": repetitions(english, words)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in found.items():
        (folder / name).write_text(text, encoding="utf-8")


def repetitions(english: str, words: Path) -> str:
    """Lines of a few random words, repeated."""
    draw = random.Random(0)
    counted = Counter(re.findall(r"\b[a-z]{2,}\b", english.lower()))
    in_english = sorted(counted, key=lambda word: (-counted[word], word))[:COMMON]
    in_english += sorted(set(re.findall("[A-Za-z]+", OPENING["en"]))) * 2
    with tarfile.open(words) as archive:
        file = archive.extractfile("jieba-0.42.1/jieba/dict.txt")
        assert file is not None
        rows = [line.split() for line in file.read().decode().splitlines()]
    frequency = {word: int(count) for word, count, *_ in rows if re.fullmatch("[\u4e00-\u9fff]+", word)}
    in_chinese = sorted(frequency, key=lambda word: (-frequency[word], word))[:COMMON]
    in_chinese += sorted(set(re.findall("[\u4e00-\u9fff]", OPENING["zh"]))) * 2
    lines = []
    for _ in range(LINES):
        known, join, stop, end = draw.choice([(in_english, " ", " ", "."), (in_chinese, "", "，", "。")])
        count = round(2 * 15 ** draw.random())  # short ones are learned first
        segment = join.join(draw.choice(known) for _ in range(count))
        lines.append(stop.join([segment] * max(2, draw.randint(40, 90) // count)) + end)
    return "\n".join(lines)


def train(name: str, folder: Path) -> Path:
    """Run ``headway train`` for a model, and return its run folder."""
    texts = [*TEXTS, "--weights", ",".join(map(str, TEXTS.values()))]
    options: list[str] = []
    kind, position = name.split("-")
    for key, value in {**TRAIN, **(MASKED if kind == "encoder" else {})}.items():
        options += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
    options += ["--steps", str(STEPS[name]), "--position", position, "--out", f"run-{name}"]
    command = [sys.executable, "-m", "headway", "train", *texts, *options]
    print("headway", *command[3:], flush=True)
    # one thread of the tokenizer: the order of equal pairs is then always the same
    subprocess.run(command, cwd=folder, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}, check=True)
    return folder / f"run-{name}"


def pack(run: Path, out: Path) -> None:
    """Copy what opening a run needs: settings, history, and the last checkpoint without optimizer and clock times."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copy(run / "settings.json", out)
    write_json_atomic(
        out / "history.json", {**open_run(run).history.to_json(), "seconds": 0.0, "tokens_per_second": 0.0}
    )
    model, _, opened = load_model(run)
    values = {"settings": opened.settings.plain(), "extra": {SETTINGS_SEAL: opened.seal}}
    Checkpoints(out / "checkpoints").save(opened.settings.steps, model, None, values)


def measure(out: Path, folder: Path) -> dict[str, Any]:
    """Shares of the heads on random tokens, losses on repetitions, and on the held-out end of the texts.

    Of a decoder the latter are by position; an encoder sees both sides of each.
    """
    model: Any
    model, vocabulary, run = load_model(out)
    found: Patterns | MaskedPatterns
    of_texts: dict[str, Any]
    if isinstance(vocabulary, Masked):
        found = masked_patterns(model, vocabulary.mask, lowest=SINGLE_BYTES)
        of_texts = {"loss_by_text": {name: of_masks(model, vocabulary, folder / name) for name in TEXTS}}
    else:
        found = patterns(model, lowest=SINGLE_BYTES)
        of_texts = {"loss_by_position": {name: by_position(model, vocabulary, folder / name) for name in TEXTS}}
    heads = {what: getattr(found, what) for what in HEADS if hasattr(found, what)}
    return {
        "position": run.config["position"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation_loss": round(run.history.validation_loss[-1], 3),
        "loss": {"new": round(found.new, 3), "repeated": round(found.repeated, 3)},
        **of_texts,
        "heads": {what: [[round(x, 3) for x in row] for row in share.tolist()] for what, share in heads.items()},
        "strongest": {what: list(divmod(int(share.argmax()), share.shape[1])) for what, share in heads.items()},
    }


def held_out(vocabulary: Vocabulary, text: Path) -> Tensor:
    """Tokens of the last tenth of a text."""
    data = text.read_bytes()
    return vocabulary.encode(data[-len(data) // 10 :].decode("utf-8", "ignore").encode())


def of_masks(model: Any, vocabulary: Masked, text: Path) -> float:
    """Mean loss in nats of masked tokens in windows of the last tenth of a text, at the usual share."""
    share = TrainSettings().mask_share
    return round(MaskedValidation(held_out(vocabulary, text), 128, 8, words=vocabulary, share=share)(model), 3)


@torch.no_grad()
def by_position(model: Any, vocabulary: Vocabulary, text: Path) -> dict[str, float]:
    """Mean loss in nats of the tokens at some positions of windows of the last tenth of a text."""
    ids = held_out(vocabulary, text)
    windows = ids[: len(ids) // 128 * 128].reshape(-1, 128)[:64]
    loss = F.cross_entropy(model(windows)[:, :-1].transpose(1, 2), windows[:, 1:], reduction="none").mean(0)
    return {f"{low}-{high - 1}": round(float(loss[low - 1 : high - 1].mean()), 3) for low, high in BANDS}


README = """# Models that ship with headway

Two decoders and an encoder of {layers} layers and {heads} heads, width {dim}, with normalised queries and keys, trained
by `make models` on {batch} × {length} tokens a step: {steps} steps.
The encoder learns {masked} % masked tokens. They show what heads learn; they are no writers.

Texts, by their share of each batch: {shares}.
`english.txt` is Python's language reference, `chinese.txt` pages of this project, `repeated.txt` random words of both
languages, repeated (English ones from Python's reference, Chinese ones the most frequent of jieba's list, MIT).

Measured by the same command, on random tokens that repeat every 24, in percent of a head's attention: the token before
(previous), the token after (following), the last eight, of the encoder fewer than eight to either side (local), the
token after the same token one period before (induction), and, of masked tokens, the same token in other periods
(elsewhere).

| model | layer | previous | following | local | induction | elsewhere |
|---|---|---|---|---|---|---|
{table}

Loss in nats per token: of random tokens when they are new and when they repeat, and in held-out text, of decoders by
position; of the encoder they are masked.

| model | new | repeated | english | chinese | repeated words |
|---|---|---|---|---|---|
{losses}
"""


def readme() -> str:
    """What the models are, as a page beside them."""
    table, losses = [], []
    for name in NAMES:
        found = read_json(path_of(name) / MEASURED)
        for layer in range(len(found["heads"]["previous"])):
            shares = [found["heads"][what][layer] if what in found["heads"] else [] for what in HEADS]
            row = [" · ".join(f"{100 * x:.0f}" for x in share) or "–" for share in shares]
            table.append(f"| {name} | {layer} | {' | '.join(row)} |")
        if "loss_by_text" in found:
            by = [f"{found['loss_by_text'][text]:.2f}" for text in TEXTS]
        else:
            by = [", ".join(f"{at}: {x:.2f}" for at, x in found["loss_by_position"][text].items()) for text in TEXTS]
        losses.append(f"| {name} | {found['loss']['new']:.2f} | {found['loss']['repeated']:.2f} | {' | '.join(by)} |")
    said = {
        "masked": round(100 * MASKED["mask_share"]),
        "steps": ", ".join(f"{name} {STEPS[name]:,}" for name in NAMES),
        "shares": ", ".join(f"{name} {100 * share:.0f} %" for name, share in TEXTS.items()),
    }
    return README.format(**TRAIN, **said, table="\n".join(table), losses="\n".join(losses))


def main(words: str, folder: str, *names: str) -> None:
    """Make all models, or some."""
    work = Path(folder)
    write_texts(work, Path(words))
    for name in names or NAMES:
        out = path_of(name)
        pack(train(name, work), out)
        found = measure(out, work)
        write_json_atomic(out / MEASURED, found)
        print(name, found["strongest"], found["heads"], found["loss"], flush=True)
    (FOLDER / "README.md").write_text(readme(), encoding="utf-8")
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    print(f"{FOLDER}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
