"""Evidence: from where in its window could a token be copied?

A model that predicts a token well because of something far back most often copies: a rare run of
tokens that stood there comes again. The evidence of a token is the earlier occurrence of the same
rare n-gram that ends in it. Found from the tokens alone, no model is needed.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

SHORTEST, LONGEST = 2, 4
"""Tokens of an n-gram; the longest that has come before is the evidence."""

MOST = 8
"""An n-gram is rare where its window holds it at most so often."""

_NEAR = -1


class Evidence(NamedTuple):
    """What tokens of a window could be copied from: int64 [e] each.

    tokens: the tokens, increasing, each as often as it has a source; sources: the last token of an
    earlier occurrence, the nearest first; lengths: of the n-gram that ends in both, in tokens.
    """

    tokens: np.ndarray
    sources: np.ndarray
    lengths: np.ndarray

    def within(self, ends: np.ndarray) -> "Evidence":
        """Only what lies in the token's own document. ends: int64, where documents end."""
        documents = (np.searchsorted(ends, places, side="right") for places in self[:2])
        same = np.equal(*documents)
        return Evidence(*(column[same] for column in self))

    def nearest(self) -> "Evidence":
        """Each token once, with its nearest source."""
        first = np.diff(self.tokens, prepend=-1) > 0
        return Evidence(*(column[first] for column in self))


def find_evidence(
    ids: np.ndarray, least_distance: int, among: np.ndarray | None = None
) -> Evidence:
    """The earlier occurrences of the longest rare n-gram that ends in each token.

    Only of tokens for which all of these are `least_distance` tokens back or more: any other could
    be copied from nearby.

    Args:
        ids: int32 [n]. among: bool [n], the tokens that are asked for; by default all.
    """
    count = len(ids)
    lengths = np.zeros(count, np.int64)
    tokens, sources = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    asked = np.ones(count, bool) if among is None else among
    for size, ends, ranks in reversed(list(_rare(ids.astype(np.int64), asked))):
        later = np.flatnonzero((ranks > 0) & asked.take(ends) & (lengths.take(ends) == 0))
        near = ends.take(later) - ends.take(later - 1) < least_distance
        lengths[ends.take(later)] = np.where(near, _NEAR, size)
        later = later[~near]
        for back in range(1, MOST):
            later = later[ranks.take(later) >= back]
            tokens.append(ends.take(later))
            sources.append(ends.take(later - back))
    # One sort of integers: by token, and the nearest source first.
    found, behind = _sorted(np.concatenate(tokens), count - np.concatenate(sources), count)
    return Evidence(found, count - behind, lengths.take(found))


def _rare(ids: np.ndarray, asked: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(size, ends, ranks): where each n-gram ends that is rare and comes again in a token that
    is asked for, by n-gram and increasing, and how many of its ends are before: int64 [m]."""
    bits = int(ids.max(initial=0)).bit_length()
    ends = _ends_like(ids, asked)
    grams = ids.take(ends)
    for size in range(SHORTEST, LONGEST + 1):
        # An n-gram that comes again ends in a shorter one that does: few are left after each size.
        whole = ends >= size - 1
        keys = grams[whole] << bits | ids.take(ends[whole] - (size - 1))
        grams, ends = _sorted(keys, ends[whole], len(ids))
        starts = np.flatnonzero(np.diff(grams, prepend=-1))
        counts = np.diff(starts, append=len(grams))
        later = asked.take(ends)
        later[starts] = False  # nothing is before the first, nor before a longer one there
        again = np.logical_or.reduceat(later, starts)
        ends, counts = ends[np.repeat(again, counts)], counts[again]
        grams = np.repeat(np.arange(len(counts)), counts)
        ranks = np.arange(len(ends)) - (np.cumsum(counts) - counts).take(grams)
        rare = (counts <= MOST).take(grams)
        yield size, ends[rare], ranks[rare]


def _ends_like(ids: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Where pairs of tokens end that are those of a token that is asked for, and by their hashes a
    few others: int64 [m], increasing. The rest is not worth sorting."""
    size = 1 << len(ids).bit_length()
    pairs = ids[1:] * 2654435761  # Knuth's: spreads ids over the lower bits
    pairs ^= ids[:-1]
    pairs &= size - 1
    wanted = np.zeros(size, bool)
    wanted[pairs.take(np.flatnonzero(asked[1:]))] = True
    return np.flatnonzero(wanted.take(pairs)) + 1


def _sorted(keys: np.ndarray, places: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Both by key, then by place, in one sort of integers: keys >= 0, 0 <= places <= count.

    Keys that leave no bits for places are numbered first: equal ones stay so, of any order."""
    bits = count.bit_length()
    if int(keys.max(initial=0)).bit_length() + bits > 63:
        keys = np.asarray(pa.array(keys).dictionary_encode().indices.to_numpy()).astype(np.int64)
    order = np.sort(keys << bits | places)
    return order >> bits, order & ((1 << bits) - 1)
