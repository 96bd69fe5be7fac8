"""Bootstrap intervals of ratios of sums: shares and means over units that may differ in size."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lrdata.draws import Draws

RESAMPLES = 2000


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@lru_cache(4)
def resamples(units: int) -> np.ndarray:
    """Which units each resample holds: int64 [RESAMPLES, units], the same for a number of units."""
    draws = Draws("bootstrap", units).stream("resamples")
    return draws.below(units, units * RESAMPLES).reshape(RESAMPLES, units)


def ratio(top: np.ndarray, bottom: np.ndarray) -> Interval:
    """sum(top) / sum(bottom), with the percentiles of its resamples over units.

    Args:
        top, bottom: [units] each. Resamples without anything at the bottom are left out.
    """
    picked = resamples(len(top))
    tops, bottoms = top[picked].sum(1), bottom[picked].sum(1)
    full = bottoms > 0
    low, high = np.percentile(tops[full] / bottoms[full], [2.5, 97.5])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high))
