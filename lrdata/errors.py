"""What a person is told when something is wrong: one line, `what, where, what to do`."""

import errno
import re


class LongRecipeError(Exception):
    """A problem a person can act on. The message is one line: what, where, what to do."""


_EXTRAS = {"torch": "train", "transformers": "train", "safetensors": "train"}
"""Packages that come with an extra, where nothing before says so."""


def describe(problem: BaseException) -> str:
    """One line for any exception."""
    if isinstance(problem, LongRecipeError):
        return " ".join(str(problem).split())
    if isinstance(problem, KeyboardInterrupt):
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
