"""Masks against their definitions, pair by pair."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from common import refusal, runs

from headway import Attention, Causal, Dense, Documents, KVCache, NoPosition, Prefix, Transformer, Window, attend, plan
from headway.backends import BACKENDS
from headway.integers import as_positions
from headway.masks import Mask
from headway.terms import ByDistance

Q_POS = torch.tensor([[3, 0, 7, 100], [1, 1, 2, 50]])
K_POS = torch.tensor([[0, 3, 4, 7, 99, 100], [0, 1, 1, 2, 49, 60]])
Q_IDS = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 3]])
K_IDS = torch.tensor([[0, 0, 1, 1, 1, 0], [2, 3, 3, 2, 2, 2]])
DENSE = torch.rand(2, 3, 4, 6) > 0.5

RULES = {
    "causal": (Causal(), lambda q, k, **_: k <= q),
    "window": (Window(3, 1), lambda q, k, **_: q - 3 <= k <= q + 1),
    "prefix": (Prefix(4), lambda q, k, **_: k < 4),
    "prefixes": (Prefix(torch.tensor([1, 50])), lambda q, k, b, **_: k < (1, 50)[b]),
    "documents": (Documents(Q_IDS, K_IDS), lambda q, k, b, i, j: Q_IDS[b, i] == K_IDS[b, j]),
    "and": (Causal() & Window(3), lambda q, k, **_: q - 3 <= k <= q),
    "or": (Causal() | Prefix(5), lambda q, k, **_: k <= q or k < 5),
    "nested": ((Causal() | Prefix(5)) & Documents(Q_IDS, K_IDS), None),
}


@pytest.mark.parametrize("name", [name for name, (_, rule) in RULES.items() if rule])
def test_a_mask_is_its_rule(name: str) -> None:
    mask, rule = RULES[name]
    seen = mask.tile(Q_POS, K_POS).expand(2, 1, 4, 6)
    for b in range(2):
        for i, q in enumerate(Q_POS[b].tolist()):
            for j, k in enumerate(K_POS[b].tolist()):
                assert seen[b, 0, i, j].item() == bool(rule(q, k, b=b, i=i, j=j))


@pytest.mark.parametrize("name", [*RULES, "dense"])
def test_tiles_are_the_whole(name: str) -> None:
    mask: Mask = Dense(DENSE) if name == "dense" else RULES[name][0]
    whole = mask.tile(Q_POS, K_POS)
    for rows in (slice(0, 1), slice(1, 4)):
        for cols in (slice(0, 2), slice(2, 5), slice(5, 6)):
            assert torch.equal(mask.tile(Q_POS, K_POS, rows, cols), whole[:, :, rows, cols])


@pytest.mark.parametrize("name", list(RULES))
def test_moving_positions_moves_no_relative_mask(name: str) -> None:
    mask = RULES[name][0]
    still = mask.tile(Q_POS, K_POS)
    moved = mask.tile(Q_POS + 10**6, K_POS + 10**6)
    assert torch.equal(moved, still) == (name in ("causal", "window", "documents", "and"))


def test_masks_say_what_they_are() -> None:
    assert repr(Causal() & Window(128)) == "And(first=Causal(), second=Window(left=128, right=0))"
    assert Window(3) == Window(3, 0) != Window(4)
    assert Causal() == Causal()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16])
def test_positions_of_any_integer_kind(dtype: torch.dtype) -> None:
    pos = as_positions(torch.arange(5, dtype=dtype), torch.zeros(2, 5, 3))
    assert pos.dtype == torch.int64
    assert pos.shape == (1, 5)


def test_refusals() -> None:
    with refusal("expected a window's left side of at least 0 tokens, got -1"):
        Window(-1)
    with refusal("expected a window's right side of at least 0 tokens, got -3"):
        Window(2, -3)
    with refusal("expected Documents ids of shape (batch, 4), got (1, 3): give one document id per token"):
        Documents(Q_IDS[:1, :3]).tile(Q_POS, Q_POS)
    with refusal("expected Documents key_ids of shape (batch, 6), got (2, 4): give one document id per token"):
        Documents(Q_IDS).tile(Q_POS, K_POS)
    with refusal("expected Documents ids of shape (batch, 4), got (1, 1, 4): give one document id per token"):
        Documents(Q_IDS[:1, None]).tile(Q_POS, Q_POS)
    with refusal("expected a mask over 4 queries and 4 keys, including cached ones, got one of shape (2, 3, 4, 6)"):
        Dense(DENSE).tile(Q_POS, Q_POS)


FLOATS = "to add it to the scores pass headway.terms.DenseBias, or mask= to attend() or a module"
NO_DENSE = (
    (DENSE.float(), "torch.float32 of shape (2, 3, 4, 6)", FLOATS),
    (DENSE[0, 0].double(), "torch.float64 of shape (4, 6)", FLOATS),
    (DENSE.long(), "torch.int64 of shape (2, 3, 4, 6)", "if it holds 1 and 0, pass mask.bool()"),
    (DENSE[0, 0, 0], "torch.bool of shape (6,)", "mark padding by position -1 instead of by a mask"),
)


@pytest.mark.parametrize(("value", "got", "instead"), NO_DENSE, ids=[got for _, got, _ in NO_DENSE])
def test_tensors_that_are_no_mask_are_refused_wherever_one_is_taken(value: Any, got: str, instead: str) -> None:
    q, x = torch.randn(2, 3, 4, 8), torch.randn(2, 4, 24)
    calls = (  # which add a float tensor to the scores
        lambda mask: attend(q, q, q, mask=mask),
        lambda mask: Attention(24, 3)(x, mask=mask),
        lambda mask: Attention(24, 3)(x[0], mask=mask),
        lambda mask: Transformer(5, 24)(torch.zeros(2, 4, dtype=torch.long), mask=mask),
        lambda mask: plan(NoPosition(), tokens=4, heads=3, head_dim=8, mask=mask),
    )
    for takes in (
        Dense,
        lambda mask: Causal() & mask,
        lambda mask: mask & Causal(),
        lambda mask: Causal() | mask,
        lambda mask: mask | Causal(),
        lambda mask: Attention(24, 3, mask=mask),
        *(() if instead == FLOATS else calls),
    ):
        with refusal(
            "expected a boolean mask of shape (batch or 1, heads or 1, queries, keys), (batch or 1, queries, keys) or "
            f"(queries, keys), True = visible, got {got}: {instead}"
        ):
            takes(value)


def test_what_is_no_mask_at_all() -> None:
    for value, got in (("causal", "str 'causal'"), (3, "int 3"), ([[True]], "list [[True]]"), (Causal, "type ")):
        with refusal(f"expected a mask of headway.masks, a boolean tensor or None, got {got}", whole=False):
            Attention(24, 3, mask=value)
        with refusal(f"expected a mask of headway.masks, a boolean tensor or None, got {got}", whole=False):
            Causal() & value
    with refusal("expected & and | between two masks, or a mask and a boolean tensor, got None"):
        Causal() & None
    with refusal(
        "expected a mask to be combined with tensors by & or |, got it as an argument of torch's masked_fill: "
        "mask.tile(q_pos, k_pos) returns it as a tensor"
    ):
        torch.zeros(2, 2).masked_fill(Causal(), 1.0)


def test_masks_and_boolean_tensors_meet() -> None:
    """On either side of & and |, as tensors and as arrays, in attend, Attention and Transformer."""
    plain = torch.rand(5, 5) > 0.4
    past = torch.ones(5, 5, dtype=torch.bool).tril()
    made = {
        "and": (past & plain, (Causal() & plain, plain & Causal(), plain.numpy() & Causal(), Causal() & plain.numpy())),
        "or": (
            past | plain,
            (Causal() | plain, plain | Causal(), plain.numpy() | Causal(), plain[None, None] | Causal()),
        ),
    }
    made["and"][1][0].tile(Q_POS[:, :1].expand(2, 5), Q_POS[:, :1].expand(2, 5))
    attention, model = Attention(24, 3, position="rotary").double(), Transformer(9, 24, kind="encoder", layers=2)
    causal, decoder = copy.deepcopy(attention), Transformer(9, 24, layers=2)
    causal.mask = Causal()
    x, tokens = torch.randn(2, 5, 24).double(), torch.randint(9, (2, 5))
    decoder.load_state_dict(model.state_dict())
    for what, (expected, masks) in made.items():
        dense = Dense(expected[None, None])
        for mask in masks:
            assert torch.equal(
                attend(x[:, None], x[:, None], x[:, None], mask=mask), attend(*(x[:, None],) * 3, mask=dense)
            )
            assert torch.equal(attention(x, mask=mask), attention(x, mask=dense))
            assert torch.equal(model(tokens, mask=mask), model(tokens, mask=dense))
        if what == "and":
            assert torch.equal(causal(x, mask=plain), attention(x, mask=dense))
            assert torch.equal(causal(x[0], mask=plain), attention(x[:1], mask=dense)[0])
            assert torch.equal(decoder(tokens, mask=plain), model(tokens, mask=dense))
            always = Attention(24, 3, position="rotary", mask=plain).double()
            always.load_state_dict(attention.state_dict())
            assert torch.equal(always(x, mask=Causal()), attention(x, mask=dense))
    mask = plain
    mask &= Causal()
    assert repr(mask) == "And(first=Dense(visible=(5, 5)), second=Causal())"


def test_a_plain_mask_that_could_be_of_padding_is_refused() -> None:
    """(queries, keys) is what no (batch, keys) is, unless there are as many sequences as queries."""
    q, square = torch.randn(5, 1, 5, 8), torch.ones(5, 5, dtype=torch.bool).tril()
    with refusal(
        "expected a mask with unambiguous axes, got (5, 5), which fits (queries, keys) as well as (batch, keys): pass "
        "mask[None, None] if it is the former; mark padding by position -1 instead of by a mask"
    ):
        attend(q, q, q, mask=Causal() & square)
    causal = attend(q, q, q, mask=Causal())
    torch.testing.assert_close(attend(q, q, q, mask=square[None, None]), causal)
    torch.testing.assert_close(attend(q[:3], q[:3], q[:3], mask=square), causal[:3])
    one = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 5, 8)  # a query of a sequence: both readings are the same
    seen = torch.tensor([[True, False, True, True, False]])
    torch.testing.assert_close(
        attend(one[0], one[1], one[1], mask=seen), attend(one[0], *(one[1][:, :, [0, 2, 3]],) * 2)
    )
    with refusal(
        "expected a mask over 5 queries and 5 keys, including cached ones, got one of shape (3, 5): mark "
        "padding by position -1 instead of by a mask"
    ):
        attend(q[:3], q[:3], q[:3], mask=square[:3])


def test_a_dense_mask_covers_the_keys_of_a_cache() -> None:
    attention, x = Attention(24, 3, mask=Causal()), torch.randn(2, 5, 24)
    seen = torch.rand(5, 5) > 0.3
    whole, cache = attention(x, mask=seen), KVCache()
    attention(x[:, :4], mask=seen[:4, :4], cache=cache)
    for wrong in (seen[4:, 4:], seen[4:, :4]):
        kept = KVCache()
        attention(x[:, :4], mask=seen[:4, :4], cache=kept)
        with refusal(
            f"expected a mask over 1 queries and 5 keys, including cached ones, got one of shape {tuple(wrong.shape)}"
        ):
            attention(x[:, 4:], mask=wrong, cache=kept)
    torch.testing.assert_close(attention(x[:, 4:], mask=seen[4:], cache=cache), whole[:, 4:])


def test_a_sliding_window_of_a_configuration() -> None:
    """Mistral's own rule for sliding_window = 3: a query sees itself and two before."""
    assert Window.sliding(3) == Window(2)
    theirs = pytest.importorskip("transformers.masking_utils", reason="make ranges runs without it")
    rule = theirs.sliding_window_overlay(3)
    expected = [[k <= q and bool(rule(0, 0, q, k)) for k in range(6)] for q in range(6)]
    pos = torch.arange(6)[None]
    assert Window.sliding(3).tile(pos, pos)[0, 0].tolist() == expected
    with refusal("expected a sliding window of at least 1 token, got 0"):
        Window.sliding(0)


def test_sides_of_any_size() -> None:
    """A window larger than any int64 distance is without limit."""
    q = torch.randn(1, 2, 5, 8)
    for backend in ("native", "tiled", "sdpa", "reference"):
        assert torch.equal(
            attend(q, q, q, mask=Window(2**62), backend=backend), attend(q, q, q, mask=Causal(), backend=backend)
        )
        far = attend(q, q, q, mask=Window(2**62, 2**62), backend=backend)
        torch.testing.assert_close(far, attend(q, q, q, backend=backend))
    assert torch.equal(attend(q, q, q, mask=Prefix(2**62)), attend(q, q, q, mask=Prefix(5)))
    for wrong, got in ((2.0, "2.0"), (True, "True"), ("3", "'3'"), (None, "None"), (torch.ones(2), "tensor([1., 1.])")):
        with refusal(f"expected a window's left side of at least 0 tokens, a whole number, got {got}"):
            Window(wrong)


def test_numbers_of_masks_as_lists_and_arrays() -> None:
    pos = torch.arange(4)[None]
    for ids in (
        [0, 0, 1, 1],
        [[0, 0, 1, 1]],
        torch.tensor([0, 0, 1, 1]).int(),
        np.array([[0, 0, 1, 1]], dtype=np.uint8),
    ):
        assert torch.equal(Documents(ids).tile(pos, pos), Documents(torch.tensor([[0, 0, 1, 1]])).tile(pos, pos))
    for length in (np.int32(2), [2], torch.tensor(2), np.array([2])):
        assert torch.equal(Prefix(length).tile(pos, pos), Prefix(2).tile(pos, pos))
    for wrong in ("0011", [0.5, 1.0, 2.0, 3.0], [[0], [1, 2]], ["a"], None, 3):
        with refusal("expected ", whole=False):
            Documents(wrong)
    for wrong in ("2", 2.5, None, -1, [[1], [2]], torch.tensor([0.5])):
        with refusal("expected ", whole=False):
            Prefix(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.bool])
def test_positions_that_are_not_integers(dtype: torch.dtype) -> None:
    with refusal(f"expected integer q_pos, got {dtype}", whole=False):
        as_positions(torch.zeros(5, dtype=dtype), torch.zeros(2, 5), "q_pos")


def test_positions_that_a_mask_of_padding_was_taken_for() -> None:
    """The sentence says what to pass, and that is right."""
    mask = torch.tensor([[False, False, True, True], [True, True, True, True]])
    with refusal(
        "expected integer positions, got torch.bool: for a mask that is True at tokens and False at padding pass "
        "(mask.cumsum(-1) - 1).masked_fill(~mask, -1)"
    ):
        as_positions(mask, torch.zeros(2, 4))
    pos = (mask.cumsum(-1) - 1).masked_fill(~mask, -1)
    assert as_positions(pos, torch.zeros(2, 4)).tolist() == [[-1, -1, 0, 1], [0, 1, 2, 3]]


POSITIONS = {
    "list": [3, 4, 5, 9, -1],
    "tuple": (3, 4, 5, 9, -1),
    "lists": [[3, 4, 5, 9, -1]],
    "array": np.array([3, 4, 5, 9, -1]),
    "int16": np.array([3, 4, 5, 9, -1], dtype=np.int16),
    "tensors": [torch.tensor(each) for each in (3, 4, 5, 9, -1)],
    "uint8": torch.tensor([3, 4, 5, 9, 10], dtype=torch.uint8),
    "uint16": torch.tensor([3, 4, 5, 9, 10], dtype=torch.uint16),
}


@pytest.mark.parametrize("name", list(POSITIONS))
def test_positions_as_users_have_them(name: str) -> None:
    last = 10 if name.startswith("u") else -1
    assert as_positions(POSITIONS[name], torch.zeros(2, 5)).tolist() == [[3, 4, 5, 9, last]]
    x = torch.randn(2, 5, 24)
    attention = Attention(24, 3, position="rotary", mask=Causal())
    assert torch.equal(attention(x, pos=POSITIONS[name]), attention(x, pos=torch.tensor([3, 4, 5, 9, last])))


@pytest.mark.parametrize(
    ("pos", "got"),
    [
        ("01234", "str '01234'"),
        (3, "int 3"),
        (slice(5), "slice slice(None, 5, None)"),
        ([0, 1, 2, 3, "4"], "[0, 1, 2, 3, '4']"),
        ([[0, 1], [0, 1, 2]], "[[0, 1], [0, 1, 2]]"),
        ([0, 1, 2, 3, 2**70], "[0, 1, 2, 3, 1180591620717411303424]"),
        (np.array(["a"] * 5), "array(['a', 'a', 'a', 'a', 'a'], dtype='<U1')"),
    ],
    ids=["text", "number", "slice", "mixed", "ragged", "huge", "strings"],
)
def test_positions_that_are_none(pos: Any, got: str) -> None:
    with refusal(f"expected q_pos as an integer tensor, array or list, got {got}"):
        as_positions(pos, torch.zeros(2, 5), "q_pos")


@pytest.mark.parametrize("value", [-2, -(2**62), 2**40, 2**62, 2**63 - 1])
def test_positions_out_of_range(value: int) -> None:
    for takes in (
        lambda pos: as_positions(pos, torch.zeros(1, 3)),
        lambda pos: attend(*(torch.randn(1, 1, 3, 4),) * 3, k_pos=pos),
        lambda pos: Attention(8, 2)(torch.randn(1, 3, 8), pos=pos),
        lambda pos: Transformer(5, 8, heads=2)(torch.zeros(1, 3, dtype=torch.long), pos=pos),
    ):
        with refusal(f" from 0 to 2^40 - 1, or -1 for padding, got {value}: shift all by the same number", whole=False):
            takes(torch.tensor([0, value, 1]))


def test_the_largest_positions_are_right() -> None:
    """At both ends of the range, in every mask and term by distance."""
    q = torch.randn(1, 2, 4, 8).double()
    pos = torch.tensor([[0, 1, 2**40 - 2, 2**40 - 1]])
    for mask in (Causal(), Window(1), Causal() & Window(3, 4), Causal() | Window(0, 1)):
        for terms in ((), (ByDistance(torch.randn(2, 5).double(), 3),)):
            given = {"mask": mask, "terms": terms, "q_pos": pos, "k_pos": pos}
            expected = attend(q, q, q, **given, backend="reference")
            for backend in (each for each in BACKENDS if runs(each, mask)):
                torch.testing.assert_close(attend(q, q, q, **given, backend=backend), expected)
    near = torch.tensor([[0, 1]])
    for mask in (Causal(), Window(1)):  # each half sees itself alone, where a table is zero beyond its ends
        both = attend(q, q, q, mask=mask & Documents([[0, 0, 1, 1]]), q_pos=pos, k_pos=pos)
        alone = attend(*(q[:, :, 2:],) * 3, mask=mask, q_pos=near, k_pos=near)
        torch.testing.assert_close(both[:, :, 2:], alone)


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 5, 1), (), (5, 2)])
def test_positions_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    got = (1, *shape) if len(shape) == 1 else shape
    with refusal(f"expected positions of shape (2 or 1, 5), got {got}"):
        as_positions(torch.zeros(shape, dtype=torch.long), torch.zeros(2, 5))


def test_positions_elsewhere() -> None:
    with refusal("expected positions on cpu, got meta"):
        as_positions(torch.zeros(5, dtype=torch.long, device="meta"), torch.zeros(2, 5))


def test_a_mask_acts_alike_in_every_backend() -> None:
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)
    for mask, _ in RULES.values():
        runs = [
            attend(q, k, v, mask=mask, q_pos=Q_POS, k_pos=K_POS, backend=backend) for backend in ("reference", "sdpa")
        ]
        torch.testing.assert_close(*runs)
