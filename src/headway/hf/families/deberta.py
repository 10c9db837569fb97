"""DeBERTa's disentangled attention (arXiv:2006.03654), versions 1 to 3.

    score(i, j) = (q_i·k_j + q_i·K^r[δ(i − j)] + k_j·Q^r[δ(i − j)]) / √(d (1 + number of position terms))

δ is the row of the relative embeddings for a distance: clamped, and from version 2 on through logarithmic buckets. The
products with K^r and Q^r stay one per token and row, distances stay an index of rows, and the encoder makes neither
distances nor a mask for each pair of tokens. A padded query, which sees no key, gets the mean of all values, as from
the model's own code.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headway.hf.forms import Form
from headway.hf.interface import Bias, headway_attention
from headway.hf.lazy_mask import SpreadMask
from headway.hf.spread import current
from headway.hf.watching import attend
from headway.integers import readable
from headway.positions.deberta import Deberta
from headway.terms import AnyTerm, ProductPerKey, ProductPerQuery


@dataclass(frozen=True, eq=False)
class Real:
    """Stands for the mask (B, 1, N, N) of the encoder, in which real tokens see real tokens.

    Args:
        real: which tokens are real, (B, N); None where all are.
        tokens: B and N.
    """

    real: Bool[Tensor, "batch tokens"] | None
    tokens: torch.Size

    def dense(self, like: Tensor) -> Tensor:
        """The mask, (B, 1, N, N)."""
        real = like.new_ones(self.tokens, dtype=torch.bool) if self.real is None else self.real
        return real[:, None, :, None] & real[:, None, None, :]


@dataclass(frozen=True, eq=False)
class SpreadProducts(Bias):
    """Products of queries and keys with relative embeddings, as a bias of tokens that are spread over processes."""

    made: tuple[AnyTerm, ...]
    start = 0

    def terms(self) -> tuple[AnyTerm, ...]:
        """See :meth:`headway.hf.interface.Bias.terms`."""
        return self.made


class Encoder:
    """Put before DeBERTa's encoders, which make the distance and the mask of every pair of tokens."""

    position = "distances and masks, not one per pair"
    like = "deberta"

    def get_attention_mask(self, attention_mask: Any) -> Any:
        """The mask of the layers; a tensor as the model's own where it is given for every pair."""
        spread = current()
        if spread is not None:
            return spread
        if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
            return super().get_attention_mask(attention_mask)  # type: ignore[misc]
        real = attention_mask.bool()
        whole = readable(real) and bool(real.all())
        return Real(None if whole else real, attention_mask.shape)

    def get_rel_pos(self, hidden_states: Any, query_states: Any = None, relative_pos: Any = None) -> Any:
        """Distances where they are given; None for those of the tokens' order."""
        return relative_pos


class _Attention:
    """What the attentions of both files share."""

    position = "DeBERTa's products with relative embeddings, by buckets"
    like = "deberta"
    headway_form = Form()

    @staticmethod
    def memory(module: Any, tokens: int) -> tuple[int, int] | None:
        """Bytes of the bias of a text before, and of the projected relative embeddings after."""
        if not module.relative_attention:
            return None
        number = next(module.parameters()).element_size() * len(module.pos_att_type)
        rows = 2 * getattr(module, "pos_ebd_size", min(module.max_relative_positions, tokens))
        return module.num_attention_heads * tokens**2 * number, rows * module.all_head_size * number

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any,
        output_attentions: bool = False,
        query_states: Any = None,
        relative_pos: Any = None,
        rel_embeddings: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As the model's own, which computes attentions, and masks or distances that are given for each pair."""
        own: Any = self
        ours = isinstance(attention_mask, Real | SpreadMask) and relative_pos is None and not output_attentions
        if not ours or not own.takes(hidden_states, query_states):
            mask = attention_mask.dense(hidden_states) if isinstance(attention_mask, Real) else attention_mask
            if own.relative_attention and relative_pos is None:
                relative_pos = own.distances(hidden_states, query_states)
            passed = (output_attentions, query_states, relative_pos, rel_embeddings)
            return super().forward(hidden_states, mask, *passed)  # type: ignore[misc, no-any-return]
        q, k, v = own.heads(hidden_states, query_states)
        terms: tuple[AnyTerm, ...] = ()
        if own.relative_attention:
            length = q.shape[2] if isinstance(attention_mask, Real) else attention_mask.greatest + 1
            terms = own.terms(q, k, own.pos_dropout(rel_embeddings), length)
        dropout = own.dropout.p if own.training else 0.0
        if isinstance(attention_mask, SpreadMask):
            bias = SpreadProducts(terms)
            out, _ = headway_attention(own, q, k, v, attention_mask, dropout, scaling=1.0, position_bias=bias)
            return out.flatten(2), None
        real = attention_mask.real
        pos = None if real is None else torch.arange(q.shape[2], device=q.device).masked_fill(~real, -1)
        out = attend(own, q, k, v, position=terms, q_pos=pos, k_pos=pos, scale=1.0, dropout=dropout)
        if real is not None:
            out = torch.where(real[:, None, :, None], out, v.mean(2, keepdim=True))
        return out.transpose(1, 2).flatten(2), None


class DebertaAttention(_Attention):
    """Put before the attention of DeBERTa 1."""

    @staticmethod
    def unfit(module: Any) -> str | None:
        """Why it must be left alone."""
        return "it mixes heads (talking_head)" if module.talking_head else None

    def takes(self, hidden_states: Tensor, query_states: Any) -> bool:
        """Whether queries are made of the same tokens as keys."""
        return query_states is None

    def distances(self, hidden_states: Tensor, query_states: Any) -> Tensor:
        """The distance of every pair, as the model's own."""
        queries = hidden_states if query_states is None else query_states
        file: Any = sys.modules[type(self).__module__]
        made: Tensor = file.build_relative_position(queries, hidden_states)
        return made

    def heads(self, hidden_states: Tensor, query_states: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values, (B, H, N, D)."""
        own: Any = self
        q, k, v = own.transpose_for_scores(own.in_proj(hidden_states)).chunk(3, -1)
        q_bias, v_bias = (own.transpose_for_scores(bias[None, None]) for bias in (own.q_bias, own.v_bias))
        return (q + q_bias) / _root(q, 1 + len(own.pos_att_type)), k, v + v_bias

    def terms(self, q: Tensor, k: Tensor, embeddings: Tensor, length: int) -> tuple[AnyTerm, ...]:
        """The products of queries and keys with relative embeddings, of a text of this length."""
        own: Any = self
        far = own.max_relative_positions
        span = min(length, far)
        rows = embeddings[far - span : far + span][None]
        index = (torch.arange(span, -span - 1, -1, device=q.device) + span).clamp(max=2 * span - 1)
        found: list[AnyTerm] = []
        if "c2p" in own.pos_att_type:
            found.append(ProductPerQuery(q, own.transpose_for_scores(own.pos_proj(rows))[0], span, index))
        if "p2c" in own.pos_att_type:
            query_rows = own.transpose_for_scores(own.pos_q_proj(rows))[0]
            found.append(ProductPerKey(k, query_rows / _root(q, 1 + len(own.pos_att_type)), span, index))
        return tuple(found)


class DebertaV2Attention(_Attention):
    """Put before the attention of DeBERTa 2 and 3."""

    @staticmethod
    def unfit(module: Any) -> str | None:
        """Why it must be left alone."""
        buckets = module.position_buckets if module.relative_attention else 0
        if 0 < buckets < 4 or (buckets > 0 and module.max_relative_positions - 1 <= buckets // 2):
            return f"its position_buckets are {buckets}, of {module.max_relative_positions} distances"
        return None

    def takes(self, hidden_states: Tensor, query_states: Any) -> bool:
        """Whether there are as many queries as keys."""
        return query_states is None or query_states.shape == hidden_states.shape

    def distances(self, hidden_states: Tensor, query_states: Any) -> None:
        """None: the model's own code makes them."""

    def heads(self, hidden_states: Tensor, query_states: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values, (B, H, N, D)."""
        own: Any = self
        q = _split(own.query_proj(hidden_states if query_states is None else query_states), own)
        k, v = (_split(project(hidden_states), own) for project in (own.key_proj, own.value_proj))
        return q / self.root(q), k, v

    def root(self, q: Tensor) -> Tensor:
        """What scores are divided by."""
        return _root(q, 1 + sum(kind in self.pos_att_type for kind in ("c2p", "p2c")))  # type: ignore[attr-defined]

    def terms(self, q: Tensor, k: Tensor, embeddings: Tensor, length: int) -> tuple[AnyTerm, ...]:
        """The products of queries and keys with relative embeddings, of a text of this length."""
        own: Any = self
        index, some = self.index(length, q.device)
        rows, left = embeddings[some], len(index) // 2
        to_keys, to_queries = (own.key_proj, own.query_proj) if own.share_att_key else (None, None)
        found: list[AnyTerm] = []
        if "c2p" in own.pos_att_type:
            key_rows = _split((to_keys or own.pos_key_proj)(rows[None]), own)[0]
            found.append(ProductPerQuery(q, key_rows, left, index))
        if "p2c" in own.pos_att_type:
            query_rows = _split((to_queries or own.pos_query_proj)(rows[None]), own)[0]
            found.append(ProductPerKey(k, query_rows / self.root(q), left, index))
        return tuple(found)

    def index(self, length: int, device: torch.device) -> tuple[Int[Tensor, " width"], slice]:
        """The row for each distance of a key from a query in a text of this length, as far as rows differ, and which
        relative embeddings these rows are.
        """
        own: Any = self
        far, buckets, span = own.max_relative_positions, own.position_buckets, own.pos_ebd_size
        if buckets > 0 and buckets % 2:  # then one more row follows, further away
            middle = buckets // 2
            far = 2 + int(middle * ((far - 1) / middle) ** (middle / (middle - 1)))
        far = max(min(far, length - 1), 1)
        away = torch.arange(far, -far - 1, -1, device=device)  # query minus key
        if buckets > 0:
            file: Any = sys.modules[type(self).__module__]
            away = file.make_log_bucket_position(away, buckets, own.max_relative_positions).long()
        rows = (away + span).clamp(0, 2 * span - 1)
        if far > (buckets // 2 if buckets > 0 else span) or torch.compiler.is_compiling():
            return rows, slice(0, 2 * span)
        first = max(span - far, 0)
        return rows - first, slice(first, span + far + 1)


@torch.no_grad()
def take_over_deberta(method: Deberta, attention: Any, model: nn.Module) -> None:
    """Give a method the values of a model of version 2 or 3 that has it with the same settings; others stay as drawn.

    The model's products have biases, which the method has not; where rows are at most as many as the model is wide, its
    vectors become unit vectors, so that its matrices hold the rows themselves.
    """
    if not isinstance(attention, DebertaV2Attention) or method.shape is None:
        return
    own: Any = attention
    buckets = max(own.position_buckets, 0)
    alike = (method.buckets, method.clip, method.reverse) == (buckets, own.max_relative_positions, False)
    values = deberta_values(attention, model) if alike else {}
    if not values or len(values["vectors"]) > method.shape.dim:
        return
    vectors = values["vectors"]
    for parameter in method.parameters():
        parameter.zero_()
    method.vectors[:, : len(vectors)].fill_diagonal_(1.0)
    for name in ("key_weight", "query_weight"):
        matrix = getattr(method, name)
        matrix.data = matrix.to(vectors.dtype)
        matrix[..., : len(vectors)] = values[name] @ vectors.mT


@torch.no_grad()
def deberta_values(attention: Any, model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the method :class:`headway.positions.deberta.Deberta` that an attention of a model stands for;
    none where it has not both products.

    Vectors (2c, d + 1) are followed by 1, and matrices (H, D, d + 1) by the biases of the model's products.
    """
    encoder = next((part for part in model.modules() if hasattr(part, "get_rel_embedding")), None)
    kinds = getattr(attention, "pos_att_type", ())
    if encoder is None or not getattr(attention, "relative_attention", False) or {"c2p", "p2c"} - set(kinds):
        return {}
    if hasattr(attention, "pos_proj"):  # version 1
        side, to_keys, to_queries = attention.max_relative_positions, attention.pos_proj, attention.pos_q_proj
    elif attention.share_att_key:
        side, to_keys, to_queries = attention.pos_ebd_size, attention.key_proj, attention.query_proj
    else:
        side, to_keys, to_queries = attention.pos_ebd_size, attention.pos_key_proj, attention.pos_query_proj
    vectors = encoder.get_rel_embedding()[: 2 * side]  # type: ignore[operator]
    found = {"vectors": nn.functional.pad(vectors, (0, 1), value=1.0)}
    for name, project in (("key_weight", to_keys), ("query_weight", to_queries)):
        bias = vectors.new_zeros(len(project.weight)) if project.bias is None else project.bias
        whole = torch.cat((project.weight, bias[:, None]), 1)
        found[name] = whole.unflatten(0, (attention.num_attention_heads, -1))
    return found


def _root(q: Tensor, parts: int) -> Float[Tensor, ""]:
    """√(D · parts) as the model's own: the root of float32."""
    return torch.tensor(q.shape[-1] * parts, dtype=torch.float32, device=q.device).sqrt().to(q.dtype)


def _split(x: Tensor, own: Any) -> Float[Tensor, "batch heads tokens dim"]:
    heads: int = own.num_attention_heads
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


ATTENTIONS = {
    "modeling_deberta.DisentangledSelfAttention": DebertaAttention,
    "modeling_deberta.DebertaEncoder": Encoder,
    "modeling_deberta_v2.DisentangledSelfAttention": DebertaV2Attention,
    "modeling_deberta_v2.DebertaV2Encoder": Encoder,
}
