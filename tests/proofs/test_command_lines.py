"""Random command lines: any input ends in a result or in one sentence, and never destroys existing files.

Every command and option is found by looking at the program, so that a new one is tried too. Each command line runs in a
child of one process that has loaded torch, with 2 GB of memory and 20 seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import random
import resource
import shlex
import shutil
import signal
import stat
import sys
import time
import typing
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from headway import cli
from headway.console import run as run_command
from headway.shapes import HeadwayError

SECONDS, MEMORY = 20, 2 << 30
NOBODY = 65534

SMALL = {
    "compare": "--positions none --train-length 8 --test-lengths 8 --seeds 0 --steps 2 --batch 2 --dim 16 --layers 1 "
    "--heads 2 --out new-compare",
    "train": "--steps 2 --length 8 --batch 2 --dim 16 --layers 1 --heads 2 --out new-run",
    "generate": "--tokens 3",
    "explain": "",
    "draw": "--out new.svg",
    "bench": "--methods none --lengths 8 --rounds 1 --heads 2 --head-dim 8 --no-baselines --out new-bench",
    "studio": "--no-browser",
    "methods": "",
    "accelerate": "",
    "verify": "",
    "extend": "--to 64 --out new-model",
    "plan": "",
}
"""What makes each command quick; options drawn come after it and win."""
PLACES = (
    *("text.txt", "empty.txt", "binary", "one.txt", "folder", "locked", "locked/in", "run", "link", "dangling", "loop"),
    *("absent", "absent/deep", "folder/new.svg", "new.html", "text.txt/under", ".", "", "-", "/dev/null", "/dev/full"),
    *("/dev/stdout", "a\0b", "n" * 300, "\x1b[31mred", "\udcff\udcfe", "猫.svg", "a b.csv", "damaged", "folder.svg"),
    *("link.svg", "old.svg", "old.csv", "/proc/self/mem", "/proc/nothing"),
)
METHODS = (
    *("none", "rotary", "alibi", "t5", "shaw", "learned", "fox", "path", "cope", "stickbreaking", "dapev2", "xpos"),
    *("swin(height=4096,width=4096)", "swin(height=2,width=2)", "learned(max_length=8)", "learned(max_length=10**9)"),
    *("learned(max_length=1000000000)", "rotary(base=nan)", "rotary(base=1e400)", "rotary(base=0)", "rotary(base=-1)"),
    *("rotary(bass=1)", "rotary(", "rotary()", "rotary(base='x')", "exit()", "__import__('os')", "t5(buckets=0)"),
    *(
        "t5(buckets=-5)",
        "rotary,t5",
        "rotary,,",
        ",",
        "all",
        "x" * 100_000,
        "rotary(base=" + "9" * 5000 + ")",
        "(" * 300,
    ),
    *("axial(height=0,width=0)", "dynamicbias(depth=100000)", "randomized(inside='rotary')", "randomized(inside='x')"),
)
TEXTS = ("", " ", "a", "The cat sat.", "\x1b[2J", "\u200d", "\u202e\u0301", "\udcff", "\ud800", "猫" * 70, "w " * 1100)
NUMBERS = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "8",
    str(2**31),
    str(10**12),
    str(2**63),
    str(10**22),
    "9" * 5000,
    "1.5",
    "x",
    "",
    "٣",
)
FLOATS = ("0", "1", "0.5", "-1", "1e-50", "1e400", "nan", "inf", "-inf", "x", "", "1e308")
WORDS = {
    "task": ("text", "recall", "copy"),
    "optimizer": ("adamw", "adam", "sgd"),
    "vocabulary": ("bytes", "bpe", "text.txt", "folder", "/dev/full"),
    "kind": ("decoder", "encoder", "encoder-decoder"),
    "norm": ("rms", "layer"),
    "activation": ("gelu", "swiglu"),
    "init": ("xavier", "normal", "gpt2", "t5", "orthogonal"),
    "schedule": ("cosine", "constant"),
    "extend": ("linear", "yarn", "all", "drope"),
    "language": ("en", "zh", "fr"),
    "width": ("single", "double"),
    "modes": ("forward", "decode", "forward+backward"),
    "masks": ("causal", "full", "causal,causal"),
    "backends": ("auto", "all", "native", "auto,tiled"),
    "dtype": ("float32", "bfloat16", "float16", "int8"),
    "device": ("cpu", "cuda", "x", "meta", "cpu:7", "mps", "cuda:99"),
    "test_lengths": ("8,16", "0,-1", "8", str(10**12), "16,8", "8,8"),
    "lengths": ("8", "0,-1", "1", "8,8", str(10**12)),
    "seeds": ("0", "0,1", "-1", "0,0", str(10**22), ""),
    "what": ("position", "run", "split", "head", "wall", "no-such-view"),
    "view": ("split", "head", "bias", "rotation", "no-such-view", "vectors"),
}
PATIENT = {"steps", "rounds", "tokens", "drop_position", "recalibrate", "warmup"}
"""Options of which a large number is honoured, however long that takes."""


@dataclass
class Parameter:
    """An option or argument, as the program declares it."""

    name: str
    kind: Any
    flags: list[str] = field(default_factory=list)
    argument: bool = False


def commands() -> dict[str, list[Parameter]]:
    found = {}
    for command, path in cli.commands().items():
        module = importlib.import_module(f"headway.{path.parent.name}.{path.stem}")
        hints = typing.get_type_hints(module.command, include_extras=True)
        declared = []
        for name in inspect.signature(module.command).parameters:
            kind, about = typing.get_args(hints[name])
            flags = [one for text in about.param_decls or () for one in text.split("/")]
            argument = type(about).__name__ == "ArgumentInfo"
            if kind is bool and not flags:
                flags = [f"--{name.replace('_', '-')}", f"--no-{name.replace('_', '-')}"]
            declared.append(Parameter(name, kind, flags or [f"--{name.replace('_', '-')}"], argument))
        found[command] = declared
    return found


def value(parameter: Parameter, dice: random.Random) -> str:
    kinds = {parameter.kind, *typing.get_args(parameter.kind)}
    pool: list[str] = []
    if int in kinds:
        pool = [one for one in NUMBERS if parameter.name != "threads" or one != "8"]  # whose seconds add up
        pool = [one for one in pool if parameter.name not in PATIENT or len(one) < 3 or len(one) > 20]
    elif float in kinds:
        pool = list(FLOATS)
    elif Path in kinds:
        pool = list(PLACES)
    elif parameter.name in WORDS:
        pool = [*WORDS[parameter.name] * 3, *TEXTS[:-1]]
    elif parameter.name in ("position", "positions", "methods", "name", "which"):
        pool = [*METHODS, "run", ""]
    elif parameter.name == "text" and parameter.argument:
        pool = [*TEXTS, *PLACES, *["text.txt"] * 8]
    else:
        pool = list(TEXTS)
    return dice.choice(pool)


def command_line(dice: random.Random) -> list[str]:
    known = commands()
    name = dice.choice([*known, "train", "explain", "draw", "generate", "compare", "bench", "methods"])
    if dice.random() < 0.02:
        return dice.choice([[], ["--version"], ["--help"], ["\x1b[31m"], ["nope"], [name, "--help"], ["\0"]])
    words = [name]
    options = SMALL[name].split()
    for parameter in known[name]:
        if parameter.argument:
            likely = parameter.name in ("run", "what", "which", "name") or name == "explain" or dice.random() < 0.5
            if likely and not (name == "train" and dice.random() < 0.7):
                plain = {"run": "run", "what": "position"}.get(parameter.name)
                words.append(plain if plain and dice.random() < 0.6 else value(parameter, dice))
    if name in ("train", "compare") and dice.random() < 0.7:
        words = [name, "text.txt"]
    for parameter in dice.sample(known[name], min(len(known[name]), dice.choice([0, 1, 1, 2, 3]))):
        if parameter.argument or parameter.name == "bars":  # which measures for minutes
            continue
        flag = dice.choice(parameter.flags)
        given = value(parameter, dice)
        if parameter.kind is bool:
            options.append(flag)
        else:
            options += [flag, given] if dice.random() < 0.7 else [f"{flag}={given}"]
    if dice.random() < 0.03:
        options.append(dice.choice(["--nope", "--", "-x", "--seed", "extra", "--lr"]))
    if name == "studio":
        options.append("--no-browser")
    return words + options


def furnish(folder: Path, run: Path) -> None:
    """The folder that a command line finds itself in."""
    (folder / "text.txt").write_text("the cat sat on the mat. 猫坐在垫子上。" * 20)
    (folder / "empty.txt").touch()
    (folder / "one.txt").write_text("a")
    (folder / "binary").write_bytes(bytes(range(256)) * 8)
    (folder / "old.svg").write_text("old")
    (folder / "old.csv").write_text("old")
    (folder / "folder").mkdir()
    (folder / "folder" / "note.txt").write_text("kept")
    (folder / "folder.svg").mkdir()
    (folder / "locked").mkdir()
    (folder / "link").symlink_to("text.txt")
    (folder / "link.svg").symlink_to("old.svg")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    shutil.copytree(run, folder / "run")
    shutil.copytree(run, folder / "damaged")
    for path in (folder / "damaged" / "checkpoints").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name not in (".lock", ".headway") and stat.S_ISREG(path.lstat().st_mode)
    }


@dataclass
class Outcome:
    """How a command line ended."""

    words: list[str]
    status: int
    out: str
    err: str
    seconds: float
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = shlex.join([word if len(word) < 100 else word[:60] + "…" for word in self.words])
        return f"{', '.join(self.faults)}: headway {shown!a}\n  status {self.status}: {self.err[:600]}"


def run_child(words: list[str], folder: Path, files: tuple[Path, Path], dice: random.Random) -> int:
    """Fork, run, and give the wait status; negative is a signal."""
    nobody = os.geteuid() == 0 and dice.random() < 0.3
    encoding = dice.choice(["utf-8", "utf-8", "ascii", "cp936", "cp1252"])
    columns = dice.choice([None, None, "1", "0", "x", str(10**9), "40"])
    bare = dice.random() < 0.1
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(6 * SECONDS)  # of a machine that may do other things meanwhile
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            with open("/proc/self/statm", "rb") as statm:
                mapped = int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
            os.chdir(folder)
            (folder / "locked").chmod(0)
            for handle, path in zip((1, 2), files, strict=True):
                opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
                os.dup2(opened, handle)
                os.close(opened)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding=encoding, closefd=False)  # noqa: SIM115
            os.environ.pop("COLUMNS", None)
            if columns is not None:
                os.environ["COLUMNS"] = columns
            if bare:
                for name in ("HOME", "TERM", "LANG", "XDG_CACHE_HOME"):
                    os.environ.pop(name, None)
            if nobody:
                for path in (folder, *folder.rglob("*")):
                    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            if words[:1] == ["studio"]:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
                signal.alarm(4)
            sys.argv = ["headway", *words]
            try:
                cli.main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tried(words: list[str], base: Path, run: Path, dice: random.Random) -> Outcome:
    folder, files = base / "work", (base / "out", base / "err")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    furnish(folder, run)
    before, around = contents(folder), set(base.iterdir())
    begin = time.monotonic()
    status = run_child(words, folder, files, dice)
    seconds = time.monotonic() - begin
    (folder / "locked").chmod(0o755)
    out, err = (path.read_bytes().decode("utf-8", "backslashreplace") for path in files)
    found = Outcome(words, status, out, err, seconds)
    if status in (-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL):
        found.faults.append(f"no answer in {SECONDS} s")
    elif status not in (0, 1, 2, 130):
        found.faults.append(f"status {status}")
    if "Traceback" in err or "Traceback" in out:
        found.faults.append("a traceback")
    if "a bug of headway" in err:
        found.faults.append("a bug")
    if status > 0 and status != 130 and not err.strip() and "Interrupted" not in out and "FAIL" not in out:
        found.faults.append("no sentence")
    if status != 0 and (err.count("\n") > 3 or len(err) > 1000):
        found.faults.append("more than a sentence")
    if any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in out.replace("\r", "") + err.replace("\r", "")):
        found.faults.append("control characters")
    if set(base.iterdir()) - around - set(files):
        found.faults.append("files outside")
    if status not in (0, 130):
        after = contents(folder)
        if lost := [name for name, data in before.items() if after.get(name) != data]:
            found.faults.append(f"destroyed {', '.join(lost[:3])}")
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model; and all that commands import is loaded in this process, so that its children need not."""

    importlib.import_module("pydoc_data.topics")  # the built-in text
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text").write_text("the cat sat on the mat. " * 40)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for line in (
            f"train text {SMALL['train']}",
            "generate new-run --tokens 1",
            "explain a --html new.html",
            "draw position alibi --out new.svg",
            "methods none",
            f"bench {SMALL['bench']}",
            f"compare text {SMALL['compare']}",
            "methods --nope",
            "studio absent",
        ):
            with contextlib.suppress(SystemExit, HeadwayError):
                run_command(cli.app, line.split())
    return folder / "new-run"


def faults(count: int, seed: int, base: Path, run: Path) -> list[Outcome]:
    """The outcomes with faults of so many random command lines."""
    base.chmod(0o777)
    dice = random.Random(seed)
    found = []
    for _ in range(count):
        outcome = tried(command_line(dice), base, run, dice)
        if outcome.faults:
            found.append(outcome)
            print(outcome, flush=True)
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each command line runs in a forked child")
@pytest.mark.parametrize(
    ("count", "seed"), [(10, 1), *(pytest.param(250, seed, marks=pytest.mark.slow) for seed in range(2, 10))]
)
def test_random_command_lines(tmp_path: Path, run: Path, count: int, seed: int) -> None:
    found = faults(count, seed, tmp_path, run)
    assert not found, "\n".join(map(str, found))
