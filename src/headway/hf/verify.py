"""Compare a model before and after acceleration: output, loss and the gradient of every parameter."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headway.hf.accelerate import Accelerated, accelerate
from headway.hf.float64 import in_float64
from headway.hf.inputs import SIDES, longest, random_inputs, result
from headway.inspect.record import recorded
from headway.shapes import HeadwayError

LENGTHS = (1, 33, 150, 600)
DRAWS = 3
"""How many random inputs of a kind are drawn until one passes: where an activation has a kink (ReLU), rounding can turn
an entry of one input's gradient on or off, in either code."""
CLOSE = 1e-5
"""Largest difference of attention weights."""
TIMES = 2.0
"""How many times the error of the model's own code, against float64, ours may be."""


@dataclass(frozen=True)
class Difference:
    """One input: errors against the model's own code in float64, each relative to the largest value.

    Args:
        tokens: length of the sequences.
        padding: on which side, or "none".
        own: of the output, by the model's own code.
        ours: of the output, accelerated.
        own_gradient: the largest of all parameters' gradients, by the model's own code.
        our_gradient: likewise, accelerated.
        parameter: which parameter that is.
        loss: |loss accelerated − loss of the model's own code|.
        draws: how many inputs were drawn, the last of which this is about.
    """

    tokens: int
    padding: str
    own: float
    ours: float
    own_gradient: float
    our_gradient: float
    parameter: str
    loss: float
    draws: int = 1

    @property
    def passed(self) -> bool:
        """Whether ours is at most twice as far from float64 as the model's own code."""
        return self.ours <= TIMES * self.own + 1e-12 and self.our_gradient <= TIMES * self.own_gradient + 1e-12


@dataclass(frozen=True)
class Weights:
    """Attention weights as :func:`headway.inspect.record` has them, against those that the model's own code returns.

    Args:
        layers: attentions compared.
        error: the largest difference, in float64; None where nothing could be compared.
        why: then, why not.
    """

    layers: int = 0
    error: float | None = None
    why: str = ""

    @property
    def passed(self) -> bool:
        """Whether they agree, as far as they could be compared; many models round to float32 on the way."""
        return self.error is None or self.error <= CLOSE

    def __str__(self) -> str:
        if self.error is None:
            return f"attention weights were not compared: {self.why}"
        return f"attention weights of {self.layers} layers in float64, largest difference: {self.error:.1e}"


@dataclass(frozen=True)
class Verified:
    """What :func:`verify` found; made for printing.

    Args:
        done: what was accelerated.
        rows: one for each input.
        weights: about attention weights.
    """

    done: Accelerated
    rows: tuple[Difference, ...]
    weights: Weights

    @property
    def passed(self) -> bool:
        """Whether all of them passed."""
        return all(row.passed for row in self.rows) and self.weights.passed

    def __str__(self) -> str:
        head = "tokens  padding  output: own      ours  gradients: own      ours      loss"
        lines = [
            str(self.done),
            "",
            "errors against the model's own code in float64, relative to the largest value",
            head,
        ]
        for row in self.rows:
            lines.append(
                f"{row.tokens:>6}  {row.padding:<7}  {row.own:>11.1e}  {row.ours:>8.1e}  {row.own_gradient:>14.1e}  "
                f"{row.our_gradient:>8.1e}  {row.loss:>8.1e}{'' if row.passed else f'  too far: {row.parameter}'}"
                f"{'' if row.draws == 1 else f'  (input {row.draws} of {DRAWS})'}"
            )
        verdict = "as exact as the model's own code" if self.passed else "less exact than the model's own code"
        return "\n".join([*lines, str(self.weights), f"{verdict}: at most {TIMES:g} times its error is allowed"])


def verify(
    model: PreTrainedModel,
    *,
    lengths: Sequence[int] = LENGTHS,
    inputs: Sequence[Mapping[str, Any]] | None = None,
) -> Verified:
    """Compare a model with itself accelerated, on random inputs of several lengths with and without padding, and the
    attention weights that are recorded of it with its own.

    The reference is a copy of the model in float64 that runs the model's own code; the model is left as it was.

    Args:
        model: any model of transformers that :func:`headway.hf.accelerate` takes.
        lengths: tokens of the random inputs; those beyond the model's longest are left out.
        inputs: what to call the model with instead.

    Raises:
        HeadwayError: as :func:`headway.hf.accelerate`; or when the model's own code does not compute in float64.

    >>> from transformers import T5Config, T5EncoderModel
    >>> small = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    >>> verify(T5EncoderModel(small), lengths=(1, 40)).passed
    True
    """
    training = model.training
    model.train(False)
    exact = copy.deepcopy(model).double()
    exact.set_experts_implementation("eager")  # torch's grouped products know no float64
    kept = {name: parameter.grad for name, parameter in model.named_parameters()}
    done: Accelerated | None = None
    rows = []
    try:
        for tokens, side, drawn in _given(model, lengths, inputs):
            for draw, given in enumerate(drawn):
                truth = _truth(exact, given)
                own = _run(model, given)
                done = accelerate(model, quiet=True)
                ours = _run(model, given)
                done.undo()
                row = replace(_difference(tokens, side, given, truth, own, ours), draws=draw + 1)
                if row.passed:
                    break
            rows.append(row)
    finally:
        if done is not None:
            done.undo()
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.grad = kept[name]
    assert done is not None
    return Verified(done, tuple(rows), _weights(exact, given))


Run = tuple[Tensor, float, dict[str, Tensor]]


def _given(
    model: PreTrainedModel, lengths: Sequence[int], inputs: Sequence[Mapping[str, Any]] | None
) -> list[tuple[int, str, Iterable[Mapping[str, Any]]]]:
    """Tokens and padding of each input, and the draws of it, made when they are needed."""
    if inputs is not None:
        first = [next(iter(given.values())) for given in inputs]
        return [(x.shape[1], "given", [given]) for x, given in zip(first, inputs, strict=True)]

    def drawn(tokens: int, side: str) -> tuple[int, str, Iterable[Mapping[str, Any]]]:
        return tokens, side, (random_inputs(model, tokens, side=side, seed=seed) for seed in range(DRAWS))

    if model.main_input_name != "input_ids":
        return [drawn(lengths[-1], "none")]
    limit = longest(model)
    fitting = [n for n in lengths if limit is None or n <= limit]
    return [drawn(n, side) for n in fitting for side in (SIDES if n > 1 else SIDES[:1])]


def _truth(exact: PreTrainedModel, given: Mapping[str, Any]) -> Run:
    """What the model's own code computes in float64."""
    try:
        with in_float64():
            return _run(exact, given)
    except RuntimeError as error:
        why = shorten(str(error), 200)
        raise HeadwayError(
            f"expected a model whose own code computes in float64, to compare with, got {type(exact).__name__}: {why}"
        ) from error


def _run(model: PreTrainedModel, given: Mapping[str, Any]) -> Run:
    """The output on real tokens, a loss, and its gradients."""
    model.zero_grad()
    dtype = next(model.parameters()).dtype
    moved = {key: x.to(dtype) if x.is_floating_point() else x for key, x in given.items()}
    out = result(model(**moved))
    real = given.get("attention_mask")
    if real is not None and out.shape[:2] == real.shape:
        out = out * real.bool().view(*real.shape, *[1] * (out.ndim - 2))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = (out.double() * weights.to(out.device)).mean()
    loss.backward()
    grads = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return out.detach().double(), loss.item(), grads


@torch.no_grad()
def _weights(exact: PreTrainedModel, given: Mapping[str, Any]) -> Weights:
    """Recorded attention weights against the model's own, for one input."""
    dtype = next(exact.parameters()).dtype
    moved = {key: x.to(dtype) if x.is_floating_point() else x for key, x in given.items()}
    try:
        with in_float64():
            trace = recorded(exact, **moved)
            usual = result(exact(**moved))
            exact.set_attn_implementation("eager")
            out = exact(**moved, output_attentions=True)
    except (HeadwayError, ValueError, TypeError) as error:
        return Weights(why=str(error))
    now, real = result(out), moved.get("attention_mask")
    if real is not None and real.shape == now.shape[:2]:
        now, usual = now[real.bool()], usual[real.bool()]
    if not torch.allclose(now, usual, rtol=1e-4, atol=1e-4 * float(usual.abs().max())):
        return Weights(why="asked for weights, its own code gives another output")
    own = list(out.get("attentions") or out.get("encoder_attentions") or ())
    if out.get("decoder_attentions") is not None and out.get("cross_attentions") is not None:
        own += [x for pair in zip(out.decoder_attentions, out.cross_attentions, strict=True) for x in pair]
    if [layer.weights(slice(0, 1)).shape[:2] for layer in trace] != [x.shape[:2] for x in own if x is not None]:
        return Weights(why=f"its own code returns {len(own)} of other shapes for {len(trace)} recorded ones")
    worst = 0.0
    for layer, theirs in zip(trace, own, strict=True):
        weights, seen = layer.weights(), layer.seen()
        alive = (layer.call.q_pos >= 0)[:, None, :, None] & torch.ones_like(weights[..., :1], dtype=torch.bool)
        alive = alive if seen is None else alive & seen.any(-1, keepdim=True)
        if real is not None and real.shape == (len(weights), weights.shape[2]):  # padding may see itself, as in XLNet
            alive = alive & real.bool()[:, None, :, None]
        sums = theirs.sum(-1, keepdim=True).masked_fill(~alive, 1) if weights.shape == theirs.shape else None
        if sums is not None and layer.call.sinks is not None:  # some return what is left beside the sink, some all
            share = weights.sum(-1, keepdim=True)
            weights = weights if torch.allclose(sums, share.masked_fill(~alive, 1), atol=0.01) else weights / share
            sums = sums / weights.sum(-1, keepdim=True).masked_fill(~alive, 1)
        if sums is None or not bool(((sums - 1).abs() < 0.01).all()):
            return Weights(why="its own code returns something else than weights")
        if torch.equal(theirs, theirs[:, :1].expand_as(theirs)):  # WavLM returns the mean of its heads for each of them
            weights, theirs = weights.mean(1, keepdim=True), theirs[:, :1]
        worst = max(worst, float(((weights - theirs) * alive).abs().max()))
    return Weights(len(own), worst)


def _difference(tokens: int, side: str, given: Any, truth: Run, own: Run, ours: Run) -> Difference:
    largest = max(float(grad.abs().max()) for grad in truth[2].values())

    def off(run: Run) -> dict[str, float]:
        return {name: float((run[2][name] - grad).abs().max()) / largest for name, grad in truth[2].items()}

    def far(run: Run) -> float:
        return float((run[0] - truth[0]).abs().max() / truth[0].abs().max().clamp(min=1e-30))

    before, after = off(own), off(ours)
    worst = max(after, key=after.__getitem__)
    return Difference(
        tokens, side, far(own), far(ours), max(before.values()), after[worst], worst, abs(ours[1] - own[1])
    )
