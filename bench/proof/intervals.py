"""Means over seeds and their 95 % intervals: a seed is a base model, a corpus and an order."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95 % quantiles of Student's t with 1 to 10 degrees of freedom."""


def _t(freedom: int) -> float:
    """The same with any number: beyond 10 by the expansion of Cornish and Fisher, to 0.002."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, and how far to either side its 95 % interval goes."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def text(self, digits: int = 3, sign: bool = False) -> str:
        return f"{self.mean:{'+' if sign else ''}.{digits}f} ± {self.half:.{digits}f}"


def over_seeds(values: Sequence[float]) -> Interval:
    """Student's t over seeds: few of them, but whole repetitions of everything that is drawn."""
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Interval(float(np.mean(values)), _t(len(values) - 1) * spread)


def difference(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Of the same seeds: what the base and the corpus do to both falls out."""
    return over_seeds([a - b for a, b in zip(one, other, strict=True)])


def share_of_means(one: Sequence[float], other: Sequence[float]) -> Interval:
    """Mean of one / mean of other, by the delta method: for counts so small that the shares of
    single seeds say little. Not a number where the others are all 0."""
    whole = float(np.mean(other)) or nan
    ratio = float(np.mean(one)) / whole
    rest = over_seeds([(a - ratio * b) / whole for a, b in zip(one, other, strict=True)])
    return Interval(ratio, rest.half)


def over_spans(one: np.ndarray, other: np.ndarray) -> float:
    """How far the 95 % interval of sum(one) / sum(other) goes to either side over spans of text,
    by the delta method.

    one, other: float [spans], nats of the same spans, summed over seeds.
    """
    ratio = one.sum() / other.sum()
    rest = (one - ratio * other) / other.mean()
    return over_seeds(rest.tolist()).half


def share(one: Sequence[float], other: Sequence[float]) -> Interval:
    """one / other, seed by seed; not a number where the other is 0."""
    return over_seeds([a / b if b else nan for a, b in zip(one, other, strict=True)])
