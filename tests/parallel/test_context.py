"""Sequences spread over processes have the values and gradients of one process; in float64, two ranks, one start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from common import refusal, specs
from spreading import WAYS, accepts, few, together

from headway import Attention, Causal, Transformer
from headway.parallel import Layout, Ranks, context_parallel, merge, shard, shard_tokens, unshard
from headway.parallel.ulysses import Heads
from headway.positions import methods, parse
from headway.shapes import HeadShape

LENGTHS = (0, 1, 7, 8, 9, 64, 1000)


def test_two_processes_are_one(tmp_path: Path) -> None:
    together(tmp_path, 2, few)


REFUSED = {
    "all-gather": "randomized stickbreaking(remainder=True)",
    "ulysses": "dape dapev2 randomized",
    "ring": "cope dapev2 dynamicntk fox grapeap longrope path randomized selectiverotary stickbreaking wall",
}
"""The methods, or variants of them, that a way does not take; so no test takes a refusal for a pass."""


@pytest.mark.parametrize("how", WAYS)
def test_what_each_way_takes(how: str) -> None:
    refused = [spec for spec in specs() if not accepts(spec, how)]
    named = REFUSED[how].split()
    assert set(named) == {spec for spec in refused if spec in named or spec.partition("(")[0] not in named}
    assert all(spec in named or spec.partition("(")[0] in named for spec in refused)
    assert set(refused) >= {spec for spec in specs() if spec.partition("(")[0] in named}


@pytest.mark.parametrize("zigzag", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_parts_make_up_the_text(size: int, zigzag: bool) -> None:
    for length in LENGTHS:
        text = torch.arange(length)[None]
        layouts = [Layout(Ranks(None, rank, size), zigzag) for rank in range(size)]
        pieces = layouts[0].pieces * size
        whole = torch.cat((text, torch.full((1, -length % pieces), -1)), 1)
        parts = tuple(layout.mine(whole, 1) for layout in layouts)
        assert len({part.shape for part in parts}) == 1
        assert torch.equal(layouts[0].whole(parts, 1), whole)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_ranks_share_the_work_of_a_causal_mask(size: int) -> None:
    pos = torch.arange(32 * size + 5)
    whole = torch.cat((pos, torch.full((-len(pos) % (2 * size),), -1)))
    work = []
    for rank in range(size):
        mine = Layout(Ranks(None, rank, size)).mine(whole, 0)
        work.append(int((mine[mine >= 0] + 1).sum()))
    assert sum(work) == len(pos) * (len(pos) + 1) // 2
    assert max(work) <= 1.1 * sum(work) / size


def test_merging_parts_is_attention_over_all_keys() -> None:
    scores, v = torch.randn(5, 12, dtype=torch.float64, requires_grad=True), torch.randn(12, 3, dtype=torch.float64)
    hidden = scores.masked_fill(torch.arange(12) < 4, -torch.inf)
    parts = [hidden[:, :4], hidden[:, 4:6], hidden[:, 6:]]
    values = v.split((4, 2, 6))
    found = [(part.softmax(-1) @ some, part.logsumexp(-1)) for part, some in zip(parts, values, strict=True)]
    out, lse = merge(*zip(*found[1:], strict=True))
    again, total = merge([torch.full_like(out, torch.nan), out], [torch.full((5,), -torch.inf).double(), lse])
    torch.testing.assert_close(again, hidden.softmax(-1) @ v)
    torch.testing.assert_close(total, hidden.logsumexp(-1))
    got, want = (
        torch.autograd.grad(y.square().sum(), scores, retain_graph=True)[0]
        for y in (out, hidden[:, 4:].softmax(-1) @ v[4:])
    )
    torch.testing.assert_close(got, want)
    nothing, none = merge([torch.ones(1, 2)], [torch.tensor([-torch.inf])])
    assert (nothing.tolist(), none.tolist()) == ([[0.0, 0.0]], [-torch.inf])
    with refusal("expected as many sums as outputs, and at least one, got 0 and 0"):
        merge([], [])


@pytest.mark.parametrize("spec", list(methods()))
def test_methods_say_which_parameters_are_of_heads(spec: str) -> None:
    few, many = (parse(spec).attach(HeadShape(48, heads, kv_heads, 8)) for heads, kv_heads in ((6, 2), (12, 6)))
    after = dict(many.named_parameters())
    for name, p in few.named_parameters():
        letters = few.sharding.get(name, "x" * p.ndim)
        times = {"h": 2, "g": 3, "x": 1}
        grown = [times[letter] if size > 1 else 1 for letter, size in zip(letters, p.shape, strict=True)]
        assert [size * more for size, more in zip(p.shape, grown, strict=True)] == list(after[name].shape) or (
            "heads" in few.exempt
        ), name
    pos = torch.arange(3)[None]
    marks = [position.marked(torch.zeros(1, 3, 48), pos) for position in (few, many)]
    assert marks[0] is None or "marks" in few.sharding or marks[0].shape[2:] == marks[1].shape[2:] or spec in KEPT


KEPT = ("path", "selectiverotary")
"""What these keep of each token is several things side by side, some of them of key heads."""


def test_heads_of_each_rank() -> None:
    assert [Heads(8, 4).among(2, rank) for rank in range(4)] == [[0], [0], [1], [1]]
    assert [Heads(6, 3).among(2, rank) for rank in range(3)] == [[0], [0, 1], [1]]
    assert [Heads(5, 2).of(rank) for rank in range(2)] == [[0, 1], [2, 3, 4]]
    assert Heads(6, 2).among(1, 1) == [0]


def test_refusals() -> None:
    layer = Attention(16, 2, mask=Causal())
    x = torch.zeros(1, 4, 16)
    with refusal("expected how as one of 'all-gather', 'ulysses', 'ring', got 'rings'"):
        context_parallel(layer, how="rings")
    with refusal("expected a model with headway.Attention in it, got Linear without"):
        context_parallel(torch.nn.Linear(2, 2))
    fox = Transformer(9, dim=16, layers=1, heads=2, position="fox")
    with refusal(
        "expected a model that can be spread by how='ring': fox goes by all tokens in between, which no process has; "
        "use how='all-gather' or 'ulysses'"
    ):
        context_parallel(fox, how="ring")
    with (
        context_parallel(layer),
        refusal(
            "expected positions of the tokens and no cache, because the sequence is spread over processes, got none: "
            "pass pos"
        ),
    ):
        layer(x)
    assert layer.spread is None
    with refusal("expected a DeviceMesh or a ProcessGroup that holds this process, got 'world'"):
        shard(x, "world")  # type: ignore[arg-type]
    with refusal("expected a length of at most 4 tokens, got 5"):
        unshard(x, length=5)


def test_one_process_is_a_world(tmp_path: Path) -> None:
    model, ids = Transformer(9, dim=16, layers=2, heads=2, position="t5"), torch.arange(7)[None]
    for how in WAYS:
        with context_parallel(model, how=how):
            mine, pos = shard_tokens(ids)
            out = model(mine, pos=pos)
        torch.testing.assert_close(out, model(ids))
