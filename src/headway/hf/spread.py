"""A transformers model whose sequence is spread over processes: attention by :func:`headway.parallel.attend`.

Each process calls the model with its own tokens and their positions in the whole text. A hook on the model takes these
positions down; the masks that transformers makes are read as masks by position and carry them to every attention, also
to those that gradient checkpointing computes again. What a call could get wrong in silence is refused before it starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from headway.hf.interface import Bias, asked_for_weights, form, in_one_dtype, scale_of
from headway.hf.lazy_mask import SEES_ALL, SpreadMask, read
from headway.masks import Documents
from headway.parallel import Layout, Ranks, attend
from headway.parallel.context import way_of
from headway.parallel.ranks import Mesh
from headway.shapes import HeadwayError, brief

SPREAD = "headway_spread"
"""The name of this attention in transformers' interface."""

_NAMES = """afmoe albert apertus arcee aria_text bert bitnet bloom cohere cohere2 cwm deberta deberta-v2 distilbert
electra ernie ernie4_5 ernie4_5_moe eurobert exaone4 falcon flex_olmo gemma gemma2 gemma3_text glm glm4
glm4_moe gpt2 gpt_bigcode gpt_neox gpt_oss granite granitemoe granitemoeshared helium hunyuan_v1_dense
hunyuan_v1_moe jetmoe llama minimax_m2 ministral mistral mixtral modernbert modernbert-decoder mpt
nanochat nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen3 seed_oss smollm3
stablelm starcoder2 vaultgemma"""
_BEHIND_PADDING = "camembert data2vec-text roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl"
_ENCODERS = "t5 mt5 umt5"
BEHIND_PADDING = frozenset(_BEHIND_PADDING.split())
"""Families that give the first token of a text the position after that of padding, which is ``pad_token_id``."""
ENCODERS = frozenset(_ENCODERS.split())
"""Families with an encoder and a decoder, of which the encoder alone can be spread."""
TYPES = tuple(f"{_NAMES} {_BEHIND_PADDING} {_ENCODERS}".split())
"""Families whose tokens meet in attention alone and take their positions from ``position_ids`` alone, each tested."""
LAYERS = {"full_attention", "sliding_attention"}
"""What the layers of these families may be; some configurations have others."""

CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel")
HEADS = (*CAUSAL_HEADS, "ForMaskedLM", "ForTokenClassification")
"""Ends of the names of models that compute one output for each token, from this token alone."""

TAKEN = {"input_ids", "inputs_embeds", "position_ids", "token_type_ids", "labels", "shift_labels"}
TAKEN |= {"num_items_in_batch", "return_dict", "output_hidden_states", "use_cache"}
WHY = {
    "attention_mask": "give padding the position −1, and documents by documents=",
    "cache": "decode in one process, after undo()",
    "past_key_values": "decode in one process, after undo()",
    "output_attentions": "weights of the whole text are on no process",
}


@dataclass(eq=False)
class Spread:
    """How a model's tokens are spread, and the hooks that see to it.

    Args:
        mesh: the processes.
        how: how keys and queries meet, see :func:`headway.parallel.context_parallel`.
        zigzag: as the tokens were spread.
        name: of the model's class, for messages.
        table: the module with the model's embeddings of positions, by name; None where it has none.
    """

    mesh: Mesh
    how: str
    zigzag: bool
    name: str
    table: str | None
    hooks: tuple[Any, ...] = ()

    def attention(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """:func:`spread_attention`."""
        return spread_attention(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Spread:
        return self  # a process group cannot be copied

    def __str__(self) -> str:
        return f"tokens spread over {self.layout.ranks.size} processes by {self.how}"

    @property
    def layout(self) -> Layout:
        """How a text lies on the processes."""
        return Layout(Ranks.of(self.mesh), self.zigzag)

    def start(self, model: PreTrainedModel) -> None:
        """Take down the positions of every call of the model from now on."""
        before = model.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True)
        self.hooks = (before, model.register_forward_hook(self._after, always_call=True))

    def undo(self) -> None:
        """Take the hooks away."""
        for hook in self.hooks:
            hook.remove()

    def _before(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        documents = kwargs.pop("documents", None)
        given = named(model.forward, args, kwargs)
        self._check_arguments(given)
        tokens = given.get("inputs_embeds") if given.get("input_ids") is None else given["input_ids"]
        pos = self._ids(
            given.get("position_ids"), tokens, "position_ids", "its own tokens' positions in the whole text"
        )
        mask = None
        if documents is not None:
            mask = Documents(self._ids(documents, tokens, "documents", "a number for each token's document"))
        greatest = self._greatest(pos, pos.new_zeros(pos.shape) if mask is None else torch.as_tensor(mask.ids))
        room = None if self.table is None else _room(model, self.table)
        if room is not None and greatest >= room:  # here, because a process that fails later lets the others wait
            raise HeadwayError(f"expected positions below {room}, for which {self.name} has embeddings, got {greatest}")
        takes = inspect.signature(model.forward).parameters
        if "use_cache" in takes:
            given["use_cache"] = False
        _CURRENT.set(SpreadMask(mask, pos, greatest, self))
        if "position_ids" not in takes:
            given.pop("position_ids")
        elif model.config.model_type in BEHIND_PADDING:
            given["position_ids"] = pos + (model.config.pad_token_id + 1)
        else:
            given["position_ids"] = pos.clamp(min=0)  # what padding looks up is seen by no token
        return (), given

    def _after(self, *_: Any) -> None:
        _CURRENT.set(None)

    def _check_arguments(self, given: dict[str, Any]) -> None:
        for key, value in given.items():
            off = value is None or (isinstance(value, bool | int) and not value)
            if not off and (key not in TAKEN or key == "use_cache"):
                what = WHY.get(key, WHY["cache"] if key == "use_cache" else "leave it out")
                raise HeadwayError(f"expected no {key}, because {self.name}'s {self}, got some: {what}")
        if given.get("labels") is not None:
            needs = ("shift_labels", "num_items_in_batch")
            missing = [key for key in needs if given.get(key) is None]
            if missing or not self.name.endswith(CAUSAL_HEADS):
                raise HeadwayError(
                    f"expected no labels, because {self.name}'s {self}, and it would shift and average its own part: "
                    f"compute the loss from the logits, or, of a causal model, pass labels and shift_labels both as "
                    f"shard(ids[:, 1:], fill=-100), and num_items_in_batch, the number of targets in the whole text"
                )

    def _ids(self, ids: Any, tokens: Any, name: str, what: str) -> Tensor:
        """Whole numbers for each token of this process, checked."""
        shape = tuple(tokens.shape[:2]) if isinstance(tokens, Tensor) else ()
        if not isinstance(ids, Tensor) or ids.dtype.is_floating_point or ids.dtype is torch.bool:
            fits = False
        else:
            fits = ids.ndim == 2 and len(shape) == 2 and ids.shape[1] == shape[1] and ids.shape[0] in (1, shape[0])
        if not fits:
            got = "none" if ids is None else brief(getattr(ids, "shape", ids))
            raise HeadwayError(
                f"expected {name}, {what}, of shape {shape}, because {self.name}'s {self}, got {got}: see "
                f"headway.parallel.shard_tokens and shard"
            )
        whole: Tensor = ids.long().expand(shape)
        return whole

    def _greatest(self, pos: Tensor, ids: Tensor) -> int:
        """The greatest position in the whole text, on all processes alike.

        Raises:
            HeadwayError: when two tokens are at one place, as where packed documents are not named.
        """
        pos, ids = self.layout.together(torch.stack((pos, ids)), 2)
        padding = torch.arange(pos.shape[1], device=pos.device) - pos.shape[1]
        places = torch.where(pos < 0, padding, (ids << 32) + pos).sort(1).values
        if bool((places.diff(dim=1) == 0).any()):
            raise HeadwayError(
                f"expected a position of its own for every token, because {self.name}'s {self}, got one twice: of a "
                f"text packed of several documents pass documents=shard(ids, fill=-1) as well"
            )
        return int(pos.amax())


_CURRENT: ContextVar[SpreadMask | None] = ContextVar("spread", default=None)
"""The call that runs, while it makes its masks."""


TABLES = ("embed_positions", "position_embeddings", "wpe")
"""What learned embeddings of positions are called."""


def _table(model: PreTrainedModel) -> str | None:
    """The module with a model's embeddings of positions, by name; None where it has none."""
    tables = (name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    return next((name for name in tables if name.rpartition(".")[2] in TABLES), None)


def _room(model: PreTrainedModel, table: str) -> int:
    """For how many positions a model has embeddings."""
    before = model.config.pad_token_id + 1 if model.config.model_type in BEHIND_PADDING else 0
    embeddings: Any = model.get_submodule(table)
    return int(embeddings.num_embeddings - before - getattr(embeddings, "offset", 0))


def current() -> SpreadMask | None:
    """What masks of the call that runs stand on; None where tokens are not spread."""
    return _CURRENT.get()


def named(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by their names."""
    names = [name for name in inspect.signature(forward).parameters if name != "self"]
    return dict(zip(names, args, strict=False)) | kwargs


def spread_over(model: PreTrainedModel, mesh: Mesh, how: str, zigzag: bool) -> Spread:
    """How a model's tokens will be spread.

    Raises:
        HeadwayError: when it cannot be exact, or is not known to be; naming the family.
    """
    name, kind = type(model).__name__, getattr(model.config, "model_type", None)
    way_of(how)
    spread = Spread(mesh, how, zigzag, name, _table(model))
    reason = _refuses(model)
    if reason is not None:
        raise HeadwayError(f"expected a model whose tokens can be spread over processes, got {name} ({kind}): {reason}")
    Ranks.of(mesh)
    return spread


def _refuses(model: PreTrainedModel) -> str | None:
    """Why a model's tokens cannot be spread; None when they can."""
    config: Any = model.config
    if config.model_type not in TYPES or not type(model).__module__.startswith("transformers.models."):
        return f"only of {', '.join(TYPES)} is it known that no token's number in its own part is used"
    if config.model_type in ENCODERS and hasattr(model.base_model, "decoder"):
        return "it has an encoder and a decoder, each with positions of its own; spread its encoder"
    others = set(getattr(config, "layer_types", None) or ()) - LAYERS
    if others or any(isinstance(module, nn.Conv1d) for module in model.modules()):
        kinds = ", ".join(sorted(others)) or "convolutions"
        return f"it has layers of {kinds}, in which tokens meet outside attention"
    if model.base_model is not model and not type(model).__name__.endswith(HEADS):
        return "its head reads some tokens alone, which not every process has; spread the model inside"
    if any(name.rpartition(".")[2] == "pooler" for name, _ in model.named_modules()):
        return "its pooler reads the first token, which one process has; make it with add_pooling_layer=False"
    if getattr(config, "output_router_logits", False):
        return "its loss balances experts over one process's tokens; set config.output_router_logits = False"
    for module in model.modules():
        scaled = getattr(module, "rope_type", None)
        for rope in scaled.values() if isinstance(scaled, dict) else (scaled,):
            if isinstance(rope, str) and ("dynamic" in rope or rope == "longrope"):
                return f"its rotary embedding ({rope}) goes by the length of the text, which no process sees"
    return None


def spread_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *args: Any,
    mask_function: Callable[..., Any],
    attention_mask: Any = None,
    **kwargs: Any,
) -> SpreadMask:
    """What transformers calls to make a mask of a spread text.

    Raises:
        HeadwayError: when a part of the model is called by itself, or the mask goes by more than positions.
    """
    now = current()
    if now is None:
        raise HeadwayError(
            "expected a call of the model that headway.hf.accelerate(model, mesh=…) was given, got one of a part of it"
        )
    made = read(mask_function, None, None)
    if made is None or attention_mask is not None or q_length != kv_length:
        raise HeadwayError(
            f"expected masks by position (causal, windows, documents), because {now.spread.name}'s "
            f"{now.spread}, got another: undo() it, and run it in one process"
        )
    if made is SEES_ALL:
        return now
    return replace(now, mask=made if now.mask is None else made & now.mask)


def spread_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    position_bias: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, over the tokens of all processes; see ``sdpa_attention_forward``.

    Raises:
        HeadwayError: when the mask is not one of :func:`spread_mask`, the position bias goes by more than positions, or
            attentions are asked for.
    """
    known = position_bias is None or isinstance(position_bias, Bias)
    if not isinstance(attention_mask, SpreadMask) or not known:
        got = type(attention_mask if known else position_bias).__name__
        raise HeadwayError(
            f"expected a mask and a position bias by position in {type(module).__name__}, because tokens are spread "
            f"over processes, got {got}: undo() it, and run it in one process"
        )
    if asked_for_weights(kwargs):
        raise HeadwayError(f"expected no output_attentions, got some: {WHY['output_attentions']}")
    what, spread = form(module), attention_mask.spread
    query, key, value = in_one_dtype(query, key, value)
    out = attend(
        query,
        key,
        value,
        q_pos=attention_mask.pos,
        k_pos=attention_mask.pos,
        mesh=spread.mesh,
        how=spread.how,
        zigzag=spread.zigzag,
        mask=attention_mask.mask,
        terms=() if position_bias is None else position_bias.terms(),
        scale=scale_of(module, what, scaling),
        softcap=softcap if what.softcap else None,
        sinks=module.sinks if what.sinks else None,  # type: ignore[arg-type]
        dropout=dropout,
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(SPREAD, spread_attention)
AttentionMaskInterface.register(SPREAD, spread_mask)
