"""Stop when it suits: a signal asks for it, and the same one again does not wait.

The other one after it is no second request: torchrun ends the ranks that are left when one has
ended, by SIGTERM whatever that one was told. Nor is the same one soon after it, of what torchrun
started: a scheduler that tells every process of a job tells torchrun too, which passes the same
signal on to its ranks. A terminal tells torchrun alone: each rank is in a session of its own. When
the terminal goes, torchrun passes SIGHUP on, also where it was started with nohup.

with stop_asked() as asked:
    while not asked():
        ...
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

_ECHO = 10.0
"""Seconds in which the same signal is its echo; milliseconds, where nothing hangs."""


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Whether a signal has asked to stop. Outside of the main thread none ever does."""
    asked = dict[int, float]()  # when each came first
    echo = _ECHO if "WORLD_SIZE" in os.environ else 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number in asked and now - asked[number] >= echo:
            raise KeyboardInterrupt
        asked.setdefault(number, now)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in _signals()}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signals() -> list[signal.Signals]:
    """nohup's is left as it is: ignored."""
    of_torchrun = [signal.SIGHUP] if "WORLD_SIZE" in os.environ else []
    return [signal.SIGINT, signal.SIGTERM, *of_torchrun]


def speaks(rank: str = "RANK") -> bool:
    """Whether this process speaks for all that torchrun started; LOCAL_RANK: for those here."""
    return os.environ.get(rank, "0") == "0"


def end_after_the_first() -> NoReturn:
    """The quiet end of one that does not speak, where the first says what is wrong for all."""
    with suppress(KeyboardInterrupt):  # torchrun's, when the first has ended
        time.sleep(5)  # else torchrun would end the first, who may not have said it
    raise SystemExit(1)
