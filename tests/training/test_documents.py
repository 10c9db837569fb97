"""Documents in JSONL, parquet and saved data sets: one column, joined by newlines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from headway.shapes import HeadwayError
from headway.training import known, train
from headway.training import text as texts
from headway.training.content import Reading
from headway.training.data import described
from headway.training.files import read_json, write_json_atomic
from headway.training.settings import TrainSettings
from headway.training.sources import open_source, sha256_of
from headway.training.text import read_text

DOCUMENTS = ["one", "zwei\nlines", "三", "", "lone \ud800"]
JOINED = "\n".join(DOCUMENTS).encode("utf-8", "surrogatepass")


def jsonl(path: Path, documents: list[str] = DOCUMENTS, column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": 1, column: one}) + "\n" for one in documents))
    return path


def test_a_file_of_jsonl_is_its_documents(tmp_path: Path) -> None:
    text = open_source(jsonl(tmp_path / "a.jsonl"))
    assert (text.data, text.column, text.files) == (JOINED, "text", 1)
    loose = b"\xef\xbb\xbf" + b'{"text": "a", "score": NaN}\r\n\n  \n{"x": [1], "text": "b"}'
    (tmp_path / "b.jsonl").write_bytes(loose)
    assert open_source(tmp_path / "b.jsonl").data == b"a\nb"
    assert open_source(tmp_path / "b.jsonl", column=None).data == loose
    assert open_source(jsonl(tmp_path / "c.jsonl", column="body"), column="body").data == JOINED


def test_a_folder_of_documents_only_is_read_as_such(tmp_path: Path) -> None:
    jsonl(tmp_path / "all" / "b.jsonl", ["B"])
    jsonl(tmp_path / "all" / "a.jsonl", ["A", "a"])
    text = open_source(tmp_path / "all")
    assert (text.data, text.files, text.column) == (b"A\na\nB", 2, "text")
    (tmp_path / "all" / "note.txt").write_text("words")
    assert open_source(tmp_path / "all") == read_text(tmp_path / "all")  # a text, whatever is in it


def test_many_documents_are_copied_into_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", DOCUMENTS * 5)
    whole = open_source(path)
    monkeypatch.setattr(known, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(texts, "IN_MEMORY", 20)
    heard: list[Reading] = []
    text = open_source(path, tell=heard.append)
    assert bytes(text.data) == whole.data
    assert sha256_of(text) == sha256_of(whole)
    assert described(text) == described(whole)
    assert [reading.what for reading in heard] == ["reading", "copying"]
    with pytest.raises(HeadwayError, match=r"expected a text of at most 30 bytes, got 1\d\d in .*a.jsonl"):
        open_source(path, most=30)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"expected a JSON object in line 2 of .*a.jsonl, got content that does not parse .* rename it to a.txt"),
        ("[1]", r"expected a text in the column 'text' in line 2 of .*a.jsonl, got .*: name another column with --col"),
        ('{"body": "x"}', r"in line 2 of .*, got the columns 'body'"),
        ('{"text": null}', r"expected a text in the column 'text' in line 2 of .*, got None"),
    ],
)
def test_a_line_without_the_text_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + line + "\n")
    with pytest.raises(HeadwayError, match=message):
        open_source(tmp_path / "a.jsonl")


def test_nothing_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n")
    with pytest.raises(HeadwayError, match=r"expected documents in .*a.jsonl, got none"):
        open_source(tmp_path / "a.jsonl")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        HeadwayError,
        match=r"expected the library pyarrow to read .*a.parquet, got none: pip install 'headway\[parquet\]'",
    ):
        open_source(tmp_path / "a.parquet")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(HeadwayError, match=r"got a folder of several in .*sets: give one of them, e.g. .*sets/train"):
        open_source(tmp_path / "sets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset_info.json").write_text("{}")
    (tmp_path / "set" / "state.json").write_text('{"_data_files": [{"filename": "../a.parquet"}]}')
    with pytest.raises(HeadwayError, match=r"expected names of files in .*set in .*state.json, got others"):
        open_source(tmp_path / "set")


def test_parquet_and_saved_data_sets(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    documents = [one for one in DOCUMENTS if "\ud800" not in one] * 1000
    whole = "\n".join(documents).encode()
    table = arrow.table({"id": range(len(documents)), "text": documents, "bytes": [one.encode() for one in documents]})
    (tmp_path / "shards").mkdir()
    parquet.write_table(table.slice(0, 1500), tmp_path / "shards" / "0.parquet", row_group_size=700)
    parquet.write_table(table.slice(1500), tmp_path / "shards" / "1.parquet")
    assert open_source(tmp_path / "shards").data == open_source(tmp_path / "shards", column="bytes").data == whole
    saved = tmp_path / "saved"  # as datasets.Dataset.save_to_disk writes it
    saved.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (table.slice(0, 1500), table.slice(1500)), strict=True):
        with arrow.OSFile(str(saved / name), "wb") as file, arrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(part)
    (saved / "dataset_info.json").write_text("{}")
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    assert open_source(saved).data == whole
    for path, column, message in (
        (saved, "id", r"expected a text in the column 'id' in row 0 of .*00000-of-00002.arrow, got 0"),
        (tmp_path / "shards", "title", r"expected a column 'title' in .*0.parquet, got 'id, text, bytes'"),
    ):
        with pytest.raises(HeadwayError, match=message):
            open_source(path, column=column)
    for path in (saved / names[0], tmp_path / "shards" / "0.parquet"):
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(HeadwayError, match=r"expected a table in .*, got content that does not parse"):
            open_source(path.parent)


def test_a_run_remembers_whether_it_read_a_column(tmp_path: Path) -> None:
    """One of headway 0.1.0, which read such files as they are, goes on so."""
    path = jsonl(tmp_path / "a.jsonl", ["to be or not to be"] * 40)
    given: dict[str, Any] = {"model_config": {"dim": 8, "layers": 1, "heads": 1}}
    short, long = (TrainSettings(steps=steps, batch=2, length=8, schedule="constant", warmup=1) for steps in (2, 4))
    new = train(path, out=tmp_path / "new", settings=short, **given)
    assert (new.run.text["column"], new.run.text["bytes"]) == ("text", 40 * 19 - 1)
    assert train(path, out=tmp_path / "new", settings=long, **given).resumed_from == 2
    plain = tmp_path / "a.txt"
    plain.write_bytes(path.read_bytes())
    whole = train(plain, out=tmp_path / "whole", settings=long, **given)
    train(plain, out=tmp_path / "old", settings=short, **given)
    again = train(path, out=tmp_path / "old", settings=long, **given)
    assert again.history.loss == whole.history.loss
    file = tmp_path / "new" / "settings.json"
    record = read_json(file)
    record["text"]["column"] = 3
    write_json_atomic(file, record)
    with pytest.raises(HeadwayError, match=r"settings.json"):
        train(path, out=tmp_path / "new", settings=long, **given)
