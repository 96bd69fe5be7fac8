"""The first signal asks to stop, the same again does not wait; then all is as it was before."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lrtrain import interrupt
from lrtrain.interrupt import stop_asked

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def heard() -> Iterator[list[int]]:
    """What reaches the handlers of before, which only write it down."""
    found = list[int]()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: found.append(number))
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_to_stop(number: signal.Signals, heard: list[int]) -> None:
    with stop_asked() as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked()
        assert asked(), "it was not forgotten"
    assert heard == []


@pytest.mark.parametrize("number", SIGNALS)
def test_the_same_signal_again_does_not_wait(number: signal.Signals, heard: list[int]) -> None:
    before, lines = handlers(), list[str]()

    def work() -> None:
        with stop_asked():
            signal.raise_signal(number)
            lines.append("after the first")
            signal.raise_signal(number)
            lines.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert lines == ["after the first"]
    assert handlers() == before
    assert heard == []


@pytest.mark.parametrize("number", SIGNALS)
def test_the_same_signal_again_is_an_echo_of_what_torchrun_started_till_later(
    number: signal.Signals, heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler tells torchrun and its ranks, and torchrun tells them once more."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(interrupt, "_ECHO", 0.2)
    with stop_asked() as asked:
        for _ in range(3):
            signal.raise_signal(number)
        assert asked()
        time.sleep(0.3)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert heard == []


@pytest.mark.parametrize(("first", "second"), [SIGNALS, SIGNALS[::-1]])
def test_the_other_signal_after_one_is_no_second_request(
    first: signal.Signals, second: signal.Signals, heard: list[int]
) -> None:
    """torchrun ends by SIGTERM the ranks that are left when one has ended: all had a SIGINT."""
    before = handlers()
    with stop_asked() as asked:
        signal.raise_signal(first)
        signal.raise_signal(second)
        assert asked()
    assert handlers() == before
    assert heard == []


@pytest.mark.parametrize(("first", "second"), [SIGNALS, SIGNALS[::-1]])
@pytest.mark.parametrize("again", SIGNALS)
def test_after_both_either_of_them_does_not_wait(
    first: signal.Signals, second: signal.Signals, again: signal.Signals
) -> None:
    before, lines = handlers(), list[str]()

    def work() -> None:
        with stop_asked():
            signal.raise_signal(first)
            signal.raise_signal(second)
            lines.append("after both")
            signal.raise_signal(again)
            lines.append("after the third")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert lines == ["after both"]
    assert handlers() == before


@pytest.mark.parametrize("number", SIGNALS)
def test_afterwards_signals_do_what_they_did(number: signal.Signals, heard: list[int]) -> None:
    before = handlers()
    with stop_asked():
        assert handlers() != before
        signal.raise_signal(number)
    assert handlers() == before
    signal.raise_signal(number)
    assert heard == [number]


def test_handlers_come_back_after_an_error() -> None:
    before = handlers()
    with pytest.raises(ZeroDivisionError), stop_asked():
        raise ZeroDivisionError
    assert handlers() == before


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_signals_that_had_no_handler_have_none_afterwards(handler: signal.Handlers) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)
    with stop_asked() as asked:
        signal.raise_signal(signal.SIGTERM)
        assert asked()
    assert handlers() == [handler, handler]


def test_each_stage_is_asked_anew() -> None:
    with stop_asked() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked()
    with stop_asked() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()


def test_in_another_thread_nothing_changes(heard: list[int]) -> None:
    """Python handles signals in the main thread alone, and lets no other set a handler."""
    before = handlers()
    inside, told = threading.Event(), threading.Event()
    seen = list[bool]()

    def work() -> None:
        with stop_asked() as asked:
            seen.append(asked())
            inside.set()
            assert told.wait(60)
            seen.append(asked())

    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(work)
        assert inside.wait(60)
        assert handlers() == before
        signal.raise_signal(signal.SIGTERM)
        told.set()
        done.result(60)
    assert seen == [False, False]
    assert heard == [signal.SIGTERM]
    assert handlers() == before
