"""Made-up words, numbers and identifiers, drawn from a stream."""

import uuid

import numpy as np

from lrdata.draws import Stream

_ONSETS, _VOWELS, _CODAS = "bcdfhjklmnprstvwyz", "aeiou", "bdklmnrt"
_PATTERN = (_ONSETS, _VOWELS, _ONSETS, _VOWELS, _CODAS)
WORDS = len(_ONSETS) ** 2 * len(_VOWELS) ** 2 * len(_CODAS)
"""How many made-up words there are."""

_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def word(index: int) -> str:
    """The made-up word of an index below WORDS: two syllables, as *natok*.

    All have five letters, so that none of them contains another.
    """
    letters = []
    for alphabet in reversed(_PATTERN):
        index, at = divmod(index, len(alphabet))
        letters.append(alphabet[at])
    return "".join(reversed(letters))


def letters(index: int, length: int) -> str:
    """The `length` capital letters of an index below 26 ** length."""
    found = []
    for _ in range(length):
        index, at = divmod(index, len(_CAPITALS))
        found.append(_CAPITALS[at])
    return "".join(reversed(found))


def distinct(stream: Stream, bound: int, count: int) -> np.ndarray:
    """`count` distinct integers of [0, bound), in random order: int64 [count].

    More of them begin with fewer of them. Raises ValueError when there are not so many.
    """
    if count > bound:
        raise ValueError(f"cannot draw {count} distinct integers of {bound}")
    drawn, first = np.zeros(0, np.int64), np.zeros(0, np.int64)
    while len(first) < count:
        drawn = np.append(drawn, stream.below(bound, max(16, count)))
        first = np.sort(np.unique(drawn, return_index=True)[1])
    return drawn[first[:count]]


def shuffled(stream: Stream, count: int) -> np.ndarray:
    """A random order of `count` things: int64 [count]."""
    return np.argsort(stream.words(count), kind="stable")


def pairs(stream: Stream, count: int) -> list[str]:
    """Made-up names of two words each, as *natok-bilar*."""
    drawn = stream.below(WORDS, 2 * count).reshape(count, 2).tolist()
    return [f"{word(first)}-{word(second)}" for first, second in drawn]


def numbers(stream: Stream, count: int, digits: int = 7) -> list[str]:
    """Numbers of so many digits, none of which begins with a zero."""
    least = 10 ** (digits - 1)
    return [str(least + above) for above in stream.below(9 * least, count).tolist()]


def uuids(stream: Stream, count: int) -> list[str]:
    """Random UUIDs of version 4."""
    halves = stream.words(2 * count).reshape(count, 2).tolist()
    return [str(uuid.UUID(int=high << 64 | low, version=4)) for high, low in halves]
