"""Sentences under a token budget: which ones a row keeps, and how they group into segments.

All functions are pure: arrays and draws in, arrays out. n tokens, s sentences.
"""

from collections.abc import Callable

import numpy as np

from lrdata.draws import Stream

IMPACTFUL_SHARE = 0.20
"""The window's top 20 % of tokens are impactful, as in the paper (section 3.1)."""

_BUCKET_SHIFT = np.uint64(54)  # 1,024 buckets: a dozen sentences in each


def impactful(scores: np.ndarray, stream: Stream) -> np.ndarray:
    """The top 20 % of tokens with a score above 0, ties broken by the stream.

    Args:
        scores: bool, integers or floats [n], finite and >= 0.
    Returns:
        bool [n], with at most floor(0.2 n) true.
    """
    mask = scores if scores.dtype == bool else scores > 0
    limit = int(IMPACTFUL_SHARE * len(scores))
    if np.count_nonzero(mask) <= limit:
        return mask
    least = _nth_highest(scores, limit) if limit else np.inf
    mask = scores > least
    tied = np.flatnonzero(scores == least)
    mask[tied[stream.subset(len(tied), limit - int(np.count_nonzero(mask)))]] = True
    return mask


def _nth_highest(scores: np.ndarray, count: int) -> np.generic:
    if scores.dtype == np.uint8:  # eight comparisons take a tenth of the time of a partition
        least, most = 0, 255
        while least < most:
            middle = (least + most) // 2
            if np.count_nonzero(scores > middle) < count:
                most = middle
            else:
                least = middle + 1
        return np.uint8(least)
    highest = scores.max()
    if np.count_nonzero(scores == highest) >= count:  # most often so where scores are 0 or 1
        return highest
    return np.partition(scores, len(scores) - count)[len(scores) - count]


def draw_keys(
    lengths: np.ndarray, scores: np.ndarray, mask: np.ndarray, stream: Stream
) -> np.ndarray:
    """The paper's rule: sentences with an impactful token in a random order, then the others.

    Args:
        lengths: int64 [s], summing to n. scores: as `impactful` takes them. mask: bool [n],
            impactful tokens.
    Returns:
        uint64 [s], no two equal: the sentence with the smallest key is kept first.
    """
    before = np.cumsum(mask, dtype=np.int32).take(np.cumsum(lengths) - 1)  # and in the sentence
    holds = np.diff(before, prepend=0) > 0
    # Without (1 bit), random (39 bits), number (24 bits: no two are equal).
    keys = stream.words(len(lengths)) >> np.uint64(25) << np.uint64(24)
    keys |= (~holds).astype(np.uint64) << np.uint64(63) | np.arange(len(lengths), dtype=np.uint64)
    return keys


def top_keys(
    lengths: np.ndarray, scores: np.ndarray, mask: np.ndarray, stream: Stream
) -> np.ndarray:
    """The sentences with the highest mean score first, ties in a random order.

    What a budget of tokens buys is the sum of their scores: the best order is by score a token.
    """
    exact = np.float64 if scores.dtype.kind == "f" else np.int64
    totals = np.add.reduceat(scores.astype(exact), _starts(lengths))
    means = np.abs(totals / lengths).astype(np.float32)  # a zero may be negative
    # The bits of floats >= 0 sort as the floats do. Mean (31 bits), random (9), number (24).
    keys = (np.uint64(0x7FFFFFFF) - means.view(np.uint32)) << np.uint64(33)
    keys |= stream.words(len(lengths)) >> np.uint64(55) << np.uint64(24)
    return keys | np.arange(len(lengths), dtype=np.uint64)


def first_keys(
    lengths: np.ndarray, scores: np.ndarray, mask: np.ndarray, stream: Stream
) -> np.ndarray:
    """From the start of the window: what `--impact none` keeps."""
    return _spread(np.arange(len(lengths), dtype=np.uint64))


def _spread(ranks: np.ndarray) -> np.ndarray:
    """Ranks as keys over the whole range, which `keep` likes."""
    return ranks * np.uint64((1 << 63) // max(len(ranks), 1))


def pair_keys(keys: np.ndarray, needing: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Sentences that need another one in the order of their keys, each with it; then the others.

    Args:
        keys: uint64 [s]. needing, needed: int64 [e], sentences: the first is of use with the
            second, which may be itself.
    Returns:
        uint64 [s], as any rule gives them.
    """
    ranks = np.empty(len(keys), np.int64)
    ranks[np.argsort(keys)] = np.arange(len(keys))
    pair = np.full(len(keys), len(keys))  # the first that brings it in
    np.minimum.at(pair, needing, ranks[needing])
    np.minimum.at(pair, needed, ranks[needing])
    order = np.argsort(pair * len(keys) + ranks)
    ranks[order] = np.arange(len(keys))
    return _spread(ranks.astype(np.uint64))


Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, Stream], np.ndarray]
RULES: dict[str, Rule] = {"draw": draw_keys, "top": top_keys, "first": first_keys}


def keep(lengths: np.ndarray, keys: np.ndarray, budget: int) -> np.ndarray:
    """Tokens kept of each sentence when they are taken by their keys until `budget` is full.

    The last one taken is truncated, so that the sum is min(budget, sum(lengths)) exactly. Only the
    sentences near that one are sorted: the others fall to one side by the upper bits of their keys.

    Returns:
        int64 [s]: tokens kept of each sentence, in source order; 0 where it is dropped.
    """
    bucket = (keys >> _BUCKET_SHIFT).astype(np.int64)
    filled = np.cumsum(np.bincount(bucket, lengths, minlength=1)).astype(np.int64)
    edge = int(np.searchsorted(filled, budget))
    kept = np.where(bucket < edge, lengths, 0)
    if edge < len(filled):
        near = np.flatnonzero(bucket == edge)
        near = near[np.argsort(keys[near])]
        left = budget - (filled[edge - 1] if edge else 0)
        kept[near] = np.diff(np.minimum(np.cumsum(lengths[near]), left), prepend=0)
    return kept


def kept_tokens(lengths: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Window offsets of the kept tokens: int32 [sum(kept)], increasing."""
    taken = np.flatnonzero(kept)
    counts = kept.take(taken)
    before = np.cumsum(counts) - counts
    offsets = np.repeat((_starts(lengths).take(taken) - before).astype(np.int32), counts)
    offsets += np.arange(len(offsets), dtype=np.int32)
    return offsets


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


def pieces(
    lengths: np.ndarray, kept: np.ndarray, segment_lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The kept tokens as contiguous pieces of what the sentences divide, cut at segment ends too.

    Args:
        lengths, kept: int64 [s], of the sentences. segment_lengths: int64 [N], see `group`.
    Returns:
        starts int32 [p] (offsets) and lengths int32 [p].
    """
    taken = np.flatnonzero(kept)
    counts, starts = kept.take(taken), _starts(lengths).take(taken)
    cut = np.ones(len(taken), bool)
    np.not_equal(starts[1:], (starts + counts)[:-1], out=cut[1:])
    cut[np.searchsorted(_starts(counts), _starts(segment_lengths))] = True
    at = np.flatnonzero(cut)
    totals = np.add.reduceat(counts, at) if len(at) else counts
    return starts.take(at).astype(np.int32), totals.astype(np.int32)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths
