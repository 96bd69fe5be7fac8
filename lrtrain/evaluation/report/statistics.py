"""Means and their 95 % bootstrap intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from lrdata.bootstrap import Interval, interval, picks, ratio, stretched


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % interval: NaN where a single sample cannot tell how others would be."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, found: Interval, count: int) -> Self:
        """What a bootstrap over so many samples found."""
        return cls(*found, count) if count > 1 else cls(found.value, math.nan, math.nan, count)

    def as_list(self) -> list[float | None]:
        """[mean, low end, high end], as eval.json has them: no NaN, but None."""
        ends = (None if math.isnan(end) else round(end, 6) for end in (self.low, self.high))
        return [round(self.value, 6), *ends]


def mean(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    groups: Sequence[int] | None = None,
) -> Mean:
    """sum(values) / sum(weights), weights 1 if not given, with its bootstrap interval.

    Samples are drawn with replacement, the pairs (value, weight) kept together; within groups,
    such as the tasks of a benchmark, where there are any: see `lrdata.bootstrap.ratio`.
    """
    top = np.asarray(values, np.float64)
    bottom = np.ones(len(top)) if weights is None else np.asarray(weights, np.float64)
    return Mean.of(ratio(top, bottom, groups), len(top))


def measured_mean(values: Sequence[float], weights: Sequence[float]) -> Mean | None:
    """The same over the samples that have a weight; None where none has."""
    kept = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    return mean(*map(list, zip(*kept, strict=True))) if kept else None


@dataclass(frozen=True)
class Samples:
    """What is summed and what it is divided by, for each sample: a mean that is not taken yet."""

    values: Sequence[float]
    weights: Sequence[float]

    def sums(self, picked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both, summed over samples [..., n]."""
        top, bottom = np.asarray(self.values, np.float64), np.asarray(self.weights, np.float64)
        return top[picked].sum(-1), bottom[picked].sum(-1)


def difference(one: Samples, other: Samples) -> Mean | None:
    """The mean of one less that of the other, of the same samples: see `_paired`."""
    return _paired(one, other, np.subtract)


def share(one: Samples, other: Samples) -> Mean | None:
    """The mean of one as a share of the other's, of the same samples: see `_paired`."""
    return _paired(one, other, np.divide)


def _paired(one: Samples, other: Samples, compare: Callable[..., np.ndarray]) -> Mean | None:
    """Two means compared, with the bootstrap interval of what comes out.

    Both are of the same samples and are drawn together: how hard a sample is for both of them does
    not widen the interval. Resamples that have no such value are left out; None where the samples
    themselves have none.
    """
    count = len(one.values)
    picked = picks(count)
    tops, bottoms = one.sums(picked)
    others, under = other.sums(picked)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = compare(tops / bottoms, others / under)
    if not np.isfinite(found[0]):
        return None
    alone = [each.sums(np.arange(count)[:, None]) for each in (one, other)]
    with np.errstate(divide="ignore", invalid="ignore"):
        singly = compare(*(top / bottom for top, bottom in alone))
    wide = stretched(found[np.isfinite(found)], singly[np.isfinite(singly)], count)
    return Mean.of(interval(wide), count)


def as_perplexity(nats: Mean) -> list[float | None]:
    """exp of nats per token and of the ends of its interval, as eval.json has them."""
    return [None if value is None else round(math.exp(value), 6) for value in nats.as_list()]
