"""Tensor parallelism of attention: heads are divided among processes (Megatron-LM, arXiv:1909.08053).

    rank r:  W_Q, W_K, W_V of its heads (columns), W_O of its heads (rows)          out = Σ_r heads_r W_O,r

All processes have the same tokens. A position method keeps its parameters whole and computes with those of the rank's
heads, so that a head has the slope or table of its number in the whole layer, not of its number on the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from headway.attention import Attention
from headway.parallel.ranks import Mesh, Ranks
from headway.positions import Position
from headway.shapes import HeadwayError


def tensor_parallel(model: nn.Module, mesh: Mesh | None = None) -> Divided:
    """Divide the heads of every attention of a model among processes; it may be undone.

    Weights are divided in place, so make the optimizer afterwards. What stays whole, e.g. the position method's
    parameters, gets its whole gradient on every process: nothing needs to be summed. The rest of the model is not
    touched; torch's ``parallelize_module`` can divide an MLP.

    Args:
        model: the same on all processes, with :class:`headway.Attention` anywhere in it.
        mesh: the processes, see :class:`headway.parallel.Ranks`.

    Raises:
        HeadwayError: when the model has no such attention, when heads do not divide, and when a layer or its position
            method cannot be divided, by name.

    >>> from headway import Causal
    >>> attention, x = Attention(64, 4, position="alibi", mask=Causal()), torch.randn(2, 10, 64)
    >>> whole = attention(x)
    >>> with tensor_parallel(attention):
    ...     out = attention(x)
    >>> torch.allclose(out, whole, atol=1e-6)
    True
    """
    ranks = Ranks.of(mesh)
    layers = [module for module in model.modules() if hasattr(module, "own_heads")]
    if not layers:
        raise HeadwayError(f"expected a model with headway.Attention in it, got {type(model).__name__} without")
    for layer in layers:
        reason = undividable(layer, ranks.size)
        if reason is not None:
            raise HeadwayError(f"expected a model whose heads can be divided: {reason}")
    return Divided([layer for layer in layers if isinstance(layer, Attention)], ranks)


def undividable(layer: nn.Module, ranks: int) -> str | None:
    """Why the heads of a layer cannot be divided among so many processes, in one sentence; None when they can."""
    if not isinstance(layer, Attention):
        return f"{type(layer).__name__} makes all heads from one latent vector, which is not divided"
    if layer.own_heads is not None:
        return "its heads already are"
    if layer.borrows:
        return "a layer shares the keys and values of another (share_kv)"
    if layer.shape.kv_heads % ranks:
        return f"{layer.shape.kv_heads} key heads do not divide among {ranks} processes"
    if "heads" in layer.position.exempt:
        return f"{layer.position.method_name()} mixes all heads"
    if type(layer.position).renumber is not Position.renumber:
        return f"{layer.position.method_name()} draws new positions in training, and each process would draw its own"
    for name in "qkvo":
        if type(getattr(layer, name)) is not nn.Linear:
            return f"the projection {name} is a {type(getattr(layer, name)).__name__}, not torch.nn.Linear"
    return None


class Divided:
    """What :func:`tensor_parallel` did to a model; :meth:`undo` puts the weights together again, on every process."""

    def __init__(self, layers: Sequence[Attention], ranks: Ranks) -> None:
        self._ranks, self._layers = ranks, list(layers)
        self._shapes = [layer.shape for layer in layers]
        self._handles: list[Any] = []
        hooked: set[int] = set()
        for layer in self._layers:
            self._divide(layer)
            for parameter in _whole_parameters(layer):
                if parameter.requires_grad and id(parameter) not in hooked:
                    hooked.add(id(parameter))
                    self._handles.append(parameter.register_hook(ranks.summed))

    def _divide(self, layer: Attention) -> None:
        ranks, shape = self._ranks, layer.shape
        layer.own_heads = _share(shape.heads, ranks)
        layer.shape = replace(shape, heads=shape.heads // ranks.size, kv_heads=shape.kv_heads // ranks.size)
        layer.q = _columns(layer.q, _share(layer.q.out_features, ranks))
        layer.k = _columns(layer.k, _share(layer.k.out_features, ranks))
        layer.v = _columns(layer.v, _share(layer.v.out_features, ranks))
        layer.o = Row(layer.o, _share(layer.o.in_features, ranks), ranks)

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            if not args or getattr(args[0], "ndim", 0) == 2:  # without a batch it calls itself with one
                return args, kwargs
            entered = tuple(_entered(x, ranks) for x in args)
            return entered, {name: _entered(x, ranks) if name == "context" else x for name, x in kwargs.items()}

        self._handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))

    def undo(self) -> None:
        """Put the weights together again; gradients are dropped."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for layer, shape in zip(self._layers, self._shapes, strict=True):
            if layer.own_heads is None:
                continue
            layer.shape, layer.own_heads = shape, None
            layer.q, layer.k, layer.v = (_joined(linear, self._ranks) for linear in (layer.q, layer.k, layer.v))
            layer.o = _joined(layer.o, self._ranks, by_input=True)

    def __enter__(self) -> Divided:
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()


def _share(size: int, ranks: Ranks) -> slice:
    own = size // ranks.size
    return slice(ranks.rank * own, (ranks.rank + 1) * own)


def _whole_parameters(layer: Attention) -> list[nn.Parameter]:
    """The parameters of a layer that every rank has whole and uses for its own heads."""
    norms = [norm for norm in (layer.q_norm, layer.k_norm) if norm is not None]
    found = [parameter for norm in norms for parameter in norm.parameters()]
    found += [] if layer.sinks is None else [layer.sinks]
    # of what is added to the embedding before all layers, every rank has the whole gradient
    acts: Position = layer.position
    return found + ([] if acts.embeds and not layer.embed else list(acts.parameters()))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made


def _columns(linear: nn.Linear, rows: slice) -> nn.Linear:
    return _linear(linear.weight[rows], None if linear.bias is None else linear.bias[rows])


class Row(nn.Linear):
    """The part of W_O that belongs to a rank's heads; the ranks' products are summed, in rank order.

    Args:
        whole: W_O.
        columns: those of the rank.
        ranks: the processes.
    """

    def __init__(self, whole: nn.Linear, columns: slice, ranks: Ranks) -> None:
        super().__init__(columns.stop - columns.start, whole.out_features, bias=whole.bias is not None, device="meta")
        self.weight = nn.Parameter(whole.weight[:, columns].detach().clone())
        if whole.bias is not None:
            self.bias = nn.Parameter(whole.bias.detach().clone())
        self.ranks = ranks

    def forward(self, input: Tensor) -> Tensor:
        """The sum over all ranks, plus the bias once."""
        out: Tensor = _Left.apply(nn.functional.linear(input, self.weight), self.ranks)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias


def _joined(linear: nn.Linear, ranks: Ranks, by_input: bool = False) -> nn.Linear:
    weight = torch.cat(ranks.gathered(linear.weight.detach()), 1 if by_input else 0)
    bias = None if linear.bias is None else linear.bias.detach()
    if bias is not None and not by_input:
        bias = torch.cat(ranks.gathered(bias))
    return _linear(weight, bias)


def _entered(x: Any, ranks: Ranks) -> Any:
    return _Entered.apply(x, ranks) if isinstance(x, Tensor) else x  # type: ignore[no-untyped-call]


class _Entered(torch.autograd.Function):
    """Into the divided part: its gradient is the sum over all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        """As it is."""
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Summed in rank order."""
        return ctx.ranks.summed(grad), None


class _Left(torch.autograd.Function):
    """Out of the divided part: the sum over all ranks; every rank has the whole gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        """Summed in rank order."""
        return ranks.summed(x.contiguous()) if ranks.size > 1 else x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """As it is."""
        return grad, None
