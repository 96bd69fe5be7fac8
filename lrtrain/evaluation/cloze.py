"""Words of a text that a model may be asked to write by itself.

A word is a run of letters and their marks with a space before it and something else behind it: a
span of bytes, and so the same word for every tokenizer.
"""

import re
import unicodedata

import numpy as np

from lrdata.vocabulary import Vocabulary
from lrtrain.evaluation.spelling import Spelled, texts_between_specials

LEAST_LETTERS = 4

# A text written as kinds of characters: space, letter, mark, part of a cut character, other.
_WORD = re.compile("(?<=S)[LM]+(?=[S.])")


def words_of(text: bytes) -> np.ndarray:
    """The words of four letters or more: int64 [k, 2], bytes [start, stop).

    text: UTF-8, perhaps cut at both ends. A word that touches a cut character is none, as nobody
    knows where it ends.
    """
    decoded = text.decode(errors="surrogateescape")  # a lone byte becomes a lone surrogate
    kinds = "".join(map(_kind, decoded))
    sizes = [len(character.encode(errors="surrogateescape")) for character in decoded]
    places = np.cumsum([0, *sizes])
    found = [word.span() for word in _WORD.finditer(kinds) if word[0].count("L") >= LEAST_LETTERS]
    return places[np.array(found, np.int64).reshape(-1, 2)]


def _kind(character: str) -> str:
    if character == " ":
        return "S"
    category = unicodedata.category(character)
    return "X" if category == "Cs" else category[0] if category[0] in "LM" else "."


def words_asked(read: Spelled, vocabulary: Vocabulary) -> np.ndarray:
    """The words that begin in the second half of a window: int64 [k, 2], bytes of its text.

    A word does not go beyond a special token.
    """
    texts = texts_between_specials(read, vocabulary)
    words = np.concatenate([words_of(text) + offset for offset, text in texts])
    return words[words[:, 0] * 2 >= read.edges[-1]]


def words_right(right: np.ndarray, spans: np.ndarray) -> int:
    """How many words have all their tokens right.

    right: bool [n], whether each token is the model's first choice. spans: int64 [k, 2], the tokens
    [first, stop) of each word; none is empty.
    """
    counts = np.concatenate([[0], np.cumsum(right)])
    return int((counts[spans[:, 1]] - counts[spans[:, 0]] == spans[:, 1] - spans[:, 0]).sum())
