"""What a person sees when something is wrong: one line, an exit code, no traceback.

`error: what, where, what to do`. Exit codes: 0 done, 2 bad usage, 1 anything else. `--debug` shows
the traceback instead.
"""

import errno
import sys
from typing import Any

import click


class LongRecipeError(Exception):
    """A problem a person can act on. The message is one line: what, where, what to do."""


class Commands(click.Group):
    """A click group that turns expected failures into one line and exit code 1.

    Unexpected exceptions are bugs: they too become one line, which names `--debug`.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        arguments = list(kwargs.pop("args", None) or (args[0] if args else sys.argv[1:]))
        debug = "--debug" in arguments
        try:
            return super().main([a for a in arguments if a != "--debug"], **kwargs)
        except (Exception, KeyboardInterrupt) as problem:
            if debug:
                raise
            click.echo(f"error: {describe(problem)}", err=True)
            sys.exit(130 if isinstance(problem, KeyboardInterrupt) else 1)


def describe(problem: BaseException) -> str:
    """One line for any exception."""
    if isinstance(problem, LongRecipeError):
        return " ".join(str(problem).split())
    if isinstance(problem, KeyboardInterrupt):
        return "interrupted; the same command goes on from what is finished"
    if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
        where = problem.filename or "the output folder"
        return f"no space left on the disk, writing {where}; free some and run the same command"
    text = " ".join(str(problem).split()) or type(problem).__name__
    if isinstance(problem, OSError) and problem.errno is not None:
        return text
    return f"{type(problem).__name__}: {text} (add --debug for the traceback)"
