"""By which law a row's unused positions are spread over its gaps: others than LongRecipe's.

A law gives int64 [gaps and the slack behind the last segment], not negative, that sum to `unused`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from lrdata.draws import Stream
from lrdata.positions import SCHEMES, Scheme


def _parts(weights: np.ndarray, unused: int) -> np.ndarray:
    """Whole numbers that sum to `unused`, as the weights are to each other."""
    edges = np.floor(np.cumsum(weights) / weights.sum() * unused + 0.5).astype(np.int64)
    edges[-1] = unused
    return np.diff(edges, prepend=0)


def _shares(count: int, stream: Stream) -> np.ndarray:
    """Numbers in (0, 1)."""
    return (stream.below(1 << 20, count) + 0.5) / (1 << 20)


def heavy(count: int, unused: int, stream: Stream) -> np.ndarray:
    """As Pareto's law with exponent 1: a few gaps take most."""
    return _parts(1 / _shares(count, stream), unused)


def jump(count: int, unused: int, stream: Stream) -> np.ndarray:
    """Half of the positions in one gap, the others spread evenly at random."""
    parts = _parts(-np.log(_shares(count, stream)), unused - unused // 2)
    parts[stream.below(count, 1)[0]] += unused // 2
    return parts


LAWS: dict[str, Callable[[int, int, Stream], np.ndarray]] = {"heavy": heavy, "jump": jump}


def scheme_of(law: str) -> Scheme:
    """LongRecipe's positions with another law of its gaps; the last part is the slack."""

    def positions(
        kept: np.ndarray, segment_lengths: np.ndarray, target_len: int, stream: Stream
    ) -> np.ndarray:
        count = len(segment_lengths)
        parts = LAWS[law](count, target_len - len(kept), stream)
        skipped = np.concatenate([[0], np.cumsum(parts[:-1])])
        return np.arange(len(kept), dtype=np.int32) + np.repeat(skipped, segment_lengths).astype(
            np.int32
        )

    return positions


@contextmanager
def spread_by(law: str) -> Iterator[None]:
    """While this process builds rows: `longrecipe` spreads its gaps by a law."""
    before = SCHEMES["longrecipe"]
    SCHEMES["longrecipe"] = scheme_of(law) if law in LAWS else before
    try:
        yield
    finally:
        SCHEMES["longrecipe"] = before
