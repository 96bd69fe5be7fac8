"""Fillers of exactly so many tokens, and how many things fit into them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from lrtrain.evaluation.needle import Haystack


class NoRoom(Exception):
    """A prompt of this length cannot hold the task: so many tokens are missing, at least."""

    def __init__(self, missing: int) -> None:
        super().__init__(f"{missing} tokens are missing")
        self.missing = missing


def fill_with_text(
    haystack: Haystack, end: int, needles: Sequence[np.ndarray], depths: Sequence[float], room: int
) -> np.ndarray:
    """Text that ends before its token `end`, with needles between its sentences: int32 [room].

    depths, ascending: the share of the sentences that are before each needle. Raises NoRoom when
    there is none for more than the needles.
    """
    count = room - sum(map(len, needles))
    if count < 1:
        raise NoRoom(1 - count)
    breaks = sentence_breaks(haystack, end - count, count)
    places = [int(breaks[int((len(breaks) - 1) * depth)]) for depth in depths]
    return woven(np.split(haystack.read(end - count, count), places), needles)


def sentence_breaks(haystack: Haystack, offset: int, count: int) -> np.ndarray:
    """Where sentences begin in `count` tokens from `offset` on, and where the last one ends.

    int64, ascending, the last one `count`. The first sentence may have lost its beginning: it
    counts only where there is no other.
    """
    size = len(haystack.ids)
    starts = np.sort((haystack.starts - offset) % size)
    starts = (starts + np.arange(0, count, size)[:, None]).ravel()
    starts = starts[starts < count]
    return np.append(starts if len(starts) else 0, count)


def fill_with_lines(
    lines: Iterator[np.ndarray],
    inserts: Sequence[np.ndarray],
    places: Callable[[int], Sequence[int]],
    room: int,
) -> np.ndarray:
    """As many lines as fit, with inserts between them: int32 [room].

    places: for n whole lines, ascending, before which of them each insert stands. One more line,
    which has lost its beginning, stands before all and takes what room is left. Raises NoRoom when
    there are fewer whole lines than inserts.
    """
    left = room - sum(map(len, inserts))
    taken = list[np.ndarray]()
    while left > 0:
        taken.append(next(lines))
        left -= len(taken[-1])
    cut = taken.pop()[-left:] if left < 0 and taken else np.zeros(0, np.int32)
    if len(taken) < len(inserts):
        size = len(taken[-1]) if taken else len(next(lines))
        raise NoRoom((len(inserts) - len(taken)) * size - min(left, 0))
    edges = [0, *places(len(taken)), len(taken)]
    runs = [
        np.concatenate([np.zeros(0, np.int32), *taken[start:stop]])
        for start, stop in pairwise(edges)
    ]
    return np.concatenate([cut, woven(runs, inserts)])


def woven(pieces: Sequence[np.ndarray], between: Sequence[np.ndarray]) -> np.ndarray:
    """A piece, one of `between`, a piece and so on, a piece at last: int32."""
    first, *rest = pieces
    parts = [part for pair in zip(between, rest, strict=True) for part in pair]
    return np.concatenate([first, *parts])


def most_that_fit(tokens: Callable[[int], int], room: int, least: int = 0) -> int:
    """The largest count >= `least` with tokens(count) <= room, for tokens that grow with it.

    Of few tries, as `tokens` encodes texts: doubled first, then by what a thing took on average.
    Raises NoRoom when `least` does not fit.
    """
    low, low_tokens = least, tokens(least)
    if low_tokens > room:
        raise NoRoom(low_tokens - room)
    high, high_tokens = max(2 * least, 16), 0
    while (high_tokens := tokens(high)) <= room:
        low, low_tokens, high = high, high_tokens, 2 * high
    while high - low > 1:
        guess = low + (room - low_tokens) * (high - low) // (high_tokens - low_tokens)
        middle = min(max(guess, low + 1), high - 1)
        middle_tokens = tokens(middle)
        if middle_tokens <= room:
            low, low_tokens = middle, middle_tokens
        else:
            high, high_tokens = middle, middle_tokens
    return low
