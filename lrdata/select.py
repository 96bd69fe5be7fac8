"""Sentences under a token budget: which ones a row keeps, and how they group into segments.

All functions are pure: arrays and draws in, arrays out. n tokens, s sentences.
"""

from collections.abc import Callable

import numpy as np

from lrdata.draws import Stream

IMPACTFUL_SHARE = 0.20
"""The window's top 20 % of tokens are impactful, as in the paper (section 3.1)."""

_BEST_SHARE = 0.25  # `top` ranks a sentence by the mean of this share of its tokens, at least one


def impactful(scores: np.ndarray, stream: Stream) -> np.ndarray:
    """The top 20 % of tokens with a score above 0, ties broken by the stream.

    Args:
        scores: float32 [n], >= 0.
    Returns:
        bool [n], with at most floor(0.2 n) true.
    """
    mask = scores > 0
    limit = int(IMPACTFUL_SHARE * len(scores))
    if np.count_nonzero(mask) <= limit:
        return mask
    least = np.partition(scores, len(scores) - limit)[len(scores) - limit] if limit else np.inf
    mask = scores > least
    tied = np.flatnonzero(scores == least)
    mask[tied[stream.subset(len(tied), limit - int(np.count_nonzero(mask)))]] = True
    return mask


def draw_order(
    lengths: np.ndarray, scores: np.ndarray, mask: np.ndarray, stream: Stream
) -> np.ndarray:
    """The paper's rule: sentences with an impactful token in a random order, then the others.

    Args:
        lengths: int64 [s], summing to n. scores: float32 [n]. mask: bool [n], impactful tokens.
    Returns:
        int64 [s]: sentence numbers, the first to keep first.
    """
    holds = np.logical_or.reduceat(mask, _starts(lengths))
    # One integer to sort by: without (1 bit), random (39 bits), number (24 bits: no two are equal).
    key = stream.words(len(lengths)) >> np.uint64(25) << np.uint64(24)
    key |= (~holds).astype(np.uint64) << np.uint64(63) | np.arange(len(lengths), dtype=np.uint64)
    return (np.sort(key) & np.uint64(0xFFFFFF)).astype(np.int64)


def top_order(
    lengths: np.ndarray, scores: np.ndarray, mask: np.ndarray, stream: Stream
) -> np.ndarray:
    """By the mean score of the best quarter of each sentence's tokens; ties in a random order."""
    starts = _starts(lengths)
    rank = np.arange(len(scores)) - np.repeat(starts, lengths)
    count = np.maximum(1, (lengths * _BEST_SHARE).astype(np.int64))
    best = _best_first(lengths, scores).astype(np.float64)
    best[rank >= np.repeat(count, lengths)] = 0.0
    mean = np.add.reduceat(best, starts) / count
    return np.lexsort((stream.words(len(lengths)), -mean))


def _best_first(lengths: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The scores, the highest of each sentence first: float32 [n]."""
    # The bits of floats >= 0 sort as the floats do: with the sentence above them, one sort of
    # integers does it, ten times as fast as np.lexsort.
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    bits = np.abs(scores).view(np.uint32).astype(np.int64)
    key = np.sort(sentence << 32 | 0xFFFFFFFF - bits)
    return (0xFFFFFFFF - (key & 0xFFFFFFFF)).astype(np.uint32).view(np.float32)


def first_order(
    lengths: np.ndarray, scores: np.ndarray, mask: np.ndarray, stream: Stream
) -> np.ndarray:
    """From the start of the window: what `--impact none` keeps."""
    return np.arange(len(lengths))


Order = Callable[[np.ndarray, np.ndarray, np.ndarray, Stream], np.ndarray]
ORDERS: dict[str, Order] = {"draw": draw_order, "top": top_order, "first": first_order}


def keep(lengths: np.ndarray, order: np.ndarray, budget: int) -> np.ndarray:
    """Tokens kept of each sentence when they are taken in `order` until `budget` is full.

    The last one taken is truncated, so that the sum is min(budget, sum(lengths)) exactly.

    Returns:
        int64 [s]: tokens kept of each sentence, in source order; 0 where it is dropped.
    """
    taken = np.minimum(np.cumsum(lengths[order]), budget)
    kept = np.empty_like(lengths)
    kept[order] = np.diff(taken, prepend=0)
    return kept


def kept_tokens(lengths: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Window offsets of the kept tokens: int32 [sum(kept)], increasing."""
    taken = np.flatnonzero(kept)
    counts = kept[taken]
    before = np.cumsum(counts) - counts
    offsets = np.arange(int(counts.sum())) + np.repeat(_starts(lengths)[taken] - before, counts)
    return offsets.astype(np.int32)


def group(kept: np.ndarray, segment_tokens: int) -> np.ndarray:
    """Lengths of the segments: kept sentences in source order, about `segment_tokens` each.

    A new segment begins with the first sentence at or after each multiple of `segment_tokens` kept
    tokens: the mean is segment_tokens unless sentences are longer, and no sentence is divided.

    Returns:
        int64 [N], summing to sum(kept).
    """
    counts = kept[kept > 0]
    before = np.cumsum(counts) - counts
    first = np.flatnonzero(np.diff(before // segment_tokens, prepend=-1))
    return np.add.reduceat(counts, first) if len(counts) else counts


def pieces(kept_offsets: np.ndarray, segment_lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row as contiguous pieces of its window, cut at segment ends too.

    Returns:
        starts int32 [p] (offsets in the window) and lengths int32 [p].
    """
    cut = np.diff(kept_offsets, prepend=-2) != 1
    cut[_starts(segment_lengths)] = True
    at = np.flatnonzero(cut)
    lengths = np.diff(np.append(at, len(kept_offsets)))
    return kept_offsets[at].astype(np.int32), lengths.astype(np.int32)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths
