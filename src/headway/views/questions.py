"""Questions about a position method, a recorded pass, or one layer of a pass."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from headway.figures.values import View
from headway.init import seeded
from headway.inspect.record import Layer, Trace
from headway.positions import Position
from headway.shapes import HeadShape, HeadwayError
from headway.shipped import named
from headway.training import load_model, load_watch, token_texts
from headway.transformer import Transformer
from headway.views import view
from headway.views.question import Question, Recording

OF_METHODS = ("vectors", "bias", "rotation", "similarity", "distance")
"""The views of a method alone, the most informative first; which of them apply depends on where it acts."""
OF_PASSES = ("wall", "head", "long", "softmax", "split", "distance")
"""The views of a recorded pass, which need no model."""
TOKENS = 128
"""Default tokens of the text that a method is shown with."""
LONGEST = 4096
CHECKPOINTS = "headway.hf.reading"
"""What opens checkpoint folders of transformers, found by name when one is asked for."""
VOCABULARY = 64
SHAPE = HeadShape.of(64, heads=4)
"""The widths of a method that is not attached."""


def about_position(
    position: Position, *, heads: int | None = None, dim: int | None = None, length: int | None = None, seed: int = 0
) -> Question:
    """A question about a method alone: one layer with random tokens around it, with the method's own parameters.

    Args:
        position: attached or not; it is not changed.
        heads: heads of a method that is not attached, default 4.
        dim: its width, default 64.
        length: tokens of the text, positions of a map and reach of a curve; default 128, and what the views choose.
        seed: seed of the tokens and of everything outside the method.

    Raises:
        HeadwayError: on invalid widths, or widths that differ from those of an attached method.

    >>> from headway.positions import Alibi
    >>> about_position(Alibi(), heads=2, dim=32, length=5).labels
    ['0', '1', '2', '3', '4']
    """
    tokens = TOKENS if length is None else length
    if not 2 <= tokens <= LONGEST:
        raise HeadwayError(f"expected a length from 2 to {LONGEST} tokens, got {tokens}")
    own = position.shape
    if own is not None and (heads not in (None, own.heads) or dim not in (None, own.dim)):
        raise HeadwayError(
            f"expected the widths that {position.spec()} is attached to, {own.heads} heads and dim {own.dim}: "
            f"leave heads and dim out, or draw .fresh()"
        )
    count = heads or SHAPE.heads
    shape = own or HeadShape.of(dim or (SHAPE.dim if SHAPE.dim % count == 0 else 16 * count), count)
    with seeded(seed), torch.no_grad():
        model = Transformer(
            VOCABULARY,
            shape.dim,
            layers=1,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            hidden=1,  # layers after attention are not used
            position=position.fresh(),
        ).eval()
        ids = torch.randint(VOCABULARY, (1, tokens))
        if own is not None:
            model.position.load_state_dict(position.state_dict())
    labels = [str(token) for token in range(tokens)]
    options = {} if length is None else {"positions": length, "reach": length}
    return Question.of(model, ids, labels, name=position.spec(), options=options)


def about_saved(folder: Path | str, text: str) -> Question:
    """A question about a saved model: a run of ``headway train``, or a checkpoint folder of transformers.

    Args:
        folder: where it is, or the name of a model that ships, see :mod:`headway.shipped`.
        text: input text of the model.

    Raises:
        HeadwayError: when it is neither; as :func:`about_run`, and as :func:`headway.hf.load`.
    """
    if (found := named(folder)) != Path(folder):
        return replace(about_run(found, text), name=str(folder))
    if is_checkpoint(folder):
        question: Question = importlib.import_module(CHECKPOINTS).about(folder, text)
        return question
    if not (Path(folder) / "settings.json").is_file():
        raise HeadwayError(
            f"expected a run of `headway train` (settings.json) or a checkpoint of transformers (config.json), got "
            f"neither in {folder}"
        )
    return about_run(folder, text)


def is_checkpoint(folder: Path | str) -> bool:
    """Whether a folder is a checkpoint of transformers, or of peft's adapters."""
    path = Path(folder)
    return (
        any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
        and not (path / "settings.json").is_file()
    )


def about_run(run: Path | str, text: str) -> Question:
    """A question about a model of ``headway train``, with its history, and its watch if there is one.

    Args:
        run: its folder.
        text: input text of the model.

    Raises:
        HeadwayError: when there is no run or no whole checkpoint, or the text is empty.
    """
    model, vocabulary, made = load_model(run)
    assert isinstance(model, Transformer)  # as every run of ours
    ids = vocabulary.encode(text.encode("utf-8", "surrogateescape"))
    if not len(ids):
        raise HeadwayError("expected a text, got an empty one: give a sentence")
    watched = load_watch(run) if (Path(run) / "watch").is_dir() else None
    labels = token_texts(vocabulary, ids)
    where = {"name": str(run), "watched": watched, "history": made.history, "notes": made.notes}
    return Question.of(model, ids[None], labels, vocabulary=vocabulary, **where)


def about_trace(
    recorded: Trace | Layer,
    labels: Sequence[str] | None = None,
    *,
    layer: int = 0,
    head: int = 0,
    keys: Sequence[str] | None = None,
) -> Question:
    """A question about a recorded pass over one text, for the views of attention.

    Args:
        recorded: a trace, or one layer.
        labels: display text of each token; default its index.
        layer: which layer of a trace.
        head: which head.
        keys: display text of the tokens of the context, for a layer of cross attention; default their index.

    Raises:
        HeadwayError: when nothing was recorded, or layer, head or labels are invalid.
    """
    trace = Trace([recorded]) if isinstance(recorded, Layer) else recorded
    recording = Recording(trace=trace)
    if not 0 <= layer < len(trace):
        raise HeadwayError(f"expected layer from 0 to {len(trace) - 1}, got {layer}")
    one = trace[layer]
    if one.crosses:  # the layers of a decoder differ: this one alone
        recording, layer = Recording(trace=Trace([one])), 0
    tokens = one.queries if one.crosses else one.keys
    named = [str(token) for token in range(tokens)] if labels is None else list(labels)
    context = [str(token) for token in range(one.keys)] if one.crosses and keys is None else keys
    return Question(recording, named, layer=layer, head=head, keys=context)


def composed(question: Question, names: Sequence[str]) -> Iterator[View]:
    """The views that apply: a method that rotates nothing has no angles to show.

    >>> from headway.positions import Alibi
    >>> [shown.key for shown in composed(about_position(Alibi(), length=8), OF_METHODS)]
    ['bias', 'similarity', 'distance']
    """
    for name in names:
        try:
            shown = view(name, question)
        except HeadwayError:
            continue
        yield shown
