"""Settings of a comparison: plain values, checked before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from headway.config import CORE, DEEPEST, MOST, OPTIMIZERS, STEPS, MaybeWidth
from headway.schema import LARGEST, Number, Whole, Words, shown
from headway.settings import Settings
from headway.shapes import HeadwayError, brief

if TYPE_CHECKING:  # modules that need torch are imported when used, so that the command line lists the options at once
    from headway.positions import Position
    from headway.training.settings import TrainSettings

DEFAULTS: dict[str, dict[str, int]] = {
    "text": {"steps": 400, "batch": 16, "dim": 96, "layers": 3, "heads": 4},
    "recall": {"steps": 800, "batch": 32, "dim": 64, "layers": 2, "heads": 4},
    "copy": {"steps": 2000, "batch": 32, "dim": 64, "layers": 2, "heads": 4},
}
"""Defaults per task; with them, :data:`CORE` takes about four minutes on two cores, ten for copy."""
SIZES = ("dim", "layers", "heads")
BY_TASK: Any = None
"""Marks a field whose default depends on the task, see :data:`DEFAULTS`, or on whether there is a checkpoint."""
OWN = "own"
"""As a position method of a checkpoint: what it has, unchanged."""
OF_CHECKPOINT = (OWN, "none", "alibi", "rotary")
"""The methods that a checkpoint is compared with by default."""
WAYS = ("linear", "ntk", "dynamic", "yarn", "drope")
"""Extensions of trained models to longer texts, see :mod:`headway.compare.extending`."""
LONGEST = 2**20
"""The longest test length, and the maximum number of lengths and of seeds."""


@dataclass(frozen=True)
class Comparison(Settings):
    """Settings of a comparison, as plain values.

    Args:
        text: text file or folder; default the documentation that ships with Python.
        positions: methods to compare, e.g. ``rotary`` or ``rotary(base=500000)``; ``all`` is every method with its
            defaults, and takes long. Default none, sinusoidal, learned, rotary, alibi, t5 and shaw; of a checkpoint
            own (the method that it has, unchanged), none, alibi and rotary.
        model: tune this checkpoint folder of transformers with each method, instead of training new models; its own
            tokenizer reads the text. Peak learning rate 5e-5 unless ``lr`` is given.
        task: text (predict the text), or recall or copy (retrieve an item at a known distance).
        train_length: tokens per training window.
        test_lengths: lengths to test at; default 1, 2, 4, 8 and 16 times the training length.
        seeds: random seeds; one model is trained per method and seed.
        steps: training steps of each model; default by task.
        batch: windows per step; default by task.
        dim: width of the models; default by task.
        layers: layers of the models; default by task.
        heads: heads of the models; default 4.
        optimizer: the optimizer: adamw, adam or sgd (with momentum).
        lr: peak learning rate; default the optimizer's own.
        vocabulary: the tokens: bytes, bpe (trained on the text), or the path of a tokenizer.json; the last two need
            the extra headway[bpe].
        vocabulary_size: tokens of a BPE vocabulary.
        extend: extensions of trained models to longer texts: linear, ntk, dynamic, yarn, drope, or all. Each model that
            supports an extension is tested before and after it.
        recalibrate: training steps without position for drope; default a fiftieth of ``steps``.
        max_text: maximum size of the text in bytes; default any.
        column: column of the documents, for a text in JSONL, parquet or a saved data set.
        threads: CPU threads of each process; default torch's own choice, or the cores divided by the workers. The last
            bits of a result depend on it.

    Raises:
        HeadwayError: on invalid values, before anything is trained.
    """

    text: str | None = None
    positions: tuple[str, ...] = BY_TASK
    model: str | None = None
    task: Annotated[str, Words(tuple(DEFAULTS))] = "text"
    train_length: Annotated[int, Whole(2, LONGEST)] = 64
    test_lengths: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0, 1)
    steps: Annotated[int, Whole(1, STEPS)] = BY_TASK
    batch: Annotated[int, Whole(1, MOST)] = BY_TASK
    dim: MaybeWidth = BY_TASK
    layers: Annotated[int | None, Whole(1, DEEPEST)] = BY_TASK
    heads: MaybeWidth = BY_TASK
    optimizer: Annotated[str, Words(OPTIMIZERS)] = "adamw"
    lr: Annotated[float | None, Number(above=0)] = None
    vocabulary: str = "bytes"
    vocabulary_size: Annotated[int, Whole(1, MOST)] = 1024
    extend: tuple[str, ...] = ()
    recalibrate: Annotated[int | None, Whole(1, STEPS)] = None
    max_text: Annotated[int | None, Whole(1, 1 << 40)] = None
    column: str = "text"
    threads: Annotated[int | None, Whole(1, 256)] = None

    def __post_init__(self) -> None:
        if self.model is not None:
            self._check_checkpoint()
        own = self.model is None
        defaults = {"positions": CORE if own else OF_CHECKPOINT, **DEFAULTS.get(self.task, DEFAULTS["text"])}
        for name, value in defaults.items():
            if getattr(self, name) is BY_TASK and (own or name not in SIZES):
                object.__setattr__(self, name, value)
        super().__post_init__()
        if self.extend == ("all",):
            object.__setattr__(self, "extend", WAYS)
        if not self.test_lengths:
            object.__setattr__(self, "test_lengths", tuple(self.train_length * 2**i for i in range(5)))
        object.__setattr__(self, "test_lengths", tuple(sorted(self.test_lengths)))
        for name, values, least, most in (
            ("test_lengths", self.test_lengths, 1, LONGEST),
            ("seeds", self.seeds, 0, LARGEST),
        ):
            if not values or min(values) < least:
                raise HeadwayError(f"expected {name} of at least {least} each, got {list(values)}")
            if max(values) > most:
                raise HeadwayError(f"expected {name} of at most {most} each, got {shown(max(values))}")
            if len(set(values)) < len(values):
                raise HeadwayError(f"expected {name} that differ, got {list(values)}")
        if not self.positions:
            raise HeadwayError("expected at least one position method, got none: 'all' is every method")
        if len(set(self.specs())) < len(self.specs()):
            raise HeadwayError(f"expected positions that differ, got {', '.join(self.positions)}")
        if min(self.test_lengths) < self.train_length:
            raise HeadwayError(
                f"expected test lengths of at least the training length {self.train_length}, got "
                f"{min(self.test_lengths)}: at every length the last {self.train_length} tokens are predicted"
            )
        for seed in self.seeds:
            self.train_settings(seed)
        replace(self.train_settings(self.seeds[0]), steps=self.recalibration, warmup=None)
        for how in self.extend:
            if how not in WAYS:
                raise HeadwayError(f"expected extend among {', '.join(WAYS)}, got {brief(how)}")
        if self.extend and not any(self.ways(spec) for spec in self.specs()):
            raise HeadwayError(
                f"expected a method that {' or '.join(self.extend)} can extend, e.g. rotary, "
                f"got {', '.join(self.specs())}"
            )

    def _check_checkpoint(self) -> None:
        """Refuse what a checkpoint has itself, or cannot do."""
        if self.task != "text":
            raise HeadwayError(f"expected task text, on which a checkpoint is tuned, got {self.task}: leave out model")
        if given := [name for name in SIZES if getattr(self, name) is not BY_TASK]:
            raise HeadwayError(f"expected no sizes beside a checkpoint, which has its own, got {', '.join(given)}")
        if (self.vocabulary, self.vocabulary_size) != ("bytes", Comparison.vocabulary_size):
            raise HeadwayError("expected no vocabulary beside a checkpoint, whose tokenizer reads the text, got one")
        if self.extend:
            raise HeadwayError(
                f"expected no extend beside a checkpoint, got {', '.join(self.extend)}: `headway extend` does that"
            )

    def check_sizes(self, vocab: int) -> None:
        """Refuse sizes with which no method can be trained, before anything is read or trained.

        Raises:
            HeadwayError: when no model of these sizes can be built, or its steps do not fit into memory.
        """
        problems = []
        for spec in self.specs():
            try:
                self.check_size(spec, vocab)
            except HeadwayError as error:
                problems.append(f"{spec}: {error}")
            else:
                return
        raise HeadwayError(none_left(problems))

    def check_size(self, spec: str, vocab: int) -> None:
        """Refuse the model of one method if it cannot be built."""
        from headway.sizes import check_size

        config = {"vocab": vocab, "dim": self.dim, "layers": self.layers, "heads": self.heads, "position": spec}
        check_size(config, tokens=self.train_length, batch=self.batch, training=True)

    def ways(self, spec: str) -> list[str]:
        """The extensions in ``extend`` that a method supports."""
        from headway.compare.extending import extends
        from headway.positions import parse

        if not self.extend:
            return []
        position, longest = parse(spec), max(self.test_lengths)
        return [how for how in self.extend if extends(position, how, to=longest, trained=self.train_length)]

    @property
    def recalibration(self) -> int:
        """Training steps without position for "drope"."""
        return max(1, self.steps // 50) if self.recalibrate is None else self.recalibrate

    def specs(self) -> list[str]:
        """The methods with all hyperparameters, in order."""
        from headway.positions import methods

        asked = [name for spec in self.positions for name in (methods() if spec == "all" else [spec])]
        own = self.model is not None
        return [spec if own and spec == OWN else self.method(spec).spec() for spec in asked]

    def method(self, spec: str) -> Position:
        """The method given by a text, for the training length, see :func:`headway.training.lengths.trained_at`."""
        from headway.training.lengths import trained_at

        return trained_at(spec, self.train_length)[0]

    def train_settings(self, seed: int) -> TrainSettings:
        """How each cell of this seed is trained."""
        from headway.training.settings import TrainSettings

        return TrainSettings(
            steps=self.steps,
            batch=self.batch,
            length=self.train_length,
            optimizer=self.optimizer,
            lr=self.lr,
            seed=seed,
            validate_every=None,
            checkpoint_every=100,
        )


def none_left(problems: list[str]) -> str:
    """The message when no method can be trained, with the first reason."""
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"expected a method that can be trained with these settings, got none: {problems[0]}{more}"
