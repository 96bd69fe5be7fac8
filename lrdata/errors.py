"""What a person sees when something is wrong: one line, an exit code, no traceback.

`error: what, where, what to do`. Exit codes: 0 done, 2 bad usage, 130 interrupted, 1 anything else.
`--debug` shows the traceback instead.
"""

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from lrdata.visible import visible


class LongRecipeError(Exception):
    """A problem a person can act on. The message is one line: what, where, what to do."""


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
            interrupted = isinstance(problem, (KeyboardInterrupt, click.Abort))
            if interrupted:
                _leave_threads(describe(problem))
            _stop(describe(problem), 130 if interrupted else 1)
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


_EXTRAS = {"torch": "train", "transformers": "train", "safetensors": "train"}
"""Packages that come with an extra, where nothing before says so."""


def describe(problem: BaseException) -> str:
    """One line for any exception."""
    if isinstance(problem, LongRecipeError):
        return " ".join(str(problem).split())
    if isinstance(problem, (KeyboardInterrupt, click.Abort)):
        return "interrupted; the same command goes on from what is finished"
    if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
        where = problem.filename or "the output folder"
        return f"no space left on the disk, writing {where}; free some and run the same command"
    if isinstance(problem, ModuleNotFoundError) and problem.name in _EXTRAS:
        return (
            f"this needs the package {problem.name}; pip install "
            f"'longrecipe[{_EXTRAS[problem.name]}]'"
        )
    text = " ".join(str(problem).split()) or type(problem).__name__
    if isinstance(problem, OSError) and problem.errno is not None:
        return text
    return f"{type(problem).__name__}: {text} (add --debug for the traceback)"


def told_by_the_system(problem: BaseException) -> int | None:
    """The error number in what libraries written in Rust say in errors of their own."""
    found = re.search(r"\(os error (\d+)\)", str(problem))
    return int(found[1]) if found else None


def one_line(problem: BaseException) -> str:
    """What an error of another library says, on one line of at most 200 characters."""
    return " ".join(str(problem).split())[:200] or type(problem).__name__
