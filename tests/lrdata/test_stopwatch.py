"""Processor time by stage: nothing is counted twice, waiting counts for nobody."""

import time

import pytest

from lrdata.stopwatch import Stopwatch, total


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A thread's time that only moves when the test says so."""
    now = [0.0]
    monkeypatch.setattr(time, "thread_time", lambda: now[0])
    return now


def test_an_inner_stage_is_not_counted_to_the_outer_one(clock: list[float]) -> None:
    watch = Stopwatch()
    with watch("outer"):
        clock[0] += 1
        with watch("inner"):
            clock[0] += 10
            with watch("innermost"):
                clock[0] += 100
        clock[0] += 1000
    assert watch.seconds == {"outer": 1001, "inner": 10, "innermost": 100}


def test_the_time_of_an_iterator_is_that_of_its_steps(clock: list[float]) -> None:
    def slowly() -> object:
        for item in range(3):
            clock[0] += 1
            yield item
        clock[0] += 5

    watch, seen = Stopwatch(), []
    for item in watch.each("read", slowly()):
        with watch("use"):
            clock[0] += 20
        seen.append(item)
    assert seen == [0, 1, 2]
    assert watch.seconds == {"read": 8, "use": 60}


def test_stages_that_fail_count_too(clock: list[float]) -> None:
    watch = Stopwatch()

    def fails() -> None:
        with watch("work"):
            clock[0] += 3
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    assert watch.seconds == {"work": 3}


def test_seconds_of_several_add_up() -> None:
    assert total([{"a": 1.0, "b": 2.0}, {}, {"b": 3.0}]) == {"a": 1.0, "b": 5.0}
