"""Attention over parts of the keys, put together: each part counts by its share of all exponentials."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headway.backends.base import Partial
from headway.shapes import HeadwayError


def merge(
    outputs: Sequence[Float[Tensor, "*rows dim"]], lse: Sequence[Float[Tensor, "*rows"]]
) -> tuple[Float[Tensor, "*rows dim"], Float[Tensor, "*rows"]]:
    """The output of attention over all keys, from its outputs over parts of them.

        lse = log Σ_p exp(lse_p)          out = Σ_p exp(lse_p − lse) · out_p

    Args:
        outputs: of each part, (…, D).
        lse: the logarithm of each row's sum of exponentials in each part, (…); −inf where a row sees no key of it.

    Returns:
        The output, (…, D), and the logarithm of the sum over all parts, (…), to merge further. Differentiable; a row
        that sees no key at all is zeros. Computed in float32 or better, which is also the dtype of the second.

    Raises:
        HeadwayError: when there is no part, or not a sum for each.

    >>> out, lse = merge([torch.tensor([[1.0]]), torch.tensor([[3.0]])], [torch.tensor([0.0]), torch.tensor([0.0])])
    >>> out.tolist(), lse.exp().tolist()
    ([[2.0]], [2.0])
    """
    if not outputs or len(outputs) != len(lse):
        raise HeadwayError(f"expected as many sums as outputs, and at least one, got {len(lse)} and {len(outputs)}")
    wide = torch.promote_types(torch.promote_types(outputs[0].dtype, lse[0].dtype), torch.float32)
    sums = torch.stack([x.to(wide) for x in lse])
    greatest = sums.detach().amax(0)
    greatest = greatest.masked_fill(greatest == -torch.inf, 0.0)
    total = (sums - greatest).exp().sum(0)
    alive = total > 0
    weights = (sums - greatest).exp() / total.masked_fill(~alive, 1.0)
    out = torch.zeros_like(outputs[0], dtype=wide)
    for weight, part in zip(weights, outputs, strict=True):
        # a part that a row sees no key of may hold anything
        out = out + weight[..., None] * part.to(wide).masked_fill((weight == 0)[..., None], 0.0)
    found = total.masked_fill(~alive, 1.0).log() + greatest
    return out.to(outputs[0].dtype), found.masked_fill(~alive, -torch.inf)


def joined(first: Partial, second: Partial) -> Partial:
    """Attention over the keys of both.

    As :func:`merge`, but with the greatest scores apart from the sums: exp(score − greatest) is then as exact for large
    scores as for small ones, where exp(score − lse) is not. No gradients.
    """
    greatest = torch.maximum(first.greatest, second.greatest)
    base = greatest.masked_fill(greatest == -torch.inf, 0.0)
    shares = [part.total * (part.greatest - base).exp() for part in (first, second)]
    total = shares[0] + shares[1]
    safe = total.masked_fill(total == 0, 1.0)
    out = sum(
        (share / safe)[..., None] * part.out.to(total.dtype).masked_fill((share == 0)[..., None], 0.0)
        for share, part in zip(shares, (first, second), strict=True)
    )
    assert isinstance(out, Tensor)
    return Partial(out, greatest, total)
