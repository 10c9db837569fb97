"""How large a model would be, found out before any of it is allocated.

A configuration is text that somebody typed, or a file that somebody else wrote: `swin(height=4096, width=4096)` is 30
characters and 2 billion parameters. So the model is built and run once on torch's meta device, where tensors have a
shape and no memory, by the very code that would do it in earnest: every parameter, buffer and intermediate result of
every method is counted, whatever its hyperparameters are called. The count stops as soon as it is above the limit.

    held(layers, tokens, batch) is measured at small values and continued linearly: each axis is linear, or less
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from headway.positions.base import REACH
from headway.schema import Whole
from headway.shapes import HeadwayError, brief
from headway.transformer import Transformer, TransformerConfig

_CALLS = 5_000
"""Operations that two layers may take, and eight per token besides: hundreds are usual, and more of them are slow."""
_SMALL = (2, 128, 2)
"""Layers, tokens and sequences up to which is measured; beyond, what is held grows in proportion, or slower."""


@dataclass(frozen=True)
class Size:
    """What a model takes.

    Args:
        parameters: learned numbers; what layers share counts once.
        weights: bytes of parameters and buffers; in training, of gradients and two moments each as well.
        held: bytes at the peak of one pass, weights included.
    """

    parameters: int
    weights: int
    held: int


def check_size(
    config: Mapping[str, Any],
    *,
    tokens: int = 64,
    batch: int = 1,
    training: bool = False,
    parameters: int | None = None,
    most: int | None = None,
) -> Size:
    """The size of ``Transformer.from_config(config)``, refused when it is above a limit; it takes some milliseconds.

    Scores are counted as the backend ``tiled`` holds them, O(queries + keys), unless the configuration says
    ``reference``.

    Args:
        config: as :meth:`headway.Transformer.from_config` takes it.
        tokens: length of the sequences it is to read.
        batch: sequences at once.
        training: count what the gradient needs, and AdamW's state.
        parameters: learned numbers at most; None is as many as ``most`` holds. For a model from a file, give as many
            as its file holds.
        most: bytes at most; None is :func:`memory`.

    Raises:
        HeadwayError: when it is larger, or no model can be made of it, with one sentence.

    >>> check_size({"vocab": 256, "dim": 64, "layers": 2}).parameters
    115008
    >>> check_size({"vocab": 256, "dim": 64, "position": "learned(max_length=1000000)"}, parameters=10**7)
    Traceback (most recent call last):
    headway.shapes.HeadwayError: expected a model of at most 10,000,000 parameters, got more: take smaller sizes
    """
    limit = memory() if most is None else most
    layers = TransformerConfig.of(config, "a model configuration").layers
    for name, value in (("tokens", tokens), ("batch", batch)):
        if (problem := Whole(1, 2**40).problem(value, name)) is not None:
            raise HeadwayError(f"expected {problem}")
    numbers = limit // 4 if parameters is None else min(parameters, limit // 4)
    if _at_least(config) > numbers:
        raise _too_large(parameters, limit)

    def measure(layers: int, tokens: int, batch: int) -> tuple[int, int, int]:
        return _measured({**config, "layers": layers}, tokens, batch, training, limit)

    try:
        at = (layers, tokens, batch)
        # the reference holds a number per pair of tokens, which grows faster; it takes few operations for any length
        small = (_SMALL[0], 2**40, _SMALL[2]) if config.get("backend") == "reference" else _SMALL
        found = Size(*_continued(measure, at, small))
    except TooLarge as large:
        raise _too_large(parameters if large.building else None, limit) from None
    except HeadwayError:
        raise
    except (RuntimeError, OverflowError, TypeError, ValueError, MemoryError, RecursionError) as error:
        # a size that no tensor can have, as 2⁴⁰ × 2⁴⁰
        raise HeadwayError(
            f"expected sizes that a model can have, got {brief(dict(config))}: {_first(error)}"
        ) from None
    if parameters is not None and found.parameters > parameters:
        raise _too_large(parameters, limit)
    if found.held > limit:
        raise _too_large(None, limit, found.held)
    return found


def memory(device: torch.device | str = "cpu") -> int:
    """Bytes of memory of this machine, or of a GPU; 8 GB where the system does not say."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 8 * 10**9


def gigabytes(count: int) -> str:
    """Bytes as people read them.

    >>> gigabytes(5_800_000_000), gigabytes(12_000_000)
    ('5.8 GB', '12 MB')
    """
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


class TooLarge(Exception):
    """Leaves a construction, or a pass, as soon as it holds more than the limit."""

    def __init__(self, building: bool) -> None:
        super().__init__()
        self.building = building


class _Meter(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and at their peak; nothing is computed.

    Args:
        most: bytes at which it raises.
        calls: operations after which it does.
    """

    def __init__(self, most: int, calls: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most, self.held, self.peak, self._calls = most, 0, 0, calls
        self.building = True
        self._alive: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, which takes a second, to keep it from looking in here

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._calls -= 1
        if self._calls < 0:
            raise TooLarge(self.building)
        if func._schema.name.endswith("_") and args and isinstance(args[0], Tensor):
            return args[0]  # in place: an initialisation has no size
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self._count(one)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: object) -> None:
            self.held -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.held += size
        self.peak = max(self.peak, self.held)
        if self.held > self.most:
            raise TooLarge(self.building)


@contextlib.contextmanager
def metered(most: int = 2**62, tokens: int = 1, gradients: bool = False) -> Iterator[_Meter]:
    """Within, tensors have no memory and initialisations do nothing; what they would hold is counted.

    Args:
        most: bytes at once.
        tokens: length of the sequences.
        gradients: whether to keep what they need.

    Raises:
        TooLarge: when more is held, or so many operations are done that a loop must go round for ever.

    >>> with metered() as meter:
    ...     made = nn.Linear(10**6, 10**5)
    >>> gigabytes(meter.peak)
    '400.0 GB'
    """
    meter = _Meter(most, _CALLS + 8 * tokens)
    reach = REACH.set(tokens)
    try:
        with torch.device("meta"), torch.set_grad_enabled(gradients), meter:
            yield meter
    finally:
        REACH.reset(reach)


def _measured(config: dict[str, Any], tokens: int, batch: int, training: bool, most: int) -> tuple[int, int, int]:
    if config.get("backend") != "reference":
        config = {**config, "backend": "tiled"}  # the others hold no more, and not all of them run without memory
    with metered(most, tokens, training) as meter:
        model = Transformer.from_config(config).train(training)
        learned = list(model.parameters())
        state = 3 * sum(p.numel() * p.element_size() for p in learned) if training else 0
        count, weights = sum(p.numel() for p in learned), meter.held + state
        if (bound := _ordinary(model, tokens, batch, training)) is not None and weights + bound <= most:
            return count, weights, weights + bound
        meter.building, meter.peak = False, meter.held  # building itself may have held more for a moment
        ids = torch.empty(batch, tokens, dtype=torch.long)
        out = model(ids, source=ids) if model.kind == "encoder-decoder" else model(ids)
        if training:
            nn.functional.log_softmax(out, -1)
        return count, weights, state + meter.peak


def _ordinary(model: Transformer, tokens: int, batch: int, training: bool) -> int | None:
    """Bytes that a pass holds at most, for a method whose sizes are its defaults; None is to be measured.

    Only to save time: to run without memory, torch imports its compiler, which takes a second.
    """
    position = model.position
    defaults = {one.name: one.default for one in fields(position)}
    changed = [value for name, value in position.hyperparameters().items() if value != defaults[name]]
    if any(type(value) not in (bool, float) and (not isinstance(value, str) or "(" in value) for value in changed):
        return None
    shape = model.stack.attentions()[0].shape
    inner, hidden = shape.heads * shape.head_dim, model.config.hidden or 4 * shape.dim
    kept = len(model.stack.blocks) if training else 1  # whose results are held until the gradient is there
    each = 16 * shape.dim + 8 * hidden + 24 * inner + shape.heads * 4096
    pairs = tokens * (32 * shape.heads + 768) if model.config.backend == "reference" else 0
    return batch * tokens * (kept * (4 * each + pairs) + 16 * model.embedding.num_embeddings) + 2**24


def _continued(measure: Callable[..., tuple[int, ...]], at: tuple[int, ...], small: tuple[int, ...]) -> tuple[int, ...]:
    """What is measured at small values, continued as a straight line along each axis that goes further.

    >>> _continued(lambda a, b: (a * b,), (10, 3), (2, 4))
    (30,)
    """
    for axis, (value, most) in enumerate(zip(at, small, strict=True)):
        if value > most:
            step = most - most // 2
            low, high = (_continued(measure, (*at[:axis], n, *at[axis + 1 :]), small) for n in (most - step, most))
            return tuple(b + max(0, b - a) * (value - most) // step for a, b in zip(low, high, strict=True))
    return measure(*at)


def _at_least(config: Mapping[str, Any]) -> int:
    """Learned numbers there are at the very least, before anything is built: loops over a width come after it."""

    def of(name: str, default: int) -> int:
        value = config.get(name)
        return value if isinstance(value, int) and value > 0 else default

    vocab, dim, layers, heads = of("vocab", 1), of("dim", 128), of("layers", 3), of("heads", 4)
    inner = heads * of("head_dim", max(dim // heads, 1))
    return vocab * dim + layers * 2 * dim * (inner + of("hidden", 1))


def _too_large(parameters: int | None, limit: int, found: int | None = None) -> HeadwayError:
    if parameters is not None:
        return HeadwayError(f"expected a model of at most {parameters:,} parameters, got more: take smaller sizes")
    got = "more" if found is None else f"about {gigabytes(found)}"
    return HeadwayError(
        f"expected a model and a text that take at most {gigabytes(limit)} of memory, got {got}: take smaller sizes"
    )


def _first(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
