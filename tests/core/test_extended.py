"""A trained method made to serve longer texts; and what the scalings refuse."""

from __future__ import annotations

import pytest
import torch
from common import refusal

from headway import Alibi, Attention, Causal, Learned, Rotary, Transformer
from headway.positions import (
    NTK,
    T5,
    DynamicNTK,
    Interpolated,
    Llama3,
    LongRope,
    NoPosition,
    Position,
    Proportional,
    Sinusoidal,
    XPos,
    Yarn,
    extend,
    parse,
)


@pytest.mark.parametrize(
    ("position", "how", "trained", "expected"),
    [
        (Rotary(), "linear", 2048, "interpolated(factor=16.0)"),
        (Rotary(base=500.0), "ntk", 8192, "ntk(base=500.0)"),
        (Rotary(fraction=0.5, pairing="interleaved"), None, 1024, "yarn(fraction=0.5, pairing='interleaved', "),
        (Rotary(), "dynamic", 1024, "dynamicntk(factor=32.0, original=1024)"),
        (Interpolated(), "linear", 8192, "interpolated"),
        (NTK(base=500.0), "yarn", 4096, "yarn(base=500.0, factor=8.0, original=4096)"),
        (DynamicNTK(original=512), "linear", None, "interpolated(factor=64.0)"),
        (Llama3(base=500000.0), "yarn", None, "yarn(base=500000.0, original=8192)"),
        (LongRope(long=(2.0,)), "ntk", None, "ntk(factor=8.0)"),
        (Yarn(original=512, truncate=False, attention_factor=0.9), None, None, "yarn(factor=64.0, original=512, trunc"),
        (Yarn(original=512), "dynamic", 16384, "dynamicntk(factor=2.0, original=16384)"),
        (Proportional(fraction=0.5, factor=3.0), None, 16384, "proportional(fraction=0.5, factor=2.0)"),
    ],
)
def test_the_frequencies_of_a_rotary(position: Rotary, how: str | None, trained: int | None, expected: str) -> None:
    before = position.spec()
    longer = extend(position, to=32768, how=how, trained=trained)
    assert longer.spec().startswith(expected)
    assert longer is not position
    assert position.spec() == before
    assert longer.shape is None


def test_extending_to_what_was_trained_changes_nothing() -> None:
    q, k = torch.randn(2, 1, 2, 30, 16)
    pos = torch.arange(30)[None]
    expected = Rotary().rotate(q, k, pos, pos)[0]
    for how in ("linear", "ntk", "dynamic", "yarn"):
        longer = extend(Rotary(), to=30, how=how, trained=30)
        rotated = longer.rotate(q, k, pos, pos)
        torch.testing.assert_close(longer.prepare(*rotated, pos, pos, 1.0)[0], expected)


def test_a_rotation_at_the_new_end_is_one_that_was_trained() -> None:
    """What extending is for: interpolated pairs rotate at the new length as they did at the old."""
    q = torch.randn(1, 1, 1, 64).double()
    old, new = torch.tensor([[1000]]), torch.tensor([[4000]])
    trained = Rotary().rotate(q, q, old, old)[0]
    got = extend(Rotary(), to=4000, how="linear", trained=1000).rotate(q, q, new, new)[0]
    torch.testing.assert_close(got, trained)
    slowest = [31, 63]
    got = extend(Rotary(), to=4000, how="ntk", trained=1000).rotate(q, q, new, new)[0]
    torch.testing.assert_close(got[..., slowest], trained[..., slowest])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_table_of_positions(dtype: torch.dtype) -> None:
    old = Learned(max_length=5).attach(3).to(dtype)
    new = extend(old, to=9)
    assert isinstance(new, Learned)
    assert new.max_length == 9
    assert new.shape == old.shape
    assert new.weight.dtype == dtype
    assert new.weight.requires_grad
    torch.testing.assert_close(new.weight[::2], old.weight)
    torch.testing.assert_close(new.weight[1::2], (old.weight[1:] + old.weight[:-1]) / 2)
    assert torch.equal(extend(old, to=5).weight, old.weight)
    of_three = extend(old, to=5, trained=3).weight
    torch.testing.assert_close(of_three[::2], old.weight[:3])
    assert new.weight.data_ptr() != old.weight.data_ptr()
    assert extend(Learned(max_length=5), to=9).spec() == "learned(max_length=9)"
    assert extend(Learned(max_length=1).attach(3), to=4).weight.shape == (4, 3)


@pytest.mark.parametrize("position", [Alibi(), T5(), NoPosition(), Sinusoidal(), XPos()])
def test_others_have_nothing_to_extend(position: Position) -> None:
    name = type(position).__name__
    with refusal(
        f"expected a method with frequencies or a table of positions to extend (rotary and its scalings, learned), "
        f"got {name}: it already accepts texts of any length, or cannot be extended"
    ):
        extend(position, to=100, trained=10)


def test_lengths_and_ways_that_do_not_fit() -> None:
    with refusal("expected how to be one of linear, ntk, dynamic, yarn, got 'dynamicntk'"):
        extend(Rotary(), to=100, how="dynamicntk", trained=10)
    with refusal(
        "expected trained, the length the frequencies were trained at, because ntk does not know it, got none: e.g. "
        "pass trained=2048"
    ):
        extend(NTK(), to=100)
    with refusal("expected to at least the trained length and that at least 1, got 100 and 2048"):
        extend(Yarn(), to=100)
    with refusal("expected how 'linear', the only way to extend a table, got 'yarn'"):
        extend(Learned(), to=1000, how="yarn")
    with refusal("expected trained from 1 to 512 and to at least that, got trained=512 and to=100"):
        extend(Learned(), to=100)
    with refusal(
        "expected how 'linear', trained, the trained length, and to at least that, got how='yarn', trained=10 and to=20"
    ):
        extend(Proportional(), to=20, how="yarn", trained=10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Interpolated(factor=0.5), "expected interpolated factor of at least 1 and finite, got 0.5"),
        (lambda: NTK(factor=float("inf")), "expected ntk factor of at least 1 and finite, got inf"),
        (lambda: DynamicNTK(original=0), "expected dynamicntk original of at least 1 and finite, got 0"),
        (lambda: Yarn(mscale=-1.0), "expected yarn mscale of at least 0 and finite, got -1.0"),
        (lambda: Yarn(base=1.0), "expected yarn base above 1, because it divides by its logarithm, got 1.0"),
        (lambda: Yarn(beta_slow=32.0), "expected yarn beta_slow above 0 and below a finite beta_fast=32.0, got 32.0"),
        (lambda: XPos(scale_base=0.0), "expected a finite xpos scale_base above 0, got 0.0"),
        (lambda: Llama3(low=5.0), "expected llama3 high, finite, of at least low=5.0, got 4.0"),
        (lambda: LongRope(long=(1.0, 0.0)), "expected longrope long of finite numbers above 0, got (1.0, 0.0)"),
        (
            lambda: Attention(16, 2, position=LongRope(short=(1.0,))),
            "expected longrope short of 4 numbers, one for each pair that rotates, got 1",
        ),
        (
            lambda: Attention(14, 2, position=Proportional()),
            "expected an even head width, because proportional pairs all of it, got 7",
        ),
        (
            lambda: Attention(12, 2, position=Proportional(fraction=0.3)),
            "expected proportional to rotate at least one pair, got fraction=0.3 of 6",
        ),
    ],
)
def test_what_scalings_refuse(make: object, message: str) -> None:
    with refusal(message):
        make()  # type: ignore[operator]


def test_lists_of_numbers_are_written_and_read_as_text() -> None:
    spec = "longrope(short=(1.0, 1.5), long=(2.0, 9.5))"
    position = parse(spec)
    assert position.hyperparameters()["long"] == (2.0, 9.5)
    assert position.spec() == spec
    assert parse("longrope(long=(2, 9.5), short=())").spec() == "longrope(long=(2.0, 9.5))"
    module = Attention(8, 2, position=spec, mask=Causal())
    assert module(torch.randn(1, 5, 8)).shape == (1, 5, 8)
    for wrong in ("(2.0)", "[2.0, 9.5]", "('a', 2.0)", "(True, 2.0)", "2.0"):
        with pytest.raises(Exception, match="expected longrope long"):
            parse(f"longrope(long={wrong})")


@pytest.mark.parametrize("shared", [True, False])
def test_layers_that_share_a_position_share_the_new_one(shared: bool) -> None:
    model = Transformer(vocab=17, dim=16, layers=3, heads=2, position="rotary", share_position=shared)
    for each in (model, model.extended(4096, "ntk", 512)):
        assert len({id(part.position) for part in each.stack.attentions()}) == (1 if shared else 3)
