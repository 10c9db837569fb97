"""Numbers worked out: every formula, evaluated as it is written, is its value, and every result what the method
computes."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from common import every_method, make, randomise
from torch import Tensor

from headway.inspect.working import bias_at, by_position, worked
from headway.positions import Position, methods, parse
from headway.positions.working import Line, Number

POSITIONS = torch.tensor([0, 1, 2, 7, 23])
DISTANCES = (0, 1, 2, 5, 17, 200)
SIGNS = {"−": "-", "·": "*", "^": "**", "⌊": "floor(", "⌋": ")", "π": "pi"}
KNOWN = {
    "sin": torch.sin,
    "cos": torch.cos,
    "ln": torch.log,
    "exp": torch.exp,
    "floor": torch.floor,
    "abs": torch.abs,
    "max": torch.maximum,
    "min": torch.minimum,
    "pi": torch.tensor(math.pi, dtype=torch.float64),
}


def evaluated(formula: str, values: dict[str, Tensor]) -> Tensor:
    """A formula as it is written, each of its numbers in float64."""
    for sign, meaning in SIGNS.items():
        formula = formula.replace(sign, meaning)
    formula = re.sub(r"(?<![\w.])\d+(\.\d+)?(e[+-]?\d+)?", r"_('\g<0>')", formula)
    return eval(formula, {"_": lambda text: torch.tensor(float(text), dtype=torch.float64), **KNOWN, **values})


def follow(lines: tuple[Line, ...], symbol: str, at: Tensor) -> Tensor:
    """The last value, after every line was evaluated from those before."""
    values = {symbol: at.double()}
    for line in lines:
        value = torch.as_tensor(line.value, dtype=torch.float64)
        if not line.kind:
            found = evaluated(line.formula, values)
            torch.testing.assert_close(
                found.expand_as(value + found), value.expand_as(value + found), rtol=1e-11, atol=1e-11
            )
        values[line.name] = value
    return values[lines[-1].name]


def method(spec: str) -> Any:
    torch.manual_seed(0)
    position = make(spec)
    randomise(position)
    return position.double().eval()


def rotates(position: Position) -> bool:
    kind = type(getattr(position, "inside", position))
    return any(getattr(kind, name) is not getattr(Position, name) for name in ("rotate", "transform_qk"))


@every_method("worked")
def test_every_number_that_is_worked_out_is_what_the_method_computes(spec: str) -> None:
    position = method(spec)
    if position.embeds:
        vectors(position)
    if position.terms is not Position.terms and by_position(position):
        biases(position)
    if rotates(position):
        angles(position)


def vectors(position: Position) -> None:
    x = torch.zeros(1, len(POSITIONS), position.shape.dim, dtype=torch.float64)
    added = position.embed(x, POSITIONS[None])[0].detach()
    for index in (0, 1, 4, 5, position.shape.dim // 2, position.shape.dim - 1):
        lines = worked(position, Number("vector", POSITIONS, index, position.shape.dim))
        torch.testing.assert_close(follow(lines, "p", POSITIONS), added[:, index], rtol=1e-12, atol=1e-12)


def biases(position: Position) -> None:
    for head in range(position.shape.heads):
        for distance in DISTANCES:
            value = bias_at(position, head, distance)
            number = Number("bias", torch.tensor(distance), head, 8, position.shape.head_dim**-0.5, distance + 1)
            lines = worked(position, number, value)
            got = follow(lines, "n", number.at)
            assert float(got) == pytest.approx(value, rel=1e-11, abs=1e-12), (head, distance, lines)


def angles(position: Position) -> None:
    """The rotation of unit vectors of each pair that is told."""
    width = position.shape.head_dim
    for pair in range(width):
        try:
            lines = worked(position, Number("angle", POSITIONS, pair, width, width**-0.5, int(POSITIONS.max()) + 1))
        except IndexError:  # there are no more pairs
            assert pair
            return
        if not lines:
            return
        turned = follow(lines, "p", POSITIONS) - rotated(position, pair)
        assert float((torch.remainder(turned + math.pi, 2 * math.pi) - math.pi).abs().max()) < 1e-9, (pair, lines)
        if pair == width // 2 - 1 and position.axes > 1:
            return


def rotated(position: Position, pair: int) -> Tensor:
    """The angles by which the first unit vector of a pair is rotated."""
    inside, width, tokens = getattr(position, "inside", position), position.shape.head_dim, len(POSITIONS)
    if type(inside).__name__ == "Pope":  # every dimension becomes a plane
        first, second = pair, pair + width
    else:
        of_pairs = inside.width(width) if callable(getattr(inside, "width", None)) else width
        half = getattr(inside, "pairing", "half") == "half"
        first, second = (pair, pair + of_pairs // 2) if half else (2 * pair, 2 * pair + 1)
    q = torch.zeros(1, position.shape.heads, tokens, width, dtype=torch.float64)
    q[..., first] = 1
    where = POSITIONS[None] if position.axes == 1 else POSITIONS[None, :, None].expand(1, tokens, position.axes)
    q, k = position.rotate(q, q[:, : position.shape.kv_heads], where, where)
    q, _, _ = position.prepare(q, k, POSITIONS[None], POSITIONS[None], width**-0.5)
    return torch.atan2(q[0, 0, :, second], q[0, 0, :, first]).detach()


DECLARED = {
    *("alibi", "axial", "dynamicbias", "dynamicntk", "fire", "hope", "interpolated", "kerple", "learned", "llama3"),
    *("longrope", "mrope", "ntk", "pope", "proportional", "randomized", "rotary", "rotatedvalues", "sandwich"),
    *("sinusoidal", "sinusoidal2d", "t5", "xpos", "yarn"),
}


def test_which_methods_tell_how_their_numbers_are_worked_out() -> None:
    asked = [
        Number("vector", POSITIONS, 0, 32),
        Number("bias", torch.tensor(3), 0, 8),
        Number("angle", POSITIONS, 0, 8),
    ]
    told = {name for name in methods() for number in asked if worked(make(name), number)}
    assert told == DECLARED


def test_a_method_that_says_nothing_gives_its_formula_and_its_value() -> None:
    position = make("swin")
    (line,) = worked(position, Number("bias", torch.tensor(3), 0, 8), bias_at(position, 0, 3))
    assert line.kind == "method"
    assert line.formula.startswith("B_h[y_i − y_j, x_i − x_j]")
    assert worked(position, Number("angle", POSITIONS, 0, 8)) == ()


def test_the_formulas_are_those_of_the_papers() -> None:
    sinusoidal = parse("sinusoidal").attach(64)
    line = worked(sinusoidal, Number("vector", torch.tensor([7]), 4, 64))[-1]
    assert (line.name, line.formula) == ("P[p, 4]", "sin(p / 10000^(4 / 64))")
    assert float(line.value) == pytest.approx(math.sin(7 / 10000 ** (4 / 64)), rel=1e-15)
    t5 = make("t5")
    lines = worked(t5, Number("bias", torch.tensor(50), 1, 8))
    assert [line.name for line in lines] == ["E", "bucket", "b"]
    assert float(lines[1].value) == 16 + math.floor(math.log(50 / 16) / math.log(128 / 16) * 16)
