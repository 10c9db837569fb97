"""A text as the ids of a model of transformers: by its folder's tokenizer.json, or as bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headway.hf.folder import Folder, inside
from headway.shapes import HeadwayError
from headway.training.corpus import Tokens
from headway.training.files import MOST, read_regular
from headway.training.sources import Source, open_source, tokenised
from headway.training.text import Split
from headway.training.tokenizer_json import TOKENIZER, TokenizerJson
from headway.training.vocabulary import Bytes, library

_BYTES = range(256, 261)
"""Sizes of a vocabulary of bytes, with a few ids for the ends of texts."""


@dataclass(frozen=True)
class OwnText:
    """Ids of a text, in two parts.

    Args:
        name: what it is called in reports.
        train: ids to tune on.
        held_out: ids to measure on.
        prefix: ids that the tokenizer puts before every text.
        encode: ids of a string; None where there is no tokenizer.
    """

    name: str
    train: Tokens
    held_out: Tokens
    prefix: tuple[int, ...] = ()
    encode: Callable[[str], list[int]] | None = None

    def windows(self, length: int, count: int) -> Tensor:
        """At most ``count`` windows of the held-out part, evenly spread, (count, length + 1), each after the prefix.

        Raises:
            HeadwayError: when it is too short for one.
        """
        size = length + 1 - len(self.prefix)
        spare = len(self.held_out) - size
        if spare < 0:
            raise HeadwayError(
                f"expected a text whose held-out part has {size:,} tokens, got {len(self.held_out):,}: give more text"
            )
        count = min(count, spare // size + 1)
        starts = torch.arange(count) * spare // max(count - 1, 1)
        found = self.held_out[starts[:, None] + torch.arange(size)].long()
        return torch.cat((torch.tensor([self.prefix] * count, dtype=torch.long).reshape(count, -1), found), 1)


def own_text(
    text: str | Path | Tensor, original: PreTrainedModel | Folder, config: Any, *, length: int, windows: int
) -> OwnText:
    """Read a text for a model.

    Args:
        text: a file or folder, or ids, (N,), whose last part is held out.
        original: the model, or its folder with tokenizer.json.
        config: its configuration.
        length: tokens of a window.
        windows: how many are to be held out.

    Raises:
        HeadwayError: when there is no tokenizer, it has more ids than the model, or the text is too short.
    """
    size = config.get_text_config().vocab_size
    if isinstance(text, Tensor):
        if text.ndim != 1 or text.is_floating_point() or not 0 <= int(text.min()) <= int(text.max()) < size:
            raise HeadwayError(f"expected ids from 0 to {size - 1:,}, (N,), got {text.dtype} of {list(text.shape)}")
        cut = len(text) - min(len(text) // 2, windows * (length + 1))
        return OwnText("ids", text[:cut], text[cut:])
    folder = original.path if isinstance(original, Folder) else None
    words, prefix = _vocabulary(folder, size)
    content = open_source(text)
    # tokens are about four bytes each
    need = windows * (length + 1) * (1 if isinstance(words, Bytes) else 6)
    fraction = min(0.5, max(0.1, need / max(len(content.data), 1)))
    source = Source(content, Split.of(content, length=length, fraction=fraction))
    train, held_out = tokenised(source, words)
    return OwnText(
        Path(content.name).name, train, held_out, prefix, lambda string: words.encode(string.encode()).tolist()
    )


def _vocabulary(folder: Path | None, size: int) -> tuple[TokenizerJson | Bytes, tuple[int, ...]]:
    """A model's vocabulary, and what its tokenizer puts before a text."""
    if folder is not None and (folder / TOKENIZER).exists():
        data = read_regular(inside(folder, TOKENIZER), MOST)
        words = TokenizerJson(data, str(folder / TOKENIZER))
        if words.size > size:
            raise HeadwayError(f"expected a tokenizer of at most {size:,} ids, as the model has, got {words.size:,}")
        whole = library().Tokenizer.from_str(data.decode())
        with_ends, without = (whole.encode("a", add_special_tokens=ends).ids for ends in (True, False))
        at = next((i for i in range(len(with_ends)) if with_ends[i : i + len(without)] == without), 0)
        return words, tuple(with_ends[:at])
    if size in _BYTES:
        return Bytes(), ()
    where = "a model without a folder" if folder is None else str(folder)
    raise HeadwayError(
        f"expected {TOKENIZER}, by which the text is read, got none in {where}: save it with "
        f"tokenizer.save_pretrained, or pass ids from Python"
    )
