"""The bytes that each token id stands for, and the hash that tells two vocabularies apart."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Protocol

import numpy as np
import tokenizers

TokenBytes = tuple[np.ndarray, np.ndarray]
"""Values uint8 [total] and offsets int64 [vocab_size + 1]."""


class Vocabulary(Protocol):
    """What tells the tokens of a text apart: a Tokenizer has it, and so have the scores of one."""

    @property
    def token_bytes(self) -> TokenBytes: ...

    @property
    def special(self) -> np.ndarray:
        """bool [vocab_size]: control tokens, which no text yields."""

    @property
    def eot_id(self) -> int: ...


@dataclass(frozen=True)
class StoredVocabulary:
    """A Vocabulary without its tokenizer."""

    token_bytes: TokenBytes
    special: np.ndarray
    eot_id: int


_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def read_vocabulary(reference: tokenizers.Tokenizer) -> tuple[TokenBytes, np.ndarray]:
    """The id-to-bytes table and the tokenizer's own special flags, bool [vocab_size].

    Added tokens stand for their text, ids that are not in use for nothing.
    """
    vocabulary = reference.get_vocab(with_added_tokens=True)
    added = reference.get_added_tokens_decoder()
    size = 1 + max(chain(vocabulary.values(), added), default=-1)
    pieces = [""] * size
    for piece, id_ in vocabulary.items():
        pieces[id_] = piece
    flags = np.zeros(size, bool)
    for id_, token in added.items():
        flags[id_] = token.special
    texts = {id_: token.content for id_, token in added.items()}

    parts = (reference.normalizer, reference.pre_tokenizer, reference.decoder)
    states = "".join(part.__getstate__().decode() for part in parts if part is not None)
    if '"ByteLevel"' in states:
        return _byte_level_table(pieces, texts), flags
    fallback = '"ByteFallback"' in states or getattr(reference.model, "byte_fallback", False)
    return _text_table(pieces, texts, spaces="▁" in states, fallback=fallback), flags


def each_token(token_bytes: TokenBytes) -> Iterator[bytes]:
    """The bytes of every id, in the order of the ids."""
    values, offsets = token_bytes
    data = values.tobytes()
    return (data[start:stop] for start, stop in pairwise(offsets.tolist()))


def spell(ids: np.ndarray, token_bytes: TokenBytes) -> bytes:
    """The bytes that ids stand for, one after another."""
    values, offsets = token_bytes
    data = values.tobytes()
    starts, stops = offsets[ids].tolist(), offsets[ids + 1].tolist()
    return b"".join(data[start:stop] for start, stop in zip(starts, stops, strict=True))


def table_fingerprint(token_bytes: TokenBytes, special: np.ndarray) -> str:
    """sha256, in hex, of what every id stands for and whether it is special.

    Hashed are, little-endian and without anything between: the number of ids as uint64; the length
    in bytes of each id, uint32; each id's special flag, uint8 0 or 1; the bytes of all ids in turn.
    """
    values, offsets = token_bytes
    digest = hashlib.sha256(len(special).to_bytes(8, "little"))
    digest.update(np.diff(offsets).astype("<u4").tobytes())
    digest.update(special.astype(np.uint8).tobytes())
    digest.update(values.tobytes())
    return digest.hexdigest()


def _byte_level_table(pieces: list[str], texts: dict[int, str]) -> TokenBytes:
    """Byte-level BPE writes each byte as one character of the GPT-2 alphabet.

    `texts` are the ids that stand for a text as it is. So, as to the decoder, does a piece with a
    character outside the alphabet.
    """
    while True:
        for id_, text in texts.items():
            pieces[id_] = "".join(map(_ALPHABET.__getitem__, text.encode()))
        codes = np.frombuffer("".join(pieces).encode("utf-32-le"), np.uint32)
        values = _BYTE_OF[np.minimum(codes, len(_BYTE_OF) - 1)]
        offsets = offsets_of(map(len, pieces), len(pieces))
        foreign = np.flatnonzero(values == _NO_BYTE)
        if not len(foreign):
            return frozen(values.astype(np.uint8)), offsets
        ids = np.unique(np.searchsorted(offsets, foreign, side="right") - 1)
        texts = {id_: pieces[id_] for id_ in ids.tolist()}


def _text_table(
    pieces: list[str], texts: dict[int, str], spaces: bool, fallback: bool
) -> TokenBytes:
    """SentencePiece-like models write a space as `▁` and, with byte fallback, a byte as `<0xAB>`.

    Other models write their pieces as text.
    """
    coded = [piece.replace("▁", " ").encode() if spaces else piece.encode() for piece in pieces]
    if fallback:
        for id_, piece in enumerate(pieces):
            if piece.startswith("<0x") and _BYTE_PIECE.fullmatch(piece):
                coded[id_] = bytes([int(piece[3:5], 16)])
    for id_, text in texts.items():
        coded[id_] = text.encode()
    return np.frombuffer(b"".join(coded), np.uint8), offsets_of(map(len, coded), len(coded))


def offsets_of(lengths: Iterable[int], count: int) -> np.ndarray:
    """Where each of `count` runs starts, and the end of the last: read-only int64 [count + 1]."""
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.fromiter(lengths, np.int64, count), out=offsets[1:])
    return frozen(offsets)


def frozen(array: np.ndarray) -> np.ndarray:
    """The array itself, read-only from now on."""
    array.flags.writeable = False
    return array


def _byte_level_alphabet() -> list[str]:
    """The character that stands for each byte: itself if Latin-1 prints it, else U+0100 and up."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (byte for byte in range(256) if byte not in printed)
    others = {byte: chr(0x100 + index) for index, byte in enumerate(hidden)}
    return [others.get(byte, chr(byte)) for byte in range(256)]


_ALPHABET = _byte_level_alphabet()
_NO_BYTE = 256
_BYTE_OF = np.full(1 + max(map(ord, _ALPHABET)) + 1, _NO_BYTE, np.uint16)
_BYTE_OF[[ord(character) for character in _ALPHABET]] = np.arange(256)
