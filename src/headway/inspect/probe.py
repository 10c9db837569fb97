"""The effect of a position method, found by applying it: scores of equal tokens, and the planes in which it rotates a
head.

Nothing here depends on the method. A method that rotates q and k by position is a linear map R(p) of each head at each
position p; applying it to the unit vectors gives R(p) itself. The maps M_p = R(p_0)ᵀR(p) of a method commute, so they
share their planes: those of the Hermitian matrix Σ_p c_p (M_p − M_pᵀ)/2i, with arbitrary c_p.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.backends.base import Call
from headway.masks import Causal
from headway.positions import Position, TermInputs
from headway.shapes import HeadShape, HeadwayError

CHUNK = 2**24
"""Values held at once while unit vectors are rotated."""
STILL = 1e-11
"""Rotations below this share of the largest are rounding errors."""


@dataclass(frozen=True, eq=False)
class Planes:
    """The planes of one head that a method rotates, the fastest first.

    Args:
        angles: rotation of each plane relative to the first token, in radians from −π to π, (tokens, planes).
        rates: median rotation from one token to the next, in radians from −π to π, (planes,).
        basis: a complex unit vector v for each plane, so that √2·vᴴx is x in this plane as a complex number,
            (planes, head_dim); None where single dimensions become planes (polar coordinates).
        still: number of unrotated dimensions of the head.
    """

    angles: Float[Tensor, "tokens planes"]
    rates: Float[Tensor, " planes"]
    basis: Tensor | None
    still: int

    def sizes(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch planes"]:
        """Norms of vectors in each plane: before rotation, or after it where dimensions become planes."""
        if self.basis is None:
            real, imaginary = x.double().chunk(2, -1)
            return torch.hypot(real, imaginary)
        return math.sqrt(2) * (x.to(self.basis.dtype) @ self.basis.conj().mT).abs()


def in_float64(position: Position) -> Position:
    """A copy of an attached method in float64 and evaluation mode, so that probing changes nothing."""
    return copy.deepcopy(position).double().eval()


def attached(position: Position) -> HeadShape:
    """The shape of a method.

    Raises:
        HeadwayError: when it is not attached yet.
    """
    if position.shape is None:
        raise HeadwayError(
            f"expected an attached position method, got {position.spec()} without widths: pass it to Attention first"
        )
    return position.shape


def alike(position: Position, pos: Int[Tensor, "1 tokens"]) -> Call:
    """A causal call in which all tokens have the same content, so that keys differ only in position.

    Queries and keys are one vector whose score with itself is 1; where the method adds position to the embedding, they
    are the added vectors, head by head. Attention's input is sampled from torch's generator.

    Args:
        position: an attached method in float64, see :func:`in_float64`.
        pos: the tokens' positions.

    >>> from headway.positions import Alibi
    >>> from headway.backends import reference
    >>> call = alike(Alibi().attach(HeadShape.of(16, heads=2)).double(), torch.arange(4)[None])
    >>> [round(value, 4) for value in reference.scores(call)[0, 0, -1].tolist()]  # 1, and −1/16 for each token
    [0.8125, 0.875, 0.9375, 1.0]
    """
    shape, tokens = attached(position), pos.shape[1]
    scale = shape.head_dim**-0.5
    if position.embeds:
        x = position.embed(torch.zeros(1, tokens, shape.dim, dtype=torch.float64), pos)
        content = x.unflatten(-1, (shape.heads, -1)).transpose(1, 2)
    else:
        x = torch.randn(shape.dim, dtype=torch.float64).expand(1, tokens, -1)
        content = x.new_full((1, shape.heads, tokens, shape.head_dim), shape.head_dim**-0.25)
    keys = content[:, : shape.kv_heads]
    q, k = position.rotate(content, keys, pos, pos)
    q, k, terms = position.prepare(q, k, pos, pos, scale, position.marked(x, pos))
    return Call(q, k, keys, pos, pos, Causal(), terms, scale, position.normalise, True, "cpu")


def planes(
    position: Position,
    where: Int[Tensor, "1 tokens"] | Int[Tensor, "1 tokens axes"],
    *,
    head: int = 0,
    x: Float[Tensor, "1 tokens dim"] | None = None,
) -> Planes | None:
    """The planes in which a method rotates the queries of one head, or None where it rotates none.

    Args:
        position: an attached method.
        where: positions or coordinates of the tokens.
        head: which query head.
        x: attention's input, for methods whose angles depend on the tokens; default zeros.

    >>> from headway.positions import Rotary
    >>> found = planes(Rotary(pairing="interleaved").attach(HeadShape.of(8, heads=2)), torch.arange(100)[None])
    >>> [round(rate, 9) for rate in found.rates.tolist()], found.still
    ([1.0, 0.01], 0)
    """
    if all(getattr(type(position), name) is getattr(Position, name) for name in ("rotate", "transform_qk")):
        return None
    with torch.no_grad():
        position, shape = in_float64(position), attached(position)
        x = torch.zeros(1, where.shape[1], shape.dim) if x is None else x
        pos = where if where.ndim == 2 else torch.arange(where.shape[1])[None]
        marks = position.marked(x.double(), pos)
        maps = _mapped(position, torch.eye(shape.head_dim, dtype=torch.float64), where, head, marks)
        if maps.shape[-1] == 2 * shape.head_dim:
            return _polar(maps)
        return _linear(position, maps, where, head, marks)


def _linear(position: Position, maps: Tensor, where: Tensor, head: int, marks: Tensor | None) -> Planes | None:
    generator = torch.Generator().manual_seed(0)
    dim, tokens = maps.shape[:2]
    # maps[c, p] = R(p) e_c, so that entry (d, c) of M_p is e_dᵀ R(p_0)ᵀ R(p) e_c
    since = torch.einsum("dn,cpn->pdc", maps[:, 0], maps)
    some = torch.randn(dim, dtype=torch.float64, generator=generator)
    if not torch.allclose(_mapped(position, some[None], where, head, marks)[0], torch.tensordot(some, maps, 1)):
        return None
    mixed = torch.tensordot(torch.randn(tokens, dtype=torch.float64, generator=generator), since, 1)
    values, vectors = torch.linalg.eigh((mixed - mixed.mT) / 2j)
    turning = values > STILL * max(1.0, float(values.max()))
    if not turning.any():
        return None
    basis = vectors[:, turning].T  # of each pair v, v̄ the one with a value above 0
    seen = torch.einsum("fd,pdc,gc->pfg", basis.conj(), since.to(basis.dtype), basis)
    own = seen.diagonal(dim1=1, dim2=2)
    if (seen - torch.diag_embed(own)).abs().max() > 1e-6 * own.abs().max():
        return None  # planes that are not the same at all positions
    angles = own.angle()
    first = (angles.abs() > 1e-12).long().argmax(0)
    sign = angles[first, torch.arange(len(basis))].sign()
    basis = torch.where(sign[:, None] < 0, basis.conj(), basis)
    return _ordered(angles * sign, basis, dim - 2 * len(basis))


def _polar(maps: Tensor) -> Planes | None:
    # dimension c becomes the complex number (c, c + dim); with a constant input all of them are large enough
    real, imaginary = maps[0].chunk(2, -1)  # (tokens, dim)
    angles = torch.atan2(imaginary, real)
    angles = _wrapped(angles - angles[:1])
    return _ordered(angles, None, int((angles == 0).all(0).sum())) if angles.any() else None


def _ordered(angles: Tensor, basis: Tensor | None, still: int) -> Planes:
    steps = _wrapped(angles[1:] - angles[:-1]) if len(angles) > 1 else torch.zeros_like(angles)
    rates = steps.median(0).values
    order = rates.abs().argsort(descending=True, stable=True)
    return Planes(angles[:, order], rates[order], None if basis is None else basis[order], still)


def _wrapped(angles: Tensor) -> Tensor:
    return torch.remainder(angles + math.pi, 2 * math.pi) - math.pi


def _mapped(position: Position, vectors: Tensor, where: Tensor, head: int, marks: Tensor | None) -> Tensor:
    """Vectors (V, D) transformed by the method as queries of one head at every position, (V, N, D')."""
    shape, tokens = attached(position), where.shape[1]
    pos = where if where.ndim == 2 else torch.arange(tokens)[None]
    size = max(1, CHUNK // (shape.heads * tokens * shape.head_dim))
    found = []
    for part in vectors.split(size):
        q = part[:, None, None].expand(-1, shape.heads, tokens, -1)
        q, k = position.rotate(q, q[:, : shape.kv_heads], where, where)
        if type(position).transform_qk is not Position.transform_qk:
            own = None if marks is None else marks.expand(len(part), *marks.shape[1:])
            q, _ = position.transform_qk(TermInputs(q, k, pos, pos, shape.head_dim**-0.5, own))
        found.append(q[:, head])
    return torch.cat(found)
