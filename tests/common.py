"""What the tests of the core share: the methods under test, plain attention to compare with, and the law's rule."""

from __future__ import annotations

import contextlib
import functools
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype
from torch import Tensor
from torch.func import functional_call


def typechecker(function: Callable[..., Any]) -> Callable[..., Any]:
    """Beartype, but for ``Self``, which it understands only where it decorates a class; and for functions within one
    that is not checked.
    """
    if jaxtyping.config.jaxtyping_disable:
        return function
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if hint is not typing.Self}
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


def specs() -> list[str]:
    """Every method there is with its defaults, and the variants it names."""
    from headway.positions import methods

    return [*methods(), *(variant for method in methods().values() for variant in method.variants)]


@functools.cache
def default(spec: str) -> Any:
    """A method as its text says, to look at and not to attach: collecting the tests asks thousands of times."""
    from headway.positions import parse

    return parse(spec)


def exemptions() -> list[tuple[str, str, str]]:
    """Law, method and reason, wherever a method says that a law does not bind it."""
    from headway.positions import methods

    return sorted((law, name, why) for name, method in methods().items() for law, why in method.exempt.items())


BOTH = ("reference", "auto")


def every_method(
    law: str, on: Sequence[str] = (), variants: bool = True, layers: bool = False, **where: bool
) -> pytest.MarkDecorator:
    """Parametrise a test over all methods whose class attributes are as given; those exempt must fail.

    It is what a method law begins with: what holds for a method whichever backend runs it.

    Args:
        law: its name.
        on: backends, as a second argument ``backend`` of the test; variants of a method run on the last, on the others
            they are proofs.
        variants: whether the variants of methods run each time; else they are proofs, because what the law is about is
            the same for a variant.
        layers: whether the law is also one of layers of attention with options, see :mod:`options`; the test makes them
            by :func:`attention`, on the last backend.
        where: class attributes.
    """
    import options

    from headway.positions import methods

    chosen = [s for s in specs() if all(getattr(default(s), name) == value for name, value in where.items())]
    added = under(options.layers(), law, where) if layers else []

    def marks(spec: str, often: bool = variants) -> list[pytest.MarkDecorator]:
        return [*law_marks(law, spec), *([] if often or spec in methods() else [pytest.mark.slow])]

    if not on:
        return pytest.mark.parametrize("spec", [pytest.param(s, marks=marks(s), id=named(s)) for s in chosen + added])
    cases = [
        pytest.param(s, backend, marks=marks(s, variants and backend == on[-1]), id=f"{backend}-{named(s)}")
        for backend in on
        for s in (chosen + added if backend == on[-1] else chosen)
    ]
    return pytest.mark.parametrize(("spec", "backend"), cases)


def every_place(law: str, models: bool = False) -> pytest.MarkDecorator:
    """Parametrise a test of a Transformer over one method for each choice of :func:`places`; all others are proofs.

    Args:
        law: its name.
        models: whether the law is also one of Transformers with options, see :mod:`options`; the test makes them by
            :func:`transformer`.
    """
    import options

    cases = [
        pytest.param(s, marks=[*law_marks(law, s), *([] if s in places() else [pytest.mark.slow])], id=s)
        for s in specs()
    ]
    if models:
        cases += [pytest.param(s, marks=law_marks(law, s), id=named(s)) for s in under(options.models(), law, {})]
    return pytest.mark.parametrize("spec", cases)


def under(given: Sequence[Any], law: str, where: dict[str, bool]) -> list[Any]:
    """The options that are under a law of methods whose class attributes are these."""
    return [
        option
        for option in given
        if (option.only is None or law in option.only)
        and all(getattr(default(str(option)), name) == value for name, value in where.items())
        and not (where.get("relative") and not option.relative)
    ]


def named(spec: str) -> str:
    """What a case is called: an option by its name."""
    return getattr(spec, "name", spec)


@functools.cache
def places() -> list[str]:
    """The first method that acts at the same places of a Transformer: embeddings, queries and keys, scores, marks."""
    from headway.positions import Position, methods

    acts = ("embed", "rotate", "terms", "mark", "renumber", "transform_qk")
    first = {
        (method.per_layer, *(getattr(method, act) is not getattr(Position, act) for act in acts)): name
        for name, method in reversed(methods().items())
    }
    return list(first.values())


def law_marks(law: str, spec: str, methods: Sequence[str] = ()) -> list[pytest.MarkDecorator]:
    """Which law a case belongs to, for which methods it speaks (default its own), and that it must fail if exempt."""
    reason = default(spec).exempt.get(law)
    marks = [pytest.mark.law(law, methods or [spec.partition("(")[0]])]
    return marks + ([] if reason is None else [pytest.mark.xfail(strict=True, reason=reason)])


def runs(backend: str, mask: Any) -> bool:
    """Whether a backend can run plain attention with such a mask on this machine."""
    from headway import HeadwayError, attend

    q = torch.zeros(1, 1, 6, 8)
    try:
        attend(q, q, q, mask=mask, backend=backend)
    except HeadwayError:
        return False
    return True


def every_backend(mask: Any) -> pytest.MarkDecorator:
    """Parametrise a test over the backends that take such a mask on this machine."""
    from headway.backends import BACKENDS

    return pytest.mark.parametrize("backend", [backend for backend in BACKENDS if runs(backend, mask)])


def randomise(module: torch.nn.Module) -> None:
    """Move every parameter away from its initialisation."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


class _Seen(Exception):
    """Ends another model's forward pass where enough was seen."""


def part_of(model: torch.nn.Module, part: str, **given: Any) -> tuple[Tensor, Tensor]:
    """What a part of another library's model is given and returns in the model's own forward pass.

    The part is named as in the model's checkpoints, which releases keep; how the model calls it, and what it hands over
    besides hidden states, they do not.
    """
    seen: list[Tensor] = []

    def look(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        x = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        seen.extend((x.detach(), out if isinstance(out, Tensor) else out[0]))
        raise _Seen

    handle = model.get_submodule(part).register_forward_hook(look, with_kwargs=True)
    with contextlib.suppress(_Seen):
        model(**given)
    handle.remove()
    return seen[0], seen[1]


def make(spec: str, heads: int = 4, kv_heads: int | None = None, head_dim: int = 8) -> Any:
    """A method attached to these widths, its parameters random."""
    from headway.positions import parse
    from headway.shapes import HeadShape

    position = parse(spec).attach(HeadShape.of(heads * head_dim, heads, kv_heads, head_dim))
    randomise(position)
    return position


def attention(spec: str, heads: int = 6, kv_heads: int = 2, **given: Any) -> Any:
    """A small float64 Attention with a method or an option, all parameters random; six heads, two key heads. In
    evaluation, because a method may draw positions while training.
    """
    from headway.attention import Attention

    make = getattr(spec, "make", Attention)
    module = make(8 * heads, heads, kv_heads=kv_heads, position=str(spec), **given).double().eval()
    randomise(module)
    return module


def transformer(spec: str, **given: Any) -> Any:
    """A small float64 Transformer with a method or an option, all parameters random, in evaluation."""
    from headway.transformer import Transformer

    config = {"vocab": 17, "dim": 24, "layers": 2, "heads": 3, "position": str(spec), **getattr(spec, "config", {})}
    if "latent_dim" in config:  # no key heads to share
        given.pop("kv_heads", None)
    model = Transformer(**{**config, **given}).double().eval()
    randomise(model)
    return model


def through(position: Any, q: Tensor, k: Tensor, v: Tensor, how: Callable[..., Tensor], **given: Any) -> Tensor:
    """Rotate, make the terms, and attend: what Attention does between its projections.

    Args:
        how: ``attend`` or :func:`naive`.
        given: mask, q_pos, k_pos and what else ``how`` takes.
    """
    q_pos, k_pos = given["q_pos"], given["k_pos"]
    scale = q.shape[-1] ** -0.5
    marks = position.marked(k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(1, 2).flatten(2), k_pos)
    q, k = position.rotate(q, k, q_pos, k_pos)
    q, k, terms = position.prepare(q, k, q_pos, k_pos, scale, marks)
    return how(q, k, v, terms=terms, scale=scale, normalise=position.normalise, **given)


def naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Any,
    terms: Sequence[Any],
    q_pos: Tensor,
    k_pos: Tensor,
    scale: float,
    normalise: str = "softmax",
) -> Tensor:
    """Attention as one writes it in plain PyTorch, every step in the inputs' dtype; no row may be without keys."""
    from headway.terms import Term, ValuesByDistance

    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    score = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale
    content, seen = score, None if mask is None else mask.tile(q_pos, k_pos)
    for term in terms:
        if isinstance(term, Term):
            score = score + term.tile(q_pos, k_pos).to(q.dtype)
        elif not isinstance(term, ValuesByDistance):
            score = score + term.rows(content, seen, q_pos, k_pos).to(q.dtype)
    if normalise.startswith("stickbreaking"):
        before = (k_pos[:, None] < q_pos[..., None])[:, None]
        share = score.sigmoid().masked_fill(~(before if seen is None else before & seen), 0.0)
        left = (1 - share).flip(-1).cumprod(-1).flip(-1)  # after a key's own share
        weight = share * torch.nn.functional.pad(left[..., 1:], (0, 1), value=1.0)
        if normalise.endswith("+remainder"):
            queries, keys = weight.shape[-2:]
            weight = weight + left[..., :1] * torch.eye(queries, keys, dtype=q.dtype).roll(keys - queries, -1)
    else:
        weight = score.softmax(-1) if seen is None else score.masked_fill(~seen, -torch.inf).softmax(-1)
    out = torch.einsum("bhqk,bhkd->bhqd", weight, v)
    for term in terms:
        if isinstance(term, ValuesByDistance):
            entry = (k_pos[:, None] - q_pos[..., None] + term.left).clamp(0, term.table.shape[1] - 1)
            vectors = term.table[:, entry].transpose(0, 1).to(q.dtype)  # (B, H or 1, Q, K, D)
            out = out + (weight[..., None] * vectors).sum(-2)
    return out


def values_and_gradients(position: Any, inputs: Sequence[Tensor], weight: Tensor, how: Any, **given: Any) -> dict:
    """The output, and the gradients of Σ weight·output by q, k, v and each parameter."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = through(position, *leaves, how, **given)
    named = dict(zip("qkv", leaves, strict=True)) | dict(position.named_parameters())
    gradients = torch.autograd.grad((out * weight).sum(), list(named.values()), allow_unused=True)
    return {"out": out.detach()} | {f"d{name}": g for name, g in zip(named, gradients, strict=True) if g is not None}


def leaving_values() -> list[str]:
    """The methods that leave values as they are, which latent attention takes."""
    from headway.positions import methods

    return [name for name, method in methods().items() if not method().turns_values]


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Within a relative and an absolute ``tolerance`` of the expected value."""
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def same_with_gradients(got: Tensor, expected: Tensor, leaves: Sequence[Tensor], tolerance: float = 1e-9) -> None:
    """Values, and the gradients of one random loss by all leaves, which both were computed from."""
    close(got, expected, tolerance)
    weight = torch.randn_like(got)
    found, wanted = (torch.autograd.grad((out * weight).sum(), leaves, retain_graph=True) for out in (got, expected))
    for g, e in zip(found, wanted, strict=True):
        close(g, e, 10 * tolerance)
        assert e.any()


def on_two_threads(run: Callable[[], dict[str, Tensor]], times: int = 4) -> dict[str, Tensor]:
    """What a run on two threads finds, the same bits every time."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, *others = (run() for _ in range(times))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    return first


def assert_as_exact(
    got: list[dict], plain: list[dict], truth: list[dict], atom: float = 0.0, jump: float = 0.0
) -> None:
    """The worst error of some draws is at most twice that of plain PyTorch, plus one rounding atom (that of the dtype,
    or a coarser).

    Args:
        got: by draw, what a backend found.
        plain: by draw, what plain PyTorch found.
        truth: by draw, the same in float64.
        atom: a coarser rounding than the dtype's.
        jump: what share of its largest number a gradient may be off besides, where a rounding may put a number on the
            other side of a kink. Such a jump reaches one query and few keys: all but one in a hundred of their
            gradients, and half of them, err at most twice as much as plain PyTorch's.
    """
    for name in truth[0]:
        assert {draw[name].dtype for draw in got} == {draw[name].dtype for draw in plain}
        error, fair = (
            max((x[name].double() - exact[name]).abs().max().item() for x, exact in zip(draws, truth, strict=True))
            for draws in (got, plain)
        )
        largest = max(exact[name].abs().max().item() for exact in truth)
        # gradients of scores are differences of values as large as those of v; with a single key they cancel
        values = () if name == "out" else (exact["dv"].abs().max().item() for exact in truth if "dv" in exact)
        scale = max((largest, *values))
        least = max(atom, torch.finfo(got[0][name].dtype).eps) * max(1.0, scale)
        if jump and name in ("dq", "dk"):
            for share in (0.5, 0.99):
                most, fair_most = (_error_of(share, name, draws, truth) for draws in (got, plain))
                assert most <= 2 * fair_most + least, f"{share} of {name} err by {most:.3g}, not {fair_most:.3g}"
        least += 0.0 if name in ("out", "dv") else jump * largest  # where nothing jumps
        assert error <= 2 * fair + least, f"{name} errs by {error:.3g}, plain PyTorch by {fair:.3g}"


def judge_draws(draw: Callable[[], tuple[dict, dict, dict]], few: int = 1, more: int = 8, atom: float = 0.0) -> None:
    """Judge by :func:`assert_as_exact` a few draws of what a backend found, what plain PyTorch found, and the truth; if
    they fail, with more: plain PyTorch may err by next to nothing, most of all where a gradient is one number.
    """
    draws = [draw() for _ in range(few)]
    try:
        assert_as_exact(*(list(some) for some in zip(*draws, strict=True)), atom)
    except AssertionError:
        draws += [draw() for _ in range(more)]
        common = set[str].intersection(*(set(truth) for _, _, truth in draws))
        found = ([{name: one[name] for name in common} for one in some] for some in zip(*draws, strict=True))
        assert_as_exact(*found, atom)


def _error_of(share: float, name: str, draws: list[dict], truth: list[dict]) -> float:
    """The largest error of any number of a token and head, in the best ``share`` of them."""
    errors = [(x[name].double() - exact[name]).abs().amax(-1) for x, exact in zip(draws, truth, strict=True)]
    return torch.stack(errors).flatten().quantile(share, interpolation="lower").item()


def follows(
    ours: torch.nn.Module,
    model: torch.nn.Module,
    part: str,
    weights: dict[str, Tensor],
    given: dict[str, Any] | None = None,
    own: dict[str, Any] | None = None,
) -> None:
    """Ours with the weights of a model's attention is that part of the model in float64, gradients of its parameters
    too; within the 1e-4 that angles in float32 leave.

    Args:
        ours: our attention.
        model: theirs.
        part: its attention, as :func:`part_of` wants it.
        weights: by our names.
        given: what the model gets besides 60 tokens.
        own: what ours gets besides them.
    """
    tokens = torch.randn(2, 60, model.config.hidden_size, dtype=torch.float64)
    x, expected = part_of(model, part, inputs_embeds=tokens, **(given or {}))
    leaves = list(model.get_submodule(part).parameters())
    same_with_gradients(functional_call(ours, weights, (x,), own or {}), expected, leaves, 1e-4)


@contextlib.contextmanager
def refusal(message: str, whole: bool = True) -> Iterator[None]:
    """Expect a HeadwayError with exactly this text, or with it somewhere, as a user gets it: without shape checks."""
    from headway.shapes import HeadwayError

    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(HeadwayError, match=f"^{re.escape(message)}$" if whole else re.escape(message)):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@contextlib.contextmanager
def refused(backend: str) -> Iterator[None]:
    """Expect a named backend to say that it cannot run a call, and why."""
    from headway.shapes import HeadwayError

    with pytest.raises(
        HeadwayError, match=rf"^backend '{backend}' cannot run this call: \w.*; backend='auto' finds one"
    ):
        yield


def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what MKL does not multiply from now on, as on a processor that it does not use well."""
    from headway import linear
    from headway.backends.native import weights

    seen: list[tuple[int, ...]] = []
    real, gradient = linear._onednn, weights.gradient_of_weights

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append((*x.shape, weight.shape[0]))
        return real(x, weight, bias)

    def counted_gradient(grad: Tensor, x: Tensor) -> Tensor:
        seen.append((grad.shape[1], *x.shape))
        return gradient(grad, x)

    monkeypatch.setattr(linear, "halved", lambda: True)
    monkeypatch.setattr(linear, "_onednn", counted)
    monkeypatch.setattr(weights, "gradient_of_weights", counted_gradient)
    return seen
