"""Views in a report: rounded within half a step, downsampled until they fit, with a note of what was omitted."""

from __future__ import annotations

import base64
import json
from array import array
from typing import Any

import pytest

from headway.figures.downsample import LEVELS, fitted, rounded
from headway.figures.values import Block, Film, Heatmap, Lines, View, same


def heatmap(rows: int, columns: int, *, scale: str = "diverging", limits: Any = None, kind: str = "float32") -> Heatmap:
    values = Block((rows, columns), [((7 * n) % 31 - 11) / 10 for n in range(rows * columns)], kind)
    hidden = Block((rows, columns), [n % 3 == 0 for n in range(rows * columns)], "bits")
    names = [f"r{n}" for n in range(rows)], [f"c{n}" for n in range(columns)]
    return Heatmap(same("map"), values, *names, (same("y"), same("x")), scale, limits, hidden)


def composed(*figures: Any, key: str = "bias") -> View:
    return View(key, same("found"), figures, notes=[same("first")])


def view(*figures: Any, key: str = "bias") -> dict[str, Any]:
    return composed(*figures, key=key).plain()


def decoded(block: dict[str, Any]) -> list[float]:
    data = base64.b64decode(block["data"])
    if block["kind"] == "float32":
        return list(array("f", data))
    low, high = block["span"]
    return [low + byte * (high - low) / 254 for byte in data]


@pytest.mark.parametrize("limits", [None, (-2.0, 2.0)])
@pytest.mark.parametrize("scale", ["diverging", "sequential"])
def test_large_maps_are_rounded_to_a_255th_of_their_limits(scale: str, limits: Any) -> None:
    made = composed(heatmap(33, 40, scale=scale, limits=limits), heatmap(5, 6))
    plain, done = made.plain(), rounded(made).plain()
    large, small = done["figures"]
    assert small == plain["figures"][1]
    assert large["values"]["kind"] == "uint8"
    low, high = large["values"]["span"]
    if limits or scale == "diverging":
        assert low == -high
    for got, was in zip(decoded(large["values"]), decoded(plain["figures"][0]["values"]), strict=True):
        assert got == pytest.approx(was, abs=(high - low) / 508 + 1e-6)
    assert "255" in done["notes"][-1]["en"]
    assert rounded(composed(heatmap(5, 6))).plain() == view(heatmap(5, 6))


def film(frames: int) -> Film:
    return Film(same("film"), [(same(f"step {n}"), [heatmap(40, 40)]) for n in range(frames)])


def test_what_fits_stays_as_it_is() -> None:
    views = {"rotary": [view(heatmap(40, 40)), view(film(9), key="film")]}
    assert fitted(views, 10**7) == views


@pytest.mark.parametrize("room", [200_000, 60_000, 25_000])
def test_too_much_is_thinned_until_it_fits(room: int) -> None:
    views = {name: [view(heatmap(40, 40)), view(film(9), key="film")] for name in ("rotary", "alibi")}
    done = fitted(views, room)
    assert len(json.dumps(done, ensure_ascii=False)) <= room
    for each in done.values():
        film_of = [one for one in each if one["key"] == "film"]
        for one in film_of:
            frames = one["figures"][0]["frames"]
            assert (frames[0][0]["en"], frames[-1][0]["en"]) == ("step 0", "step 8")
        assert all("small" in one["notes"][-1]["en"] for one in each if one not in views["rotary"])


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_every_second_cell_keeps_its_number_label_and_mask(kind: str) -> None:
    figure = heatmap(33, 18, kind="float32")
    plain = view(figure)
    if kind == "uint8":
        figure = heatmap(60, 60)
        plain = rounded(composed(figure)).plain()
    every = LEVELS[-1].every
    (small,) = fitted({"x": [plain]}, 1)["x"]
    got, was = small["figures"][0], plain["figures"][0]
    columns = was["values"]["shape"][1]
    values = decoded(was["values"])
    rows, cols = (range(0, n, every) for n in was["values"]["shape"])
    assert decoded(got["values"]) == [values[row * columns + column] for row in rows for column in cols]
    assert got["rows"] == [was["rows"][row] for row in rows]
    assert got["columns"] == [was["columns"][column] for column in cols]
    bits = "".join(f"{byte:08b}" for byte in base64.b64decode(got["hidden"]["data"]))[: len(rows) * len(cols)]
    assert bits == "".join("1" if (row * columns + column) % 3 == 0 else "0" for row in rows for column in cols)


def test_curves_are_left_alone() -> None:
    curve = composed(Lines(same("curve"), [1.0, 2.0], [], (same("x"), same("y"))))
    plain = curve.plain()
    assert rounded(curve) is curve
    assert fitted({"x": [plain]}, 1) == {"x": [plain]}
