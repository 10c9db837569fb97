"""A vocabulary from a ``tokenizer.json``, the file format of the library tokenizers.

Each id stands for fixed bytes, so that text can be decoded token by token. They follow from the file's decoder:

    ByteLevel                           each character of a token is a byte, by GPT-2's alphabet
    Metaspace, Replace, ByteFallback    U+2581 is a space (or as Replace says), ``<0xE7>`` is the byte E7
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from headway.shapes import HeadwayError, brief
from headway.training.files import MOST as LARGEST
from headway.training.files import parse_json, read_regular
from headway.training.vocabulary import MOST, alphabet, checked, grouped, library, parts, together

TOKENIZER = "tokenizer.json"
"""The copy of the file in a run's folder."""
_EXACT = ("ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip")
"""Decoders that give a token the same bytes wherever it stands; Fuse changes nothing, Strip only the text's ends."""
_BY_WORDS = ["WhitespaceSplit", "Metaspace"]
"""T5's pre-tokenizers: words of a text, each with U+2581 before it; spaces in a row would become one."""
_LOSSLESS = "take another tokenizer, or bytes or bpe, which read any text"


class TokenizerJson:
    """The vocabulary of a ``tokenizer.json``, byte-level (GPT-2), with byte fallback (Llama 2, Gemma) or by words (T5).

    Losses are reported per byte, so encoding is exact or refused: ``decode(encode(data)) == data``. What the file
    says beyond the division of a text into tokens is not used: special tokens are not added, and those that occur in
    the text are read as text; no space is put before the text (``add_prefix_space``, ``prepend_scheme``,
    ``Prepend``); nothing is truncated, padded or drawn at random (dropout); T5's words keep the spaces between them.
    Bytes that are not UTF-8 become single-byte tokens.

    Args:
        data: content of the file.
        name: what to call it in an error, usually its path.
        bytes_per_token: mean on the text it is used for.

    Raises:
        HeadwayError: when the content is no tokenizer, its tokens have no bytes of their own (WordPiece), its ids are
            larger than :data:`headway.training.vocabulary.MOST`, or the library tokenizers is missing.

    >>> words = {"H": 0, "i": 1, "Hi": 2, "Ġ": 3}
    >>> model = {"type": "BPE", "vocab": words, "merges": [["H", "i"]]}
    >>> level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    >>> file = {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": level, "decoder": level}
    >>> tokenizer = TokenizerJson(json.dumps(file).encode())
    >>> tokenizer.encode(b"Hi Hi").tolist(), tokenizer.decode([2, 3])
    ([2, 3, 2], b'Hi ')
    """

    def __init__(self, data: bytes, name: str = TOKENIZER, bytes_per_token: float = 1.0) -> None:
        self.data, self.name, self.bytes_per_token = data, name, bytes_per_token
        values = parse_json(data, name)
        if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
            raise HeadwayError(f"expected a tokenizer of the library tokenizers in {name}, got JSON without a model")
        decoders = _decoders(values.get("decoder"))
        unfit = [str(one.get("type")) for one in decoders if one.get("type") not in _EXACT]
        if unfit or not decoders:
            raise HeadwayError(
                f"expected a tokenizer whose tokens stand for fixed bytes (decoder {', '.join(_EXACT)}), got "
                f"{', '.join(unfit) or 'no decoder'} in {name}: {_LOSSLESS}"
            )
        self._tokenizer = _built(values, name)
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(ids.values(), default=-1) + 1
        if not 0 < self.size <= MOST:
            raise HeadwayError(f"expected token ids from 0 to {MOST - 1:,} in {name}, got {self.size - 1:,}")
        added = self._tokenizer.get_added_tokens_decoder()
        self._bytes = [b""] * self.size  # ids without a token stand for nothing
        for token, i in ids.items():
            self._bytes[i] = token.encode() if i in added else _bytes_of(token, decoders)
        self._single = {one[0]: i for i, one in enumerate(self._bytes) if len(one) == 1}

    @classmethod
    def read(cls, path: Path | str) -> TokenizerJson:
        """The vocabulary of a file.

        Raises:
            HeadwayError: as the class; when the file cannot be read.
        """
        # Downloaded files are often links to a cache.
        return cls(read_regular(Path(os.path.realpath(path)), LARGEST), str(path))

    @property
    def seal(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.data).hexdigest()

    def encode(self, data: bytes) -> Int64[Tensor, "tokens"]:
        """Turn bytes into ids.

        Raises:
            HeadwayError: where the tokenizer loses something, e.g. the case of letters.
        """
        return together(self.encode_stream((data,)))

    def encode_stream(self, chunks: Iterable[bytes]) -> Iterator[Int64[Tensor, "tokens"]]:
        """Turn a text that comes in chunks into ids, a part of it at a time.

        Raises:
            HeadwayError: as `encode`.
        """
        before = 0
        for some in grouped(parts(chunks)):
            written = [some] if isinstance(some, bytes) else [part.encode() for part in some]
            for data, ids in zip(written, self._ids(some), strict=True):
                if (back := b"".join(map(self._bytes.__getitem__, ids))) != data:
                    raise HeadwayError(_difference(self.name, data, back, before))
                before += len(data)
                yield torch.tensor(ids, dtype=torch.long)

    def _ids(self, some: list[str] | bytes) -> list[list[int]]:
        try:
            if isinstance(some, bytes):
                return [[self._single[b] for b in some]]
            return [one.ids for one in self._tokenizer.encode_batch_fast(some, add_special_tokens=False)]
        except KeyError as error:
            raise HeadwayError(
                f"expected text in UTF-8, because {self.name} has no tokens for single bytes, got the byte "
                f"0x{error.args[0]:02X}: {_LOSSLESS}"
            ) from None
        except Exception as error:  # the library raises nothing more specific
            raise HeadwayError(
                f"expected a tokenizer that can read the text, got {_said(error)}: {_LOSSLESS}"
            ) from None

    def decode(self, ids: Iterable[int] | Tensor) -> bytes:
        """Turn ids into bytes; a single token may be a part of a character.

        Raises:
            HeadwayError: on an id outside the vocabulary.
        """
        return b"".join(self._bytes[i] for i in checked(ids, self.size))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; the file itself is kept beside them, as :data:`TOKENIZER`."""
        return {"kind": "tokenizer", "sha256": self.seal, "bytes_per_token": self.bytes_per_token}


def _built(values: dict[str, Any], name: str) -> Any:
    """The library's tokenizer, with what only divides a text into tokens."""
    tokenizers = library()
    try:
        only = {one: _without_prefix(values.get(one)) for one in ("normalizer", "pre_tokenizer")}
        unused = dict.fromkeys(("post_processor", "truncation", "padding"))
        model = {**values["model"], **({"dropout": None} if values["model"].get("dropout") else {})}
        made = tokenizers.Tokenizer.from_str(json.dumps({**values, **only, **unused, "model": model}))
        made.encode_special_tokens = True  # "<|endoftext|>" in a text is text
    except Exception as error:  # the library raises nothing more specific
        raise HeadwayError(
            f"expected a tokenizer of the library tokenizers in {name}, got content it refuses: {_said(error)}"
        ) from None
    return made


def _said(error: Exception) -> str:
    """A foreign error in one line."""
    return brief(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)


def _without_prefix(part: Any) -> Any:
    """A normalizer or pre-tokenizer that puts no space before the text."""
    if not isinstance(part, Mapping):
        return part
    made = dict(part)
    for members in ("normalizers", "pretokenizers"):
        if isinstance(made.get(members), list):
            made[members] = [_without_prefix(one) for one in made[members]]
            made[members] = [one for one in made[members] if one is not None]
            kinds = [one.get("type") for one in part[members] if isinstance(one, Mapping)]
            if kinds == _BY_WORDS and part[members][1].get("prepend_scheme", "always") == "always":
                return made[members][1]  # which splits at the same spaces, and keeps them
    if made.get("type") == "Prepend":
        return None
    if made.get("type") == "Metaspace":
        made.pop("add_prefix_space", None)  # what prepend_scheme was called before
        made["prepend_scheme"] = "never"
    elif "add_prefix_space" in made:
        made["add_prefix_space"] = False
    return made


def _decoders(decoder: Any) -> list[Mapping[str, Any]]:
    """A decoder's parts, in order."""
    if not isinstance(decoder, Mapping):
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    inner = decoder.get("decoders")
    return [part for one in (inner if isinstance(inner, list) else []) for part in _decoders(one)]


_BYTE_OF = {character: byte for byte, character in enumerate(alphabet())}


def _bytes_of(token: str, decoders: list[Mapping[str, Any]]) -> bytes:
    """What a token stands for.

    >>> _bytes_of("▁猫", [{"type": "Metaspace", "replacement": "▁"}]).decode()
    ' 猫'
    """
    for one in decoders:
        kind = one["type"]
        if kind == "ByteLevel" and set(token) <= _BYTE_OF.keys():
            return bytes(_BYTE_OF[c] for c in token)
        if kind == "ByteFallback" and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
            return bytes([int(token[3:5], 16)])
        pattern = one.get("pattern")
        if kind == "Replace" and isinstance(pattern, Mapping) and isinstance(pattern.get("String"), str):
            token = token.replace(pattern["String"], str(one.get("content")))
        if kind == "Metaspace":
            token = token.replace(str(one.get("replacement")), " ")
    return token.encode()


def _difference(name: str, data: bytes, back: bytes, before: int) -> str:
    """Where a part of a text, after so many bytes of it, and what a tokenizer makes of it differ."""
    ends = min(len(data), len(back))
    at = next((i for i, (a, b) in enumerate(zip(data, back, strict=False)) if a != b), ends)
    while at and data[at : at + 1] and data[at] & 0xC0 == 0x80:  # to the beginning of the character
        at -= 1
    was, now = (part[at : at + 40].decode("utf-8", "replace")[:12] for part in (data, back))
    return (
        f"expected a tokenizer that gives the text back exactly, because losses are per byte, but {name} turns "
        f"{was!r} at byte {before + at:,} into {now!r}: {_LOSSLESS}"
    )
