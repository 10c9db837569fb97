"""A comparison in the folder of its text, an impossible one, and one whose files are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headway.compare.run import Comparison, compare
from headway.shapes import HeadwayError

SMALL: dict[str, Any] = {"train_length": 8, "test_lengths": (8,), "seeds": (0,), "steps": 2, "batch": 2, "dim": 16}
SMALL |= {"layers": 1, "heads": 2, "positions": ("rotary",)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text").write_bytes(b"to be or not to be " * 60)
    return tmp_path


def small(folder: Path, **changes: Any) -> Comparison:
    return Comparison(text=str(folder), **{**SMALL, **changes})


def test_its_own_results_are_never_its_text(folder: Path) -> None:
    first, second = (compare(small(folder), folder / "out") for _ in range(2))
    assert first["settings"]["text_hash"] == second["settings"]["text_hash"]
    assert first["cells"] == second["cells"]  # not trained again
    assert second["notes"] == [f"left out of the text: {folder / 'out'} (results of headway)"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "expected layers to be a whole number from 1 to 1,024, got 0"),
        (
            {"dim": 15},
            "expected a method that can be trained with these settings, got none: rotary: expected heads",
        ),
        ({"dim": 10**9}, "expected dim to be a whole number from 1 to 65,536, got 1000000000"),
        ({"dim": 2**16}, "expected a method that can be trained with these settings, got none: rotary: expected"),
        ({"batch": 10**12}, "expected batch to be a whole number from 1 to 16,777,216, got 1000000000000"),
        ({"steps": 10**7}, "expected steps to be a whole number from 1 to 1,000,000"),
        ({"seeds": (10**22,)}, "expected seeds of at most 9223372036854775807 each"),
        ({"test_lengths": (10**9,)}, "expected test_lengths of at most 1048576 each"),
        # no head width of 3 can be rotated; this shows only when the model is made
        (
            {"dim": 6, "positions": ("rotary", "xpos")},
            "expected a method that can be trained with these settings, got none: rotary",
        ),
    ],
    ids=str,
)
def test_what_no_method_can_be_trained_with_leaves_an_earlier_report_alone(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    out = folder / "out"
    out.mkdir()
    (out / "results.json").write_bytes(b"earlier")
    with pytest.raises(HeadwayError, match=message):
        compare(small(folder, **changes), out)
    assert (out / "results.json").read_bytes() == b"earlier"


def test_damaged_cells_and_views_are_said_and_made_anew(folder: Path) -> None:
    first = compare(small(folder), folder / "out")
    (cell,) = (folder / "out/cells").iterdir()
    for name in ("cell.json", "views.json"):
        data = (cell / name).read_bytes()
        (cell / name).write_bytes(data.replace(b"rotary", b"rotarx", 1) if name == "cell.json" else b"null")
    again = compare(small(folder), folder / "out")
    assert [sum(name in note for note in again["notes"]) for name in ("cell.json", "views.json")] == [1, 1]
    assert [row["tests"] for row in again["cells"]] == [row["tests"] for row in first["cells"]]
    assert [view["key"] for view in again["views"]["rotary"]][:1] == ["rotation"]
