"""Sentence ends from the bytes of the tokens: for every tokenizer and script, without decoding.

A sentence ends after a token
  - that holds a line end, unless more line ends follow (blank lines stay with the line above);
  - that ends, closing quotes and brackets aside, in `. ? !` or `…` and is followed by white space;
    a full stop does not count after a single letter (`J.`, `e.g.`), after a common abbreviation
    (`Dr.`), or before a lower-case word;
  - that ends in a terminator of a script that writes no space after it (CJK) or uses its own
    (Devanagari, Arabic, Ethiopic, Khmer, Myanmar, Armenian), unless another one follows;
  - that is the end-of-text token.
Hence not inside 3.14, e.g., a URL or `foo.bar()`. A sentence longer than `max_tokens` is cut.

Only tokens that could end a sentence are looked at closely: the last eight bytes before the end of
such a token are put together from it and the three tokens before, so that a terminator, a closing
quote or an abbreviation may be spread over several tokens, as tokenizers with small vocabularies do.
"""

from dataclasses import dataclass

import numpy as np

from lrdata.tokenizer import Tokenizer

_ABBREVIATIONS = (
    "mr mrs ms dr prof st vs etc cf fig eq eqs sec ch vol no nos pp ed eds al ca approx dept inc "
    "ltd co corp jr sr gen col capt lt sgt rev hon jan feb mar apr jun jul aug sep sept oct nov dec"
).split()
_SPACED = "?!…"  # with the full stop, these need white space after them
_UNSPACED = "。！？．｡।॥؟۔።។။։"
_CLOSERS = "\"')]}*_`»”’」』）】》"

# Classes of the first byte(s) of a token, for what follows a possible end.
_OTHER, _SPACE, _SPACE_LOWER, _NEWLINE, _TERMINATOR = range(5)


def _word(data: bytes) -> int:
    """The last eight bytes of `data` as an integer, the last byte lowest."""
    return int.from_bytes(data[-8:], "big")


@dataclass(frozen=True)
class SentenceTables:
    """What the splitter needs to know of each token id. Arrays of length vocab_size."""

    may_end: np.ndarray  # bool: the token could be the last of a sentence
    line_end: np.ndarray  # bool: it holds a line end
    lead: np.ndarray  # uint8: class of what it begins with
    tail: np.ndarray  # uint64: its last eight bytes
    size: np.ndarray  # uint64: its length in bytes, at most 8
    eot_id: int


def sentence_tables(tokenizer: Tokenizer) -> SentenceTables:
    """Tables for a tokenizer, from its id-to-bytes table."""
    values, offsets = tokenizer.token_bytes
    blob = values.tobytes()
    bounds = offsets.tolist()
    pieces = [blob[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    pieces = [b"" if special else p for p, special in zip(pieces, tokenizer.special, strict=True)]

    finals = {c.encode()[-1] for c in "." + _SPACED + _UNSPACED + _CLOSERS}
    line_end = np.array([b"\n" in piece or b"\r" in piece for piece in pieces], bool)
    may_end = np.array([bool(piece) and piece[-1] in finals for piece in pieces], bool) | line_end
    may_end[tokenizer.eot_id] = True
    return SentenceTables(
        may_end=may_end,
        line_end=line_end,
        lead=np.array([_lead_class(piece) for piece in pieces], np.uint8),
        tail=np.array([_word(piece) for piece in pieces], np.uint64),
        size=np.array([min(len(piece), 8) for piece in pieces], np.uint64),
        eot_id=tokenizer.eot_id,
    )


_TERMINATOR_BYTES = tuple(c.encode() for c in "." + _SPACED + _UNSPACED + _CLOSERS)
_LINE_BYTES = b"\r\n"
_SPACE_BYTES = (b" ", b"\t", "\u00a0".encode(), "\u3000".encode())


def _lead_class(piece: bytes) -> int:
    if not piece:
        return _SPACE  # a special token: the text stops here
    stripped = piece.lstrip(b" \t")
    if stripped[:1] in (b"\r", b"\n"):
        return _NEWLINE
    if stripped != piece or piece.startswith(_SPACE_BYTES):
        return _SPACE_LOWER if _starts_lower(stripped) else _SPACE
    return _TERMINATOR if piece.startswith(_TERMINATOR_BYTES) else _OTHER


def _starts_lower(piece: bytes) -> bool:
    first = piece[:4].decode("utf-8", errors="ignore")[:1]
    return first.islower()


def sentence_lengths(ids: np.ndarray, tables: SentenceTables, max_tokens: int) -> np.ndarray:
    """Lengths of the sentences of `ids`, int64, each in [1, max_tokens], summing to len(ids)."""
    if not len(ids):
        return np.zeros(0, np.int64)
    at = np.flatnonzero(tables.may_end[ids[:-1]])  # the last token always ends a sentence
    ends = at[_is_end(ids, at, tables)]
    lengths = np.diff(np.concatenate([[-1], ends, [len(ids) - 1]]))
    return _cut(lengths, max_tokens)


def _cut(lengths: np.ndarray, max_tokens: int) -> np.ndarray:
    """Cut lengths into pieces of max_tokens and a rest."""
    pieces = -(-lengths // max_tokens)
    cut = np.full(int(pieces.sum()), max_tokens, np.int64)
    last = np.cumsum(pieces) - 1
    cut[last] = lengths - (pieces - 1) * max_tokens
    return cut


def _is_end(ids: np.ndarray, at: np.ndarray, tables: SentenceTables) -> np.ndarray:
    """For each candidate token index in `at` (never the last), whether a sentence ends there."""
    lead = tables.lead[ids[at + 1]]
    line = tables.line_end[ids[at]] & (lead != _NEWLINE)
    word = _strip_closers(_bytes_before_end(ids, at, tables))
    spaced_next = (lead == _SPACE) | (lead == _SPACE_LOWER) | (lead == _NEWLINE)
    stop = ((word & _BYTE) == _ord(".")) & spaced_next
    stop &= (lead != _SPACE_LOWER) & ~_is_abbreviation(word >> _U8)
    spaced = _ends_with(word, _SPACED) & spaced_next
    unspaced = _ends_with(word, _UNSPACED) & (lead != _TERMINATOR)
    # A terminator before a line end closes the sentence together with that line end.
    inner = (stop | spaced | unspaced) & (lead != _NEWLINE)
    return line | inner | (ids[at] == tables.eot_id)


def _bytes_before_end(ids: np.ndarray, at: np.ndarray, tables: SentenceTables) -> np.ndarray:
    """The last eight bytes of the text up to and including each token, from it and three before."""
    word = tables.tail[ids[at]]
    filled = tables.size[ids[at]]
    for back in (1, 2, 3):
        before = at - back
        token = ids[np.maximum(before, 0)]
        more = (before >= 0) & (filled < 8)
        shift = np.minimum(filled, _U7) << np.uint64(3)
        word = np.where(more, word | (tables.tail[token] << shift), word)
        filled = np.where(more, np.minimum(filled + tables.size[token], _U8), filled)
    return word


_U7, _U8, _BYTE = np.uint64(7), np.uint64(8), np.uint64(0xFF)


def _ord(char: str) -> np.uint64:
    return np.uint64(ord(char))


def _ends_with(word: np.ndarray, characters: str) -> np.ndarray:
    """Whether the bytes end in one of `characters`."""
    found = np.zeros(word.shape, bool)
    for char in characters:
        data = char.encode()
        mask = np.uint64((1 << 8 * len(data)) - 1)
        found |= (word & mask) == np.uint64(_word(data))
    return found


def _strip_closers(word: np.ndarray) -> np.ndarray:
    """Take up to three closing quotes or brackets off the end."""
    by_size = {n: "".join(c for c in _CLOSERS if len(c.encode()) == n) for n in (1, 2, 3)}
    for _ in range(3):
        for size, characters in by_size.items():
            word = np.where(_ends_with(word, characters), word >> np.uint64(8 * size), word)
    return word


def _is_letter(byte: np.ndarray) -> np.ndarray:
    folded = byte | np.uint64(0x20)
    return ((folded >= _ord("a")) & (folded <= _ord("z"))) | (byte >= np.uint64(0x80))


def _is_abbreviation(word: np.ndarray) -> np.ndarray:
    """Whether the bytes end in a lone letter or a known abbreviation, a non-letter before it."""
    found = _is_letter(word & _BYTE) & ~_is_letter((word >> _U8) & _BYTE)
    lower = word | np.uint64(0x2020202020202020)
    for name in _ABBREVIATIONS:
        size = np.uint64(8 * len(name))
        mask = np.uint64((1 << 8 * len(name)) - 1)
        same = (lower & mask) == np.uint64(_word(name.encode()))
        found |= same & ~_is_letter((word >> size) & _BYTE)
    return found
