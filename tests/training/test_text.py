from __future__ import annotations

import os
from pathlib import Path

import pytest

from headway.shapes import HeadwayError
from headway.training.text import Split, Text, read_text


def test_built_in_text_is_the_same_every_time_and_not_small() -> None:
    assert read_text() == read_text()
    assert len(read_text().data) > 100_000


@pytest.mark.parametrize("data", [b"hello", b"\xff\xfe\x00binary\x00", "Größe".encode("latin-1")])
def test_one_file_is_taken_as_bytes_whatever_it_holds(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    text = read_text(tmp_path / "a")
    assert (text.data, text.name, text.files, text.skipped) == (data, str(tmp_path / "a"), 1, 0)


def test_folder_is_read_in_order_without_binaries_hidden_files_runs_and_links_to_folders(tmp_path: Path) -> None:
    for name, data in {
        "b.txt": b"B",
        "a.txt": b"A",
        "c/d.txt": b"D",
        "c/empty": b"",
        "pic.png": b"\x89PNG\0",
        ".secret": b"S",
        ".git/config": b"G",
        "__pycache__/x": b"P",
        "run/settings.json": b"{}",
        "run/checkpoints/x": b"C",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    text = read_text(tmp_path)
    assert text.data == b"A\nB\nD"
    assert (text.files, text.skipped) == (3, 4)
    assert str(text) == f"{tmp_path}: 5 bytes from 3 files, 4 skipped"


def test_nul_after_the_first_8_kib_does_not_make_a_file_binary(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 8192 + b"\0")
    assert read_text(tmp_path).files == 1


def test_bad_paths_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HeadwayError, match=r"got .*/no, which does not exist: check the path"):
        read_text(tmp_path / "no")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(HeadwayError, match=r"expected text in .*/empty, got an empty file"):
        read_text(tmp_path / "empty")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_bytes(b"\0")
    with pytest.raises(HeadwayError, match=r"expected text files in the folder .*, got none \(1 binary or hidden"):
        read_text(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HeadwayError, match=r"pipe, which is neither: give a regular file"):
        read_text(tmp_path / "pipe")


@pytest.mark.parametrize("folder", [False, True])
def test_unreadable_text_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def refuse(path: Path, *_: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    # The tests may run as root, whom no mode keeps out.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HeadwayError, match=r"could not finish reading .*: Permission denied; choose a place you may"):
        read_text(tmp_path if folder else tmp_path / "a")


@pytest.mark.parametrize("size", [10, 11, 50, 100, 1000])
def test_split_is_whole_and_each_part_holds_a_window(size: int) -> None:
    data = os.urandom(size)
    split = Split.of(Text(data, "x"), length=4)
    assert split.train + split.validation == data
    assert min(len(split.train), len(split.validation)) >= 5
    assert size < 50 or len(split.validation) <= size // 10 + 4


def test_split_does_not_cut_a_character() -> None:
    for extra in range(4):
        split = Split.of(Text(b"x" * extra + "語".encode() * 100, "x"), length=4)
        split.train.decode()
        split.validation.decode()


def test_too_small_a_text_names_the_least_size() -> None:
    with pytest.raises(HeadwayError, match=r"at least 18 bytes .*, got 17 bytes from x: give more text or a shorter"):
        Split.of(Text(b"x" * 17, "x"), length=8)
    with pytest.raises(HeadwayError, match=r"fraction between 0 and 1, got 1.5"):
        Split.of(Text(b"x" * 100, "x"), length=8, fraction=1.5)
