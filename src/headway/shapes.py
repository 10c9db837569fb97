"""The width of attention and its heads, and the one error type of the library."""

from __future__ import annotations

from dataclasses import dataclass


class HeadwayError(ValueError):
    """A mistake the caller can mend: the message says what was expected, what came, and what to do."""


@dataclass(frozen=True)
class HeadShape:
    """Width of the model and of its attention heads.

    Args:
        dim: width of the model, d_model.
        heads: number of query heads, H.
        kv_heads: number of key and value heads; ``heads`` is multi-head, 1 multi-query, between the two grouped-query.
        head_dim: width of one head, d_k.

    >>> HeadShape.of(512, heads=8)
    HeadShape(dim=512, heads=8, kv_heads=8, head_dim=64)
    """

    dim: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, dim: int, heads: int = 1, kv_heads: int | None = None, head_dim: int | None = None) -> HeadShape:
        """Fill in what is left out (every head its own keys; head_dim = dim / heads) and check that it fits.

        Raises:
            HeadwayError: when heads do not divide the width, or key heads do not divide the heads.
        """
        for name, value in (("dim", dim), ("heads", heads), ("kv_heads", kv_heads), ("head_dim", head_dim)):
            if value is not None and value < 1:
                raise HeadwayError(f"expected {name} of at least 1, got {value}")
        if head_dim is None:
            if dim % heads:
                raise HeadwayError(
                    f"expected heads to divide dim, got dim={dim} and heads={heads}: "
                    f"choose heads that divide {dim}, or give head_dim"
                )
            head_dim = dim // heads
        kv_heads = heads if kv_heads is None else kv_heads
        if heads % kv_heads:
            raise HeadwayError(
                f"expected kv_heads to divide heads, got heads={heads} and kv_heads={kv_heads}: "
                f"each key head serves the same number of query heads"
            )
        return cls(dim, heads, kv_heads, head_dim)
