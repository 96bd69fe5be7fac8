"""Position schemes: pure functions from (kept tokens, segments, target, draws) to position ids.

Every scheme takes the same arguments:
    kept             int32 [L]: where in the window each kept token stands, increasing
    segment_lengths  int64 [N]: lengths of the segments, summing to L
    target_len       T, the window that the row simulates; L <= T
    stream           the row's draws
and returns int32 [L], strictly increasing, within [0, T). To add one: write the function, put it in
SCHEMES, and test it against its definition.
"""

from collections.abc import Callable

import numpy as np

from lrdata.draws import Stream

Scheme = Callable[[np.ndarray, np.ndarray, int, Stream], np.ndarray]


def longrecipe(
    kept: np.ndarray, segment_lengths: np.ndarray, target_len: int, stream: Stream
) -> np.ndarray:
    """Consecutive inside a segment, a random gap >= 0 between segments and slack after the last.

    The T - L unused positions are spread by stars and bars: every way of giving them to the N - 1
    gaps and the slack is equally likely (LongRecipe, section 3.2, in the reading where a skip of 0
    means contiguous). The first segment starts at 0.
    """
    segments = len(segment_lengths)
    unused = target_len - len(kept)
    bars = stream.subset(unused + segments - 1, segments - 1)
    skipped = np.concatenate([[0], bars - np.arange(segments - 1)])
    return _shifted(len(kept), segment_lengths, skipped)


def pose(
    kept: np.ndarray, segment_lengths: np.ndarray, target_len: int, stream: Stream
) -> np.ndarray:
    """PoSE with two chunks (arXiv 2309.10400): see `pose_chunks`."""
    return pose_chunks(len(kept), target_len, stream, chunks=2)


def pose_chunks(length: int, target_len: int, stream: Stream, chunks: int) -> np.ndarray:
    """PoSE: N chunks of random lengths, chunk i shifted by u_i ~ U{u_{i-1}, ..., T - L}, u_0 = 0.

    Every composition of L into N positive lengths is equally likely.
    """
    chunks = min(chunks, length)
    cuts = stream.subset(length - 1, chunks - 1) + 1
    lengths = np.diff(np.concatenate([[0], cuts, [length]]))
    skipped = np.zeros(chunks, np.int64)
    for index in range(1, chunks):
        least = skipped[index - 1]
        skipped[index] = least + stream.below(int(target_len - length - least) + 1, 1)[0]
    return _shifted(length, lengths, skipped)


def randpos(
    kept: np.ndarray, segment_lengths: np.ndarray, target_len: int, stream: Stream
) -> np.ndarray:
    """RandPos / RPES (arXiv 2305.16843): 0 and L - 1 more distinct integers of [1, T), sorted."""
    rest = stream.subset(target_len - 1, len(kept) - 1) + 1
    return np.concatenate([[0], rest]).astype(np.int32)


def full(
    kept: np.ndarray, segment_lengths: np.ndarray, target_len: int, stream: Stream
) -> np.ndarray:
    """0 .. L - 1."""
    return np.arange(len(kept), dtype=np.int32)


def source(
    kept: np.ndarray, segment_lengths: np.ndarray, target_len: int, stream: Stream
) -> np.ndarray:
    """Each kept token at its own place in the window."""
    return kept.astype(np.int32)


SCHEMES: dict[str, Scheme] = {
    "longrecipe": longrecipe,
    "pose": pose,
    "randpos": randpos,
    "full": full,
    "source": source,
}


def _shifted(count: int, lengths: np.ndarray, skipped: np.ndarray) -> np.ndarray:
    """0 .. count - 1 in runs of `lengths`, each with the positions skipped before it added."""
    shifted = np.repeat(skipped.astype(np.int32), lengths)
    shifted += np.arange(count, dtype=np.int32)
    return shifted
