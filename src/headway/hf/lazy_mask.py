"""The mask that transformers' models hand from their forward to every attention, as a mask of headway.

transformers describes a mask by nested functions of indices and evaluates them for each pair. Those functions are read
here: causal, windows, chunks, packed documents and their combinations become masks by position, nothing n²; a function
that is not known is evaluated as transformers would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, overload

import torch
from torch import Tensor
from transformers.masking_utils import (
    _ignore_causal_mask_sdpa,
    bidirectional_mask_function,
    causal_mask_function,
    prepare_padding_mask,
    sdpa_mask,
)

from headway.hf.watching import watched
from headway.integers import FAR, Positions, readable
from headway.masks import Causal, Documents, Mask, Window
from headway.masks.base import And, Or

SEES_ALL = object()


@dataclass(frozen=True, eq=False)
class LazyMask:
    """Stands for transformers' mask (batch, 1, queries, keys), made only where something else reads it.

    Args:
        mask: which keys each query may see; None is all.
        q_pos: the index of each query in its sequence, (1, Q).
        k_pos: the index of each key, (B or 1, K); −1 is padding.
        plain: whether both count from 0 without padding.
        batch: number of sequences.
        added: the dtype of the mask that a model's eager attention adds to scores, so that whatever else reads it finds
            0 where a key is visible; None for a boolean one, as of SDPA.
    """

    mask: Mask | None
    q_pos: Positions
    k_pos: Positions
    plain: bool
    batch: int
    added: torch.dtype | None = None
    ndim: ClassVar[int] = 4

    def tensor(self) -> Tensor:
        """The tensor that this stands for."""
        seen = self.dense()
        return seen if self.added is None else as_added(seen, self.added)

    def dense(self) -> Tensor:
        """Which keys each query may see, as a boolean tensor."""
        seen = (self.k_pos >= 0)[:, None, None]
        if self.mask is not None:
            seen = seen & self.mask.tile(self.q_pos, self.k_pos)
        return seen.expand(self.batch, -1, *self.shape[2:])

    @property
    def shape(self) -> torch.Size:
        """(B, 1, Q, K)."""
        return torch.Size((self.batch, 1, self.q_pos.shape[1], self.k_pos.shape[1]))

    def size(self, axis: int | None = None) -> Any:
        """As of the tensor."""
        return self.shape if axis is None else self.shape[axis]

    def first(self, keys: int) -> LazyMask:
        """The mask over this many keys, those after them left out."""
        return replace(self, k_pos=self.k_pos[:, :keys], plain=False)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """The mask on another device; as a tensor where another dtype is asked for."""
        device, dtype = torch._C._nn._parse_to(*args, **kwargs)[:2]
        if dtype not in (None, self.added or torch.bool):
            return self.tensor().to(*args, **kwargs)
        return replace(self, q_pos=self.q_pos.to(device), k_pos=self.k_pos.to(device))

    def __getitem__(self, part: Any) -> Any:
        parts = part if isinstance(part, tuple) and len(part) == 4 else (None,) * 4
        whole = all(isinstance(x, slice) and x.indices(n) == (0, n, 1) for x, n in zip(parts, self.shape, strict=True))
        return self if whole else self.tensor()[part]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch's functions: they get the tensor."""
        made = torch.utils._pytree.tree_map_only(cls, cls.tensor, (args, kwargs or {}))
        return function(*made[0], **made[1])

    def __invert__(self) -> Tensor:
        return ~self.tensor()

    def __and__(self, other: Any) -> Any:
        return self.tensor() & other

    def __or__(self, other: Any) -> Any:
        return self.tensor() | other


class Spreading(Protocol):
    """What a :class:`SpreadMask` asks of :class:`headway.hf.spread.Spread`."""

    mesh: Any
    how: str
    zigzag: bool
    name: str

    def attention(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Attention over the tokens of all processes."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class SpreadMask:
    """Stands for transformers' mask where tokens are spread over processes.

    Args:
        mask: which keys each query may see, by position and document; None is all.
        pos: positions of this process's tokens in the whole text, (B or 1, N); −1 is padding.
        greatest: the greatest position in the whole text.
        spread: how they lie on the processes.
        context: positions of this process's tokens of the text that these attend to, where it is another.
    """

    mask: Mask | None
    pos: Tensor
    greatest: int
    spread: Spreading
    context: Tensor | None = None

    def to(self, *_: Any) -> SpreadMask:
        """Itself: it has no dtype."""
        return self


@overload
def as_added(mask: LazyMask | Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def as_added(mask: None, dtype: torch.dtype) -> None: ...
def as_added(mask: LazyMask | Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as the models' own code adds it to scores: 0 where a key is visible, otherwise the least of ``dtype``."""
    seen = mask.dense() if isinstance(mask, LazyMask) else mask
    if seen is None or seen.dtype is not torch.bool:
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def headway_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Any = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    always: bool = False,
    **kwargs: Any,
) -> LazyMask | Tensor | None:
    """What transformers calls to make a mask: a :class:`LazyMask`, or a tensor as for SDPA where that is as good.

    It is None where it is for SDPA: there the attention's own flag ``is_causal`` decides. Its arguments are those of
    ``transformers.masking_utils.sdpa_mask``; ``always`` asks for a LazyMask for a single query too.
    """
    if isinstance(attention_mask, LazyMask):
        return attention_mask
    if allow_is_causal_skip:
        real = prepare_padding_mask(attention_mask, kv_length, kv_offset)
        if _ignore_causal_mask_sdpa(real, q_length, kv_length, q_offset, kv_offset, local_size):
            return None
    queries = torch.arange(q_length, device=device)[None] + q_offset
    keys = torch.arange(kv_length, device=device)[None] + kv_offset
    found = None if (q_length == 1 and not (always or watched())) or use_vmap else read(mask_function, queries, keys)
    if found is None:
        made: Tensor | None = sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            local_size=local_size,
            allow_is_causal_skip=allow_is_causal_skip,
            use_vmap=use_vmap,
            device=device,
            **kwargs,
        )
        return made
    known = isinstance(q_offset, int) and not torch.compiler.is_compiling()
    plain = known and bool(q_offset == 0 and kv_offset == 0 and kv_length == q_length)
    if attention_mask is not None and not (readable(attention_mask) and bool(attention_mask.all())):
        real = attention_mask.bool()[:, kv_offset : kv_offset + kv_length]
        real = torch.nn.functional.pad(real, (0, kv_length - real.shape[1]))
        keys, plain = keys.masked_fill(~real, -1), False
    mask = None if found is SEES_ALL else found
    if mask is None and plain and kwargs.get("allow_is_bidirectional_skip", False):
        return None
    return LazyMask(mask, queries, keys, plain, batch_size)


def headway_eager_mask(*args: Any, **kwargs: Any) -> LazyMask | Tensor | None:
    """As :func:`headway_mask`, but never None for a causal mask, and added to scores: as for eager attention."""
    made, dtype = headway_mask(*args, **kwargs | {"allow_is_causal_skip": False}), kwargs.get("dtype", torch.float32)
    if isinstance(made, LazyMask):
        return replace(made, added=dtype)
    return None if made is None else as_added(made, dtype)


def read(function: Callable[..., Any], queries: Positions | None, keys: Positions | None) -> Any:
    """A mask function as a mask; SEES_ALL where every query sees every key; None where it is not known.

    Args:
        function: as transformers hands it to what makes a mask.
        queries: the index of each query in its sequence, (1, Q); None where tokens are spread over processes, so that
            no mask can be by index. What transformers takes for packed documents is then left out.
        keys: the index of each key, likewise.
    """
    if function is causal_mask_function:
        return Causal()
    if function is bidirectional_mask_function:
        return SEES_ALL
    held = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    given = {name: cell.cell_contents for name, cell in held.items()}
    match getattr(function, "__module__", ""), function.__qualname__.partition(".")[0]:
        case "transformers.masking_utils", "and_masks":
            return _joined(And, given["mask_functions"], queries, keys)
        case "transformers.masking_utils", "or_masks":
            return _joined(Or, given["mask_functions"], queries, keys)
        case "transformers.masking_utils", "sliding_window_overlay":
            return Window(given["sliding_window"] - 1, FAR) if given["sliding_window"] > 0 else None
        case "transformers.masking_utils", "sliding_window_bidirectional_overlay":
            return Window(given["sliding_window"], given["sliding_window"])
        case "transformers.masking_utils", "chunked_overlay" if queries is not None and keys is not None:
            ids = [(pos - given["left_padding"][:, None]) // given["chunk_size"] for pos in (queries, keys)]
            return Documents(*ids)
        case "transformers.masking_utils", "packed_sequence_mask_function":
            return SEES_ALL if queries is None else Documents(given["packed_sequence_mask"])
        case "transformers.masking_utils", "remap_positions_for_packed_sequence":
            return read(given["mask_function"], queries, keys)  # within a document, distances are those of indices
        case "transformers.masking_utils", "blockwise_overlay" if queries is not None and keys is not None:
            blocks = given["block_sequence_ids"]
            own = [blocks.gather(1, pos.expand(len(blocks), -1)) for pos in (queries, keys)]
            return Documents(own[0].masked_fill(own[0] < 0, -1), own[1].masked_fill(own[1] < 0, -2))
    return None


def _joined(join: type[And] | type[Or], functions: Any, queries: Positions | None, keys: Positions | None) -> Any:
    sides = [read(function, queries, keys) for function in functions]
    if any(side is None for side in sides):
        return None
    if join is Or and SEES_ALL in sides:
        return SEES_ALL
    masks = [side for side in sides if side is not SEES_ALL]
    if not masks:
        return SEES_ALL
    whole = masks[0]
    for mask in masks[1:]:
        whole = join(whole, mask)
    return whole
