"""The size of a model, computed before any of it is allocated.

A configuration is user input or a foreign file: `swin(height=4096, width=4096)` is 30 characters and 2 billion
parameters. So the model is built and run once on torch's meta device, where tensors have a shape but no memory, by the
same code as a real model: every parameter, buffer and intermediate result of every method is counted, whatever its
hyperparameters are called. Counting stops as soon as the limit is exceeded.

    held(layers, tokens, batch) is measured at small values and extrapolated linearly: each axis is at most linear
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from headway.attending import Attending
from headway.latent import LatentAttention
from headway.positions.base import REACH
from headway.schema import Whole, require
from headway.shapes import HeadwayError, brief
from headway.transformer import Transformer, TransformerConfig

_CALLS = 5_000
"""Maximum operations of two layers, plus eight per token: hundreds are usual, and more are slow."""
_SMALL = (2, 128, 2)
"""Layers or whole patterns of them, tokens and sequences at which memory is measured; beyond, it grows at most in
proportion."""


@dataclass(frozen=True)
class Size:
    """The size of a model.

    Args:
        parameters: number of parameters; shared ones count once.
        weights: bytes of parameters and buffers; in training, also of gradients and two moments each.
        held: peak bytes of one pass, including weights.
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
    """The size of ``Transformer.from_config(config)``, refused above a limit; this takes a few milliseconds.

    Scores are counted as in the backend ``tiled``, O(queries + keys), unless the configuration says ``reference``.

    Args:
        config: as :meth:`headway.Transformer.from_config` takes it.
        tokens: length of the input sequences.
        batch: sequences per batch.
        training: include gradients and AdamW's state.
        parameters: maximum number of parameters; None is what fits into ``most``. For a model from a file, pass the
            number in the file.
        most: maximum bytes; None is :func:`memory`.

    Raises:
        HeadwayError: when it is larger, or no model can be built from it.

    >>> check_size({"vocab": 256, "dim": 64, "layers": 2}).parameters
    115008
    >>> check_size({"vocab": 256, "dim": 64, "position": "learned(max_length=1000000)"}, parameters=10**7)
    Traceback (most recent call last):
    headway.shapes.HeadwayError: expected a model of at most 10,000,000 parameters, got more: take smaller sizes
    """
    limit = memory() if most is None else most
    made = TransformerConfig.of(config, "a model configuration")
    # layers of latent attention differ in size from those beside them: then whole patterns are measured
    period = len(made.pattern) if any(layer.latent_dim for layer in made.pattern) else 1
    rest = made.layers % period
    for name, value in (("tokens", tokens), ("batch", batch)):
        require(value, Whole(1, 2**40), name)
    numbers = limit // 4 if parameters is None else min(parameters, limit // 4)
    if _at_least(config) > numbers:
        raise _too_large(parameters, limit)

    def measure(periods: int, tokens: int, batch: int, exact: bool = False) -> tuple[int, int, int]:
        return _measured({**config, "layers": rest + periods * period}, tokens, batch, training, limit, exact)

    try:
        at = (made.layers // period, tokens, batch)
        # the reference holds a value per pair of tokens, which grows faster, but takes few operations at any length
        small = (_SMALL[0], 2**40, _SMALL[2]) if config.get("backend") == "reference" else _SMALL
        found = Size(*_continued(measure, at, small))
        if found.held > limit:  # a bound, maybe, which nobody should be refused for
            found = Size(*_continued(partial(measure, exact=True), at, small))
    except TooLarge as large:
        raise _too_large(parameters if large.building else None, limit) from None
    except HeadwayError:
        raise
    except (RuntimeError, OverflowError, TypeError, ValueError, MemoryError, RecursionError) as error:
        # a size that no tensor can have, e.g. 2⁴⁰ × 2⁴⁰
        raise HeadwayError(
            f"expected sizes that a model can have, got {brief(dict(config))}: {_first(error)}"
        ) from None
    if parameters is not None and found.parameters > parameters:
        raise _too_large(parameters, limit)
    if found.held > limit:
        raise _too_large(None, limit, found.held)
    return found


def memory(device: torch.device | str = "cpu") -> int:
    """Bytes of memory of this machine, or of a GPU; 8 GB if unknown."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 8 * 10**9


def gigabytes(count: int) -> str:
    """Bytes in human-readable form.

    >>> gigabytes(5_800_000_000), gigabytes(12_000_000)
    ('5.8 GB', '12 MB')
    """
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


class TooLarge(Exception):
    """Stops a construction or a pass as soon as it exceeds the limit."""

    def __init__(self, building: bool) -> None:
        super().__init__()
        self.building = building


class _Meter(TorchDispatchMode):
    """Counts the bytes of all live tensors and their peak; nothing is computed.

    Args:
        most: bytes above which it raises.
        calls: operations after which it raises.
    """

    def __init__(self, most: int, calls: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most, self.held, self.peak, self._calls = most, 0, 0, calls
        self.building = True
        self._alive: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch would import its compiler, which takes a second, to exclude this function

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._calls -= 1
        if self._calls < 0:
            raise TooLarge(self.building)
        if func._schema.name.endswith("_") and args and isinstance(args[0], Tensor):
            return args[0]  # in place: an initialisation allocates nothing
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
def metered(most: int = 2**62, tokens: int = 1, gradients: bool = False, layers: int = 2) -> Iterator[_Meter]:
    """Within this block tensors have no memory and initialisations do nothing; their bytes are counted.

    Args:
        most: maximum bytes at once.
        tokens: length of the sequences.
        gradients: whether to keep what gradients need.
        layers: number of layers, for the number of operations.

    Raises:
        TooLarge: when more is held, or when the number of operations suggests an endless loop.

    >>> with metered() as meter:
    ...     made = nn.Linear(10**6, 10**5)
    >>> gigabytes(meter.peak)
    '400.0 GB'
    """
    meter = _Meter(most, _CALLS * max(1, layers // 2) + 8 * tokens)
    reach = REACH.set(tokens)
    try:
        with torch.device("meta"), torch.set_grad_enabled(gradients), meter:
            yield meter
    finally:
        REACH.reset(reach)


def _measured(
    config: dict[str, Any], tokens: int, batch: int, training: bool, most: int, exact: bool
) -> tuple[int, int, int]:
    """Parameters, bytes of weights and bytes held; unless ``exact``, a bound of these where one is known."""
    if config.get("backend") != "reference":
        config = {**config, "backend": "tiled"}  # the others hold no more, and not all of them run on the meta device
    with metered(most, tokens, training, config["layers"]) as meter:
        model = Transformer.from_config(config).train(training)
        learned = list(model.parameters())
        state = 3 * sum(p.numel() * p.element_size() for p in learned) if training else 0
        count, weights = sum(p.numel() for p in learned), meter.held + state
        bound = None if exact else _ordinary(model, tokens, batch, training)
        if bound is not None and weights + bound <= most:
            return count, weights, weights + bound
        meter.building, meter.peak = False, meter.held  # construction itself may have held more temporarily
        ids = torch.empty(batch, tokens, dtype=torch.long)
        out = model(ids, source=ids) if model.kind == "encoder-decoder" else model(ids)
        if training:
            nn.functional.log_softmax(out, -1)
        return count, weights, state + meter.peak


def _ordinary(model: Transformer, tokens: int, batch: int, training: bool) -> int | None:
    """Upper bound of the bytes of a pass, for a method with default sizes; None means measure.

    Only to save time: on the meta device torch imports its compiler, which takes a second.
    """
    position = model.position
    defaults = {one.name: one.default for one in fields(position)}
    changed = [value for name, value in position.hyperparameters().items() if value != defaults[name]]
    if any(type(value) not in (bool, float) and (not isinstance(value, str) or "(" in value) for value in changed):
        return None
    layers = model.stack.attentions()
    shape, inner, hidden = layers[0].shape, max(map(_widest, layers)), model.config.hidden or 4 * model.config.dim
    kept = len(model.stack.blocks) if training else 1  # whose results are held until the gradient is computed
    kept *= 3 if model.kind == "encoder-decoder" else 1  # the encoder, and cross attention
    each = 16 * shape.dim + 8 * hidden + 24 * inner + shape.heads * 4096
    pairs = tokens * (32 * shape.heads + 768) if model.config.backend == "reference" else 0
    return batch * tokens * (kept * (4 * each + pairs) + 16 * model.embedding.num_embeddings) + 2**24


def _widest(layer: Attending) -> int:
    """Entries per token of the widest of queries, keys and values of all heads, and of latent vectors beside them."""
    latent = layer.kv_down.out_features + layer.q.in_features if isinstance(layer, LatentAttention) else 0
    return max(layer.q.out_features, layer.v.out_features) + latent


def _continued(measure: Callable[..., tuple[int, ...]], at: tuple[int, ...], small: tuple[int, ...]) -> tuple[int, ...]:
    """Values measured at small sizes, extrapolated linearly along each larger axis.

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
    """A lower bound of the number of parameters, before anything is built, because loops over a width come later."""

    def of(name: str, default: int) -> int:
        value = config.get(name)
        return value if isinstance(value, int) and value > 0 else default

    vocab, dim, layers, heads = of("vocab", 1), of("dim", 128), of("layers", 3), of("heads", 4)
    # latent attention makes queries and keys of any width from narrow latent vectors
    latent = any("latent_dim" in str(config.get(name)) for name in ("latent_dim", "pattern"))
    inner = 0 if latent else heads * of("head_dim", max(dim // heads, 1))
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
