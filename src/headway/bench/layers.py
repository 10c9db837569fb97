"""Whole layers of attention with DeBERTa's method, ours and transformers': with projections, both passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headway.attention import Attention
from headway.bench.cases import Built, Case, Unsupported, build
from headway.bench.contenders import Work, fits
from headway.bench.contenders import ours as our_heads
from headway.bench.others import imported
from headway.positions import Deberta, parse

OURS, THEIRS = "headway layer", "transformers layer"


@dataclass
class Layer(Work):
    """A layer on one input; its results have their own names, as they are not those of the case's q, k and v.

    Args:
        heads: what it computes between its projections, if it is ours.
        projected: multiply-adds of its projections, forward.
    """

    heads: Work | None = None
    projected: int = 0

    @property
    def backend(self) -> str | None:
        """See :attr:`Work.backend`."""
        return None if self.heads is None else self.heads.backend

    def products(self) -> int:
        """See :meth:`Work.products`; with its projections."""
        inside = 0 if self.heads is None else self.heads.products()
        return inside + self.projected * (3 if self.case.backward else 1)

    def step(self) -> dict[str, Tensor]:
        """Run once, see :meth:`Work.step`."""
        return {f"layer {name}": one for name, one in super().step().items()}


def ours(method: str, case: Case) -> Layer:
    """Our layer."""
    built, x = _input(case)
    mask, dim = case.visible(), case.heads * case.head_dim
    layer = Attention(dim, case.heads, position=parse(method), mask=mask, bias=True)
    work = _work(OURS, built, layer, x, layer)
    work.heads, work.projected = our_heads("auto")(method, case), 4 * case.batch * case.length * dim * dim
    return work


def theirs(method: str, case: Case) -> Layer:
    """transformers' ``DisentangledSelfAttention`` of DeBERTa v2 and v3, and a projection like our W_O.

    Raises:
        Unsupported: for another method, or with a causal mask.
    """
    position = parse(method)
    if not isinstance(position, Deberta) or position.reverse:
        raise Unsupported(f"transformers has a layer for deberta(reverse=False), not for {method}")
    if case.causal:
        raise Unsupported("its layers attend to both sides")
    modeling = imported("transformers.models.deberta_v2.modeling_deberta_v2", "transformers")
    configuration = imported("transformers.models.deberta_v2.configuration_deberta_v2", "transformers")
    fits(case, held=12)
    built, x = _input(case)
    dim = case.heads * case.head_dim
    config = configuration.DebertaV2Config(
        hidden_size=dim,
        num_attention_heads=case.heads,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        max_relative_positions=position.clip,
        position_buckets=position.buckets or -1,
        share_att_key=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    module = nn.ModuleDict({"self": modeling.DisentangledSelfAttention(config), "o": nn.Linear(dim, dim)})
    module.register_parameter("vectors", nn.Parameter(torch.randn(2 * (position.buckets or position.clip), dim) * 0.02))
    seen = torch.ones(case.batch, 1, case.length, case.length, dtype=torch.bool, device=case.device)

    def layer(x: Tensor) -> Tensor:
        heads = module["self"](x, seen, rel_embeddings=module.get_parameter("vectors"))[0]
        out: Tensor = module["o"](heads)
        return out

    return _work(THEIRS, built, module, x, layer)


def _input(case: Case) -> tuple[Built, Tensor]:
    built = build("none", case)
    x = torch.randn(case.batch, case.length, case.heads * case.head_dim, generator=torch.Generator().manual_seed(0))
    return built, x.to(case.device, case.torch_dtype).requires_grad_(case.backward)


def _work(name: str, built: Built, module: nn.Module, x: Tensor, layer: Callable[[Tensor], Tensor]) -> Layer:
    case = built.case
    module.to(case.device, case.torch_dtype).requires_grad_(case.backward)

    def forward() -> Tensor:
        out: Tensor = layer(x).unflatten(-1, (case.heads, case.head_dim))
        return out.transpose(1, 2)  # as the gradient of the case is given

    return Layer(case, built, forward, name, leaves={"x": x, **dict(module.named_parameters())})
