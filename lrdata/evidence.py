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
    lengths = np.zeros(len(ids), np.int64)
    tokens, sources = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for size, later, earlier in reversed(list(_rare_pairs(ids))):
        wanted = lengths[later] == 0
        if among is not None:
            wanted &= among[later]
        later, earlier = later[wanted], earlier[wanted]
        lengths[later] = size
        lengths[later[later - earlier < least_distance]] = _NEAR
        far = lengths[later] > 0
        tokens.append(later[far])
        sources.append(earlier[far])
    # One sort of integers: by token, and the nearest source first.
    bits = len(ids).bit_length()
    order = np.sort(np.concatenate(tokens) << bits | len(ids) - np.concatenate(sources))
    found = order >> bits
    return Evidence(found, len(ids) - (order & ((1 << bits) - 1)), lengths[found])


def _rare_pairs(ids: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(size, later, earlier): all pairs of places where the same rare n-gram of a size ends."""
    ends, grams = np.arange(len(ids)), ids.astype(np.int64)
    for size in range(SHORTEST, LONGEST + 1):
        # An n-gram that repeats ends in a shorter one that does: few are left after each size.
        grams, ends = grams[ends >= size - 1], ends[ends >= size - 1]
        grams = _numbered(grams << 32 | ids[ends - size + 1])
        counts = np.bincount(grams)[grams] if len(grams) else grams
        rare = (counts >= 2) & (counts <= MOST)
        yield size, *_pairs(grams[rare], ends[rare])
        grams, ends = grams[counts >= 2], ends[counts >= 2]


def _numbered(values: np.ndarray) -> np.ndarray:
    """Equal values as equal numbers from 0 on: int64 [n]. Hashing is faster than a sort."""
    numbers = pa.array(values).dictionary_encode().indices
    return np.asarray(numbers.to_numpy()).astype(np.int64)


def _pairs(grams: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of ends of each n-gram, of 2 to MOST each, the later and the earlier: int64 [m]."""
    bits = int(ends[-1]).bit_length() if len(ends) else 0
    order = np.sort(grams << bits | ends)
    places, grams = order & ((1 << bits) - 1), order >> bits
    starts = np.flatnonzero(np.diff(grams, prepend=-1))
    counts = np.diff(starts, append=len(grams))
    later, earlier = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for last in range(1, MOST):
        whole = starts[counts > last]
        for first in range(last):
            later.append(places[whole + last])
            earlier.append(places[whole + first])
    return np.concatenate(later), np.concatenate(earlier)
