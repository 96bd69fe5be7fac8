"""The search of learning rates, the same for every method: from two of them on uphill."""

from collections.abc import Mapping


def best_rate(rates: Mapping[float, float]) -> float:
    """Of rate -> what was retrieved: the best, and of equals the lowest."""
    return max(rates, key=lambda rate: (rates[rate], -rate))


def beyond(rates: Mapping[float, float]) -> float | None:
    """The rate to try next: half or twice of a best one at the edge of those that were tried."""
    best = best_rate(rates)
    if best == min(rates):
        return best / 2
    return best * 2 if best == max(rates) else None
