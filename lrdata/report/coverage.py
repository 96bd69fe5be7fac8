"""Which relative distances and which positions rows train: pure functions of positions.

A model with rotary positions sees of two tokens how far apart they are. What it can learn about a
distance d in (0, T) it learns from pairs of a query and an earlier key of its own attention
document whose positions differ by d; how many there are of each distance is counted here, exactly.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lrdata.errors import LongRecipeError

LONGEST_TARGET = 2**22
"""Of longer windows nothing is counted: a count for each distance would be large."""

POSITION_BINS = 128


def pair_counts(positions: np.ndarray, seq_lengths: np.ndarray, target_len: int) -> np.ndarray:
    """How many pairs of positions of the same attention document lie each distance apart.

    Args:
        positions: int [n], in [0, target_len), strictly increasing in each attention document.
        seq_lengths: int [d], lengths of the attention documents, summing to n.
    Returns:
        int64 [target_len]: of entry d, the pairs at distance d; entry 0 is 0.
    """
    counts = np.zeros(target_len, np.int64)
    edges = np.cumsum([0, *seq_lengths.tolist()])
    for begin, end in pairwise(edges.tolist()):
        inside = positions[begin:end].astype(np.int64)
        if len(inside) > 1:
            found = _autocorrelation(inside - inside[0])
            counts[: len(found)] += found
    counts[0] = 0
    return counts


def _autocorrelation(places: np.ndarray) -> np.ndarray:
    """Pairs at each distance, of increasing places from 0 on: int64 [last place + 1].

    The autocorrelation of a vector that is 1 at the places, by FFT: the sums are integers, and the
    error is far below a half, so rounding makes them exact.
    """
    span = int(places[-1]) + 1
    size = 1 << (2 * span - 1).bit_length()
    spectrum = np.fft.rfft(np.bincount(places, minlength=span), size)
    power = spectrum.real**2 + spectrum.imag**2
    return np.rint(np.fft.irfft(power, size)[:span]).astype(np.int64)


@dataclass(frozen=True)
class Coverage:
    """What some rows cover of a window of T tokens.

    pairs: int64 [T], of all rows, by distance. rows_at: int64 [T], rows that have a pair at the
    distance. occupied: int64 [bins], rows with a token in each of as many equal parts of [0, T).
    tokens: of all rows. Entry 0 of the first two is 0.
    """

    target_len: int
    rows: int
    tokens: int
    pairs: np.ndarray
    rows_at: np.ndarray
    occupied: np.ndarray

    @property
    def seen(self) -> float:
        """Share of the distances 1 .. T - 1 that occur in some row."""
        return float((self.rows_at[1:] > 0).mean())

    @property
    def seen_by_a_row(self) -> float:
        """Share of the distances that occur in a row, on average."""
        return float(self.rows_at[1:].mean() / self.rows)

    def between(self, low: int, high: int) -> tuple[float, float]:
        """Of the distances low .. high - 1: pairs a row, and the share of them that a row has.

        Both on average over rows; 1 <= low < high <= T.
        """
        part = slice(low, high)
        return (
            float(self.pairs[part].sum() / self.rows),
            float(self.rows_at[part].mean() / self.rows),
        )

    def density(self, bins: int) -> tuple[np.ndarray, np.ndarray]:
        """The middles of equal parts of the distances, and the pairs that a row has at each
        distance of a part: two float64 [bins], fewer where there are not so many distances."""
        edges = np.unique(np.linspace(1, self.target_len, bins + 1).astype(np.int64))
        widths = np.diff(edges)
        sums = np.add.reduceat(self.pairs, edges[:-1])
        return edges[:-1] + (widths - 1) / 2, sums / widths / self.rows

    def occupancy(self) -> np.ndarray:
        """Share of rows with a token in each part of [0, target_len): float64 [bins]."""
        return self.occupied / self.rows


class CoverageCounter:
    """Adds up the coverage of extend rows, one at a time; 2 <= target_len <= LONGEST_TARGET."""

    def __init__(self, target_len: int) -> None:
        self.target_len = target_len
        self.rows = self.tokens = 0
        self._pairs, self._rows_at = (np.zeros(target_len, np.int64) for _ in range(2))
        self._occupied = np.zeros(min(POSITION_BINS, target_len), np.int64)

    def add(self, positions: np.ndarray, seq_lengths: np.ndarray, times: int = 1) -> None:
        """A row, or as many equal ones: int [n] and int [d].

        Raises LongRecipeError unless the positions increase along the row, within
        [0, target_len). So the documents of a row together cost no more than one that is as long.
        """
        if not _in_order(positions, seq_lengths, self.target_len):
            raise LongRecipeError(
                f"the positions of a row do not increase within 0..{self.target_len - 1}; "
                "run `lrdata verify`"
            )
        counts = pair_counts(positions, seq_lengths, self.target_len)
        self._pairs += counts * times
        self._rows_at += (counts > 0) * times
        bins = np.unique(positions.astype(np.int64) * len(self._occupied) // self.target_len)
        self._occupied[bins] += times
        self.rows += times
        self.tokens += len(positions) * times

    def coverage(self) -> Coverage:
        """Of the rows so far; there must be one."""
        counts = (self._pairs, self._rows_at, self._occupied)
        return Coverage(self.target_len, self.rows, self.tokens, *counts)


def _in_order(positions: np.ndarray, seq_lengths: np.ndarray, target_len: int) -> bool:
    if not len(positions) or positions.min() < 0 or positions.max() >= target_len:
        return False
    if len(seq_lengths) == 0 or seq_lengths.min() < 1 or seq_lengths.sum() != len(positions):
        return False
    return bool((np.diff(positions.astype(np.int64)) > 0).all())


def octaves(target_len: int) -> list[tuple[int, int]]:
    """Distances 1 .. target_len - 1 as parts [low, high), which double from 1,024 (or 16) on."""
    edges = [1, 128, 1024] if target_len > 1024 else [1, 16]
    while edges[-1] * 2 < target_len:
        edges.append(edges[-1] * 2)
    return list(pairwise([*(edge for edge in edges if edge < target_len), target_len]))
