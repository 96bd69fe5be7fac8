"""Means and their 95 % bootstrap intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrdata.bootstrap import ratio


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float
    count: int

    def as_list(self) -> list[float]:
        """[mean, low end, high end], as eval.json has them."""
        return [round(self.value, 6), round(self.low, 6), round(self.high, 6)]


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> Mean:
    """sum(values) / sum(weights), weights 1 if not given, with its bootstrap interval.

    Samples are drawn with replacement, the pairs (value, weight) kept together.
    """
    top = np.asarray(values, np.float64)
    bottom = np.ones(len(top)) if weights is None else np.asarray(weights, np.float64)
    return Mean(*ratio(top, bottom), len(top))


def measured_mean(values: Sequence[float], weights: Sequence[float]) -> Mean | None:
    """The same over the samples that have a weight; None where none has."""
    kept = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    return mean(*map(list, zip(*kept, strict=True))) if kept else None


def as_perplexity(nats: Mean) -> list[float]:
    """exp of nats per token and of the ends of its interval, as eval.json has them."""
    return [round(math.exp(value), 6) for value in nats.as_list()]
