"""Other libraries on the same cases, each in its fastest form; they are imported when needed.

- FlexAttention, compiled once per case. A table is captured as the same tensor that our kernels get; a constant bias is
  computed, not looked up.
- x-transformers: its ``Attend`` on the flash path, with its own T5 bias, ALiBi bias or rotary embedding.
- transformers: ``T5Attention`` without its projections, so that it computes only the bias and the core.
- flash-attn and fla, on a GPU: the kernels of FlashAttention 2, also with ALiBi's slopes, and of forgetting gates.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headway.bench.cases import Built, Case, CoreCall, Unsupported, build
from headway.bench.contenders import Contender, Work, biases, fits
from headway.positions import T5, Alibi, Rotary
from headway.positions.alibi import slopes
from headway.terms import ByDistance, PerKey, TablePerKey, TablePerQuery, Term


@dataclass(frozen=True)
class Other:
    """A library as a contender.

    Args:
        name: for the table.
        methods: the methods it has.
        prepare: prepares its work.
        module: what is imported for it.
        on: the device it is for; None is all.
    """

    name: str
    methods: tuple[str, ...]
    prepare: Contender
    module: str
    on: str | None = None

    @property
    def installed(self) -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec(self.module) is not None


def _score_mod(terms: tuple[Any, ...]) -> Callable[..., Tensor] | None:
    """The terms as a ``score_mod`` of FlexAttention: a function of one score and its indices."""
    if not terms:
        return None

    def place(left: int, width: int, q: Tensor, k: Tensor) -> Tensor:
        return (k - q + left).clamp(0, width - 1)

    def one(term: Term) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        match term:
            case PerKey(bias):
                return lambda b, h, q, k: bias[b if bias.shape[0] > 1 else 0, h, k]
            case ByDistance(row=int()):
                raise Unsupported("distances in an image are not implemented here as a score_mod")
            case ByDistance(table) if table.shape[1] == 1 and term.tails is not None:
                tails, left = term.tails, term.left
                # a bias like ALiBi: linear from one entry on
                return lambda b, h, q, k: torch.where(
                    k - q + left < 0, tails[h, 0] * -(k - q + left), tails[h, 1] * (k - q + left)
                )
            case ByDistance(table) if term.tails is None:
                return lambda b, h, q, k: table[h, place(term.left, table.shape[1], q, k)]
            case TablePerQuery():
                table = term.tables()
                return lambda b, h, q, k: table[b, h, q, place(term.left, table.shape[-1], q, k)]
            case TablePerKey():
                table = term.tables()
                return lambda b, h, q, k: table[b, h, k, place(term.left, table.shape[-1], q, k)]
        raise Unsupported(f"{type(term).__name__} is not implemented here as a score_mod")

    added = [one(term) for term in terms]

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        for term in added:
            score = score + term(b, h, q, k)
        return score

    return score_mod


def flex(method: str, case: Case) -> Work:
    """FlexAttention with the same terms, compiled for this case; its block mask is created before timing."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if case.device == "cpu" and case.backward:
        raise Unsupported("FlexAttention has no backward on a CPU")
    built = build(method, case)
    call = built.core_call()
    biases(call, "a score_mod")
    _score_mod(call.terms)
    block_mask = None
    if case.causal:
        block_mask = create_block_mask(
            lambda b, h, q, k: q >= k, None, None, case.queries, case.length, device=case.device
        )
    torch._dynamo.reset()  # every case has its own shape; after eight of them dynamo would stop compiling
    compiled = torch.compile(flex_attention, dynamic=False)
    gqa = case.kv_heads != case.heads

    def core(call: CoreCall) -> Tensor:
        out: Tensor = compiled(
            call.q,
            call.k,
            call.v,
            score_mod=_score_mod(call.terms),
            block_mask=block_mask,
            scale=call.scale,
            enable_gqa=gqa,
        )
        return out

    return Work(case, built, built.runs(core), "FlexAttention")


def imported(name: str, extra: str) -> Any:
    """A module of another library.

    Raises:
        Unsupported: when it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its own use of torch
            return importlib.import_module(name)
    except ImportError:
        raise Unsupported(f"{extra} is not installed") from None


def x_transformers(method: str, case: Case) -> Work:
    """x-transformers' ``Attend`` on its flash path, with its own position modules."""
    attend_module = imported("x_transformers.attend", "x-transformers")
    library = imported("x_transformers.x_transformers", "x-transformers")
    if case.kv_heads != case.heads:
        raise Unsupported("grouped-query attention is not implemented here")
    built = build(method, case)
    attend = attend_module.Attend(heads=case.heads, causal=case.causal, flash=True)
    position = built.position
    turned: Any = None
    bias: Any = None
    q, k = built.q, built.k
    leaves = {"q": q, "k": k, "v": built.v}
    if isinstance(position, T5):
        if position.bidirectional == case.causal:
            raise Unsupported("its T5 bias is bidirectional exactly when attention is")
        fits(case)
        bias = library.RelativePositionBias(1.0, case.causal, position.buckets, position.max_distance, case.heads)
        leaves["weight_by_bucket"] = _embedding(bias.relative_attention_bias, built, case)
    elif isinstance(position, Alibi):
        fits(case)
        bias = library.AlibiPositionalBias(case.heads).to(case.device)
    elif isinstance(position, Rotary):
        if position.fraction != 1.0:
            raise Unsupported("rotary on part of a head is not compared")
        turned = library.RotaryEmbedding(case.head_dim, base=position.base).to(case.device)
        if position.pairing == "half":  # it rotates neighbouring dimensions: the same after reordering them, at no cost
            order = torch.arange(case.head_dim, device=case.device).view(2, -1).T.flatten()
            q, k = (x.detach()[..., order].requires_grad_(case.backward) for x in (q, k))
            leaves = {"q_reordered": q, "k_reordered": k, "v": built.v}

    def forward() -> Tensor:
        added = None if bias is None else bias(case.length, case.length).to(q.dtype)
        if turned is None:
            out: Tensor = attend(q, k, built.v, attn_bias=added)[0]
        else:
            angles, _ = turned.forward_from_seq_len(case.length)
            both = (library.apply_rotary_pos_emb(x, angles) for x in (q, k))
            out = attend(*both, built.v)[0]
        return out

    return Work(case, built, forward, "x-transformers", leaves=leaves)


class _Precomputed(nn.Module):
    """A projection whose output is given."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, _: Tensor) -> Tensor:
        return self.x.transpose(1, 2).flatten(2)


def huggingface(method: str, case: Case) -> Work:
    """transformers' ``T5Attention`` without its projections: its bias, and its default attention core."""
    module = imported("transformers.models.t5.modeling_t5", "transformers")
    config_module = imported("transformers.models.t5.configuration_t5", "transformers")
    if case.kv_heads != case.heads:
        raise Unsupported("it needs as many key heads as query heads")
    built = build(method, case)
    position = built.position
    assert isinstance(position, T5)
    if position.bidirectional == case.causal:
        raise Unsupported("its bias is bidirectional exactly when attention is")
    fits(case)
    config = config_module.T5Config(
        d_model=case.heads * case.head_dim,
        d_kv=case.head_dim,
        num_heads=case.heads,
        relative_attention_num_buckets=position.buckets,
        relative_attention_max_distance=position.max_distance,
        dropout_rate=0.0,
        is_decoder=case.causal,
    )
    config._attn_implementation = "sdpa"
    layer = module.T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    weight = _embedding(layer.relative_attention_bias, built, case)
    # it does not scale scores: its query projection would learn the scale, so q is scaled here
    layer.k, layer.v, layer.o = _Precomputed(built.k), _Precomputed(built.v), nn.Identity()
    hidden = None
    if case.causal:
        q_pos, k_pos = case.positions()
        hidden = torch.where(k_pos[:, None] <= q_pos[..., None], 0.0, -torch.inf)[None].to(built.q.dtype)
    x = built.q.new_empty(case.batch, case.length, 1).detach()

    def forward() -> Tensor:
        layer.q = _Precomputed(built.q * case.scale)
        out = layer(x, mask=hidden)[0]
        layer.q = nn.Identity()  # otherwise it would keep the queries until the next call
        return out.unflatten(-1, (case.heads, case.head_dim)).transpose(1, 2)  # type: ignore[no-any-return]

    leaves = {"q": built.q, "k": built.k, "v": built.v, "weight_by_bucket": weight}
    return Work(case, built, forward, "transformers T5Attention", leaves=leaves)


def _embedding(embedding: nn.Embedding, built: Built, case: Case) -> Tensor:
    """Copy the values of our table of buckets (H, buckets) into a library's (buckets, H)."""
    embedding.to(case.device, built.q.dtype).requires_grad_(case.backward)
    assert isinstance(built.position, T5)
    embedding.weight.data.copy_(built.position.weight.data.T)
    return embedding.weight


def flash_attn(method: str, case: Case) -> Work:
    """FlashAttention 2 from the package flash-attn: without position, or with ALiBi's slopes."""
    library = imported("flash_attn", "flash-attn")
    built = build(method, case)
    if method not in ("none", "alibi"):
        raise Unsupported("it has the published slopes only")
    fixed = slopes(case.heads, built.q.device).float() if method == "alibi" else None

    def forward() -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (built.q, built.k, built.v))
        out: Tensor = library.flash_attn_func(q, k, v, causal=case.causal, alibi_slopes=fixed)
        return out.transpose(1, 2)

    return Work(case, built, forward, "flash-attn")


def fla(method: str, case: Case) -> Work:
    """The kernel of forgetting gates in flash-linear-attention."""
    library = imported("fla.ops.forgetting_attn", "fla")
    if not case.causal:
        raise Unsupported("its attention is causal")
    built = build(method, case)

    def forward() -> Tensor:
        q, k, v = (x.transpose(1, 2).contiguous() for x in (built.q, built.k, built.v))
        gates = built.position.mark(built.x)
        out: Tensor = library.parallel_forgetting_attn(q, k, v, gates, scale=case.scale)
        return out.transpose(1, 2)

    return Work(case, built, forward, "fla")


def others_for(method: str, case: Case) -> list[Other]:
    """The libraries that have this method; none for decoding, which is not implemented here for any of them."""
    if case.decodes:
        return []
    name = method.partition("(")[0]
    return [other for other in OTHERS if name in other.methods and other.on in (None, case.device)]


OTHERS = (
    Other("FlexAttention", ("none", "t5", "alibi", "fox", "rows", "table"), flex, "torch"),
    Other("x-transformers", ("none", "t5", "alibi", "rotary"), x_transformers, "x_transformers"),
    Other("transformers T5Attention", ("t5",), huggingface, "transformers"),
    Other("flash-attn", ("none", "alibi"), flash_attn, "flash_attn", "cuda"),
    Other("fla", ("fox",), fla, "fla", "cuda"),
)
"""The methods each library has; the table has rows for these only."""
