"""Write a method as a configuration, and convert weights between the two pairings."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from headway.positions.alibi import Alibi
from headway.positions.base import Position
from headway.positions.deberta import Deberta
from headway.positions.interchange.rotations import READERS
from headway.positions.learned import Learned
from headway.positions.mrope import MRope
from headway.positions.rotary import PAIRINGS, Rotary
from headway.positions.scaled import DynamicNTK
from headway.positions.shaw import Shaw
from headway.positions.t5 import T5
from headway.positions.transformerxl import TransformerXL
from headway.shapes import HeadwayError, brief


def to_hf(position: Position) -> dict[str, Any]:
    """A method as keys of a Hugging Face configuration; :func:`from_hf` reads them back.

    Args:
        position: a method that such configurations can express.

    Raises:
        HeadwayError: when they cannot express it.

    >>> from headway.positions.registry import parse
    >>> to_hf(parse("interpolated(factor=2.0)"))["rope_parameters"]
    {'rope_type': 'linear', 'rope_theta': 10000.0, 'partial_rotary_factor': 1.0, 'factor': 2.0}
    """
    if type(position) in _ROTATIONS:
        return _rotary_config(position)
    match position:
        case T5():
            return {
                "model_type": "t5",
                "is_decoder": not position.bidirectional,
                "relative_attention_num_buckets": position.buckets,
                "relative_attention_max_distance": position.max_distance,
            }
        case Alibi() if position.spec() == "alibi":
            return {"alibi": True}
        case Alibi() if position.spec() == "alibi(scaled=True)":
            return {"model_type": "falcon", "alibi": True}
        case Deberta(reverse=False):
            return {
                "model_type": "deberta-v2",
                "relative_attention": True,
                "position_biased_input": False,
                "pos_att_type": ["p2c", "c2p"],
                "max_relative_positions": position.clip,
                "position_buckets": position.buckets or -1,
            }
        case TransformerXL(bidirectional=True):
            return {"model_type": "xlnet", "clamp_len": position.clip}
        case Learned():
            return {"position_embedding_type": "absolute", "max_position_embeddings": position.max_length}
        case Shaw(values=False):
            return {"position_embedding_type": "relative_key", "max_position_embeddings": position.clip + 1}
    raise HeadwayError(
        f"expected a method that Hugging Face configurations know (rotary and its scalings, mrope, t5, alibi, learned, "
        f"deberta(reverse=False), transformerxl(bidirectional=True), shaw without values), got {position.spec()}"
    )


def convert_pairing(
    weight: Float[Tensor, "rows *rest"], heads: int, to: str, *, fraction: float = 1.0
) -> Float[Tensor, "rows *rest"]:
    """W_Q or W_K, or its bias, with the rows of each head reordered for the other pairing of a rotation.

    Scores stay the same when queries and keys are converted alike and ``pairing=to`` is given to the method.

    Args:
        weight: (heads · d_k, d_model), as ``nn.Linear`` keeps it, or a bias (heads · d_k,).
        heads: number of heads in its rows; for W_K the key heads.
        to: "half" or "interleaved"; the weight has the other.
        fraction: how much of each head is rotated, as in :class:`headway.Rotary`.

    Raises:
        HeadwayError: when the rows do not divide into this many heads of even width.

    >>> convert_pairing(torch.arange(4.0), heads=1, to="half").tolist()
    [0.0, 2.0, 1.0, 3.0]
    """
    if to not in PAIRINGS:
        raise HeadwayError(f"expected pairing {' or '.join(PAIRINGS)}, got {brief(to)}")
    if heads < 1 or weight.shape[0] % heads:
        raise HeadwayError(f"expected rows for {heads} heads of one width, got {weight.shape[0]} rows")
    by_head = weight.unflatten(0, (heads, -1))
    width = Rotary(fraction=fraction).width(by_head.shape[1])
    pairs = (-1, 2) if to == "half" else (2, -1)
    turned = by_head[:, :width].unflatten(1, pairs).transpose(1, 2).flatten(1, 2)
    return torch.cat((turned, by_head[:, width:]), 1).flatten(0, 1)


_ROTATIONS: dict[type, str] = {method: kind for kind, (method, _, _) in READERS.items()} | {MRope: "default"}
_NAMES = {
    "original": "original_max_position_embeddings",
    "short": "short_factor",
    "long": "long_factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "base": "rope_theta",
    "fraction": "partial_rotary_factor",
    "sections": "mrope_section",
}
"""Hugging Face's names of our hyperparameters, where they differ."""
_FROM_A_FORMULA = ("attention_factor", "mscale", "mscale_all_dim")


def _rotary_config(position: Position) -> dict[str, Any]:
    values = position.hyperparameters()
    interleaved = values.pop("pairing") == "interleaved"
    parameters: dict[str, Any] = {"rope_type": _ROTATIONS[type(position)]}
    if isinstance(position, MRope):
        parameters["mrope_interleaved"] = values.pop("layout") == "interleaved"
    for name, value in values.items():
        if name in _FROM_A_FORMULA and not value:
            continue
        parameters[_NAMES.get(name, name)] = list(value) if isinstance(value, tuple) else value
    written: dict[str, Any] = {"rope_parameters": parameters}
    if isinstance(position, DynamicNTK):  # its training length is outside, where transformers looks for it
        written["max_position_embeddings"] = parameters.pop("original_max_position_embeddings")
    return written | ({"rope_interleave": True} if interleaved else {})
