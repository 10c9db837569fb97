"""Turning bytes into token ids and back: plain bytes, or byte-pair encoding trained on the text; start and end ids."""

from __future__ import annotations

import codecs
import itertools
import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from headway.characters import labels
from headway.shapes import HeadwayError, brief

MOST = 2**20
"""Maximum tokens of a vocabulary."""
_PIECE = 2**20
TOGETHER = min(os.cpu_count() or 1, 8)
"""Pieces that are encoded at a time, in a thread each; one takes about 30 MB."""
SAMPLE = 2**20
"""Bytes of a text over which bytes per token are averaged."""
LONGEST = 256
"""Maximum characters of a word; words of ordinary text are shorter."""


@runtime_checkable
class Vocabulary(Protocol):
    """Converts bytes into token ids and back, exactly."""

    @property
    def size(self) -> int:
        """Number of ids: 0 … size − 1."""
        ...

    @property
    def bytes_per_token(self) -> float:
        """Bytes per token, on average over the text it was made from; turns nats per token into bits per byte."""
        ...

    def encode(self, data: bytes) -> Int64[Tensor, "tokens"]:
        """Turn bytes into ids."""
        ...

    def encode_stream(self, chunks: Iterable[bytes]) -> Iterator[Int64[Tensor, "tokens"]]:
        """Turn a text that comes in chunks into the ids that `encode` gives for the whole, some at a time."""
        ...

    def decode(self, ids: Iterable[int] | Tensor) -> bytes:
        """Turn ids into the bytes they stand for."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values from which `vocabulary_from_json` rebuilds it."""
        ...


def checked(ids: Iterable[int] | Tensor, size: int) -> list[int]:
    """Ids as a list.

    Raises:
        HeadwayError: on one outside 0 … size − 1.
    """
    plain: list[int] = ids.flatten().tolist() if isinstance(ids, Tensor) else list(ids)
    for i in plain:
        if not 0 <= i < size:
            raise HeadwayError(f"expected token ids in 0 … {size - 1}, got {i}: use the vocabulary that produced them")
    return plain


class Bytes:
    """The alphabet of 256 bytes: needs no training, and writes any file in any language.

    >>> Bytes().encode(b"Hi").tolist(), Bytes().decode([72, 105])
    ([72, 105], b'Hi')
    """

    size = 256
    bytes_per_token = 1.0

    def encode(self, data: bytes) -> Int64[Tensor, "tokens"]:
        """Turn bytes into ids 0 … 255, one each."""
        # frombuffer shares memory with an immutable object and refuses an empty one; the copy mends both.
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).long() if data else torch.empty(0, dtype=torch.long)

    def encode_stream(self, chunks: Iterable[bytes]) -> Iterator[Int64[Tensor, "tokens"]]:
        """Turn a text that comes in chunks into ids, a chunk at a time."""
        return map(self.encode, chunks)

    def decode(self, ids: Iterable[int] | Tensor) -> bytes:
        """Turn ids into bytes.

        Raises:
            HeadwayError: on an id outside 0 … 255.
        """
        return bytes(checked(ids, 256))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"kind": "bytes"}


def alphabet() -> list[str]:
    """The byte-level alphabet of GPT-2, a visible character per byte.

    Printable bytes are themselves, the others move to U+0100 and on.

    >>> alphabet()[0x41], alphabet()[0x20]
    ('A', 'Ġ')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


class Bpe:
    """Byte-level byte-pair encoding: frequent byte sequences become one token (Sennrich et al. 2016, arXiv:1508.07909).

    Exact for any bytes: what is not valid UTF-8 is written as single-byte tokens, so ``decode(encode(data)) == data``.

    Args:
        tokens: the text of each id, in the byte-level alphabet of GPT-2; all 256 single bytes are among them.
        merges: pairs of tokens to join, most frequent first.
        bytes_per_token: mean on the text it was trained on.
        longest: runs of letters, of digits, of spaces and of other characters are cut after so many characters, before
            pairs are counted in them: learning from a text without spaces would take quadratic time otherwise. None
            does not cut, as vocabularies of headway 0.1.0 did.

    Raises:
        HeadwayError: when the `tokenizers` library is missing, or tokens and merges do not fit together.

    >>> bpe = Bpe.train(b"the cat and the hat and the bat " * 9, size=260)
    >>> bpe.size, bpe.decode(bpe.encode("the cät".encode())).decode()
    (260, 'the cät')
    """

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Sequence[tuple[str, str]],
        bytes_per_token: float,
        longest: int | None = LONGEST,
    ) -> None:
        characters = alphabet()
        byte_of = {character: byte for byte, character in enumerate(characters)}
        ids = {token: i for i, token in enumerate(tokens)}
        if len(ids) != len(tokens) or not set(characters) <= set(ids):
            raise HeadwayError("expected distinct BPE tokens with all 256 bytes among them: the vocabulary is damaged")
        for token in tokens:
            if not token or not set(token) <= set(byte_of):
                raise HeadwayError(f"expected BPE tokens of byte-level characters, got {brief(token)}: it is damaged")
        for left, right in merges:
            if left not in ids or right not in ids or left + right not in ids:
                raise HeadwayError(f"expected BPE merges of known tokens, got {brief(left)} + {right!r}: it is damaged")
        self.tokens, self.merges, self.bytes_per_token = tuple(tokens), tuple(merges), bytes_per_token
        self.longest = longest
        self._bytes = [bytes(byte_of[c] for c in token) for token in tokens]
        self._single = [ids[character] for character in characters]
        tokenizers = library()
        self._tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=list(merges)))
        self._tokenizer.pre_tokenizer = _words(tokenizers, longest)

    @classmethod
    def train(cls, data: bytes | Iterable[bytes], *, size: int = 4096) -> Bpe:
        """Learn a vocabulary; give it the training part of the text only, or validation leaks into it.

        Args:
            data: the text, whole or in chunks. Bytes that are not UTF-8 are left out of the learning.
            size: ids wanted, at least 256. A small text may give fewer.

        Raises:
            HeadwayError: when the size is too small or the `tokenizers` library is missing.
        """
        if not 256 <= size <= MOST:
            raise HeadwayError(
                f"expected a vocabulary size of at least 256 (every byte is a token), at most {MOST:,}, got {size}"
            )
        tokenizers = library()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = _words(tokenizers, LONGEST)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size, show_progress=False, special_tokens=[], initial_alphabet=alphabet()
        )
        rest: list[bytes] = []
        chunks = iter((data,) if isinstance(data, bytes) else data)
        sample = beginning(chunks, rest)
        tokenizer.train_from_iterator(_pieces(itertools.chain(rest, chunks)), trainer)
        # The library hands over the learned rules only as its own JSON.
        import json

        model = json.loads(tokenizer.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
        bpe = cls(tokens, merges, 1.0)
        bpe.bytes_per_token = len(sample) / len(bpe.encode(sample)) if sample else 1.0
        return bpe

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    def encode(self, data: bytes) -> Int64[Tensor, "tokens"]:
        """Turn bytes into ids; bytes that are not valid UTF-8 become single-byte tokens."""
        return together(self.encode_stream((data,)))

    def encode_stream(self, chunks: Iterable[bytes]) -> Iterator[Int64[Tensor, "tokens"]]:
        """Turn a text that comes in chunks into ids, a part of it at a time."""
        for some in grouped(parts(chunks)):
            if isinstance(some, bytes):
                yield torch.tensor([self._single[b] for b in some], dtype=torch.long)
            else:
                yield from (torch.tensor(one.ids, dtype=torch.long) for one in self._tokenizer.encode_batch_fast(some))

    def decode(self, ids: Iterable[int] | Tensor) -> bytes:
        """Turn ids into bytes; a single token may be a part of a character.

        Raises:
            HeadwayError: on an id outside the vocabulary.
        """
        return b"".join(self._bytes[i] for i in checked(ids, self.size))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        longest = {} if self.longest is None else {"longest": self.longest}
        return {
            "kind": "bpe",
            "tokens": list(self.tokens),
            "merges": [list(pair) for pair in self.merges],
            "bytes_per_token": self.bytes_per_token,
            **longest,
        }


class Extended:
    """A vocabulary with further ids that stand for no bytes; those of the text stay as they are.

    Args:
        words: the vocabulary of the text.
        more: how many ids.
    """

    kind: str

    def __init__(self, words: Vocabulary, more: int) -> None:
        self.words, self.size = words, words.size + more

    @property
    def bytes_per_token(self) -> float:
        """Bytes per token of the text."""
        return self.words.bytes_per_token

    def encode(self, data: bytes) -> Int64[Tensor, "tokens"]:
        """Turn bytes into ids, without the further ones."""
        return self.words.encode(data)

    def encode_stream(self, chunks: Iterable[bytes]) -> Iterator[Int64[Tensor, "tokens"]]:
        """Turn a text that comes in chunks into ids, without the further ones."""
        return self.words.encode_stream(chunks)

    def decode(self, ids: Iterable[int] | Tensor) -> bytes:
        """Turn ids into bytes; the further ones become none.

        Raises:
            HeadwayError: on an id outside the vocabulary.
        """
        return self.words.decode([i for i in checked(ids, self.size) if i < self.words.size])

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"kind": self.kind, "words": self.words.to_json()}


class Delimited(Extended):
    """A vocabulary with two more ids, ``start`` and ``end``, for sequences that begin and end.

    An encoder-decoder reads ``source(data)``, begins with ``start`` and writes until ``end``. Both stand for no bytes.

    Args:
        words: the vocabulary of the text; its ids stay as they are.

    >>> words = Delimited(Bytes())
    >>> words.size, words.source(b"Hi").tolist(), words.target(b"Hi").tolist(), words.decode([72, 257])
    (258, [72, 105, 257], [256, 72, 105, 257], b'H')
    """

    kind = "delimited"

    def __init__(self, words: Vocabulary) -> None:
        super().__init__(words, 2)
        self.start, self.end = words.size, words.size + 1

    def source(self, data: bytes) -> Int64[Tensor, "tokens"]:
        """What the encoder reads: the ids and ``end``, so that an empty text is not empty."""
        return torch.cat([self.encode(data), torch.tensor([self.end])])

    def target(self, data: bytes) -> Int64[Tensor, "tokens"]:
        """What the decoder learns: ``start``, the ids and ``end``."""
        return torch.cat([torch.tensor([self.start]), self.source(data)])


class Masked(Extended):
    """A vocabulary with one more id, ``mask``, which stands where an encoder predicts a token.

    Args:
        words: the vocabulary of the text; its ids stay as they are.

    >>> words = Masked(Bytes())
    >>> words.size, words.mask, words.encode(b"Hi").tolist(), words.decode([72, 256])
    (257, 256, [72, 105], b'H')
    """

    kind = "masked"

    def __init__(self, words: Vocabulary) -> None:
        super().__init__(words, 1)
        self.mask = words.size


def token_texts(vocabulary: Vocabulary, ids: Iterable[int] | Tensor) -> list[str]:
    """Display text of each token in context, without broken characters.

    The tokens of a character that is split are numbered; invisible characters are named, see
    :func:`headway.characters.labels`.

    Args:
        vocabulary: the model's vocabulary.
        ids: token ids of a whole text.

    >>> token_texts(Bytes(), "a 猫".encode())
    ['a', '␣', '猫₁', '猫₂', '猫₃']
    """
    pieces = [vocabulary.decode([i]) for i in (ids.flatten().tolist() if isinstance(ids, Tensor) else ids)]
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    ends = itertools.accumulate(len(piece) for piece in pieces)
    texts: list[str | None] = []
    at = start = 0
    for end in ends:
        first = at
        while start < end and at < len(text):
            start += len(text[at].encode("utf-8", "surrogateescape"))
            at += 1
        texts.append(text[first:at] if at > first else None)
    return labels(texts)


def together(ids: Iterable[Int64[Tensor, "some"]]) -> Int64[Tensor, "tokens"]:
    """Ids that came some at a time, in one tensor."""
    return torch.cat([torch.empty(0, dtype=torch.long), *ids])


def beginning(chunks: Iterable[bytes], taken: list[bytes] | None = None) -> bytes:
    """The first :data:`SAMPLE` bytes of a text; ``taken`` gets the chunks that they lie in.

    >>> beginning(iter([b"to be ", b"or not"]))
    b'to be or not'
    """
    found: list[bytes] = [] if taken is None else taken
    for chunk in chunks:
        found.append(chunk)
        if sum(map(len, found)) >= SAMPLE:
            break
    return b"".join(found)[:SAMPLE]


def parts(chunks: Iterable[bytes]) -> Iterator[str | bytes]:
    """Text in pieces of at most about a million characters, and between them the runs of bytes that are not UTF-8.

    The pieces are the same however the text is divided into chunks; a run may be divided with it.

    >>> list(parts([b"a\\xff\\xfeb"]))
    ['a', b'\\xff\\xfe', 'b']
    """
    rest = ""
    # surrogateescape turns an invalid byte b into the lone character U+DC00 + b, which no valid text contains.
    for text in _decoded(chunks, "surrogateescape"):
        *whole, rest = re.split("([\udc80-\udcff]+)", rest + text)
        for part in whole:
            if part and "\udc80" <= part[0] <= "\udcff":
                yield part.encode("utf-8", "surrogateescape")
            elif left := (yield from _cut(part)):
                yield left
        rest = yield from _cut(rest)
    if rest:
        yield rest


def grouped(found: Iterable[str | bytes]) -> Iterator[list[str] | bytes]:
    """The same parts, texts that follow each other together, as many as the library encodes at a time.

    >>> list(grouped(["a", b"\\xff", "b"]))
    [['a'], b'\\xff', ['b']]
    """
    texts: list[str] = []
    for part in found:
        if texts and (isinstance(part, bytes) or len(texts) == TOGETHER):
            yield texts
            texts = []
        if isinstance(part, bytes):
            yield part
        else:
            texts.append(part)
    if texts:
        yield texts


def _pieces(chunks: Iterable[bytes]) -> Iterator[str]:
    """The same pieces of a text without the bytes that are not UTF-8."""
    rest = ""
    for text in _decoded(chunks, "ignore"):
        rest = yield from _cut(rest + text)
    if rest:
        yield rest


def _decoded(chunks: Iterable[bytes], errors: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def _cut(text: str) -> Generator[str, None, str]:
    """Pieces of a text, and the rest that is too small to be cut."""
    # The library takes about a hundred bytes per token of a piece; pieces end at line ends, where words end.
    begin = 0
    while len(text) - begin > _PIECE:
        cut = text.rfind("\n", begin, begin + _PIECE) + 1 or begin + _PIECE
        yield text[begin:cut]
        begin = cut
    return text[begin:]


def _words(tokenizers: Any, longest: int | None) -> Any:
    """The splitter of text into words, within which pairs are merged: GPT-2's, with a maximum word length."""
    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if longest is None:
        return words
    runs = "|".join(f"{kind}{{{longest}}}" for kind in (r"\p{L}", r"\p{N}", r"\s", r"[^\s\p{L}\p{N}]"))
    cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(runs), "isolated")
    return tokenizers.pre_tokenizers.Sequence([cut, words])


def library() -> Any:
    """The library tokenizers.

    Raises:
        HeadwayError: when it is missing.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise HeadwayError(
            "expected the library tokenizers for this vocabulary, got none: "
            "pip install 'headway[bpe]', or use bytes, which need nothing"
        ) from error
    return tokenizers
