"""The flow of one query, numbers of position worked out, and planes that are moved: what is shown adds up and is the
model's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_attending import asked, close, make, tensor
from torch import Tensor

from headway.figures.values import Flow, Heatmap, Turns, Worked
from headway.inspect.probe import in_float64
from headway.views import Question, view
from headway.views.questions import about_trace

LONG = [str(token) for token in range(20)]
SPECS = ("rotary", "sinusoidal", "alibi", "shaw", "deberta", "dape", "path", "xpos", "stickbreaking")


def flow_of(question: Question, name: str = "stepper") -> Flow:
    figure = view(name, question).figures[0]
    assert isinstance(figure, Flow)
    return figure


def track(flow: Flow, label: str) -> Tensor:
    """A quantity of all rows, NaN where a row has none."""
    return next(tensor(one.values) for one in flow.tracks if one.label["en"] == label)


def rows(flow: Flow, kind: str) -> list[int]:
    return [at for at, (one, _) in enumerate(flow.rows) if one == kind]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("query", [-1, 4], ids=["last", "masked"])
def test_the_parts_of_every_step_are_its_total(spec: str, query: int) -> None:
    question = asked(make(spec), LONG, layer=0, query=query)
    flow, row = flow_of(question), question.row
    keys, (last,) = rows(flow, "key"), rows(flow, "sum")
    tokens = [flow.tokens[at] for at in keys]
    assert row in tokens or spec == "stickbreaking"
    # scores: what stages add
    added = [tensor(one.values)[keys, 0] for one in flow.tracks if one.scale == "score"]
    close(sum(added[:-1]), added[-1])  # type: ignore[arg-type]
    close(added[-1], question.seen.scores()[0, 2, row, tokens])
    # weights and the output of the head
    shares, parts = track(flow, "α"), track(flow, "α v")
    close(shares[keys, 0], question.seen.row(row, 2)[tokens])
    for values in (shares, parts):
        close(values[:last].nan_to_num().sum(0), values[last], 1e-5)
    close(parts[last], question.seen.output()[0, 2, row])
    close(parts[keys], shares[keys] * track(flow, "v")[keys], 1e-6)
    # the output of the layer
    own, others, whole = (tensor(end.values)[0] for end in flow.ends)
    close(own + others, whole)
    with torch.no_grad():
        together = question.seen.output()[0, :, row].flatten()
        close(whole, question.seen.attention.o(together))
    assert len(flow.rows) <= 14  # fits a screen
    if query == 4 and spec != "stickbreaking":
        assert len(keys) == 5 if not flow.masked else [flow.tokens[at] for at in flow.masked] > [row]


def test_products_of_the_vectors_shown_are_the_numbers_shown() -> None:
    question = asked(make("rotary"), query=5)
    flow = flow_of(question)
    keys = rows(flow, "key")
    close(track(flow, "k′")[keys] @ track(flow, "q′")[0], track(flow, "q′·k′")[keys, 0])
    close(track(flow, "q")[0], question.seen.q[0, 2, 5])
    assert flow.masked == [7, 8, 9]
    assert {view for stage in flow.stages for view, _ in stage.deeper} == {
        *("projection", "rotation", "split", "scaling", "distance", "softmax", "head", "wall")
    }


def test_a_recorded_pass_flows_too() -> None:
    question = asked(make("t5"))
    flow = flow_of(about_trace(question.trace, question.labels, layer=1, head=2))
    assert [one.label["en"] for one in flow.tracks] == [one.label["en"] for one in flow_of(question).tracks]


@pytest.mark.parametrize(("spec", "more"), [("rotary", {}), ("alibi", {"sinks": True}), ("stickbreaking", {})])
def test_the_steps_of_softmax_are_its_weights(spec: str, more: Any) -> None:
    question = asked(make(spec, **more), LONG)
    flow = flow_of(question, "softmax")
    weights, keys = question.seen.row(question.row, 2).double(), [flow.tokens[at] for at in rows(flow, "key")]
    (last,) = rows(flow, "sum")
    numbers = {one.label["en"]: tensor(one.values)[:, 0] for one in flow.tracks}
    shares = numbers["α"][: len(keys)]
    close(shares.nan_to_num(), weights[keys], 1e-6)
    close(numbers["α"][:last].nan_to_num().sum(), weights.sum(), 1e-6)
    if spec == "stickbreaking":
        close((numbers["σ(s)"] * numbers["Π σ(−s)"])[: len(keys)], shares, 1e-6)
        return
    powers = numbers["exp(s − max s)"]
    assert float(numbers["s − max s"].nan_to_num(-1).max()) == 0
    close(powers[:last].sum(), numbers["Σ"][last], 1e-6)
    close((powers / numbers["Σ"][last])[: len(keys)], shares, 1e-6)
    assert len(rows(flow, "rest")) == 1 + bool(more)


def test_what_is_left_of_a_stick_is_the_own_keys() -> None:
    flow = flow_of(asked(make("stickbreaking(remainder=True)")), "softmax")
    numbers = {one.label["en"]: tensor(one.values)[:-1, 0] for one in flow.tracks}
    close(numbers["σ(s)"] * numbers["Π σ(−s)"], numbers["α"], 1e-6)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("sinusoidal", "vectors"),
        ("learned", "vectors"),
        ("rotary", "rotation"),
        ("yarn", "rotation"),
        ("fope", "rotation"),
    ],
)
def test_a_cell_worked_out_is_the_cell_of_the_map(spec: str, name: str) -> None:
    figures = view(name, asked(make(spec))).figures
    at = next(at for at, figure in enumerate(figures) if isinstance(figure, Worked))
    made, shown = figures[at], figures[at - 1]
    assert isinstance(made, Worked)
    assert isinstance(shown, Heatmap)
    assert made.follows
    values = tensor(shown.values)
    for column, lines in enumerate(made.columns):
        for row in (0, 1, 7, len(made.rows) - 1):
            got = lines[-1].value(row)
            off = (
                math.remainder(got - float(values[row, column]), 2 * math.pi)
                if name == "rotation"
                else got - values[row, column]
            )
            assert abs(float(off)) < 1e-6, (row, column, lines)


@pytest.mark.parametrize("spec", ["alibi", "t5", "kerple", "fire", "sandwich"])
def test_a_distance_worked_out_is_the_bias(spec: str) -> None:
    question = asked(make(spec), options={"reach": 100})
    made = next(figure for figure in view("bias", question).figures if isinstance(figure, Worked))
    table = question.seen.call.score_terms[0].tile(torch.tensor([[100]]), torch.arange(101)[None])[0, 2, 0]
    for row, distance in enumerate(made.rows[:9]):  # those of the text; the law has all
        assert made.columns[0][-1].value(row) == pytest.approx(float(table[100 - distance]), rel=1e-4, abs=1e-6)


def test_what_depends_on_tokens_is_worked_out_for_the_query() -> None:
    question = asked(make("fox"), query=6)
    made = next(figure for figure in view("bias", question).figures if isinstance(figure, Worked))
    ((line,),) = made.columns
    assert line.said is not None
    added = question.seen.scores()[0, 2, 6] - question.seen.call.q[0, 2, 6] @ question.seen.call.k[0, 2].T * 8**-0.5
    assert [line.value(n) for n in made.rows] == pytest.approx(added[: 6 + 1].flip(0).tolist(), abs=1e-5)


@pytest.mark.parametrize("spec", ["rotary", "rotary(fraction=0.5)", "yarn", "dynamicntk", "grapem", "comrope"])
def test_planes_that_are_moved_give_the_dot_product_of_the_model(spec: str) -> None:
    question = asked(make(spec))
    moved = view("rotation", question).figures[0]
    assert isinstance(moved, Turns)
    q, k = (torch.view_as_complex(tensor(parts).contiguous()) for parts in (moved.q, moved.k))
    rates = torch.tensor(moved.rates, dtype=torch.float64)

    def product(at: tuple[int, int]) -> float:
        return moved.still + float((q.conj() * k * torch.exp(1j * (at[1] - at[0]) * rates)).real.sum())

    layer, (i, j) = question.seen, moved.positions
    assert product((i, j)) == pytest.approx(float(layer.call.q[0, 2, i] @ layer.call.k[0, 2, j]), abs=1e-4)
    assert product((i + 9, j + 9)) == pytest.approx(product((i, j)), abs=1e-9)
    position, at = in_float64(question.position), (21, 4)
    content = layer.q[:, :, [i]].double(), layer.k[:, :, [j]].double()  # type: ignore[index]
    where = [torch.tensor([[position]]) for position in at]
    with torch.no_grad():
        turned = position.rotate(*content, *where)
        turned = position.prepare(*turned, *where, 1.0)[:2]
    assert product(at) == pytest.approx(float(turned[0][0, 2, 0] @ turned[1][0, 2, 0]), abs=1e-6)


def test_methods_that_do_more_than_rotate_say_so() -> None:
    shown = view("rotation", asked(make("xpos")))
    assert not isinstance(shown.figures[0], Turns)
    assert any("cannot be moved" in note["en"] for note in shown.notes)
