"""Schedules rise, fall, and end as they say."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrtrain.schedules import FLOOR, linear_to_zero, warmup_then


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    steps=st.integers(1, 400),
    warmup=st.floats(0, 1),
)
def test_schedules_rise_then_fall(schedule: str, steps: int, warmup: float) -> None:
    factor = warmup_then(schedule, steps, warmup)
    values = [factor(step) for step in range(steps)]
    assert all(0 < value <= 1 for value in values)
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)
    if math.ceil(warmup * steps) < steps - 1 and schedule != "constant":
        assert values[-1] == pytest.approx(FLOOR)


def test_where_the_schedules_begin_and_end() -> None:
    """101 steps, of which 10 warm up: 1/11 .. 10/11, the peak at step 10, the floor at 100."""
    for schedule, middle, last in (("cosine", 0.55, 0.1), ("linear", 0.55, 0.1)):
        factor = warmup_then(schedule, 101, 10 / 101)
        assert [factor(0), factor(9), factor(10)] == pytest.approx([1 / 11, 10 / 11, 1.0])
        assert factor(55) == pytest.approx(middle)
        assert factor(100) == pytest.approx(last)
    factor = warmup_then("constant", 101, 10 / 101)
    assert [factor(0), factor(10), factor(100)] == pytest.approx([1 / 11, 1.0, 1.0])
    assert warmup_then("cosine", 10, 0.0)(0) == 1.0
    assert linear_to_zero(1)(0) == 1.0  # a single step is not lost


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    steps=st.integers(2, 200),
    warmup=st.floats(0, 1),
)
def test_warm_up_rises_strictly(schedule: str, steps: int, warmup: float) -> None:
    factor = warmup_then(schedule, steps, warmup)
    values = [factor(step) for step in range(math.ceil(warmup * steps))]
    assert all(one < other for one, other in pairwise(values))


@given(steps=st.integers(2, 500))
def test_annealing_goes_to_zero_and_no_step_is_lost(steps: int) -> None:
    factor = linear_to_zero(steps)
    assert factor(0) == 1.0
    assert factor(steps) == 0.0, "there is no such step"
    falls = [factor(step) - factor(step + 1) for step in range(steps)]
    assert falls == pytest.approx([1 / steps] * steps)
