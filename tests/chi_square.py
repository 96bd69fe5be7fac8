"""Pearson's chi-square test, for draws that should follow a known distribution."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from math import sqrt


def assert_follows(draws: Iterable[Hashable], expected: Mapping[Hashable, float]) -> None:
    """Fail unless the draws could come from the distribution (outcome -> probability).

    An outcome outside of it fails at once. The statistic is compared with chi-square by the
    Wilson-Hilferty approximation, at 4 standard deviations: about 3 in 100,000 by chance.
    """
    counts = Counter(draws)
    strangers = set(counts) - set(expected)
    assert not strangers, f"impossible outcomes: {sorted(map(str, strangers))[:5]}"
    total, weight = sum(counts.values()), sum(expected.values())
    wanted = {outcome: total * share / weight for outcome, share in expected.items()}
    assert min(wanted.values()) >= 5, "too few draws for this test"
    statistic = sum((counts[outcome] - want) ** 2 / want for outcome, want in wanted.items())
    freedom = len(wanted) - 1
    deviation = ((statistic / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / sqrt(2 / (9 * freedom))
    assert deviation < 4, f"chi-square {statistic:.0f} with {freedom} degrees of freedom"


def evenly(outcomes: Iterable[Hashable]) -> dict[Hashable, float]:
    """Every outcome equally likely; an outcome given twice counts twice."""
    return dict(Counter(outcomes))
