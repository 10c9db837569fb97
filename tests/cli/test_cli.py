"""The commands as a user meets them: what works, and one clear line for what does not."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from headway import cli
from headway.arguments import split
from headway.positions import methods

SMALL = ["--train-length", "8", "--test-lengths", "8,16", "--seeds", "0", "--steps", "3", "--batch", "16"]
SMALL += ["--dim", "16", "--layers", "1", "--heads", "2"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line in this process; gives (exit status, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["headway", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat. 猫坐在垫子上。" * 40)
    for name, position in (("run", "rotary"), ("short", "learned(max_length=16)")):
        arguments = f"train {text} --position {position} --steps 4 --length 8 --batch 16 --dim 16 --layers 1 --heads 2"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["headway", *arguments.split(), "--out", str(folder / name)])
            with pytest.raises(SystemExit, match=r"^0$"):
                cli.main()
    return folder


def test_help_answers_at_once_and_without_torch():
    def taken() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    seconds = []
    for _ in range(5):
        begin = taken()
        result = subprocess.run([sys.executable, "-m", "headway", "--help"], capture_output=True, text=True, check=True)
        seconds.append(taken() - begin)
        if seconds[-1] < 0.6:
            break
    assert all(command in result.stdout for command in ("compare", "train", "generate", "bench", "methods"))
    program = "import sys, headway.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    # 0.3 s is the promise on a quiet machine; the tests share theirs, so that it is processor time which counts
    assert min(seconds) < 0.6, seconds


def test_version(run):
    status, out, _ = run("--version")
    assert status == 0
    assert out.startswith("headway 0.")


def test_compare_ends_by_naming_its_report(run, tmp_path):
    status, out, err = run("compare", *SMALL, "--positions", "rotary, learned", "--out", tmp_path / "out")
    assert status == 0, err
    report = Path(out.rstrip().rpartition("Report: ")[2])
    assert report.name == "report.html"
    assert "<html" in report.read_text()[:500].lower()
    assert "rotary" in out
    assert "learned" in out
    status, again, _ = run("compare", *SMALL, "--positions", "rotary, learned", "--out", tmp_path / "out")
    assert status == 0
    assert again.rpartition("Report: ")[2] == out.rpartition("Report: ")[2]


def test_brackets_in_a_path_are_shown_as_they_are(run, tmp_path):
    status, out, err = run("compare", *SMALL, "--positions", "none", "--out", tmp_path / "[bold]x")
    assert status == 0, err
    assert Path(out.rstrip().rpartition("Report: ")[2]) == tmp_path / "[bold]x" / "report.html"


QUICK = ["--lengths", "8", "--rounds", "1", "--heads", "2", "--head-dim", "8", "--no-baselines"]


def test_bench_ends_by_naming_its_report(run, tmp_path):
    options = ["--methods", "t5, rotary(base=5, fraction=0.5)", "--modes", "forward,decode", "--masks", "causal,full"]
    options += ["--batch", 2, "--kv-heads", 1, "--dtype", "bfloat16", "--device", "cpu", "--backends", "all"]
    status, out, err = run("bench", *QUICK, *options, "--threads", 1, "--out", tmp_path / "[bold]x")
    assert status == 0, err
    assert Path(out.rstrip().rpartition("Report: ")[2]) == tmp_path / "[bold]x" / "report.html"
    assert "<html" in (tmp_path / "[bold]x" / "report.html").read_text()[:500].lower()
    assert "rotary(base=5, fraction=0.5)" in out
    assert "bfloat16, batch 2, 2 heads (1 key heads) of 8" in out


def test_bench_measures_training_steps(run):
    status, out, err = run("bench", "--training", "--heads", 1, "--head-dim", 8, "--lengths", 8, "--rounds", 1)
    assert status == 0, err
    assert "nn.TransformerEncoder" in out
    assert run("bench", "--training", "--batch", 0)[0] == 2


def test_bench_bars_decide_the_exit_status(run, tmp_path, monkeypatch):
    from headway.bench import bars
    from headway.bench.cases import Case

    case = Case(8, heads=2, kv_heads=2, head_dim=8)
    for limit, expected in ((1e9, 0), (1e-9, 1)):
        monkeypatch.setattr(bars, "bars", lambda _, limit=limit: [bars.Bar(case, "none", limit)])  # no floor
        status, out, _ = run("bench", "--bars", "--rounds", 1, "--out", tmp_path)
        assert status == expected
        assert ("pass" if expected == 0 else "FAIL") in out


def test_interrupted_bench_keeps_its_rows(run, tmp_path, monkeypatch):
    from headway.bench import run as module

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "measured", interrupted)
    status, out, _ = run("bench", *QUICK, "--methods", "none", "--out", tmp_path)
    assert status == 130
    assert "Interrupted: the results so far are saved." in out
    assert (tmp_path / "report.html").exists()


def test_interrupted_compare_says_how_to_go_on(run, tmp_path, monkeypatch):
    from headway.compare import compute as module

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_test", interrupted)
    status, out, _ = run("compare", *SMALL, "--positions", "none", "--out", tmp_path)
    assert status == 130
    assert f"Resume with: headway compare {' '.join(SMALL)} --positions none --out {tmp_path}" in out


def test_train_resumes_and_generate_streams(run, trained, tmp_path):
    text = trained / "text.txt"
    arguments = f"{text} --steps 4 --length 8 --batch 16 --dim 16 --layers 1 --heads 2 --out {tmp_path / 'run'}".split()
    status, out, err = run("train", *arguments)
    assert status == 0, err
    assert "Try it: headway generate" in out
    status, out, _ = run("train", *arguments)
    assert status == 0
    assert "already finished" in out
    status, one, _ = run("generate", tmp_path / "run", "the 猫", "--tokens", 30, "--seed", 1)
    assert status == 0
    assert one.startswith("the 猫")
    assert run("generate", tmp_path / "run", "the 猫", "--tokens", 30, "--seed", 1)[1] == one
    assert run("generate", tmp_path / "run", "the 猫", "--tokens", 30, "--seed", 2)[1] != one
    one.encode()
    status, best, err = run("generate", tmp_path / "run", "the 猫", "--tokens", 30, "--beams", 3)
    assert status == 0, err
    assert best.startswith("the 猫")
    greedy = run("generate", tmp_path / "run", "the 猫", "--tokens", 30, "--temperature", 0)[1]
    assert run("generate", tmp_path / "run", "the 猫", "--tokens", 30, "--beams", 1)[1] == greedy


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer", "sgd", "--momentum", "0.8", "--schedule", "constant"],
        ["--optimizer", "adam", "--vocabulary", "bpe", "--vocabulary-size", "280", "--swiglu"][:-1],
        ["--position", "t5(buckets=8)", "--norm", "layer", "--post-norm", "--activation", "swiglu", "--kv-heads", "1"],
        ["--init", "orthogonal", "--dropout", "0.1", "--clip", "0", "--warmup", "1"],
    ],
)
def test_train_options(run, trained, tmp_path, options):
    small = f"{trained / 'text.txt'} --steps 2 --length 8 --batch 16 --dim 16 --layers 1 --heads 2 --out {tmp_path}"
    status, out, err = run("train", *small.split(), *options)
    assert status == 0, err
    assert "Validation loss" in out


def test_any_bytes_are_text(run, tmp_path):
    path = tmp_path / "binary"
    path.write_bytes(bytes(range(256)) * 20)
    status, _, err = run("compare", path, *SMALL, "--positions", "none", "--out", tmp_path / "out")
    assert status == 0, err


def test_methods_lists_every_method(run, tmp_path):
    status, out, err = run("methods")
    assert status == 0, err
    shown = [line.split()[0] for line in out.splitlines()[2:]]
    assert shown[: len(methods())] == list(methods())
    status, out, _ = run("methods", "--json")
    assert status == 0
    assert [one["name"] for one in json.loads(out)] == list(methods())
    assert all(one["device"] == "cuda" for one in json.loads(run("methods", "--json", "--device", "cuda")[1]))


def test_methods_shows_one_method(run, tmp_path):
    status, out, err = run("methods", "rotary(base=500000)")
    assert status == 0, err
    assert out.startswith("rotary(base=500000.0)  Rotary (RoPE)  arXiv:2104.09864\n")
    assert "every head" in out
    assert json.loads(run("methods", "alibi", "--json")[1])["picture"]["curves"][0]["values"][8] == -2.0
    status, out, _ = run("methods", "t5", "--html", tmp_path / "t5.html")
    assert (status, out) == (0, f"Page: {tmp_path / 't5.html'}\n")
    assert "<html" in (tmp_path / "t5.html").read_text()[:500]


def test_methods_writes_pages_on_all(run, tmp_path):
    status, out, err = run("methods", "--out", tmp_path / "docs")
    assert status == 0, err
    assert out == f"Pages: {tmp_path / 'docs' / 'index.md'}\n"
    assert {path.stem for path in (tmp_path / "docs").glob("*.md")} == {"index", *methods()}


def test_methods_takes_little_more_than_torch_itself():
    """3 s is the promise on a quiet machine, of which torch's import is one; here that is the measure, in CPU time."""

    def seconds(*arguments):
        before = os.times()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    for _ in range(2):
        share = seconds("-m", "headway", "methods") / seconds("-c", "import torch")
        if share < 4:
            return
    raise AssertionError(f"expected `headway methods` to take at most 4 times the import of torch, got {share:.1f}")


BAD = {
    "unknown method": (
        "compare --positions rotari",
        "expected a position method, got 'rotari': did you mean rotary? `headway methods` lists all",
    ),
    "unknown hyperparameter": (
        "compare --positions rotary(bass=3)",
        "expected hyperparameters of rotary (base, fraction, pairing), got 'bass'",
    ),
    "code for a hyperparameter": ("compare --positions rotary(base=exit())", "expected a position method such as"),
    "no such file": ("compare {tmp}/absent.txt", "absent.txt, which does not exist"),
    "empty file": ("compare {tmp}/empty.txt", "got an empty file"),
    "tiny file": ("compare {tmp}/tiny.txt", "expected a text of at least"),
    "folder without text": ("compare {tmp}/folder", "expected text files in the folder"),
    "lengths": ("compare --test-lengths 64,many", "expected --test-lengths as whole numbers like 64,128,256"),
    "seeds": ("compare --seeds -1", "expected seeds of at least 0 each"),
    "test shorter than training": (
        "compare --test-lengths 32",
        "expected test lengths of at least the training length",
    ),
    "task": ("compare --task dance", "expected task to be one of text, recall, copy"),
    "text for a task": ("compare {tmp}/tiny.txt --task copy", "expected no text for task copy"),
    "bench method": ("bench --methods rotari", "expected a position method, got 'rotari'"),
    "bench lengths": ("bench --lengths 1,x", "expected --lengths as whole numbers like 64,128,256, got '1,x'"),
    "bench mode": (
        "bench --modes sideways",
        "expected mode to be one of forward+backward, forward, decode, decode-static, got 'sideways'",
    ),
    "bench backend": ("bench --backends magic", "expected backend to be one of auto, all, "),
    "bench folder": ("bench --out {tmp}/empty.txt", "expected a folder to write to, got"),
    "methods name": ("methods rotari", "expected a position method, got 'rotari'"),
    "methods page of none": ("methods --html {tmp}/x.html", "expected a method with --html, got none"),
    "methods pages of one": ("methods t5 --out {tmp}/x", "expected no method with --out, which writes pages on all"),
    "heads": ("train --heads 3 --out {tmp}/x", "expected heads to divide dim, got dim=128 and heads=3"),
    "key heads": ("train --kv-heads 3 --out {tmp}/x", "expected kv_heads to divide heads, got heads=4 and kv_heads=3"),
    "steps": ("train --steps 0 --out {tmp}/x", "expected steps to be a whole number from 1 to 1,000,000, got 0"),
    "rate": ("train --lr -1 --out {tmp}/x", "expected lr to be a number above 0, got -1"),
    "activation": (
        "train --activation relu --out {tmp}/x",
        "expected activation to be one of gelu, swiglu, got 'relu'",
    ),
    "foreign folder": ("train --out {tmp}/folder", "expected a new, empty or run folder"),
    "not a run": ("generate {tmp}/folder", "expected a run folder with settings.json"),
    "temperature": (
        "generate {trained}/run a --temperature -1",
        "expected temperature to be a number of at least 0, got -1.0",
    ),
    "top-p": ("generate {trained}/run a --top-p 2", "expected top_p to be a number in (0, 1], got 2.0"),
    "beams": (
        "generate {trained}/run a --beams 2 --top-k 3",
        "expected --beams without --top-k, because beam search samples nothing, got both: leave one out",
    ),
    "past a learned table": (
        "generate {trained}/short abcdefgh --tokens 20",
        "could not go on after 9 of 20 tokens: expected positions below max_length=16, got 16",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_line(run, trained, tmp_path, name):
    command, message = BAD[name]
    (tmp_path / "empty.txt").touch()
    (tmp_path / "tiny.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "image.png").write_bytes(b"\0\1\2")
    arguments = command.format(tmp=tmp_path, trained=trained).split()
    if arguments[0] == "compare":
        arguments += ["--out", tmp_path / "out"]
    status, out, err = run(*arguments)
    assert status == 2
    assert out == "" or arguments[0] == "generate"  # which may have begun to write
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1, err


def test_damaged_checkpoint_is_named_and_nothing_is_overwritten(run, trained, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(trained / "run", copy)
    for path in copy.glob("checkpoints/*/*.safetensors"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    status, _, err = run("generate", copy, "a")
    assert status == 2
    assert "expected a whole checkpoint" in err
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_reader_that_goes_away_is_no_error(trained):
    command = f"{sys.executable} -m headway generate {trained / 'run'} a --tokens 2000 | head -c 5"
    result = subprocess.run(["bash", "-c", command], capture_output=True, timeout=50)
    assert result.stderr == b""


def test_split_respects_parentheses():
    assert split("rotary(base=1, fraction=0.5), t5,,") == ["rotary(base=1, fraction=0.5)", "t5"]


def test_explain_walks_through_a_sentence(run, trained):
    status, out, err = run("explain", "The cat sat.", "--position", "alibi", "--head", "1")
    assert status == 0
    assert "This model is new: its weights are random" in err
    status, _, err = run("explain", "one two one", "--model", "decoder-rotary")
    assert (status, err) == (0, "")
    assert "3. One entry of Q, step by step" in out
    assert "ALiBi (alibi)" in out
    status, out, _ = run("explain", "the 猫", "--model", trained / "run", "--language", "zh")
    assert status == 0
    assert "7. 这个头的输出" in out
    assert "␣" in out
    assert run("explain", "a", "--language", "fr") == (
        2,
        "",
        "error: expected language to be one of en, zh, got 'fr'\n",
    )
    status, _, err = run("explain", "word " * 65)
    assert (status, err[:47]) == (2, "error: expected a text of 1 to 64 tokens, becau")


@pytest.mark.parametrize("encoding", ["ascii", "cp936", "utf-8"])
def test_columns_of_a_table_stay_aligned_in_every_encoding(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"}
    command = [sys.executable, "-m", "headway", "explain", "猫坐在垫子上 because", "--dim", "16"]
    out = subprocess.run(command, env=environment, capture_output=True, check=True).stdout.decode(encoding)
    first = next(n for n, line in enumerate(out.splitlines()) if line.startswith(("猫", "\\u732b")))
    assert len({cell_len(line) for line in out.splitlines()[first : first + 7]}) == 1, out  # 7 tokens


def test_explain_writes_a_page(run, trained, tmp_path):
    page = tmp_path / "new" / "walk.html"
    status, out, _ = run("explain", "word 猫 " * 40, "--html", page, "--position", "sinusoidal", "--layer", "1")
    assert (status, out) == (0, f"Page: {page}\n")
    written = page.read_text(encoding="utf-8")
    assert written.startswith("<!doctype html>")
    assert "Attention step by step: word 猫 word 猫 word 猫 word 猫 …" in written
    assert "Similarity of positions" in written  # of the method: it adds vectors
    status, out, _ = run("explain", "the 猫", "--html", page, "--model", trained / "run")
    assert status == 0
    assert str(trained / "run") in page.read_text(encoding="utf-8")
    status, _, err = run("explain", "word " * 1025, "--html", page)
    assert status == 2
    assert err.startswith("error: expected a text of at most 1,024 tokens for the view 'stepper', got 1,025")
    assert run("explain", "", "--html", page)[0] == 2


def test_a_size_typed_by_mistake_is_refused_before_anything_is_made(run, tmp_path):
    for line in (
        "explain a --position swin(height=4096,width=4096)",
        "methods dynamicbias(depth=100000)",
        "draw position learned(max_length=2000000000)",
        f"train --dim 65536 --layers 1000 --out {tmp_path / 'new'}",
        f"train --batch 16000000 --out {tmp_path / 'new'}",
    ):
        status, _, err = run(*line.split())
        assert status == 2, line
        assert err.startswith("error: expected a model"), err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("methods none --device x", "error: expected --device as cpu, cuda or cuda:0, got 'x'\n"),
        ("train --device cuda:99", "error: expected a device of this machine, got 'cuda:99', and it has "),
        ("train --device cpu:x", "error: expected --device as cpu, cuda or cuda:0, got 'cpu:x'\n"),
        (
            "compare --max-text 9223372036854775808",
            "error: expected max_text to be a whole number from 1 to 1,0",
        ),
        ("train --lr nan", "error: expected --lr as a finite number, got nan\n"),
        ("train --clip inf", "error: expected --clip as a finite number, got inf\n"),
        ("train --out=", "error: expected --out as a path, got an empty one\n"),
        (
            "train --seed 9999999999999999999999",
            "error: expected seed to be a whole number from 0 to 9,",
        ),
        ("train --threads 9223372036854775808", "error: invalid value for '--threads': "),
        ("train --dim 2147483648", "error: expected dim to be a whole number from 1 to 65,536, got 2147483648"),
        (
            "train --batch 1000000000000",
            "error: expected batch to be a whole number from 1 to 16,777,216",
        ),
        ("train a\0b", "error: expected TEXT without a NUL character, got 'a\\x00b'\n"),
        ("methods \x1b[31m", "error: expected a position method such as rotary or rotary(base=500000), got "),
        ("nope", "error: no such command 'nope': `headway --help` lists what there is\n"),
        (
            "train --nope",
            ("error: no such option: --nope", "error: no such option '--nope'"),
        ),  # as typer's version has it
        (f"methods {'x' * 100_000}", "error: expected a position method, got 'xxxxx"),
    ],
)
def test_every_command_line_gets_one_short_sentence(run, line, message):
    status, out, err = run(*line.split(" "))
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (
            MemoryError(),
            1,
            "error: expected enough memory, got none left: choose a smaller model, batch or length\n",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            1,
            "error: expected enough memory, got",
        ),
        (
            OSError(28, "No space left on device", "a\x1b"),
            1,
            "error: the system refused 'a\\x1b': No space",
        ),
        (UnicodeEncodeError("ascii", "猫", 0, 1, "no"), 2, "error: expected text that is valid Unicode, got '猫'\n"),
        (BrokenPipeError(), 141, ""),
        (KeyError("x"), 1, "error: this is a bug of headway, please report it (KeyError: 'x'); HEADWAY_DEBUG=1 shows"),
    ],
)
def test_every_error_ends_in_one_place(run, monkeypatch, error, status, message):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("headway.catalogue.entries.catalogue", fails)
    found, out, err = run("methods")
    assert (found, out) == (status, "")
    assert err.startswith(message)
    assert err.count("\n") == bool(message)
    if isinstance(error, KeyError):
        monkeypatch.setenv("HEADWAY_DEBUG", "1")
        with pytest.raises(KeyError):
            run("methods")


def test_two_tokens_without_a_distance_are_walked_through(run):
    assert run("explain", "\u202e\u0301", "--position", "stickbreaking", "--html", "/dev/null")[0] == 0


def test_outputs_go_to_standard_output_and_words_beside_it(run):
    status, _, err = run("draw", "position", "t5", "--out", "/dev/null", "--csv", "-")
    assert status == 0
    assert err == "Picture: /dev/null\n"
