"""Commands that end as people expect: a failure is one line and an exit code, without a traceback.

Exit codes: 0 done, 2 bad usage, 130 interrupted, 1 anything else. `--debug` shows the traceback
instead.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from lrdata.errors import describe
from lrdata.visible import visible


class Commands(click.Group):
    """A click group that turns failures into one line and an exit code.

    Unexpected exceptions are bugs: they too become one line, which names `--debug`.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        given = kwargs.pop("args", args[0] if args else None)
        given = sys.argv[1:] if given is None else given
        debug = "--debug" in given
        arguments = [arg for arg in given if arg != "--debug"]
        try:
            with _terminated_as_interrupted():
                code = super().main(arguments, **{**kwargs, "standalone_mode": False})
        except click.UsageError as problem:
            if arguments:
                _stop(f"{problem.format_message()}{_where_to_look(problem)}", 2)
            problem.show()  # the bare command: its help
            sys.exit(2)
        except click.ClickException as problem:
            _stop(problem.format_message(), problem.exit_code)
        except (Exception, KeyboardInterrupt) as problem:
            if debug:
                raise
            if not isinstance(problem, (KeyboardInterrupt, click.Abort)):
                _stop(describe(problem), 1)
            interrupted = describe(KeyboardInterrupt())
            _leave_threads(interrupted)
            _stop(interrupted, 130)
        sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM stops a command as Ctrl-C does: with a line, and its files in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave_threads(message: str) -> None:
    """End at once if threads are at work: Python would wait for them, and all is safe to leave."""
    busy = [thread for thread in threading.enumerate() if not thread.daemon]
    if busy != [threading.main_thread()]:
        _say(message)
        sys.stdout.flush()
        os._exit(130)


def _stop(message: str, code: int) -> NoReturn:
    _say(message)
    sys.exit(code)


def _say(message: str) -> None:
    """On one line; names in it may be those of a stranger's dataset, and a terminal obeys text."""
    click.echo(f"error: {visible(' '.join(message.split()))}", err=True)


def _where_to_look(problem: click.UsageError) -> str:
    return f" (see {problem.ctx.command_path} --help)" if problem.ctx else ""
