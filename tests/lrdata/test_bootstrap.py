"""Bootstrap intervals against a loop over the resamples."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lrdata.bootstrap import RESAMPLES, Interval, ratio, resamples
from tests.chi_square import assert_follows, evenly


@st.composite
def units(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """What counts and all of it in each unit; some units hold nothing, but not all."""
    bottom = draw(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any))
    top = [draw(st.integers(0, most)) for most in bottom]
    return np.array(top), np.array(bottom)


@settings(max_examples=20)
@given(units())
def test_an_interval_is_that_of_a_loop_over_the_resamples(
    sums: tuple[np.ndarray, np.ndarray],
) -> None:
    top, bottom = (column.tolist() for column in sums)
    ratios = []
    for picked in resamples(len(top)).tolist():
        whole = sum(bottom[unit] for unit in picked)
        if whole:
            ratios.append(sum(top[unit] for unit in picked) / whole)
    found, value = ratio(*sums), sum(top) / sum(bottom)
    assert found.value == pytest.approx(value)
    alone = [one / whole for one, whole in zip(top, bottom, strict=True) if whole]
    spread = (len(top) / max(1, len(top) - 1)) ** 0.5  # of n units one knows the mean but for that
    off = [value + spread * (one - value) for one in ratios]
    low, high = np.percentile(np.clip(off, min(alone), max(alone)), [2.5, 97.5])
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20).filter(any), st.integers(0, 5))
def test_where_all_units_have_the_same_ratio_there_is_no_doubt(
    bottom: list[int], times: int
) -> None:
    assert ratio(times * np.array(bottom), np.array(bottom)) == (times, times, times)


@settings(max_examples=50)
@given(
    units=st.lists(
        st.tuples(st.floats(0, 1), st.floats(0.1, 3), st.integers(0, 3)), min_size=1, max_size=24
    ),
    grouped=st.booleans(),
)
def test_a_value_is_inside_its_interval_and_both_inside_the_range_of_the_units(
    units: list[tuple[float, float, int]], grouped: bool
) -> None:
    top, bottom, groups = map(np.array, zip(*units, strict=True))
    found = ratio(top, bottom, groups if grouped else None)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(top.sum() / bottom.sum())
    assert found.low >= (top / bottom).min() - 1e-12
    assert found.high <= (top / bottom).max() + 1e-12


@given(share=st.floats(0, 1), each=st.integers(1, 12), groups=st.integers(1, 12))
@example(share=0.8, each=10, groups=11)
@settings(max_examples=20)
def test_where_all_units_agree_there_is_no_doubt_in_any_groups(
    share: float, each: int, groups: int
) -> None:
    """To the last bit: sums of groups are not the sum of all."""
    top = np.full(each * groups, share)
    found = ratio(top, np.ones(len(top)), np.arange(len(top)) % groups)
    assert found.low == found.value == found.high
    assert found.value == pytest.approx(share)


def half_of(found: Interval) -> float:
    return (found.high - found.low) / 2


@pytest.mark.parametrize("each", [2, 3, 5, 20])
def test_the_interval_of_small_groups_has_the_analytic_standard_error(each: int) -> None:
    """That of a stratified mean, sqrt(sum of n s^2) / N with the unbiased s^2 of each group."""
    draw = np.random.default_rng(each)
    groups = np.arange(600) % (600 // each)
    top = groups + draw.normal(0.0, 1.0, 600)
    variances = [each * top[groups == group].var(ddof=1) for group in range(600 // each)]
    found = ratio(top, np.ones(600), groups)
    assert half_of(found) == pytest.approx(1.96 * np.sqrt(sum(variances)) / 600, rel=0.06)


@pytest.mark.parametrize("units", [5, 12, 100])
def test_the_interval_of_few_units_has_the_analytic_standard_error(units: int) -> None:
    """The mean over many samples of how wide it is, where a normal one would be 1.96 s."""
    draw = np.random.default_rng(units)
    shares = []
    for _ in range(200):
        top = draw.normal(0.0, 1.0, units)
        half = half_of(ratio(top, np.ones(units)))
        shares.append(half / (1.96 * top.std(ddof=1) / np.sqrt(units)))
    # The tails of a sum of five are those of no normal one.
    assert np.mean(shares) == pytest.approx(1.0, rel=0.08 if units == 5 else 0.04)


def test_a_group_of_a_single_unit_leaves_no_groups() -> None:
    draw = np.random.default_rng(5)
    top = draw.normal(0.0, 1.0, 300)
    found = ratio(top, np.ones(300), np.arange(300))
    assert found == ratio(top, np.ones(300))
    assert half_of(found) == pytest.approx(1.96 * top.std(ddof=1) / np.sqrt(300), rel=0.06)
    assert ratio(top, np.ones(300), [0, *[1] * 299]) == found


def test_units_of_a_group_are_drawn_within_it() -> None:
    """Independently of the other group, in proportions that stay: as if each were drawn alone."""
    draw = np.random.default_rng(3)
    top = np.concatenate([draw.normal(1.0, 1.0, 60), draw.normal(9.0, 2.0, 20)])
    groups, ones = np.array([7] * 60 + [2] * 20), np.ones(80)
    found = ratio(top, ones, groups)
    spread = np.sqrt(60 * top[:60].var(ddof=1) + 20 * top[60:].var(ddof=1)) / 80
    assert found.value == pytest.approx(top.mean())
    assert found.low == pytest.approx(top.mean() - 1.96 * spread, abs=0.1 * spread)
    assert found.high == pytest.approx(top.mean() + 1.96 * spread, abs=0.1 * spread)
    assert ratio(top, ones).high - ratio(top, ones).low > 2 * (found.high - found.low)
    again = np.random.default_rng(4).permutation(80)
    mixed = ratio(top[again], ones, groups[again])
    assert mixed.value == pytest.approx(found.value)
    assert mixed.high - mixed.low == pytest.approx(found.high - found.low, rel=0.1)
    assert ratio(top, ones, np.zeros(80, int)) == ratio(top, ones)


def test_units_without_anything_are_left_out_of_the_ratio() -> None:
    """One unit of three holds something: resamples without it have no ratio."""
    assert ratio(np.array([0, 3, 0]), np.array([0, 4, 0])) == (0.75, 0.75, 0.75)


def test_more_units_make_an_interval_narrower() -> None:
    widths = []
    for count in (10, 100, 1000):
        top = (np.arange(count) * 7 % 10) < 5
        found = ratio(top, np.ones(count))
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)


def test_resamples_are_the_same_and_even() -> None:
    picked = resamples(5)
    assert picked.shape == (RESAMPLES, 5)
    np.testing.assert_array_equal(picked, resamples(5))
    assert_follows(picked.ravel().tolist(), evenly(range(5)))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Samples of 40 units of a share of 0.3: 95 % of intervals, less a little for so few units."""
    draw = np.random.default_rng(0)
    held = []
    for _ in range(200):
        bottom = draw.integers(5, 50, 40)
        found = ratio(draw.binomial(bottom, 0.3), bottom)
        held.append(found.low <= 0.3 <= found.high)
    assert 0.88 <= np.mean(held) <= 0.99
