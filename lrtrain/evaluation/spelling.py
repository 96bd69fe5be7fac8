"""One text as several tokenizers read it: which bytes of it each token stands for.

Spans of bytes are the same text for every tokenizer, and so what is asked about them is the same
question.
"""

import codecs
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lrdata.tokenizer import Tokenizer
from lrdata.vocabulary import Vocabulary, spell

_INSIDE = bytes(range(0x80, 0xC0))  # what no UTF-8 character begins with


class Spelled(NamedTuple):
    """Tokens of a text: token i stands for its bytes [edges[i], edges[i + 1])."""

    ids: np.ndarray  # int32 [n]
    edges: np.ndarray  # int64 [n + 1]


def spelled_as_is(ids: np.ndarray, vocabulary: Vocabulary) -> Spelled:
    """Tokens with the bytes they stand for; special tokens are no text and stand for none."""
    offsets = vocabulary.token_bytes[1]
    sizes = np.where(vocabulary.special[ids], 0, offsets[ids + 1] - offsets[ids])
    return Spelled(ids, np.concatenate([[0], np.cumsum(sizes)]))


def encode_spelled(text: bytes, tokenizer: Tokenizer) -> Spelled | None:
    """The tokens of a text.

    text: UTF-8, perhaps cut within its first or last character; what is cut is left out. None where
    the text is not UTF-8 or the tokens do not spell it: some tokenizers normalise characters or
    drop what they have no token for, and then bytes no longer say where a token is.
    """
    first = len(text) - len(text.lstrip(_INSIDE))
    try:
        whole = codecs.getincrementaldecoder("utf-8")().decode(text[first:])
    except UnicodeDecodeError:
        return None
    stop = first + len(whole.encode())
    ids = np.asarray(tokenizer.encode([whole])[0])
    spelled = spell(ids, tokenizer.token_bytes)
    added = len(spelled) - (stop - first)
    # SentencePiece's tokenizers may put a space before a text.
    if added not in (0, 1) or spelled != b" " * added + text[first:stop]:
        return None
    offsets = tokenizer.token_bytes[1]
    edges = np.cumsum([0, *(offsets[ids + 1] - offsets[ids])]) - added + first
    return Spelled(ids, np.maximum(edges, first))


def texts_between_specials(read: Spelled, vocabulary: Vocabulary) -> Iterator[tuple[int, bytes]]:
    """The texts before, between and behind special tokens: the byte where each begins, and it.

    One more than there are special tokens; what has no token is empty.
    """
    breaks = np.flatnonzero(vocabulary.special[read.ids]).tolist()
    for start, stop in zip([0, *(at + 1 for at in breaks)], [*breaks, len(read.ids)], strict=True):
        yield int(read.edges[start]), spell(read.ids[start:stop], vocabulary.token_bytes)


def respell(read: Spelled, vocabulary: Vocabulary, tokenizer: Tokenizer) -> Spelled | None:
    """The same text as another tokenizer reads it, edges in the same bytes.

    vocabulary: that of `read`. Its special tokens become the tokenizer's end of text; characters
    cut at the ends are left out. None where the tokenizer does not spell the text.
    """
    parts = list[np.ndarray]()
    edges = list[np.ndarray]()
    for offset, text in texts_between_specials(read, vocabulary):
        part = encode_spelled(text, tokenizer)
        if part is None:
            return None
        lead = [tokenizer.eot_id] if parts else []
        parts += [np.array(lead, np.int32), part.ids]
        edges += [np.full(len(lead), offset), part.edges[:-1] + offset]
        end = part.edges[-1:] + offset
    return Spelled(np.concatenate(parts), np.concatenate([*edges, end]))


def overlapping(starts: np.ndarray, stops: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Which tokens [start, stop) share a byte with a span: bool [n].

    spans: int64 [k, 2], in order, not overlapping. Empty tokens and empty spans share none.
    """
    spans = spans[spans[:, 0] < spans[:, 1]]
    begun = np.searchsorted(spans[:, 0], stops, side="left")
    ended = np.searchsorted(spans[:, 1], starts, side="right")
    return np.asarray((begun > ended) & (starts < stops))


def token_spans(edges: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """The tokens that share a byte with each span: int64 [k, 2], tokens [first, stop).

    edges: int64 [n + 1], ascending, as in `Spelled`. spans: int64 [k, 2], bytes [start, stop), not
    empty, inside the text; in any order. Empty tokens at a span's ends are not its own.
    """
    first = np.searchsorted(edges[1:], spans[:, 0], side="right")
    stop = np.searchsorted(edges[:-1], spans[:, 1], side="left")
    return np.stack([first, stop], axis=1)
