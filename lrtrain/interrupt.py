"""Stop when it suits: SIGINT and SIGTERM ask for it, and the same one again does not wait.

The other one after it is no second request: what stops many ranks, a terminal, a scheduler or
torchrun, may tell them each in its own way.

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

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Whether a signal has asked to stop. Outside of the main thread none ever does."""
    asked = set[int]()

    def ask(number: int, frame: FrameType | None) -> None:
        if number in asked:
            raise KeyboardInterrupt
        asked.add(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def speaks(rank: str = "RANK") -> bool:
    """Whether this process speaks for all that torchrun started; LOCAL_RANK: for those here."""
    return os.environ.get(rank, "0") == "0"


def end_after_the_first() -> NoReturn:
    """The quiet end of one that does not speak, where the first says what is wrong for all."""
    with suppress(KeyboardInterrupt):  # torchrun's, when the first has ended
        time.sleep(5)  # else torchrun would end the first, who may not have said it
    raise SystemExit(1)
