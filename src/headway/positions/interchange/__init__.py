"""Read and write position settings of Hugging Face configurations, and convert weights between the two pairings.

A configuration specifies rotation in ``rope_parameters`` (transformers 5) or in ``rope_theta`` and ``rope_scaling``
(before), other methods under their own keys. Which dimensions of a head form a pair, which layers rotate and what they
see is often given by no key, but follows from ``model_type`` (``families``). Unknown keys are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headway.positions.base import Position
from headway.positions.interchange.families import FULL
from headway.positions.interchange.layers import Layer, LayerPosition, Reading
from headway.positions.interchange.values import plain, short
from headway.positions.interchange.writing import convert_pairing, to_hf
from headway.shapes import HeadwayError

__all__ = ["LayerPosition", "convert_pairing", "from_hf", "layers_from_hf", "to_hf"]


def from_hf(
    config: Mapping[str, Any] | object, *, layer_type: str | None = None, pairing: str | None = None
) -> Position:
    """The position method of a Hugging Face configuration, where its layers share one, or of its layers of one type.

    Args:
        config: the content of ``config.json``, a configuration object of transformers, or a ``rope_parameters`` or
            ``rope_scaling`` dictionary by itself. Of a model of several parts its ``text_config`` is read; of T5 the
            encoder's, unless ``is_decoder`` is true.
        layer_type: which layers, where they differ ("full_attention", "sliding_attention" …); see
            :func:`layers_from_hf` for all of them at once.
        pairing: "half" or "interleaved", as in :class:`headway.Rotary`: which dimensions of a head its weights pair.
            Known for the model types in ``headway.positions.interchange.families``; required for others. A rope
            dictionary alone is read as "half", the convention of transformers.

    Returns:
        A method that is not attached yet. Its ``pairing`` is that of the checkpoint's weights.

    Raises:
        HeadwayError: on an unknown key, kind of scaling or method, by name: nothing is ignored. Also if layers differ,
            or scale their queries by position.

    >>> from_hf({"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 2.0}})
    Interpolated(base=500000.0, fraction=1.0, pairing='half', factor=2.0)
    >>> gemma = {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window": 1024}
    >>> [from_hf(gemma, layer_type=kind).base for kind in ("full_attention", "sliding_attention")]
    [1000000.0, 10000.0]
    """
    reading = Reading(plain(config), pairing)
    reading.check(masks=False)
    layers = [layer for layer in reading.layers if layer.position is not None]
    types = list(dict.fromkeys(layer.type for layer in layers))
    if layer_type is not None:
        if layer_type not in types:
            raise HeadwayError(
                f"expected layer_type {' or '.join(types) or 'of a layer with attention'}, got {short(layer_type)}"
            )
        layers = [layer for layer in layers if layer.type == layer_type]
    if not layers:
        raise HeadwayError("expected layers with attention, got none")
    if len({layer.position.spec() for layer in layers if layer.position is not None}) > 1:
        raise _differ(layers, types, layer_type)
    if any(layer.beside for layer in layers):
        keys = ", ".join(next(layer.beside for layer in layers if layer.beside))
        raise HeadwayError(
            f"expected layers placed by one method alone, got {keys}, by which they scale their queries too: take "
            f"layers_from_hf, which says it of each layer"
        )
    assert layers[0].position is not None
    return layers[0].position


def layers_from_hf(config: Mapping[str, Any] | object, *, pairing: str | None = None) -> tuple[LayerPosition, ...]:
    """One position and one mask for each layer of a Hugging Face configuration.

    Args:
        config: as in :func:`from_hf`, with the number of its layers.
        pairing: as in :func:`from_hf`.

    Returns:
        One :class:`LayerPosition` per layer, in order. Layers with the same position and mask share one object.

    Raises:
        HeadwayError: as :func:`from_hf`, except that layers may differ; and if the mask is not known.

    >>> cohere = {"model_type": "cohere2", "rope_theta": 5e4, "sliding_window": 4096, "num_hidden_layers": 4}
    >>> for layer in layers_from_hf(cohere):
    ...     print(layer.position.spec(), layer.mask)
    rotary(base=50000.0, pairing='interleaved') Window(left=4095, right=0)
    rotary(base=50000.0, pairing='interleaved') Window(left=4095, right=0)
    rotary(base=50000.0, pairing='interleaved') Window(left=4095, right=0)
    none Causal()
    """
    return Reading(plain(config), pairing).whole()


def _differ(layers: list[Layer], types: list[str], layer_type: str | None) -> HeadwayError:
    by_type = {kind: {x.position.spec() for x in layers if x.type == kind and x.position is not None} for kind in types}
    if layer_type is None and all(len(specs) == 1 for specs in by_type.values()):
        return HeadwayError(
            f"expected layer_type one of {', '.join(types)}, because they are placed differently, got None: or take "
            f"layers_from_hf for all layers"
        )
    specs = [x.position.spec() for x in layers if x.position is not None]
    odd = [str(number) for number, spec in enumerate(specs) if spec != specs[0]]
    return HeadwayError(
        f"expected layers of type {layer_type or FULL} that are placed alike, got {specs[0]} and, in layers "
        f"{', '.join(odd[:9])}{' …' if len(odd) > 9 else ''}, {specs[int(odd[0])]}: take layers_from_hf, which has one "
        f"position for each layer"
    )
