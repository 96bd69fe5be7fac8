"""Position schemes: pure functions from (kept tokens, segments, target, draws) to position ids.

Every scheme takes the same arguments:
    kept             int32 [L]: where in the window each kept token stands, increasing
    segment_lengths  int64 [N]: lengths of the segments, summing to L
    target_len       T, the window that the row simulates; L <= T
    stream           the row's draws
and returns int32 [L], strictly increasing, within [0, T). To add one: write the function, put it in
SCHEMES, perhaps in INSIDE_SEGMENTS, and test it against its definition.
"""

import math
from collections.abc import Callable

import numpy as np

from lrdata.draws import Stream

_CREAM_DEVIATION = 3.0
_END_PROMPT = 20

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
    lengths = _composition(length, chunks, stream)
    skipped = np.zeros(len(lengths), np.int64)
    for index in range(1, len(lengths)):
        least = skipped[index - 1]
        skipped[index] = least + stream.below(int(target_len - length - least) + 1, 1)[0]
    return _shifted(length, lengths, skipped)


def pose_content(length: int, window: int, cut: Stream, place: Stream) -> np.ndarray:
    """The tokens that PoSE takes where no sentences are selected, as its authors' code does: the
    first chunk from the beginning of the window, the second from anywhere behind it.

    Args:
        length: L tokens, of a window of so many. cut: the stream that `pose` then draws positions
            from, so that its chunks are these. place: the draws of where the second one stands.
    Returns:
        int32 [L], increasing, within [0, window).
    """
    lengths = _composition(length, 2, cut)
    skipped = np.array([0, place.below(window - length + 1, 1)[0]])
    return _shifted(length, lengths, skipped[: len(lengths)])


def _composition(length: int, parts: int, stream: Stream) -> np.ndarray:
    """int64 [min(parts, length)]: positive lengths with this sum, every such choice equally
    likely."""
    cuts = stream.subset(length - 1, min(parts, length) - 1) + 1
    return np.diff(np.concatenate([[0], cuts, [length]]))


def randpos(
    kept: np.ndarray, segment_lengths: np.ndarray, target_len: int, stream: Stream
) -> np.ndarray:
    """RandPos / RPES (arXiv 2305.16843): 0 and L - 1 more distinct integers of [1, T), sorted."""
    rest = stream.subset(target_len - 1, len(kept) - 1) + 1
    return np.concatenate([[0], rest]).astype(np.int32)


def contiguous(
    kept: np.ndarray, segment_lengths: np.ndarray, target_len: int, stream: Stream
) -> np.ndarray:
    """0 .. L - 1. As `full` of a whole window; as `contiguous` a control of rows that are shorter:
    what is left without positions that span the window."""
    return np.arange(len(kept), dtype=np.int32)


def source(
    kept: np.ndarray, segment_lengths: np.ndarray, target_len: int, stream: Stream
) -> np.ndarray:
    """Each kept token at its own place in the window."""
    return kept.astype(np.int32)


def cream(
    kept: np.ndarray, segment_lengths: np.ndarray, target_len: int, stream: Stream
) -> np.ndarray:
    """CREAM (arXiv 2406.07138): a head and a tail at the two ends of the window, and between them a
    block whose end is drawn nearer to the middle than to the ends.

    With f = T / L, head and tail are L / 3 or 4 f tokens each, with equal chance. The block of m
    tokens ends at U{head + (m - 1) a / 2, ..., a L / 2 - tail - 1}, where a is the floor of a
    normal (mean f + 1, deviation 3) truncated to [2, 2 f]. Rows of one or two tokens have no parts.
    """
    length = len(kept)
    if length < 3:
        return contiguous(kept, segment_lengths, target_len, stream)
    factor = target_len / length
    ends = (length // 3, min(int(4 * factor), length // 3))[stream.below(2, 1)[0]]
    block = length - 2 * ends
    reach = _truncated_normal(factor, stream)
    least = ends + (block - 1) * reach // 2
    last = least + int(stream.below(reach * length // 2 - ends - least, 1)[0])
    places = (
        np.arange(ends),
        np.arange(last - block + 1, last + 1),
        np.arange(target_len - ends, target_len),
    )
    return np.concatenate(places).astype(np.int32)


def _truncated_normal(factor: float, stream: Stream) -> int:
    """CREAM's a. Chances are those of a table of multiples of 2^-32, so that every machine draws
    the same."""
    edges = [*range(2, int(2 * factor) + 1), 2 * factor]
    below = [math.erf((edge - factor - 1) / (_CREAM_DEVIATION * math.sqrt(2))) for edge in edges]
    chances = np.round((np.array(below) - below[0]) * 2.0**31).astype(np.int64)
    drawn = stream.below(max(int(chances[-1]), 1), 1)[0]
    return int(np.searchsorted(chances[1:-1], drawn, side="right")) + 2


def endprompt(
    kept: np.ndarray, segment_lengths: np.ndarray, target_len: int, stream: Stream
) -> np.ndarray:
    """EndPrompt (arXiv 2605.14589): 0, 1, ..., and the last 20 tokens at the end of the window."""
    tail = min(_END_PROMPT, len(kept) - 1)
    skipped = np.array([0, target_len - len(kept)])
    return _shifted(len(kept), np.array([len(kept) - tail, tail]), skipped)


SCHEMES: dict[str, Scheme] = {
    "longrecipe": longrecipe,
    "pose": pose,
    "randpos": randpos,
    "full": contiguous,
    "contiguous": contiguous,
    "source": source,
    "cream": cream,
    "endprompt": endprompt,
}
INSIDE_SEGMENTS = ("randpos", "pose", "cream", "endprompt")
"""Schemes whose positions jump inside segments too: a dataset's card says so."""
OF_THE_WINDOW = ("cream", "endprompt")
"""Schemes that say which tokens of the window a row takes, those that stand at its positions, where
no sentences are selected (`--impact none`)."""


def _shifted(count: int, lengths: np.ndarray, skipped: np.ndarray) -> np.ndarray:
    """0 .. count - 1 in runs of `lengths`, each with the positions skipped before it added."""
    shifted = np.repeat(skipped.astype(np.int32), lengths)
    shifted += np.arange(count, dtype=np.int32)
    return shifted
