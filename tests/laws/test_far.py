"""Far positions: from 0 to 10⁶ in one call, in order or shuffled, and from 10⁶ on, in every floating dtype.

Right within twice plain PyTorch's error of float64, in values and gradients, or refused by a sentence that names the
limit; never NaN in silence.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from common import assert_as_exact, every_method, make, naive, values_and_gradients
from signatures import every_signature

from headway import Causal, HeadwayError, attend
from headway.positions import parse

SPREAD = [0, 1, 2, 37, 500, 4000, 16000, 40000, 40001, 131072, 500000, 999999, 10**6]
PLACES = {
    "spread": (SPREAD, range(13)),
    "shuffled": (SPREAD, [7, 2, 12, 0, 5, 9, 1, 11, 3, 8, 6, 10, 4]),
    "from a million on": ([10**6 + n for n in range(13)], range(13)),
}
HEADS, KV_HEADS, WIDTH = 4, 2, 8


@every_method("far")
def test_far_positions(spec: str) -> None:
    far(spec, *PLACES["spread"])


@every_method("far", variants=False)
def test_from_far_on(spec: str) -> None:
    far(spec, *PLACES["from a million on"])


@every_signature("far", lambda spec: "order" not in parse(spec).exempt)
def test_far_positions_shuffled(spec: str) -> None:
    far(spec, *PLACES["shuffled"])


def far(spec: str, positions: list[int], order: Sequence[int]) -> None:
    pos = torch.tensor([[positions[i] for i in order]])
    given = {"mask": Causal(), "q_pos": pos, "k_pos": pos}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        position = make(spec, HEADS, KV_HEADS, WIDTH)
        exact, position = copy.deepcopy(position).to(dtype).double(), position.to(dtype)

        def judge(draws: int, position: Any, exact: Any, dtype: torch.dtype) -> None:
            shapes = [(1, heads, len(positions), WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
            inputs = [[torch.randn(shape).to(dtype) for shape in shapes] for _ in range(draws)]
            weight = torch.randn(shapes[0]).to(dtype)
            got = [values_and_gradients(position, draw, weight, attend, **given) for draw in inputs]
            wide = [[x.double() for x in draw] for draw in inputs]
            truth = [values_and_gradients(exact, draw, weight.double(), naive, **given) for draw in wide]
            plain = [values_and_gradients(position, draw, weight, naive, **given) for draw in inputs]
            most = torch.finfo(dtype).max
            for found, other, expected in zip(got, plain, truth, strict=True):
                for name, value in expected.items():
                    # a rate's gradient is as large as positions: beyond what its dtype holds it is infinite, as it is
                    beyond = value.abs() > most / 2
                    assert (found[name].isfinite() | (beyond & found[name].isinf())).all(), name
                    for each in (found, other, expected):
                        each[name] = each[name].masked_fill(beyond, 0.0)
                    if not other[name].isfinite().all():  # where plain PyTorch fails, one rounding is what counts
                        other[name] = expected[name].to(dtype)
            jump = 1e-3 if "kinks" in position.exempt else 0.0
            assert_as_exact(got, plain, truth, 2 * torch.finfo(dtype).eps, jump)

        try:
            judge(1, position, exact, dtype)
        except HeadwayError as error:
            if re.search(r"\d", str(error)) is None or not spec.startswith("learned"):
                raise
        except AssertionError:
            judge(40, position, exact, dtype)  # plain PyTorch may err by next to nothing, by chance
