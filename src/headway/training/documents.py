"""Documents: one column of JSONL, parquet, or a data set that the library datasets saved on disk.

They are joined by newlines, as the files of a folder are. A folder counts as documents when all its files are
``.jsonl`` or all are ``.parquet``, in sorted order, or when ``save_to_disk`` wrote it. Parquet and data sets need the
library pyarrow. They are read a few MB at a time, or a row group at a time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.schema import Anything, Many, Named, Record, Words, check, shown
from headway.shapes import HeadwayError
from headway.training.content import Part, Tell, gathered, state_of, told
from headway.training.files import explained, parse_json, read_regular
from headway.training.text import Found, find

COLUMN = "text"
"""The column that is read unless told otherwise."""
LONGEST = 2**28
"""Maximum bytes of a line of JSONL."""
_ROWS = 1024
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_SAVED = Many(Record({"filename": Words()}))


@dataclass(frozen=True)
class Documents:
    """Where documents are.

    Args:
        found: their files.
        kind: "jsonl", "parquet" or "arrow".
        column: the column that holds them.
    """

    found: Found
    kind: str
    column: str

    @property
    def name(self) -> str:
        """The path they were found at."""
        return str(self.found.path)

    def chunks(self, tell: Tell | None = None, what: str = "reading") -> Iterator[bytes]:
        """The documents joined by newlines, some MB at a time; ``tell`` hears of the bytes that were read.

        Raises:
            HeadwayError: when a file cannot be read, or a row of it has no text in the column.
        """
        # a table in a file is smaller than its text, so that how much there is is not known before
        total = sum(part.size for part in self.found.parts) if self.kind == "jsonl" else None
        return told(gathered(self._pieces()), tell, what, self.name, total)

    def _pieces(self) -> Iterator[bytes]:
        read = _lines if self.kind == "jsonl" else _rows
        first = True
        for part in self.found.parts:
            for document in read(part, self.kind, self.column):
                yield document if first else b"\n" + document
                first = False


def find_documents(path: Path, column: str = COLUMN) -> Documents | Found:
    """The documents at a path, or the files there when they are a text.

    Raises:
        HeadwayError: when there is nothing, or a data set that is not known to be one.
    """
    if (path / _SPLITS).is_file():
        splits = parse_json(read_regular(path / _SPLITS, LONGEST), str(path / _SPLITS))
        names = splits.get("splits") if isinstance(splits, dict) else None
        raise HeadwayError(
            f"expected one data set, got a folder of several in {path}: give one of them, e.g. "
            f"{path / str(names[0] if isinstance(names, list) and names else 'train')}"
        )
    if (path / _STATE).is_file() and (path / "dataset_info.json").is_file():
        return Documents(_saved(path), "arrow", column)
    found = find(path)
    kinds = {part.path.suffix.lower() for part in found.parts}
    return Documents(found, kinds.pop()[1:], column) if kinds in ({".jsonl"}, {".parquet"}) else found


def _saved(folder: Path) -> Found:
    """The files of a data set, as its own list says."""
    name = str(folder / _STATE)
    values = parse_json(read_regular(folder / _STATE, LONGEST), name)
    check(values, Named(Anything()), name)
    if values.get("_indices_data_files"):
        raise HeadwayError(
            f"expected a data set without indices in {folder}, got one that an old version of datasets saved: "
            f"load it and save it again"
        )
    listed = values.get("_data_files")
    check(listed, _SAVED, name)
    names = [one["filename"] for one in listed]
    if any(Path(one).name != one for one in names):
        raise HeadwayError(f"expected names of files in {folder} in {name}, got others: it is damaged")
    with explained(f"reading the data set {folder}"):
        return Found(folder, tuple(Part(folder / one, state_of(folder / one)) for one in names), True)


def _lines(part: Part, kind: str, column: str) -> Iterator[bytes]:
    number = 0
    with part.opened() as file:
        while line := file.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise HeadwayError(
                    f"expected lines of at most {LONGEST:,} bytes in {part.path}, got a longer one, line {number}: "
                    f"divide it into documents"
                )
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _field(line, column, part.path, number)


def _field(line: bytes, column: str, path: Path, number: int) -> bytes:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise HeadwayError(
            f"expected a JSON object in line {number} of {path}, got content that does not parse ({str(error)[:80]}): "
            f"{_plainly(path)}"
        ) from None
    if not isinstance(value, dict) or not isinstance(value.get(column), str):
        got = shown(value[column]) if isinstance(value, dict) and column in value else _names(value)
        raise HeadwayError(
            f"expected a text in the column {column!r} in line {number} of {path}, got {got}: "
            f"name another column with --column, or {_plainly(path)}"
        )
    document: str = value[column]
    return document.encode("utf-8", "surrogatepass")


def _names(value: object) -> str:
    return f"the columns {shown(', '.join(value))}" if isinstance(value, dict) else shown(value)


def _plainly(path: Path) -> str:
    return f"to train on the file as it is, rename it to {path.stem}.txt"


def _rows(part: Part, kind: str, column: str) -> Iterator[bytes]:
    arrow = _library(part.path)
    number = 0
    with part.opened() as file, _told(part.path, column, arrow):
        for batch in _batches(file, kind, column, part.path):
            for value in batch.column(column).to_pylist():
                if not isinstance(value, str | bytes):
                    raise HeadwayError(
                        f"expected a text in the column {column!r} in row {number} of {part.path}, got "
                        f"{shown(value)}: name another column with --column, or leave such rows out of the file"
                    )
                number += 1
                yield value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")


def _batches(file: Any, kind: str, column: str, path: Path) -> Iterable[Any]:
    """Some rows of a table at a time; pages of the file are read, not mapped, so that they take no memory."""
    if kind == "parquet":
        from pyarrow import parquet

        table = parquet.ParquetFile(file)
        _check_column(table.schema_arrow.names, column, path)
        yield from table.iter_batches(_ROWS, columns=[column])
        return
    from pyarrow import ipc

    stream = ipc.open_stream(file)
    _check_column(stream.schema.names, column, path)
    for batch in stream:
        for at in range(0, len(batch), _ROWS):
            yield batch.slice(at, _ROWS)


def _check_column(names: list[str], column: str, path: Path) -> None:
    if column not in names:
        raise HeadwayError(
            f"expected a column {column!r} in {path}, got {shown(', '.join(names))}: name one of them with --column"
        )


@contextlib.contextmanager
def _told(path: Path, column: str, arrow: Any) -> Iterator[None]:
    """Turn what the library says of a damaged file into one sentence."""
    try:
        yield
    except arrow.ArrowException as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise HeadwayError(f"expected a table in {path}, got content that does not parse: {said[0][:120]}") from error


def _library(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise HeadwayError(
            f"expected the library pyarrow to read {path}, got none: pip install 'headway[parquet]', or write the "
            f'documents as lines of a .jsonl, {{"text": "…"}}'
        ) from error
    return pyarrow
