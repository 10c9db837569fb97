"""The content of the studio: trained runs, comparisons and fresh models, each by id and never by path."""

from __future__ import annotations

import importlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from headway.compare.cells import RESULTS
from headway.compare.page import page
from headway.config import TransformerConfig
from headway.figures.values import both
from headway.init import seeded
from headway.inspect.explain import words
from headway.inspect.watch import MATRICES, Watch
from headway.shapes import HeadwayError, brief
from headway.shipped import FOLDER as SHIPPED
from headway.sizes import Size, check_size
from headway.studio.entries import Entry, described, found, load
from headway.studio.fields import LIMITS, SIZES, Asked, Fresh, Model, OfLive, OfRun
from headway.training import (
    Bytes,
    Checkpoints,
    History,
    Vocabulary,
    read_json,
    read_text,
    token_texts,
)
from headway.training.watching import load_watch
from headway.transformer import Transformer
from headway.views import Question
from headway.views.question import Recording
from headway.views.questions import CHECKPOINTS

T = TypeVar("T")
_NOTHING: Any = object()


class Recent(OrderedDict[Hashable, Any]):
    """A small cache of recent results, so that returning to one is instant.

    >>> recent = Recent(2)
    >>> [recent.make(key, lambda: key * 2) for key in (1, 2, 1, 3)], list(recent)
    ([2, 4, 2, 6], [1, 3])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._lock = threading.Lock()

    def make(self, key: Hashable, maker: Callable[[], T]) -> T:
        """The cached value of a key, or a new one from ``maker``."""
        with self._lock:
            found: T = self.get(key, _NOTHING)
        if found is _NOTHING:
            found = maker()  # without the lock: others are quick
        with self._lock:
            self[key] = found
            self.move_to_end(key)
            while len(self) > self.size:
                self.popitem(last=False)
        return found


class Library:
    """Runs and comparisons by id, and the models made from them.

    Args:
        folders: run folders, comparison folders, or folders that hold some.
        quick: raise :class:`Heavy` for what takes long. Only one thread may ask a library for models: two passes of
            one model at a time would be recorded as one.

    Raises:
        HeadwayError: on a folder that holds nothing to show.
    """

    def __init__(self, folders: Iterable[Path | str], *, quick: bool = False) -> None:
        self.quick = quick
        self._folders = [Path(folder).absolute() for folder in folders]
        self._known: dict[str, Entry] = {}
        self._models = Recent(6)
        self._questions = Recent(6)
        for folder in self._folders:
            if not found(folder):
                raise HeadwayError(
                    f"expected a folder of `headway train` or `headway compare`, a checkpoint of transformers, or a "
                    f"folder that holds some, got {folder}"
                )

    def patient(self) -> Library:
        """Another library over the same folders, for slow views."""
        return Library(self._folders)

    def entries(self) -> dict[str, Entry]:
        """Everything there is now, by id; runs that appear while the studio is open are found too."""
        self._known = {entry.id: entry for folder in self._folders for entry in found(folder)}
        return self._known

    def plain(self) -> dict[str, Any]:
        """The listing for the page: ids, titles and sizes."""
        entries = sorted(self.entries().values(), key=self._rank)
        runs = [described(entry) for entry in entries if entry.kind in MODELS]
        compared = [{"id": entry.id, "title": entry.title} for entry in entries if entry.kind == "comparison"]
        return {"runs": runs, "comparisons": compared}

    def _rank(self, entry: Entry) -> tuple[bool, bool]:
        """Models that ship before all others or after them, as their folder is; runs before cells of comparisons."""
        shipped = entry.kind == "shipped"
        return shipped is not (self._folders[:1] == [SHIPPED]), entry.kind not in ("run", "shipped")

    def question(self, asked: Asked, live: Callable[[str], Question]) -> Question:
        """What a view is asked about. Layer, head, query and column that the model lacks become the nearest it has.

        Args:
            asked: by the page.
            live: the question about the training model, for a text.
        """
        if self.quick and asked.view == "generation":  # a pass for each token
            raise Heavy
        longest = LIMITS["long_tokens" if asked.view == "long" else "tokens"]
        # words are known to fresh models only: beside a trained model they read its tokens
        told = next((model for model in (asked.model, *asked.others) if not isinstance(model, Fresh)), None)
        like = None if told is None else self._about(told, asked.text, longest, live)

        def about(model: Model) -> Question:
            if like is not None and isinstance(model, Fresh):
                return self._beside(model, like)
            return like if like is not None and model == told else self._about(model, asked.text, longest, live)

        base = about(asked.model)
        attention, tokens, matrix = base.attentions[0], len(base.labels), asked.options.get("matrix", "q")
        return replace(
            base,
            layer=min(asked.layer, len(base.attentions) - 1),
            head=min(asked.head, attention.shape.heads - 1),
            query=max(-tokens, min(asked.query, tokens - 1)),
            column=min(asked.column, attention.columns(matrix if matrix in MATRICES else "q") - 1),
            others=tuple(map(about, asked.others)),
            results=self.results(asked.results) if asked.results else None,
            watched=base.watched or self._watched(asked),
            options=self._options(asked, base),
        )

    def suited(self, asked: Asked, suits: Sequence[str]) -> Asked:
        """The same question where the method has something to show; of a trained model, if it was of one."""
        if isinstance(asked.model, Fresh):
            config = replace(asked.model.config, position=suits[0])
            return replace(asked, model=replace(asked.model, config=config))
        runs = self.plain()["runs"]
        found = next((one["id"] for one in runs if str(one.get("position")).partition("(")[0] in suits), None)
        made = Fresh(TransformerConfig(1, position=suits[0], **SIZES))
        return replace(asked, model=OfRun(found) if found else made)

    def keep(self, question: Question) -> None:
        """Keep what was recorded of a text for the next view of it, unless the text is long."""
        if len(question.labels) > LIMITS["tokens"]:
            question.recording.forget()

    def version(self, model: Model) -> Hashable:
        """Changes when a run that is still training has saved a newer model."""
        if not isinstance(model, OfRun):
            return 0
        entry = self._entry(model.id, MODELS)
        return tuple(Checkpoints(entry.path / "checkpoints").steps()[-1:])

    def results(self, identity: str) -> dict[str, Any]:
        """The results of a comparison."""
        entry = self._entry(identity, ("comparison",))
        found: dict[str, Any] = self.without_paths(lambda: read_json(entry.path / "results.json", RESULTS))
        return found

    def report(self, identity: str) -> str:
        """The report of a comparison, as one page."""
        return page(self.results(identity))

    def without_paths(self, make: Callable[[], T]) -> T:
        """Do something with files; its errors name folders as the page knows them."""
        try:
            return make()
        except HeadwayError as error:
            raise HeadwayError(self.said(str(error))) from error

    def said(self, message: str) -> str:
        """A message without the paths of folders."""
        for folder in self._folders:
            for path in {str(folder), str(folder.resolve())}:
                message = message.replace(path, folder.name)
        return message

    def _key(self, model: Model, text: str) -> Hashable:
        return model, text, self.version(model)

    def _about(self, model: Model, text: str, longest: int, live: Callable[[str], Question]) -> Question:
        if isinstance(model, Fresh):
            question = self._questions.make(self._key(model, text), lambda: self._fresh(model, text, longest))
        elif isinstance(model, OfRun):
            question = self._questions.make(self._key(model, text), lambda: self._trained(model, text, longest))
        else:
            question = live(text)
        _within(longest, len(question.labels))
        return question

    def _watched(self, asked: Asked) -> Watch | None:
        """What the run recorded of its matrices, for the views of learning, if it was watched."""
        if asked.view not in LEARNING or not isinstance(asked.model, OfRun):
            return None
        path = self._entry(asked.model.id, MODELS).path
        return self.without_paths(lambda: load_watch(path)) if (path / "watch").is_dir() else None

    def _options(self, asked: Asked, base: Question) -> dict[str, Any]:
        """The view's own options; "sample" stands for windows of the built-in text, which a page cannot send."""
        options = dict(asked.options)
        if isinstance(swapped := options.get("position"), str):
            _check_swap(base, swapped)
        if options.pop("sample", None) != "windows":
            return options
        if isinstance(asked.model, Fresh):
            raise HeadwayError(
                "expected a trained model for windows of another text, got one without a vocabulary for other texts"
            )
        vocabulary: Vocabulary = Bytes() if isinstance(asked.model, OfLive) else self._loaded(asked.model)[1]
        ids = vocabulary.encode(bytes(read_text().data)[: 2**18])
        length = min(max(len(base.labels), 64), 256, len(ids) // WINDOWS)
        starts = torch.arange(WINDOWS) * ((len(ids) - length) // WINDOWS)
        return {**options, "windows": ids[starts[:, None] + torch.arange(length)]}

    def _weighed(self, size: Size) -> None:
        if self.quick and size.held > LIGHT:
            raise Heavy

    def _fresh(self, model: Fresh, text: str, longest: int) -> Question:
        labels = words(text)
        if not labels:
            raise HeadwayError("expected a text of at least one word, got none: type a sentence")
        _within(longest, len(labels))
        known = {label: number for number, label in enumerate(dict.fromkeys(labels))}
        self._weighed(checked_size(model, len(known), len(labels)))
        ids = torch.tensor([[known[label] for label in labels]])
        made = _made(model, len(known), len(labels))
        return Question.of(made, ids, labels, name=str(model.config.position), untrained=True)

    def _beside(self, model: Fresh, like: Question) -> Question:
        """About a fresh model, of the same kind, that reads the tokens of another question."""
        if like.recording.changes is not None:
            return self._swapped(model, like)
        vocabulary, count = like.model.stack.embedding.num_embeddings, len(like.labels)
        model = replace(model, config=replace(model.config, kind=like.model.config.kind))
        self._weighed(checked_size(model, vocabulary, count))
        made = _made(model, vocabulary, count)
        predicts = like.predictor and replace(like.predictor, model=made)
        return Question.of(
            made, like.ids, like.labels, name=str(model.config.position), predictor=predicts, untrained=True
        )

    def _swapped(self, model: Fresh, like: Question) -> Question:
        """About a checkpoint whose position method is that of a fresh model."""
        assert like.recording.changes is not None
        spec = str(model.config.position)
        _check_swap(like, spec)
        trace, made = like.recording.changes.swapped(spec)
        notes = (both("whatif.swap.fresh", spec=spec),) if made else ()
        return Question(Recording(trace=trace), like.labels, name=f"{like.name}, {spec}", notes=notes)

    def _trained(self, model: OfRun, text: str, longest: int) -> Question:
        path = self._entry(model.id, MODELS).path
        if self.quick and sum(file.stat().st_size for file in path.glob("checkpoints/*/model.safetensors")) > STORED:
            raise Heavy
        if self._entry(model.id, MODELS).kind == "checkpoint":
            return self._read(model, text, longest)
        made, vocabulary, history, notes = self._loaded(model)
        ids, labels = tokens(vocabulary, text)
        _within(longest, len(labels))
        weights = sum(p.numel() * p.element_size() for p in made.parameters())
        self._weighed(check_size(made.config.plain(), tokens=len(labels), most=MEMORY + weights))
        told = tuple(map(self.said, notes))
        where = {"name": self._entry(model.id, MODELS).title, "history": history, "notes": told}
        return Question.of(made, ids, labels, vocabulary=vocabulary, **where)

    def _read(self, model: OfRun, text: str, longest: int) -> Question:
        """About a checkpoint of transformers."""
        entry = self._entry(model.id, MODELS)
        if self.quick and (model.id, "reader") not in self._models:
            raise Heavy
        opened = importlib.import_module(CHECKPOINTS)
        reader = self._models.make((model.id, "reader"), lambda: self.without_paths(lambda: opened.reader(entry.path)))
        _within(longest, reader.tokens(text)[0].shape[1])
        found: Question = self.without_paths(lambda: reader.question(text))
        return replace(found, name=entry.title)

    def _loaded(self, model: OfRun) -> tuple[Transformer, Vocabulary, History | None, tuple[str, ...]]:
        entry = self._entry(model.id, MODELS)
        key = (model.id, self.version(model))
        return self._models.make(key, lambda: self.without_paths(lambda: load(entry)))

    def _entry(self, identity: str, kinds: Sequence[str]) -> Entry:
        entry = self._known.get(identity) or self.entries().get(identity)
        if entry is None or entry.kind not in kinds:
            what = "comparison" if "comparison" in kinds else "run"
            raise HeadwayError(
                f"expected the id of a {what} that the studio shows, got {brief(identity)}: reload the page"
            )
        return entry


MODELS = ("run", "shipped", "cell", "checkpoint")
"""Kinds of entries that hold a model."""
LEARNING = ("film", "step", "board")
"""Views that look at how a training went, not only at the model it made."""
WINDOWS = 50
"""Of the built-in text, over which attention by distance is taken."""
MEMORY = 2 * 10**9
"""Bytes that a model and what it makes of a text may take."""
LIGHT = 2**28
"""Maximum bytes of a quick view; slower ones are queued elsewhere and block nobody."""
STORED = 2**25
"""Bytes of a saved model that is read at once."""


class Heavy(Exception):
    """Raised before anything is made: this view takes long, and belongs to a library that may take long."""


def _check_swap(question: Question, spec: str) -> None:
    """Refuse a position method that would make a model too large, before it is made."""
    model, layers = question.recording.model, len(question.attentions)
    if model is None:  # a model of the checkpoint's widths
        shape = question.attentions[0].shape
        dim = shape.heads * shape.head_dim
        config: dict[str, Any] = {"vocab": 1, "dim": dim, "layers": layers, "heads": shape.heads}
        held = 16 * layers * dim**2
    else:
        config, held = {**model.config.plain(), "share_position": None}, sum(p.numel() for p in model.parameters())
    numbers = LIMITS["parameters"] + held
    check_size(config | {"position": spec}, tokens=len(question.labels), parameters=numbers, most=MEMORY + 4 * numbers)


def tokens(vocabulary: Vocabulary, text: str) -> tuple[Tensor, list[str]]:
    """A text as a model's token ids, (1, N), and the display text of each."""
    ids = vocabulary.encode(text.encode())
    if not len(ids):
        raise HeadwayError("expected a text, got an empty one: type a sentence")
    return ids[None], token_texts(vocabulary, ids)


def _within(longest: int, count: int) -> None:
    if count > longest:
        raise HeadwayError(
            f"expected at most {longest:,} tokens here, got {count:,}: shorten the text"
            + ("" if longest == LIMITS["long_tokens"] else ", or choose the map of a long text")
        )


def checked_size(model: Fresh, vocabulary: int, tokens: int = 64, *, batch: int = 0) -> Size:
    """Refuse a model too large for the studio, before it is made.

    Args:
        model: what is asked for.
        vocabulary: tokens it knows.
        tokens: that it is to read.
        batch: texts in a step of training; 0 is a model that does not learn.

    Raises:
        HeadwayError: with what would be allowed.

    >>> from headway.config import TransformerConfig
    >>> checked_size(Fresh(TransformerConfig(1, position="learned(max_length=1000000)")), 256)
    Traceback (most recent call last):
    headway.shapes.HeadwayError: expected a model of at most 10,000,000 parameters, got more: take smaller sizes
    """
    config = replace(model.config, vocab=vocabulary, backend="auto" if batch else _backend(tokens)).plain()
    more: dict[str, int] = {"parameters": LIMITS["parameters"], "most": MEMORY}
    return check_size(config, tokens=tokens, batch=max(batch, 1), training=batch > 0, **more)


def _backend(tokens: int) -> str:
    # the specification shows a short text as well, and needs none of the compiler that others import for a second
    return "reference" if tokens <= LIMITS["tokens"] else "auto"


def _made(model: Fresh, vocabulary: int, tokens: int) -> Transformer:
    with seeded(model.seed):
        return Transformer(replace(model.config, vocab=vocabulary, backend=_backend(tokens))).eval()
