"""Evidence: from where in its window could a token be copied?

A model that predicts a token well because of something far back most often copies: a rare run of
tokens that stood there comes again. The evidence of a token is the earlier occurrence of the same
rare n-gram that ends in it. Found from the tokens alone, no model is needed.
"""

from typing import NamedTuple

import numpy as np

LONGEST, SHORTEST = 4, 2
"""Tokens of an n-gram; the longest that has come before is the evidence."""

MOST = 8
"""An n-gram is rare where its window holds it at most so often."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Evidence(NamedTuple):
    """What tokens of a window could be copied from: int64 [e] each.

    tokens: the tokens, increasing, each as often as it has a source; sources: the last token of an
    earlier occurrence, the nearest first; lengths: of the n-gram that ends in both, in tokens.
    """

    tokens: np.ndarray
    sources: np.ndarray
    lengths: np.ndarray

    def nearest(self) -> "Evidence":
        """Each token once, with its nearest source."""
        first = np.diff(self.tokens, prepend=-1) > 0
        return Evidence(*(column[first] for column in self))


def find_evidence(ids: np.ndarray, least_distance: int) -> Evidence:
    """The earlier occurrences of the longest rare n-gram that ends in each token.

    Only those that are `least_distance` tokens back or more.

    Args:
        ids: int32 [n].
    """
    lengths = np.zeros(len(ids), np.int64)
    found = []
    for size in range(LONGEST, SHORTEST - 1, -1):
        tokens, sources = _far_repeats(ids, size, least_distance)
        longest = lengths[tokens] == 0
        tokens, sources = tokens[longest], sources[longest]
        lengths[tokens] = size
        found.append((tokens, sources))
    tokens, sources = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((-sources, tokens))
    tokens, sources = tokens[order], sources[order]
    return Evidence(tokens, sources, lengths[tokens])


def _far_repeats(ids: np.ndarray, size: int, least_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """The last token of each rare n-gram, with that of each earlier occurrence: int64 [m] each."""
    places, first = _sorted_ngrams(ids, size)
    starts = np.flatnonzero(first)
    counts = np.diff(starts, append=len(places))
    rare = np.flatnonzero(np.repeat((counts >= 2) & (counts <= MOST), counts))
    rank = rare - np.repeat(starts, counts)[rare]
    pairs = []
    for back in range(1, MOST):
        later = rare[rank >= back]
        pairs.append((places[later], places[later - back]))
    tokens, sources = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    far = tokens - sources >= least_distance
    return tokens[far], sources[far]


def _sorted_ngrams(ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The last tokens of all n-grams, equal ones together and in order: int64 [m]; and which of
    them begins a run of equal ones: bool [m]."""
    count = len(ids) - size + 1
    if count < 1:
        return np.zeros(0, np.int64), np.zeros(0, bool)
    hashes = np.zeros(count, np.uint64)
    for at in range(size):
        hashes = (hashes + ids[at : at + count].astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    # The hash in the upper bits, the place in the lower: one sort of integers orders both.
    bits = np.uint64(int(count).bit_length())
    keys = np.sort((hashes >> bits << bits) | np.arange(count, dtype=np.uint64))
    begins = (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    first = np.ones(count, bool)
    same = np.ones(count - 1, bool)
    for at in range(size):  # by the tokens themselves: hashes may meet
        tokens = ids[begins + at]
        same &= tokens[1:] == tokens[:-1]
    first[1:] = ~same
    return begins + size - 1, first
