"""A text in its files, and tokenised once: the same digits as in memory; two writers, damage and changes."""

from __future__ import annotations

import os
import pickle
import random
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headway.compare.tasks import TextTask
from headway.shapes import HeadwayError
from headway.training import content, corpus, known, sources, vocabulary
from headway.training import text as texts
from headway.training.content import Joined, Part, Reading, state_of
from headway.training.corpus import Stored
from headway.training.data import read_data
from headway.training.settings import TrainSettings
from headway.training.text import Split, open_text, read_text
from headway.training.vocabularies import Wanted
from headway.training.vocabulary import Bpe, Bytes, parts

TEXT = "to be or naïve, 语言 12345  that\n\nis\tthe 𝄞question ".encode() * 60 + b"\xff\xfe\x80" + "ünd ".encode() * 200
SETTINGS = TrainSettings(length=9, batch=4, seed=3)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every text counts as large, and is read a few bytes at a time; the cache is a folder of the test's."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(known, "cache_folder", lambda: cache)
    monkeypatch.setattr(texts, "IN_MEMORY", 0)
    monkeypatch.setattr(content, "CHUNK", 7)
    monkeypatch.setattr(vocabulary, "_PIECE", 50)
    return cache / "texts"


def a_text(tmp_path: Path, data: bytes = TEXT) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    os.utime(path, (10**9, 10**9))
    return path


def digits(path: Path, kind: str, tell: Any = None) -> list[Any]:
    """All that a training takes from a text."""
    data = read_data("decoder", path, length=SETTINGS.length, tell=tell)
    words = data.vocabulary(Wanted.of(kind, 300))
    ready = data.prepare(words, SETTINGS)
    seen: list[Any] = [ready.batches(step) for step in (0, 1, 999)]

    class Spy(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            seen.append(tokens)
            return torch.zeros(*tokens.shape, words.size)

    ready.validation(Spy())
    return [words.to_json(), data.described(), str([x.tolist() for x in (*sum(seen[:3], ()), *seen[3:], ready.window)])]


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_large_text_has_the_digits_of_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, kind: str
) -> None:
    path = a_text(tmp_path)
    monkeypatch.setattr(vocabulary, "_PIECE", 50)
    task = TextTask(str(path), train_length=9, longest=27, vocabulary=kind, vocabulary_size=300)
    whole = digits(path, kind)
    cache = request.getfixturevalue("small")
    heard: list[Reading] = []
    assert isinstance(open_text(path).data, Joined)
    assert digits(path, kind, heard.append) == whole
    assert (heard[-1].what, heard[-1].done, heard[-1].total) == ("tokenising", len(TEXT), len(TEXT))
    stored = TextTask(str(path), train_length=9, longest=27, vocabulary=kind, vocabulary_size=300)
    assert isinstance(stored.train, Stored)
    assert stored.train.dtype.itemsize == (1 if kind == "bytes" else 2)
    assert stored.describe() == task.describe()
    assert torch.equal(stored.ends, task.ends)
    assert stored.bytes_per_token == task.bytes_per_token
    # a file that changed long ago is not read again
    monkeypatch.setattr(known, "_SETTLED", 0)
    digits(path, kind)
    read, pieces = [0], Joined._pieces

    def counted(self: Joined) -> Iterator[bytes]:
        for piece in pieces(self):
            read[0] += len(piece)
            yield piece

    monkeypatch.setattr(Joined, "_pieces", counted)
    assert digits(path, kind) == whole
    assert 1 <= read[0] <= 4  # where the text is divided
    assert len(list(cache.glob("*/corpus.json"))) == 1


def test_pieces_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the division of the whole text at once."""
    monkeypatch.setattr(vocabulary, "_PIECE", 20)
    rnd = random.Random(0)
    bpe = Bpe.train(TEXT, size=300)

    def whole(data: bytes) -> Iterator[str | bytes]:
        for part in re.split("([\udc80-\udcff]+)", data.decode("utf-8", "surrogateescape")):
            if part and "\udc80" <= part[0] <= "\udcff":
                yield part.encode("utf-8", "surrogateescape")
                continue
            while len(part) > 20:
                cut = part.rfind("\n", 0, 20) + 1 or 20
                yield part[:cut]
                part = part[cut:]
            if part:
                yield part

    def merged(found: Iterable[str | bytes]) -> list[str | bytes]:
        """Runs of bytes may be divided."""
        out: list[Any] = []
        for one in found:
            if out and isinstance(one, bytes) and isinstance(out[-1], bytes):
                out[-1] += one
            else:
                out.append(one)
        return out

    for _ in range(60):
        at = rnd.randrange(len(TEXT) - 300)
        data = bytearray(TEXT[at : at + 300])
        for _ in range(rnd.choice((0, 1, 20))):
            data[rnd.randrange(300)] = rnd.randrange(256)
        cuts = sorted(rnd.randrange(301) for _ in range(rnd.randrange(40)))
        chunks = [bytes(data[a:b]) for a, b in zip([0, *cuts], [*cuts, 300], strict=True)]
        assert merged(parts(chunks)) == list(whole(bytes(data)))
        assert torch.cat(list(bpe.encode_stream(chunks))).tolist() == bpe.encode(bytes(data)).tolist()
        assert bpe.decode(bpe.encode(bytes(data))) == bytes(data)


def test_a_range_of_joined_files_is_that_of_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "CHUNK", 3)
    for number, data in enumerate((b"first", b"", b"2", b"third\n", b"!")):
        (tmp_path / f"{number}").write_bytes(data)
    whole = b"first\n2\nthird\n\n!"
    joined = Joined([Part(path, state_of(path)) for path in sorted(tmp_path.iterdir())])
    assert (bytes(joined), len(joined)) == (whole, len(whole))
    assert read_text(tmp_path).data == whole
    for begin in range(len(whole) + 1):
        for end in range(begin, len(whole) + 1):
            assert bytes(joined[begin:end]) == whole[begin:end]
            assert bytes(joined[begin:end][1:-1]) == whole[begin:end][1:-1]
    assert [joined[at] for at in range(-len(whole), len(whole))] == [*whole, *whole]
    (tmp_path / "2").write_bytes(b"3")
    with pytest.raises(HeadwayError, match=r"expected .*/2 to stay as it is while it is read, but it was changed"):
        bytes(joined)


def test_another_content_vocabulary_or_place_of_division_is_another_corpus(tmp_path: Path, small: Path) -> None:
    path = a_text(tmp_path)
    before = digits(path, "bpe")
    many = len(list(small.glob("*/corpus.json")))
    path.write_bytes(TEXT.replace(b"question", b"QUESTION"))  # as long as before
    os.utime(path, (10**9, 10**9))
    after = digits(path, "bpe")
    assert before[1]["sha256"] != after[1]["sha256"]
    assert before[2] != after[2]
    assert len(list(small.glob("*/corpus.json"))) == 2 * many
    text, words = open_text(path), Bpe.train(TEXT, size=300)
    for fraction in (0.1, 0.4):
        split = Split.of(text, length=9, fraction=fraction)
        train, held_out = sources.tokenised(sources.Source(text, split), words)
        assert words.decode(train[:]) == bytes(split.train)
        assert words.decode(held_out[:]) == bytes(split.validation)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "record", "leftover"])
def test_a_damaged_corpus_is_made_anew(tmp_path: Path, small: Path, damage: str) -> None:
    path = a_text(tmp_path)
    before = digits(path, "bytes")
    tokens = next(small.glob("*/tokens"))
    whole = tokens.read_bytes()
    if damage == "cut":
        os.truncate(tokens, len(whole) - 1)
    elif damage == "flipped":
        tokens.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    elif damage == "gone":
        tokens.unlink()
    elif damage == "record":
        tokens.with_name("corpus.json").write_bytes(b"{}")
    else:
        tokens.with_name("corpus.json").unlink()
        tokens.with_name("tokens.tmp-1-ab").write_bytes(b"half")
    assert digits(path, "bytes") == before
    assert tokens.read_bytes() == whole
    assert {one.name for one in tokens.parent.iterdir()} == {"tokens", "corpus.json", ".lock"}


def test_a_corpus_is_written_once_by_several_at_a_time(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, written, results, waited = a_text(tmp_path), [], [], threading.Event()
    heard: list[Reading] = []
    write = corpus._write

    def slowly(*given: Any) -> Any:
        written.append(1)
        assert waited.wait(20)  # until another one waits for this one
        return write(*given)

    def tell(reading: Reading) -> None:
        heard.append(reading)
        if reading.what == "waiting":
            waited.set()

    monkeypatch.setattr(corpus, "_write", slowly)
    threads = [threading.Thread(target=lambda: results.append(digits(path, "bytes", tell))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1
    assert len(results) == 3
    assert results[0] == results[1] == results[2]
    assert {reading.total for reading in heard if reading.what == "waiting"} == {None, 0}  # begins and ends


@pytest.mark.parametrize(("kind", "least"), [("bytes", 20), pytest.param("bpe", 25, marks=pytest.mark.slow)])
def test_a_writer_killed_at_any_call_harms_nobody(kind: str, least: int) -> None:
    memory = Path("/dev/shm")  # kill −9 loses nothing that was written, flushed or not
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        command = [sys.executable, Path(__file__).with_name("killed_corpus.py"), folder, kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[1]) >= least  # points at which it was killed


def test_a_cache_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    path = a_text(tmp_path)
    monkeypatch.setattr(corpus.os, "fsync", full)
    with pytest.raises(HeadwayError, match=r"could not finish writing .*No space left on device; free some space"):
        digits(path, "bytes")
    assert not list(small.glob("*/tokens*"))


def test_reading_windows_holds_no_pages(tmp_path: Path) -> None:
    def held() -> int:
        return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]

    size = 2**26
    (tmp_path / "tokens").write_bytes(bytes(range(256)) * (size // 256))
    tokens = Stored(tmp_path / "tokens", "uint8", 0, size)
    tokens[torch.arange(9)]
    before = held()
    for begin in range(0, size, 2**20):
        assert tokens[torch.arange(begin, begin + 2**20, 4096)].eq(0).all()
    assert held() - before < 2**14  # KiB


def test_another_process_opens_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_bytes(bytes(range(20)))
    tokens = Stored(tmp_path / "tokens", "uint16", 2, 9)
    other = pickle.loads(pickle.dumps(tokens))
    assert other._file != tokens._file
    assert other[:].tolist() == tokens[:].tolist() == [2 * at + 256 * (2 * at + 1) for at in range(2, 9)]


def test_a_vocabulary_of_many_tokens_takes_wider_types(tmp_path: Path, small: Path) -> None:
    class Wide(Bytes):
        size = 2**16 + 256

        def encode_stream(self, chunks: Iterable[bytes]) -> Iterator[Tensor]:
            return (self.encode(chunk) + 2**16 for chunk in chunks)

    found = corpus.corpus("0", [iter([b"ab", b"c"]), iter([b"d"])], Wide(), cut=3, name="x", tell=None)
    assert (found.dtype, found.ends) == ("uint32", (3, 4))
    assert found.part(1, 4)[:].tolist() == [2**16 + x for x in b"bcd"]


def test_a_vocabulary_is_learned_from_large_texts_once(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_text(tmp_path)
    before = digits(path, "bpe")
    monkeypatch.setattr(Bpe, "train", lambda *_, **__: pytest.fail("learned again"))
    assert digits(path, "bpe") == before
    found = next(small.glob("*/vocabulary.json"))
    found.write_bytes(found.read_bytes()[:-9])
    with pytest.raises(pytest.fail.Exception, match="learned again"):
        digits(path, "bpe")


def test_of_a_very_large_text_pieces_spread_through_it_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_PIECE", 10)
    data = bytes(range(100))
    assert sources._spread(data, 100) == [data]
    assert sources._spread(data, 39) == [data[:10], data[45:55], data[90:]]
    assert sources._spread(data, 7) == [data[:7]]


@pytest.mark.slow
def test_a_gigabyte_takes_the_memory_of_a_megabyte(tmp_path: Path) -> None:
    """A new process each: peak memory, and the time from `train` to the first step of the second start."""
    program = """
import resource, sys, time
import torch._dynamo  # which the first optimizer loads
from headway.training import TextBatches, TrainSettings, train
begin, took, call = time.perf_counter(), [], TextBatches.__call__
def first(self, step):
    took.append(time.perf_counter() - begin)
    return call(self, step)
TextBatches.__call__ = first
settings = TrainSettings(steps=50, batch=8, length=64, validate_every=None, checkpoint_every=None)
train(sys.argv[1], out=sys.argv[2], model_config={"dim": 16, "layers": 1, "heads": 2}, settings=settings)
print(took[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
"""
    block = random.Random(0).randbytes(10**6)
    for name, blocks in (("small", 1), ("large", 1000)):
        with (tmp_path / name).open("wb") as file:
            for _ in range(blocks):
                file.write(block)
    environment = {**os.environ, "HEADWAY_CACHE": str(tmp_path / "cache")}

    def started(name: str, number: int) -> list[float]:
        command = [sys.executable, "-c", program, tmp_path / name, tmp_path / f"{name}-{number}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return [float(x) for x in done.stdout.split()]

    megabyte, *gigabyte = started("small", 0), started("large", 0), started("large", 1), started("large", 2)
    assert max(memory for _, memory in gigabyte) < megabyte[1] + 600
    assert gigabyte[-1][0] < 3
