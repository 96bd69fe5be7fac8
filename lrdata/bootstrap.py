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


def picks(units: int, group: int = 0) -> np.ndarray:
    """The units as they are, and then those of each resample: int64 [1 + RESAMPLES, units].

    What is found of the first row is the value, and is summed just as its resamples are.
    """
    return np.concatenate([np.arange(units)[None], resamples(units, group)])


def interval(found: np.ndarray) -> Interval:
    """A value with the percentiles of its resamples. It is inside them: low <= value <= high.

    found: the value, and what the resamples have instead of it: [1 + resamples].
    """
    value = float(found[0])
    low, high = np.percentile(found[1:], [2.5, 97.5]).tolist()
    return Interval(value, min(low, value), max(high, value))


def stretched(found: np.ndarray, alone: np.ndarray, units: int) -> np.ndarray:
    """Resamples of so many units that vary as much as other samples would.

    Drawn from n units, a mean has but (n - 1) / n of the variance that it should have. So what
    resamples are off the value, found[0], is multiplied by sqrt(n / (n - 1)) (Rao and Wu,
    "Resampling Inference With Complex Survey Data", 1988). They do not leave the range of what
    units have alone.
    """
    wide = found[0] + (found - found[0]) * np.sqrt(units / max(1, units - 1))
    inside = np.append(found, alone)
    return np.asarray(np.clip(wide, inside.min(), inside.max()))


def ratio(
    top: np.ndarray, bottom: np.ndarray, groups: Sequence[int] | np.ndarray | None = None
) -> Interval:
    """sum(top) / sum(bottom), with the percentiles of its resamples over units.

    With several groups, units are drawn within theirs: how groups differ does not widen the
    interval, which is `stretched` for the size of the smallest one: exact for groups of one size,
    else a little wide. Where a group has a single unit, which says nothing of how others would
    differ from it, all units are drawn together.

    Args:
        top, bottom: [units] each. Resamples without anything at the bottom are left out.
        groups: int [units], the group of each: strata that another sample would have too, such as
            the tasks of a benchmark. The seeds that units were drawn with are none.
    """
    tops, bottoms = np.zeros(1 + RESAMPLES), np.zeros(1 + RESAMPLES)
    members = _members(len(top), groups)
    for index, units in enumerate(members):
        picked = units[picks(len(units), index)]
        tops, bottoms = tops + top[picked].sum(1), bottoms + bottom[picked].sum(1)
    full = bottoms > 0
    alone = top[bottom > 0] / bottom[bottom > 0]
    return interval(stretched(tops[full] / bottoms[full], alone, min(map(len, members))))


def _members(units: int, groups: Sequence[int] | np.ndarray | None) -> list[np.ndarray]:
    """The units of each group; all of them where there are none, or a group has but one."""
    everything = [np.arange(units)]
    if groups is None:
        return everything
    labels = np.asarray(groups)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels).tolist()]
    return everything if min(map(len, members)) == 1 else members
