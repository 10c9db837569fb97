"""An attention of another library's model, seen as a layer of headway's: the matrices of each head, and its position.

Which columns of which projection are the queries of a head is written nowhere that can be trusted: projections are
fused, interleaved by head, transposed (GPT-2's Conv1D), of unequal parts, or make the pairs of a rotation in another
order. So it is found by running: a head's column is where the values of that head were, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from headway.attending import Attending, Core, HeadWeights
from headway.positions import Position
from headway.shapes import HeadShape, HeadwayError

SAMPLE = 64
"""Tokens whose values are compared to find columns."""


@dataclass(frozen=True, eq=False)
class Made:
    """What a projection made in a pass.

    Args:
        module: a linear layer of torch, or transformers' Conv1D.
        x: its input, (B, N, width).
        out: its output, (B, N, columns).
    """

    module: nn.Module
    x: Tensor
    out: Tensor


def is_projection(module: nn.Module) -> bool:
    """Whether a module multiplies by one matrix."""
    return isinstance(module, nn.Linear | Conv1D)


class Columns(nn.Linear):
    """Some columns of a projection's output, as a linear layer; its parameters stay those of the projection.

    Args:
        module: the projection.
        columns: which, in order.
    """

    def __init__(self, module: nn.Module, columns: Int[Tensor, " columns"]) -> None:
        nn.Module.__init__(self)
        self.__dict__["module"] = module  # not a part: it belongs to its model
        self.columns = columns.tolist()
        self.in_features, self.out_features = self._whole().shape[1], len(self.columns)

    def rows(self, first: int = 0, last: int | None = None, grad: bool = False) -> Float[Tensor, "columns width"]:
        """The weights of some columns, (columns, width); a view where they lie side by side."""
        return _take(self._whole(grad), self.columns[first:last])

    def _whole(self, grad: bool = False) -> Float[Tensor, "outputs width"]:
        module: Any = self.__dict__["module"]
        found = module.weight.grad if grad else module.weight
        if found is None:
            raise HeadwayError("expected gradients, got none: call backward() on a loss first")
        return by_column(module, found)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The matrix, (columns, width)."""
        return self.rows()

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The bias, (columns,); None without one."""
        module: Any = self.__dict__["module"]
        return None if module.bias is None else _take(module.bias, self.columns)


def by_column(module: nn.Module, weight: Tensor) -> Float[Tensor, "outputs inputs"]:
    """A weight of a projection, or its gradient, as torch's linear layers have it; a view."""
    return weight.T if isinstance(module, Conv1D) else weight


def _take(x: Tensor, index: Sequence[int]) -> Tensor:
    first = index[0]
    if list(index) == list(range(first, first + len(index))):
        return x[first : first + len(index)]
    return x[torch.tensor(index, device=x.device)]


def columns_of(
    made: Float[Tensor, "tokens columns"], target: Float[Tensor, "tokens width"]
) -> Int[Tensor, " width"] | None:
    """Which columns of a matrix another one consists of; None when not every column of it is one of them.

    Columns side by side are found first, so that equal ones (zeros) do not mislead.

    >>> made = torch.randn(3, 8)
    >>> columns_of(made, made[:, 2:5]).tolist()
    [2, 3, 4]
    """
    close = 4 * torch.finfo(made.dtype).eps

    def same(candidate: Tensor, column: Tensor) -> Tensor:
        """Which columns of the candidates are this one."""
        return ((candidate - column[:, None]).abs() <= close * column.abs()[:, None]).all(0)

    width = target.shape[1]
    for start in same(made, target[:, 0]).nonzero()[:, 0].tolist():
        block = made[:, start : start + width]
        if block.shape == target.shape and bool(((block - target).abs() <= close * target.abs()).all()):
            return torch.arange(start, start + width)
    found: list[int] = []
    for column in target.T:
        candidates = [number for number in same(made, column).nonzero()[:, 0].tolist() if number not in found]
        if not candidates:
            return None
        found.append(min(candidates, key=lambda number: abs(number - found[-1] - 1) if found else number))
    return torch.tensor(found)


@dataclass(frozen=True, eq=False)
class Found:
    """Where the queries, keys or values of all heads come from.

    Args:
        made: the projection.
        columns: which of its columns, head by head, (H, columns of a head).
        factor: what they are multiplied by.
        norm: the norm between the projection and the heads; None without one.
        shared: the projection of the columns that all heads share, the last ones of each; None where none are.
        shared_columns: which.
    """

    made: Made
    columns: Int[Tensor, "heads width"]
    factor: float = 1.0
    norm: nn.Module | None = None
    shared: Made | None = None
    shared_columns: Int[Tensor, " shared"] | None = None


def find(
    heads: Float[Tensor, "heads tokens width"],
    projections: Sequence[Made],
    norms: Sequence[Made],
    factors: Sequence[float],
    clip: float | None = None,
) -> Found | None:
    """Where the vectors of all heads come from; None when it is not found.

    Args:
        heads: of some tokens of one sequence.
        projections: those that ran.
        norms: the norms that ran, whose inputs and outputs may be by head.
        factors: what they may be multiplied by, likeliest first.
        clip: bounds of the projections' output, of a model that has them.
    """
    tokens = heads.shape[1]
    for factor in factors:
        for made in projections:
            out = _rows(made.out, tokens)
            if out is None:
                continue
            out = out if clip is None else out.clamp(-clip, clip)
            columns = _by_head(out * factor if factor != 1 else out, heads)
            if columns is not None:
                return Found(made, columns, factor)
    for norm in norms:
        before, after = _rows(norm.x, tokens, len(heads)), _rows(norm.out, tokens, len(heads))
        columns = None if after is None else _by_head(after, heads)
        if before is None or columns is None or before.shape != after.shape:  # type: ignore[union-attr]
            continue
        inside = find(before[:, columns].transpose(0, 1), projections, (), (1.0,), clip)
        if inside is not None:
            return Found(inside.made, inside.columns, 1.0, norm.module)
    return _partly_shared(heads, projections)


def _partly_shared(heads: Tensor, projections: Sequence[Made]) -> Found | None:
    """Keys of latent attention: the last columns are the same in every head, and come from another projection."""
    tokens, width = heads.shape[1:]
    alike = (heads == heads[:1]).all(1).all(0)
    own = width - int(alike.flip(0).long().cumprod(0).sum())
    if not 0 < own < width:
        return None
    rest = find(heads[:, :, :own], projections, (), (1.0,))
    for made in projections:
        out = _rows(made.out, tokens)
        columns = None if out is None else columns_of(out, heads[0, :, own:])
        if rest is not None and columns is not None:
            return Found(rest.made, rest.columns, shared=made, shared_columns=columns)
    return None


def _by_head(out: Float[Tensor, "tokens columns"], heads: Float[Tensor, "heads tokens width"]) -> Tensor | None:
    found = []
    for head in heads:
        columns = columns_of(out, head)
        if columns is None:
            return None
        found.append(columns)
    return torch.stack(found)


def _rows(x: Tensor, tokens: int, heads: int = 0) -> Float[Tensor, "tokens columns"] | None:
    """The first tokens of the first sequence, heads side by side; None where it has other tokens."""
    if x.ndim == 4:  # by head, before or behind the tokens
        x = x.transpose(1, 2) if x.shape[1] in (1, heads) and x.shape[2] != heads else x
        x = x.flatten(2)
    if x.ndim == 2:
        x = x[None]
    return x[0, :tokens] if x.ndim == 3 and x.shape[1] >= tokens else None


class Opened(Attending):
    """An attention of a model of another library. It is looked at, and cannot be called.

    ``head(h)`` has W_Q, W_K, W_V and W_O as views of the model's own parameters.

    Args:
        name: of its module.
        module: it.
        shape: widths of its queries and keys.
        position: its position method, with the model's own parameters.
        scale: what q·k is multiplied by.
        content_dim: in latent attention, the dimensions without position.

    Attributes:
        order: of the dimensions of a head in its projections, where the model puts them in another; else None.
    """

    def __init__(
        self, name: str, module: nn.Module, shape: HeadShape, position: Position, scale: float, content_dim: int = 0
    ) -> None:
        nn.Module.__init__(self)
        self.name, self.shape, self.position, self.scale = name, shape, position, scale
        self.__dict__["module"] = module
        self.content_dim = content_dim
        self.order: Tensor | None = None
        self.softcap, self.log_scale, self.sinks = None, None, None
        self.mask, self.embed, self.dropout, self.core = None, False, 0.0, Core()
        self.parts: dict[str, Columns] = {}
        self.norms: dict[str, nn.Module] = {}

    @property
    def qk_norm(self) -> bool:  # type: ignore[override]
        """Whether queries and keys are normalised."""
        return bool(self.norms)

    def __getattr__(self, name: str) -> Any:
        if name in ("q", "k", "v", "o"):
            part = self.__dict__["parts"].get(name)
            if part is None:
                raise HeadwayError(
                    f"expected the columns of one projection as {name.upper()} of {self.name}, got "
                    f"{type(self.__dict__['module']).__name__}, which computes it otherwise: the rest of it can be seen"
                )
            return part
        return super().__getattr__(name)

    def columns(self, which: str) -> int:
        """See :meth:`headway.attending.Attending.columns`."""
        if which not in self.parts:
            return self.shape.head_dim
        return self.parts[which].out_features // (self.shape.heads if which == "q" else self.shape.kv_heads)

    def head(self, index: int, *, grad: bool = False) -> HeadWeights:
        """See :meth:`headway.attending.Attending.head`."""
        index, group = self.shape.numbers(index)

        def rows(which: str, number: int) -> Tensor:
            part: Columns = getattr(self, which)
            width = self.columns(which)
            return part.rows(number * width, (number + 1) * width, grad).detach()

        out: Any = self.o
        width = out.in_features // self.shape.heads
        o = out.rows(grad=grad).detach()[:, index * width : (index + 1) * width]
        return HeadWeights(rows("q", index).T, rows("k", group).T, rows("v", group).T, o.T)
