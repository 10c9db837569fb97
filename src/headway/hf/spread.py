"""A transformers model whose sequence is spread over processes: attention by :func:`headway.parallel.attend`.

Each process calls the model with its own tokens and their positions in the whole text. A hook on the model takes these
positions down; the masks that transformers makes are read as masks by position and carry them to every attention, also
to those that gradient checkpointing computes again. A model with an encoder and a decoder reads two texts, each spread
by itself; what its decoder sees of the encoder's text is a mask between the two. What a call could get wrong in silence
is refused before it starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

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
_PAIRS = "t5 mt5 umt5 bart mbart plbart blenderbot blenderbot-small pegasus marian"
BEHIND_PADDING = frozenset(_BEHIND_PADDING.split())
"""Families that give the first token of a text the position after that of padding, which is ``pad_token_id``."""
PAIRS = tuple(_PAIRS.split())
"""Families with an encoder and a decoder: two texts, each with positions of its own."""
TYPES = (*_NAMES.split(), *_BEHIND_PADDING.split(), *PAIRS)
"""Families whose tokens meet in attention alone, at the positions that they are given, each tested."""
LAYERS = {"full_attention", "sliding_attention"}
"""What the layers of these families may be; some configurations have others."""

LAYER_DROPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
"""What configurations call the share of layers that training leaves out."""

CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel")
HEADS = (*CAUSAL_HEADS, "ForMaskedLM", "ForTokenClassification", "ForConditionalGeneration", "MTModel")
"""Ends of the names of models that compute one output for each token, from this token alone."""

SIDES = ("", "decoder_")
"""What the names of arguments begin with that are for an encoder, or for a model without one, and for a decoder."""
OF_EACH_SIDE = ("input_ids", "inputs_embeds", "position_ids")
TAKEN = {"token_type_ids", "labels", "shift_labels", "num_items_in_batch", "return_dict", "output_hidden_states"}
WHY = {
    "attention_mask": "give padding the position −1, and documents by documents=",
    "decoder_attention_mask": "give padding the position −1, and documents by decoder_documents=",
    "encoder_outputs": "give the encoder's tokens",
    **dict.fromkeys(("cache", "past_key_values", "use_cache"), "decode in one process, after undo()"),
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
        tables: the modules with the model's embeddings of positions, by name.
        sides: of :data:`SIDES`, those of its texts.
        sums: whether its own loss is a sum over shifted labels, divided by the number of targets that it is given.
    """

    mesh: Mesh
    how: str
    zigzag: bool
    name: str
    tables: tuple[str, ...]
    sides: tuple[str, ...] = SIDES[:1]
    sums: bool = False
    hooks: tuple[Any, ...] = ()
    started: ClassVar[bool] = False
    """Whether any model was ever spread in this process."""

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
        Spread.started = True
        hooks = [model.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True)]
        hooks.append(model.register_forward_hook(self._after, always_call=True))
        if len(self.sides) > 1:
            inner: Any = model.base_model
            for number, stack in enumerate((inner.encoder, inner.decoder)):
                hooks.append(stack.register_forward_pre_hook(partial(self._enters, number)))
        if "position_ids" not in inspect.signature(model.forward).parameters:
            hooks += [model.get_submodule(name).register_forward_hook(self._placed) for name in self.tables]
        self.hooks = tuple(hooks)

    def undo(self) -> None:
        """Take the hooks away."""
        for hook in self.hooks:
            hook.remove()

    def _before(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        documents = [kwargs.pop(f"{side}documents", None) for side in self.sides]
        given = named(model.forward, args, kwargs)
        self._check_arguments(given)
        if len({ids is None for ids in documents}) > 1:
            raise HeadwayError(
                f"expected documents and decoder_documents, because {self.name} has its {self}, got one alone"
            )
        texts = [self._text(given, side, ids) for side, ids in zip(self.sides, documents, strict=True)]
        greatest = max(text.greatest for text in texts)
        room = min((_room(model, table) for table in self.tables), default=greatest + 1)
        if greatest >= room:  # here, because a process that fails later lets the others wait
            raise HeadwayError(f"expected positions below {room}, for which {self.name} has embeddings, got {greatest}")
        takes = inspect.signature(model.forward).parameters
        if "use_cache" in takes:
            given["use_cache"] = False
        _CURRENT.set(_Call(texts))
        for side in self.sides:
            given.pop(f"{side}position_ids")
        if "position_ids" in takes:  # what padding looks up is seen by no token
            pos, behind = texts[0].pos, model.config.model_type in BEHIND_PADDING
            given["position_ids"] = pos + (model.config.pad_token_id + 1) if behind else pos.clamp(min=0)
        return (), given

    def _text(self, given: dict[str, Any], side: str, documents: Any) -> SpreadMask:
        """One of the texts of a call: where its tokens are, and which of them see each other at most."""
        tokens = given.get(f"{side}input_ids")
        if tokens is None:
            tokens = given.get(f"{side}inputs_embeds")
        if tokens is None and side:
            raise HeadwayError(
                f"expected decoder_input_ids, this process's tokens, because {self.name} has its {self}, got none: of "
                f"labels of the whole text, shard(model.prepare_decoder_input_ids_from_labels(labels))"
            )
        what = "its own tokens' positions in the whole text"
        pos = self._ids(given.get(f"{side}position_ids"), tokens, f"{side}position_ids", what)
        mask, ids = None, pos.new_zeros(pos.shape)
        if documents is not None:
            ids = self._ids(documents, tokens, f"{side}documents", "a number for each token's document")
            mask = Documents(ids)
        return SpreadMask(mask, pos, self._greatest(pos, ids, side), self)

    def _enters(self, number: int, *_: Any) -> None:
        """Before the encoder, 0, or the decoder, 1."""
        now = _CURRENT.get()
        if now is not None:
            now.number = number

    def _placed(self, table: Any, *_: Any) -> Tensor | None:
        """After embeddings of positions, of a model that would count this process's tokens from 0."""
        now = current()
        if now is None:
            return None
        return nn.functional.embedding(now.pos.clamp(min=0) + getattr(table, "offset", 0), table.weight)

    def _after(self, *_: Any) -> None:
        _CURRENT.set(None)

    def _check_arguments(self, given: dict[str, Any]) -> None:
        taken = TAKEN | {f"{side}{name}" for side in self.sides for name in OF_EACH_SIDE}
        for key, value in given.items():
            off = value is None or (isinstance(value, bool | int) and not value)
            if not off and key not in taken:
                what = WHY.get(key, "leave it out")
                raise HeadwayError(f"expected no {key}, because {self.name} has its {self}, got some: {what}")
        if given.get("labels") is not None:
            needs = ("shift_labels", "num_items_in_batch")
            missing = [key for key in needs if given.get(key) is None]
            if missing or not self.sums:
                raise HeadwayError(
                    f"expected no labels, because {self.name} has its {self}, and each process would "
                    f"shift and average only its own part: compute the loss from the logits, or, "
                    f"of a causal model, pass labels and shift_labels both as shard(ids[:, 1:], fill=-100), and "
                    f"num_items_in_batch, the number of targets in the whole text"
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
                f"expected {name}, {what}, of shape {shape}, because {self.name} has its {self}, got {got}: see "
                f"headway.parallel.shard_tokens and shard"
            )
        whole: Tensor = ids.long().expand(shape)
        return whole

    def _greatest(self, pos: Tensor, ids: Tensor, side: str) -> int:
        """The greatest position in the whole text, on all processes alike.

        Raises:
            HeadwayError: when two tokens are at one place, as where packed documents are not named.
        """
        pos, ids = self.layout.together(torch.stack((pos, ids)), 2)
        padding = torch.arange(pos.shape[1], device=pos.device) - pos.shape[1]
        places = torch.where(pos < 0, padding, (ids << 32) + pos).sort(1).values
        if bool((places.diff(dim=1) == 0).any()):
            raise HeadwayError(
                f"expected a position of its own for every token, because {self.name} has its {self}, got one twice: "
                f"of a text packed of several documents pass {side}documents=shard(ids, fill=-1) as well"
            )
        return int(pos.amax())


@dataclass(eq=False)
class _Call:
    """A call of a spread model while it makes its masks.

    Args:
        texts: the masks of its texts: one, or the encoder's and the decoder's.
        number: which of them its layers read now.
    """

    texts: list[SpreadMask]
    number: int = 0

    def crossing(self) -> SpreadMask:
        """How the decoder's tokens see the encoder's."""
        context, own = self.texts
        mask = None
        if isinstance(own.mask, Documents) and isinstance(context.mask, Documents):
            mask = Documents(own.mask.ids, context.mask.ids)
        return replace(own, mask=mask, context=context.pos)


_CURRENT: ContextVar[_Call | None] = ContextVar("spread", default=None)
"""The call that runs."""

TABLES = ("embed_positions", "position_embeddings", "wpe")
"""What learned embeddings of positions are called."""


def _tables(model: PreTrainedModel) -> tuple[str, ...]:
    """The modules with a model's embeddings of positions, by name."""
    tables = (name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    return tuple(name for name in tables if name.rpartition(".")[2] in TABLES)


def _room(model: PreTrainedModel, table: str) -> int:
    """For how many positions a model has embeddings."""
    before = model.config.pad_token_id + 1 if model.config.model_type in BEHIND_PADDING else 0
    embeddings: Any = model.get_submodule(table)
    return int(embeddings.num_embeddings - before - getattr(embeddings, "offset", 0))


def current() -> SpreadMask | None:
    """What masks of the text that is read now stand on; None where tokens are not spread."""
    if not Spread.started:  # torch.compile reads this, but no context variable
        return None
    now = _CURRENT.get()
    return None if now is None else now.texts[now.number]


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
    both = hasattr(model.base_model, "encoder") and hasattr(model.base_model, "decoder")
    pair = kind in PAIRS
    sums = name.endswith(CAUSAL_HEADS) and not pair
    spread = Spread(mesh, how, zigzag, name, _tables(model), SIDES if both and pair else SIDES[:1], sums)
    reason = _refuses(model)
    if reason is not None:
        raise HeadwayError(f"expected a model whose tokens can be spread over processes, got {name} ({kind}): {reason}")
    Ranks.of(mesh)
    return spread


def _refuses(model: PreTrainedModel) -> str | None:
    """Why a model's tokens cannot be spread; None when they can."""
    config: Any = model.config
    if config.model_type not in TYPES or not type(model).__module__.startswith("transformers.models."):
        return f"this is tested only for {', '.join(TYPES)}; other families may count tokens within one process's part"
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
    dropped = next((name for name in LAYER_DROPS if getattr(config, name, 0)), None)
    if dropped is not None:
        return f"in training it drops layers at random (LayerDrop), on each process others; set config.{dropped} = 0"
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
    now = _CURRENT.get()
    if now is None:
        raise HeadwayError(
            "expected a call of the model that headway.hf.accelerate(model, mesh=…) was given, got one of a part of it"
        )
    own, made = now.texts[now.number], read(mask_function, None, None)
    hides = attention_mask is not None and not bool(attention_mask.all())  # some decoders make one of ones
    if now.number and made is SEES_ALL and not hides:
        return now.crossing()  # what a decoder sees whole is the encoder's text
    if made is None or hides or q_length != kv_length:
        raise HeadwayError(
            f"expected masks by position (causal, windows, documents), because {own.spread.name} has its "
            f"{own.spread}, got another: undo() it, and run it in one process"
        )
    if made is SEES_ALL:
        return own
    return replace(own, mask=made if own.mask is None else made & own.mask)


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
        k_pos=attention_mask.pos if attention_mask.context is None else attention_mask.context,
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
