"""Bootstrap intervals of ratios of sums: shares and means over units that may differ in size."""

from collections.abc import Sequence
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


@lru_cache(8)
def resamples(units: int, group: int = 0) -> np.ndarray:
    """Which units each resample holds: int64 [RESAMPLES, units], the same for a number of units.

    Those of another group of units are drawn independently.
    """
    draws = Draws("bootstrap", units).stream(f"resamples {group}" if group else "resamples")
    return draws.below(units, units * RESAMPLES).reshape(RESAMPLES, units)


def ratio(
    top: np.ndarray, bottom: np.ndarray, groups: Sequence[int] | np.ndarray | None = None
) -> Interval:
    """sum(top) / sum(bottom), with the percentiles of its resamples over units.

    Args:
        top, bottom: [units] each. Resamples without anything at the bottom are left out.
        groups: int [units], where units are drawn within groups and these stay as large as they
            are: such as the seeds of an experiment.
    """
    tops, bottoms = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    labels = np.zeros(len(top), int) if groups is None else np.asarray(groups)
    for index, label in enumerate(np.unique(labels).tolist()):
        members = np.flatnonzero(labels == label)
        picked = members[resamples(len(members), index)]
        tops, bottoms = tops + top[picked].sum(1), bottoms + bottom[picked].sum(1)
    full = bottoms > 0
    low, high = np.percentile(tops[full] / bottoms[full], [2.5, 97.5])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high))
