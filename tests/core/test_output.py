"""What an output option names is written as what it is: a file, a link, a device, a pipe, an open descriptor."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from headway import output
from headway.output import streamed, write_output
from headway.shapes import HeadwayError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = write_output(tmp_path / "new" / "page.html", "a")
        assert mode(path) == 0o640
        path.chmod(0o604)
        write_output(path, "b\n猫")
    finally:
        os.umask(before)
    assert (mode(path), path.read_bytes()) == (0o604, b"b\n\xe7\x8c\xab")
    assert [one.name for one in path.parent.iterdir()] == ["page.html"]


def test_links_stay_links(tmp_path: Path) -> None:
    target, link, dangling = tmp_path / "target", tmp_path / "link", tmp_path / "dangling"
    target.write_text("old")
    link.symlink_to("target")
    dangling.symlink_to("folder/new")
    for path in (link, dangling):
        write_output(path, "new")
        assert path.is_symlink()
        assert path.read_text() == "new"
    assert (tmp_path / "folder" / "new").read_text() == target.read_text() == "new"
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(HeadwayError, match=r"^could not finish writing .*loop: Too many levels of symbolic links"):
        write_output(loop, "new")
    assert loop.is_symlink()


def test_pipes_and_devices_are_written_to(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_output(pipe, "x" * 100_000)
    reader.join(5)
    assert got == ["x" * 100_000]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    write_output("/dev/null", "x")
    assert stat.S_ISCHR(os.lstat("/dev/null").st_mode)
    with pytest.raises(HeadwayError, match=r"^could not finish writing /dev/full: No space left on device; free some"):
        write_output("/dev/full", "x")
    assert streamed(None, pipe)
    assert not streamed(tmp_path / "absent", tmp_path)


@pytest.mark.parametrize("form", ["/dev/fd/{}", "/proc/self/fd/{}", "{tmp}/link"])
def test_an_open_descriptor_goes_on_where_it_is(tmp_path: Path, form: str) -> None:
    log = tmp_path / "log"
    log.write_text("kept\n")
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    (tmp_path / "link").symlink_to(f"/dev/fd/{handle}")
    try:
        path = form.format(handle, tmp=tmp_path)
        assert streamed(path)
        write_output(path, "more\n")
    finally:
        os.close(handle)
    assert log.read_text() == "kept\nmore\n"


def test_standard_output_has_a_name(capfd: pytest.CaptureFixture[str]) -> None:
    print("first")
    write_output("-", "second\n")
    write_output("/dev/stdout", "third\n")
    assert capfd.readouterr().out == "first\nsecond\nthird\n"


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HeadwayError, match=r"^expected a file to write to, got the folder .*: name a file in it$"):
        write_output(tmp_path, "x")
    (tmp_path / "file").write_text("old")
    with pytest.raises(HeadwayError, match=r"^could not finish writing .*page: (Not a directory|File exists)$"):
        write_output(tmp_path / "file" / "page", "x")
    with pytest.raises(HeadwayError, match=r"^could not finish writing .*: File name too long$"):
        write_output(tmp_path / ("n" * 300), "x")
    write_output(tmp_path / ("n" * 255), "x")  # the name beside it, under which it is written first, is no longer
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(HeadwayError, match=r"^could not finish writing .*file: Permission denied; choose a place"):
        write_output(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = write_output(tmp_path / "page", "old")
    monkeypatch.setattr(output.os, call, full)
    with pytest.raises(HeadwayError, match=r"No space left on device; free some space and run again$"):
        write_output(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
