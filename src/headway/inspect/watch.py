"""How the matrices of each head learn: weights, gradients, optimizer state and updates during training.

    W ← W + ΔW        ΔW = −lr·∂L/∂W with SGD; −lr·m̂/(√v̂ + ε) with Adam, m and v running means of g and g²

Every few steps W_Q, W_K, W_V of each attention are copied before the optimizer's step, with the gradient it will use,
and after it, with its new state. The update is their difference, not a formula.

At the same steps scalar readings can be taken, which are kept when matrices are dropped for space: the update ratio of
each matrix, ‖ΔW‖ / ‖W‖, and the entropy of each head's weights on a fixed text.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from headway.attending import Attending
from headway.inspect.record import recorded
from headway.shapes import HeadwayError

MATRICES = ("q", "k", "v")
ROOM = 2**28
"""Maximum bytes of a watch; beyond, it records half as often."""
READINGS = 4096
"""Maximum readings of a watch; beyond, every second one of the older half is dropped."""
Taken = dict[tuple[str, str], "Snapshot"]
"""All matrices at one step: ``taken[name of the attention, "q"]``."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One matrix at one step, in the layout of ``nn.Linear``, (heads · d_k, d_model).

    Args:
        weight: W before the step.
        gradient: ∂L/∂W as passed to the optimizer, after any clipping; None without a gradient.
        update: ΔW of the step.
        state: the optimizer's own tensors after the step: ``momentum_buffer``, or ``exp_avg`` and ``exp_avg_sq``.
    """

    weight: Tensor
    gradient: Tensor | None
    update: Tensor
    state: dict[str, Tensor]

    def __repr__(self) -> str:
        held = ["weight", *(["gradient"] if self.gradient is not None else []), "update", *self.state]
        return f"Snapshot({', '.join(held)}: {tuple(self.weight.shape)} each)"

    def head(self, index: int, heads: int) -> Snapshot:
        """The part of one of ``heads`` heads, each (d_k, d_model).

        Raises:
            HeadwayError: when there is no such head.
        """
        if not 0 <= index < heads:
            raise HeadwayError(f"expected a head from 0 to {heads - 1}, got {index}")

        def part(x: Tensor) -> Tensor:
            by_head: Tensor = x.unflatten(0, (heads, -1))
            return by_head[index]

        gradient = None if self.gradient is None else part(self.gradient)
        return Snapshot(part(self.weight), gradient, part(self.update), {n: part(x) for n, x in self.state.items()})


@dataclass(frozen=True)
class Reading:
    """Scalar readings at one step, by layer in the order of the model's attentions.

    Args:
        ratios: ‖ΔW‖ / ‖W‖ of the last step for "q", "k" and "v" of each layer; None before the first step.
        entropies: the mean entropy of each head's weights, in nats, (layers, heads); None if not taken.
    """

    ratios: list[dict[str, float]] | None = None
    entropies: list[list[float]] | None = None


@dataclass(eq=False)
class Watch:
    """The recorded snapshots: ``watch[step][name, "q"]`` is a :class:`Snapshot`.

    Args:
        every: optimizer steps between snapshots; doubles when ``room`` is used up.
        room: maximum bytes.
        steps: recorded optimizer steps, counted from 0 when watching started. ``watch[k]`` holds the weights after k
            completed steps and the effect of step k + 1.
        readings: scalar readings by completed steps; they are kept longer than the matrices.
    """

    every: int
    room: int = ROOM
    steps: list[int] = field(default_factory=list)
    readings: dict[int, Reading] = field(default_factory=dict)
    _taken: dict[int, Taken] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(every {self.every} steps: {_some(self.steps)}; {self.size / 1e6:.1f} MB)"

    def __getitem__(self, step: int) -> Taken:
        if step not in self._taken:
            raise HeadwayError(f"expected a recorded step ({_some(self.steps)}), got {step}")
        return self._taken[step]

    @property
    def size(self) -> int:
        """Bytes recorded so far."""
        return sum(_bytes(taken) for taken in self._taken.values())

    def copied(self) -> Watch:
        """A copy that later snapshots do not change; the matrices themselves are shared."""
        return replace(self, steps=list(self.steps), readings=dict(self.readings), _taken=dict(self._taken))

    def read(self, finished: int, reading: Reading) -> None:
        """Store a reading; beyond the maximum, the older half is downsampled."""
        self.readings[finished] = reading
        if len(self.readings) > READINGS:
            steps = sorted(self.readings)
            half = len(steps) // 2
            self.readings = {step: self.readings[step] for step in (*steps[:half:2], *steps[half:])}

    def add(self, step: int, taken: Taken) -> None:
        """Store a snapshot; when ``room`` is used up, every second one is dropped."""
        self._taken[step] = taken
        if len(self._taken) > 2 and self.size > self.room:
            self.every *= 2
            self._taken = {s: t for s, t in self._taken.items() if s % self.every == 0}
        self.steps = sorted(self._taken)


def size_beforehand(model: nn.Module, steps: int, every: int = 10, tensors: int = 5) -> int:
    """Bytes that watching a training would take without a limit, for a message beforehand.

    Args:
        model: the model to watch.
        steps: steps of the training.
        every: steps between snapshots.
        tensors: tensors per matrix and snapshot: weight, gradient, update and optimizer state; 5 with Adam, 4 with SGD.

    >>> from headway import Attention
    >>> size_beforehand(Attention(dim=64, heads=4), steps=100, every=10)
    2457600
    """
    once = sum(weight.numel() * 4 for _, _, weight in _matrices(model))
    return math.ceil(steps / every) * tensors * once


@contextlib.contextmanager
def watch(model: nn.Module, *, every: int = 10, room: int = ROOM) -> Iterator[Watch]:
    """Record W_Q, W_K and W_V of every attention while a model trains in this block, with any torch optimizer.

    Args:
        model: any module that contains :class:`headway.Attention`.
        every: optimizer steps between snapshots.
        room: maximum bytes; when they are used up, every second snapshot is dropped, and it records half as often.

    Raises:
        HeadwayError: when the model contains no attention, or ``every`` is below 1.

    >>> from headway import Attention
    >>> attention = Attention(dim=16, heads=2)
    >>> optimizer = torch.optim.SGD(attention.parameters(), lr=0.5)
    >>> with watch(attention, every=1) as watched:
    ...     attention(torch.randn(1, 3, 16)).square().sum().backward()
    ...     optimizer.step()
    >>> taken = watched[0]["", "q"]
    >>> torch.allclose(taken.update, -0.5 * taken.gradient, atol=1e-6)
    True
    """
    if every < 1:
        raise HeadwayError(f"expected every of at least 1 step, got {every}")
    watched = Watch(every, room)
    with looking(model, lambda step: step % watched.every == 0, watched.add):
        yield watched


@contextlib.contextmanager
def looking(
    model: nn.Module, due: Callable[[int], bool], keep: Callable[[int, Taken], None], *, first: int = 0
) -> Iterator[None]:
    """Pass snapshots of W_Q, W_K and W_V of every attention to ``keep``, around the due optimizer steps of this block.

    Args:
        model: any module that contains :class:`headway.Attention`.
        due: whether to record a step.
        keep: called with the step and its snapshots, right after the optimizer's step.
        first: index of the first step.

    Raises:
        HeadwayError: when the model contains no attention.
    """
    matrices = list(_matrices(model))
    if not matrices:
        raise HeadwayError(f"expected a model with headway.Attention inside, got {type(model).__name__} with none")
    step = first
    before: dict[tuple[str, str], tuple[Tensor, Tensor | None]] = {}

    def ours(optimizer: torch.optim.Optimizer) -> bool:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return any(id(weight) in held for _, _, weight in matrices)

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        before.clear()
        if ours(optimizer) and due(step):
            for name, which, weight in matrices:
                before[name, which] = _copy(weight), None if weight.grad is None else _copy(weight.grad)

    def seen(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal step
        if before:
            taken = {}
            for name, which, weight in matrices:
                old, gradient = before[name, which]
                state = {n: _copy(x) for n, x in optimizer.state.get(weight, {}).items() if _alike(x, weight)}
                taken[name, which] = Snapshot(old, gradient, _copy(weight) - old, state)
            before.clear()
            keep(step, taken)
        step += ours(optimizer)

    with contextlib.ExitStack() as handles:
        handles.callback(register_optimizer_step_pre_hook(look).remove)
        handles.callback(register_optimizer_step_post_hook(seen).remove)
        yield


def update_ratios(taken: Mapping[tuple[str, str], Snapshot]) -> list[dict[str, float]]:
    """Update ratio of each matrix, ‖ΔW‖ / ‖W‖, by layer; about 0.001 is usual for Adam.

    Source: the rule of thumb is Karpathy's, cs231n notes on "ratio of weights:updates".

    >>> taken = {("", which): Snapshot(torch.ones(2, 2), None, torch.full((2, 2), 0.1), {}) for which in MATRICES}
    >>> round(update_ratios(taken)[0]["q"], 3)
    0.1
    """
    found: dict[str, dict[str, float]] = {}
    for (name, which), snapshot in taken.items():
        size = snapshot.weight.norm().item()
        found.setdefault(name, {})[which] = snapshot.update.norm().item() / size if size else 0.0
    return list(found.values())


def entropies(model: nn.Module, ids: Tensor) -> list[list[float]]:
    """The mean entropy of each head's weights over a text, in nats, (layers, heads), in evaluation mode.

    Args:
        model: any model with attentions that takes token ids; its mode is restored.
        ids: token ids, (B, N).

    >>> import headway
    >>> model = headway.Transformer(vocab=9, dim=16, layers=2, heads=4)
    >>> found = entropies(model, torch.arange(9)[None])
    >>> len(found), len(found[0]), model.training
    (2, 4, True)
    """
    with torch.no_grad():
        return [layer.summary()["entropy"].mean(0).tolist() for layer in recorded(model, ids)]


def _matrices(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    for name, module in model.named_modules():
        if isinstance(module, Attending):
            for which in MATRICES:
                weight = getattr(module, which).weight
                assert isinstance(weight, nn.Parameter)
                yield name, which, weight


def _copy(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float32, copy=True)


def _alike(x: Any, weight: Tensor) -> bool:
    return isinstance(x, Tensor) and x.shape == weight.shape


def _bytes(taken: Taken) -> int:
    found = 0
    for snapshot in taken.values():
        tensors = (snapshot.weight, snapshot.gradient, snapshot.update, *snapshot.state.values())
        found += sum(x.numel() * 4 for x in tensors if x is not None)
    return found


def _some(steps: list[int]) -> str:
    shown = steps if len(steps) < 7 else [*steps[:3], "…", *steps[-2:]]
    return ", ".join(map(str, shown)) or "none yet"
