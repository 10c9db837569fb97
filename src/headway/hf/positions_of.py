"""The position method of each attention of a transformers model as one of headway's, with the model's own parameters.

It is read from the configuration, filled with the model's tables, and compared with what the attention really did; one
that does not agree is not shown under that name.
"""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headway.backends.base import Call
from headway.hf.accelerate import attentions_of
from headway.hf.embedded import Embedded
from headway.hf.families.deberta import deberta_values
from headway.hf.watching import PLACED
from headway.init import seeded
from headway.positions import Position, layers_from_hf, parse
from headway.positions.deberta import Deberta
from headway.positions.interchange import from_hf
from headway.positions.learned import Learned
from headway.positions.swin import Swin
from headway.positions.t5 import T5
from headway.shapes import HeadShape, HeadwayError

FEW = 48
"""Tokens on which a method is compared with what the model did."""


@dataclass(eq=False)
class Own(Position):
    """A position method of a model that headway has no name for; what it does to a text is recorded all the same."""

    title: ClassVar[str] = "The model's own"
    summary: ClassVar[str] = "Position enters as the model's own code has it."
    summary_zh: ClassVar[str] = "位置由模型自己的代码加入。"

    @classmethod
    def method_name(cls) -> str:
        """See :meth:`headway.positions.Position.method_name`."""
        return "own"


@dataclass(eq=False)
class OwnRotation(Own):
    """One that transforms queries and keys."""

    def rotate(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Not known.

        Raises:
            HeadwayError: always.
        """
        raise HeadwayError(
            "expected a position method of headway, got a rotation that only the model's own code computes: the views "
            "of a recorded text show what it did"
        )


class PositionsOf:
    """The position methods of a model.

    Args:
        model: the model.
        embedded: its position vectors.
    """

    def __init__(self, model: nn.Module, embedded: Embedded) -> None:
        self.model, self.embedded = model, embedded
        self.configs = {module: config for config, found in attentions_of(model) for _, module in found}
        self.shared: dict[tuple[Any, ...], Position] = {}

    def of(
        self, name: str, module: nn.Module, shape: HeadShape, call: Call, plain: tuple[Tensor, Tensor | None, int]
    ) -> Position:
        """The method of an attention.

        Args:
            name: of the module.
            module: the attention.
            shape: of the queries and keys that position acts on.
            call: what it was given in a pass.
            plain: queries and keys before position (None where a cache has them), and how many of the first dimensions
                position leaves alone.
        """
        if PLACED in module.__dict__:
            placed: Any = module.__dict__[PLACED]
            own: Position = parse("none").attach(shape) if placed.off else placed.position
            return own
        table = self._table(module)
        for found in self._candidates(name, module, table):
            key = (
                found.spec(),
                shape,
                id(_owner(found, module, self.configs)),
                0 if table is None else table.data_ptr(),
            )
            position = self.shared.get(key)
            if position is None:
                try:
                    width = shape.dim
                    if isinstance(found, Learned) and table is not None:
                        width = table.shape[1]
                    elif isinstance(found, Deberta):
                        width += 1  # for the biases of the model's products
                    with seeded(0):  # values that are replaced; the caller's generator is left alone
                        position = found.fresh().attach(replace(shape, dim=width))
                    self._fill(position, module, table)
                except (HeadwayError, RuntimeError, AttributeError):
                    continue
                self.shared[key] = position.requires_grad_(False)
            if _agrees(position, call, plain):
                return position
        turned = plain[0].shape == call.q.shape and not torch.equal(plain[0], call.q)
        return (OwnRotation() if turned else Own()).attach(shape)

    def _candidates(self, name: str, module: nn.Module, table: Tensor | None) -> list[Position]:
        config: Any = self.configs[module]
        found: list[Position] = []
        try:
            layers = layers_from_hf(config)
            number = getattr(module, "layer_idx", None)
            if not isinstance(number, int):
                digits = re.findall(r"\d+", name)
                number = int(digits[0]) if digits else 0
            read = layers[number % len(layers)].position
            found += [] if read is None else [read]
        except (HeadwayError, IndexError):
            with contextlib.suppress(HeadwayError):
                found.append(from_hf(config))
        if table is not None:
            found.append(Learned(max_length=len(table)))
        return [*found, parse("none")]

    def _table(self, module: nn.Module) -> Tensor | None:
        """The table of the position vectors that are added before an attention; None where there is none."""
        root = self.embedded.root_of(module)
        if root is None:
            return None
        tables = [getattr(owner, part) for owner, part in root.owners]
        found = [x if isinstance(x, Tensor) else getattr(x, "weight", getattr(x, "weights", None)) for x in tables]
        whole = [x.detach().reshape(-1, x.shape[-1]) for x in found if isinstance(x, Tensor) and x.ndim >= 2]
        return whole[0] if whole else None

    def _fill(self, position: Position, module: Any, table: Tensor | None) -> None:
        """Give a method the model's own parameters, in its dtype or better."""
        values: dict[str, Tensor] = {}
        owner: Any = _owner(position, module, self.configs)
        match position:
            case Learned() if table is not None:
                values = {"weight": table[-position.max_length :]}
            case T5():
                values = {"weight": owner.relative_attention_bias.weight.T}
            case Swin():
                sides = (2 * position.height - 1, 2 * position.width - 1)
                values = {"weight": owner.relative_position_bias_table.T.unflatten(1, sides)}
            case Deberta():
                values = deberta_values(module, self.model)
        missing = dict(position.named_parameters()).keys() - values.keys()
        if missing:
            raise HeadwayError(f"expected a method whose parameters are found in the model, got {position.spec()}")
        for name, value in values.items():
            setattr(position, name, nn.Parameter(value.detach().contiguous(), requires_grad=False))


def _owner(position: Position, module: Any, configs: dict[nn.Module, Any]) -> Any:
    """The module that has the parameters of an attention's position method."""
    match position:
        case T5():
            alike = (other for other, config in configs.items() if config is configs[module])
            have = [module, *alike]
            return next((x for x in have if getattr(x, "relative_attention_bias", None) is not None), module)
        case Swin():
            return getattr(module, "relative_position_bias", module)
        case Deberta():
            return module
    return None


def as_method(position: Position, q: Tensor, call: Call) -> tuple[Tensor, Call]:
    """Queries before position, and what attention was given, divided as the method does: DeBERTa's, which is a product
    with no other, divides queries by √3 and leaves √d to attention.
    """
    if not isinstance(position, Deberta):
        return q, call
    root = math.sqrt(q.shape[-1])
    divided = call.q * (call.scale * root)
    known = abs(call.scale * root * math.sqrt(3) - 1) < 1e-6  # q is what the projection made
    return q if known else divided * math.sqrt(3), replace(call, q=divided, scale=1 / root)


def _agrees(position: Position, call: Call, plain: tuple[Tensor, Tensor | None, int]) -> bool:
    """Whether a method does to scores what the model did, for the first tokens, a constant per query aside."""
    q, k, first = plain
    q, call = as_method(position, q, call)
    queries, keys = call.q.shape[2], call.k.shape[2]
    if k is None or queries != keys:
        return True  # seen in the pass that filled the cache, or in none
    few = slice(0, FEW)
    q_pos, k_pos = call.q_pos[:1, few].clamp(min=0), call.k_pos[:1, few].clamp(min=0)
    seen = call.visible(few)
    scale = call.scale
    try:
        q, k = position.rotate(q[:1, :, few, first:], k[:1, :, few, first:], q_pos, k_pos)
        q, k, terms = position.prepare(q, k, q_pos, k_pos, scale)
        ours = _scores(q, k, scale)
        for term in terms:
            ours = ours + term.tile(q_pos, k_pos)  # type: ignore[union-attr]
        own = _scores(call.q[:1, :, few, first:], call.k[:1, :, few, first:], call.scale)
        for term in call.score_terms:
            own = own + term.tile(call.q_pos, call.k_pos, few)[:1, ..., few]
    except (HeadwayError, RuntimeError, IndexError, AttributeError):
        return False
    off = ours - own
    visible = torch.ones_like(off, dtype=torch.bool) if seen is None else seen[:1, ..., few].expand_as(off)
    real = (call.q_pos[:1, few] >= 0)[:, None, :, None]
    visible = visible & real
    count = visible.sum(-1, keepdim=True).clamp(min=1)
    off = (off - off.masked_fill(~visible, 0).sum(-1, keepdim=True) / count).masked_fill(~visible, 0)
    size = own.masked_fill(~visible, 0).abs().max().clamp(min=1e-6)
    return float(off.abs().max() / size) <= (1e-4 if off.dtype is torch.float64 else 0.03)


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return (q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT) * scale
