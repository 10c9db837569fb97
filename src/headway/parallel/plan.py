"""Memory and time of a training step on many devices, on paper.

A model of P parameters is trained on ``devices`` GPUs: a sequence is spread over ``context`` of them, and groups of
that many take different sequences. Per device, with N tokens of L layers, C = context, and bytes r of the residual
stream, a of everything else (4 and 2 under bf16 autocast, 4 and 4 in float32):

    weights         16 P (weights, gradients, two moments in float32), under FSDP / devices; + what is gathered or cast
    activations     L · N · (2 d (2 r + a) + a (2 H D + 2 H_kv D + m f) + 8 H), or with checkpointing L · N · d r
                    and those of one layer
    products        6 W · tokens, 8 W with checkpointing              W: entries of all linear layers, the output too
    attention       4 pairs · H D forward, 2.5 times that backward, once more with checkpointing
    exchange        (C − 1) / C of all keys and values, three times: forward, backward, and their gradients

d: width of the model; H, H_kv: heads of queries, of keys and values; D: width of a head; f: width of the MLP, m: 2 for
gelu, 4 for swiglu; pairs: queries and the keys that they see.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

from headway.config import ACTIVATIONS, DEEPEST, WIDEST, Width
from headway.schema import Number, Whole, Words
from headway.settings import Settings
from headway.shapes import HeadwayError
from headway.sizes import metered

EXCHANGES = ("gather", "ring", "ulysses")
LONGEST = 1 << 30
TAXES = {"none": 1.23, "rotary": 1.5, "alibi": 0.65, "t5": 1.63, "fox": 1.1}
"""Attention forward and backward on one H200, bfloat16, 16,384 tokens, relative to cuDNN's, see docs/speed.md."""
_Many = Whole(1, 1 << 20)


@dataclass(frozen=True)
class Setup(Settings):
    """A model, the devices that train it, and what is assumed of them. The defaults are those of an 8-billion model.

    Args:
        length: tokens of a sequence.
        devices: number of GPUs.
        position: the position method.
        batch: sequences per step, over all devices; default one per group of ``context`` devices.
        context: devices over which a sequence is spread; default the fewest that have room for it.
        exchange: how they attend: gather (all keys and values of a layer on each), ring (block by block, while
            computing) or ulysses (each device takes some of the heads).
        parallel: fsdp (weights spread over all devices) or ddp (a copy on each).
        checkpointing: whether layers are computed again in the backward pass instead of being kept.
        dtype: bf16 (autocast, float32 weights) or float32.
        vocab: number of different tokens.
        dim: width of the model.
        layers: number of layers.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a head.
        hidden: width of the MLP.
        activation: gelu or swiglu.
        tie: whether the embedding is shared with the output.
        window: how far back a token sees; default everything before it.
        loss_chunk: tokens whose logits are held at a time; 0 for all, as `headway train` does.
        memory: memory of a GPU, in GB.
        reserve: GB of it that are lost to the context of the GPU, its libraries and fragmentation.
        node: GPUs per machine.
        peak: products per second of a GPU in the dtype, in TFLOP/s.
        mfu: share of it that matrix products reach.
        attention_mfu: share of it that attention reaches.
        tax: time of attention with the position method divided by torch's fused attention without any; default what was
            measured on one GPU at 16,384 tokens for alibi, fox, none, rotary and t5 (docs/speed.md), 1.5 for others.
        inside: bandwidth of a GPU within a machine, in each direction, in GB/s.
        outside: bandwidth of a GPU between machines, in GB/s.

    >>> Setup(length=8192, devices=8).heads
    32
    """

    length: Annotated[int, Whole(1, LONGEST)]
    devices: Annotated[int, _Many]
    position: str = "rotary"
    batch: Annotated[int | None, _Many] = None
    context: Annotated[int | None, _Many] = None
    exchange: Annotated[str, Words(EXCHANGES)] = "gather"
    parallel: Annotated[str, Words(("fsdp", "ddp"))] = "fsdp"
    checkpointing: bool = True
    dtype: Annotated[str, Words(("bf16", "float32"))] = "bf16"
    vocab: Annotated[int, Whole(1, 2**31)] = 128_256
    dim: Width = 4096
    layers: Annotated[int, Whole(1, DEEPEST)] = 32
    heads: Width = 32
    kv_heads: Width = 8
    head_dim: Width = 128
    hidden: Annotated[int, Whole(1, 4 * WIDEST)] = 14_336
    activation: Annotated[str, Words(ACTIVATIONS)] = "swiglu"
    tie: bool = False
    window: Annotated[int | None, Whole(0, LONGEST)] = None
    loss_chunk: Annotated[int, Whole(0, LONGEST)] = 4096
    memory: Annotated[float, Number(above=0)] = 80.0
    reserve: Annotated[float, Number(0)] = 6.0
    node: Annotated[int, _Many] = 8
    peak: Annotated[float, Number(above=0)] = 989.0
    mfu: Annotated[float, Number(above=0, most=1)] = 0.5
    attention_mfu: Annotated[float, Number(above=0, most=1)] = 0.4
    tax: Annotated[float | None, Number(above=0)] = None
    inside: Annotated[float, Number(above=0)] = 450.0
    outside: Annotated[float, Number(above=0)] = 50.0

    def model(self) -> dict[str, Any]:
        """The model as :class:`headway.TransformerConfig` takes it."""
        names = ("vocab", "dim", "layers", "heads", "kv_heads", "head_dim", "hidden", "activation", "tie", "position")
        pattern = () if self.window is None else ({"window": self.window},)
        return {**{name: getattr(self, name) for name in names}, "pattern": pattern}

    @property
    def taxed(self) -> float:
        """The tax that is assumed."""
        return TAXES.get(self.position.partition("(")[0], 1.5) if self.tax is None else self.tax


@dataclass(frozen=True)
class Counted:
    """What a model consists of, read from a Transformer without memory.

    Args:
        parameters: number of parameters; shared ones count once.
        linear: entries of linear layers, which each token is multiplied by; the output's too if it is tied.
        layer: parameters of one layer, the first.
        angles: float32 numbers per token that its position method rotates by, or adds to the embedding.
        marks: float64 numbers per token that it keeps beside the keys of a layer, e.g. sums of gates.
        table: float32 numbers per distance in its tables.
    """

    parameters: int
    linear: int
    layer: int
    angles: int
    marks: int
    table: int


def count(model: dict[str, Any]) -> Counted:
    """Count what ``Transformer.from_config(model)`` consists of.

    >>> count({"vocab": 256, "dim": 64, "layers": 2, "heads": 4}).parameters
    115008
    """
    from torch import nn

    from headway.positions import Position
    from headway.transformer import Transformer

    with metered(layers=model.get("layers", 3)):
        made = Transformer.from_config(model)
        position, shape = made.stack.position, made.stack.attentions()[0].shape
        kind = type(position)
        carries = kind.carry is not Position.carry or kind.mark is not Position.mark
        rotates, adds = kind.rotate is not Position.rotate, kind.terms is not Position.terms
        return Counted(
            sum(p.numel() for p in made.parameters()),
            sum(one.weight.numel() for one in made.modules() if isinstance(one, nn.Linear)),
            sum(p.numel() for p in made.stack.blocks[0].parameters()),
            2 * shape.head_dim if rotates else shape.dim if position.embeds else 0,
            shape.heads if carries else 0,
            shape.heads if adds and not carries else 0,
        )


def pairs(length: int, window: int | None) -> int:
    """Queries and the keys that they see, under a causal mask: n(n + 1)/2, fewer with a window.

    >>> pairs(5, None), pairs(5, 1)
    (15, 9)
    """
    reach = length if window is None else min(window + 1, length)
    return reach * (reach + 1) // 2 + (length - reach) * reach


@dataclass(frozen=True)
class Step:
    """A training step as planned.

    Args:
        setup: what was planned, with ``context`` and ``batch`` filled in.
        counted: what the model consists of.
    """

    setup: Setup
    counted: Counted

    @property
    def tokens(self) -> int:
        """Tokens that a device holds at a time: its share of one sequence."""
        assert self.setup.context is not None
        return -(-self.setup.length // self.setup.context)

    @property
    def rounds(self) -> int:
        """Sequences that each group of devices takes one after another in a step."""
        assert self.setup.context is not None
        assert self.setup.batch is not None
        return -(-self.setup.batch // (self.setup.devices // self.setup.context))

    @cached_property
    def memory(self) -> dict[str, int]:
        """Bytes per device at the peak of a step, by what they are for."""
        one, counted = self.setup, self.counted
        held = one.devices if one.parallel == "fsdp" else 1
        low = one.dtype == "bf16"
        outside = counted.parameters - one.layers * counted.layer  # embedding and output
        # gathered: the layer at work, the next one, and what is outside of layers; DDP's autocast copies all weights
        gathered = 2 * counted.layer + outside if one.parallel == "fsdp" else counted.parameters * low
        copies = gathered * (2 if low else 4)
        kept, layer = self._activations()
        logits = min(self.tokens, one.loss_chunk or self.tokens) * one.vocab * ((2 if low else 4) * 2 + 4)
        return {
            "weights": 4 * counted.parameters // held + copies,
            "gradients": 4 * counted.parameters // held,
            "optimizer": 8 * counted.parameters // held,
            "activations": one.layers * self.tokens * one.dim * 4 + layer if one.checkpointing else kept,
            "logits": logits,
            "exchange": self._exchanged_memory(),
            # marks: all sums, and a bias of each; tables: one entry per distance, and its gradient
            "position": 4 * self.tokens * counted.angles + one.length * (12 * counted.marks + 8 * counted.table),
        }

    def _activations(self) -> tuple[int, int]:
        """Bytes that a forward pass keeps for the backward pass, and those of one layer among them."""
        one, tokens = self.setup, self.tokens
        residual, rest = 4, 2 if one.dtype == "bf16" else 4
        queries, keys = one.heads * one.head_dim, one.kv_heads * one.head_dim
        inner = (4 if one.activation == "swiglu" else 2) * one.hidden
        norm = one.dim * (2 * residual + rest)  # its input, the normalised input, and the output for the linear layers
        # marks are computed from the layer's normed input, of which they keep a copy, and under autocast a second one
        marked = one.dim * (residual + rest % residual) if self.counted.marks else 0
        layer = tokens * (2 * norm + marked + rest * (2 * queries + 2 * keys + inner) + 8 * one.heads)
        return one.layers * layer + tokens * norm, layer

    def _exchanged_memory(self) -> int:
        """Bytes of keys, values and their gradients of other devices, in the layer at work."""
        one = self.setup
        assert one.context is not None
        if one.context == 1:
            return 0
        element = 2 if one.dtype == "bf16" else 4
        keys = 2 * one.kv_heads * one.head_dim * element
        if one.exchange == "gather":
            return 2 * one.length * keys
        if one.exchange == "ring":  # the block at work and the next one, with their gradients
            return 4 * self.tokens * keys
        return 2 * self.tokens * (2 * one.heads * one.head_dim * element + keys)

    @property
    def held(self) -> int:
        """Bytes per device at the peak of a step."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether a device has room for it."""
        return self.held <= (self.setup.memory - self.setup.reserve) * 1e9

    @cached_property
    def flops(self) -> dict[str, int]:
        """Floating-point operations per device of a step."""
        one = self.setup
        assert one.context is not None
        again = int(one.checkpointing)
        forward = 4 * pairs(one.length, one.window) * one.heads * one.head_dim * one.layers // one.context
        return {
            "products": self.rounds * (6 + 2 * again) * self.counted.linear * self.tokens,
            "attention": self.rounds * (forward * (7 + 2 * again) // 2),
        }

    @cached_property
    def exchanged(self) -> dict[str, int]:
        """Bytes that a device receives in a step."""
        one = self.setup
        assert one.context is not None
        low = 2 if one.dtype == "bf16" else 4
        share = (one.devices - 1) / one.devices
        weights = self.counted.parameters * share * (2 * low + 4 if one.parallel == "fsdp" else 8)
        part = (one.context - 1) / one.context
        keys = 2 * one.kv_heads * one.head_dim * low + 8 * self.counted.marks
        if one.exchange == "ulysses":
            both = 2 * one.heads * one.head_dim * low + keys
            attention = part * self.tokens * both * (2 + one.checkpointing)
        else:
            attention = part * one.length * keys * 3
        return {"weights": int(weights), "attention": int(attention * one.layers * self.rounds)}

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds of a step; weights move during products, and a ring's keys and values during attention."""
        one = self.setup
        assert one.context is not None
        products = self.flops["products"] / (one.peak * 1e12 * one.mfu)
        attention = self.flops["attention"] * one.taxed / (one.peak * 1e12 * one.attention_mfu)
        exchange = self.exchanged["attention"] / ((one.inside if one.context <= one.node else one.outside) * 1e9)
        weights = self.exchanged["weights"] / ((one.inside if one.devices <= one.node else one.outside) * 1e9)
        if one.exchange == "ring":
            exchange = max(0.0, exchange - attention)
        weights = max(0.0, weights - products)
        return {"products": products, "attention": attention, "exchange": exchange, "weights": weights}

    @property
    def speed(self) -> float:
        """Tokens per second, all devices together."""
        assert self.setup.batch is not None
        return self.setup.batch * self.setup.length / sum(self.seconds.values())


def plan(setup: Setup, counted: Counted | None = None) -> Step:
    """Plan a training step.

    Args:
        setup: the model and the devices.
        counted: what the model consists of, if known.

    Returns:
        The step; with the fewest devices per sequence that have room for it, or all if none has.

    Raises:
        HeadwayError: when the devices cannot be divided as asked.

    >>> step = plan(Setup(length=131_072, devices=64))
    >>> step.setup.context, step.fits, round(step.counted.parameters / 1e9, 1)
    (2, True, 8.0)
    """
    if setup.context is not None and setup.devices % setup.context:
        raise HeadwayError(f"expected context to divide the {setup.devices} devices, got {setup.context}")
    if setup.exchange == "ulysses" and setup.kv_heads % (setup.context or 1):
        raise HeadwayError(
            f"expected context to divide the {setup.kv_heads} key and value heads for ulysses, got {setup.context}: "
            f"take gather or ring"
        )
    counted = count(setup.model()) if counted is None else counted
    divisors = [n for n in range(1, setup.devices + 1) if setup.devices % n == 0]
    if setup.exchange == "ulysses":
        divisors = [n for n in divisors if setup.kv_heads % n == 0]
    found = None
    for context in divisors if setup.context is None else [setup.context]:
        batch = setup.batch or setup.devices // context
        found = Step(replace(setup, context=context, batch=batch), counted)
        if found.fits:
            break
    assert found is not None
    return found
