import errno
import subprocess
import sys
import threading
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from lrdata.commands import Commands
from lrdata.errors import LongRecipeError, describe


def fails_with(problem: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise problem

    return work


def run(problem: BaseException, *arguments: str) -> Result:
    """A command of ours that fails, as a user would call it."""
    group = Commands("tool")
    group.command("work")(fails_with(problem))
    return CliRunner().invoke(group, ["work", *arguments], prog_name="tool")


def test_our_errors_are_one_line_and_exit_code_1() -> None:
    result = run(LongRecipeError("no corpus\n at corpus/:  name\ta file"))
    assert result.exit_code == 1
    assert result.stderr == "error: no corpus at corpus/: name a file\n"


def test_a_bug_is_one_line_that_names_debug() -> None:
    result = run(ZeroDivisionError("division\nby zero"))
    assert result.exit_code == 1
    assert result.stderr == (
        "error: ZeroDivisionError: division by zero (add --debug for the traceback)\n"
    )


@pytest.mark.parametrize("arguments", [["--debug", "work"], ["work", "--debug"]])
def test_debug_shows_the_exception_itself(arguments: list[str]) -> None:
    problem = LongRecipeError("wrong")
    group = Commands("tool")
    group.command("work")(fails_with(problem))
    assert CliRunner().invoke(group, arguments).exception is problem


def test_an_interrupt_says_that_work_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # Threads that other tests left behind would end this process.
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    result = run(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr.strip() == (
        "error: interrupted; the same command goes on from what is finished"
    )


def test_a_full_disk_is_named() -> None:
    text = describe(OSError(errno.ENOSPC, "No space left on device", "out/train.parquet"))
    assert text.startswith("no space left on the disk, writing out/train.parquet")
    assert "\n" not in text


def test_a_system_error_keeps_its_own_words() -> None:
    problem = FileNotFoundError(errno.ENOENT, "No such file or directory", "a.jsonl")
    assert describe(problem) == "[Errno 2] No such file or directory: 'a.jsonl'"


@pytest.mark.parametrize(
    "arguments", [["work", "--wrong"], ["work", "more"], ["wrok"], ["--wrong", "work"]]
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    group = Commands("tool")
    group.command("work")(lambda: None)
    result = CliRunner().invoke(group, arguments, prog_name="tool")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "--help" in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["work", "--help"]])
def test_help_is_not_an_error(arguments: list[str]) -> None:
    group = Commands("tool")
    group.command("work")(lambda: None)
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")


def test_the_bare_command_shows_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tool", "--from-another-program"])
    group = Commands("tool")
    group.command("work")(lambda: None)
    assert "Usage:" in CliRunner().invoke(group, []).output


def test_success_and_explicit_exit_codes() -> None:
    group = Commands("tool")
    group.command("work")(lambda: None)
    group.command("stop")(lambda: click.get_current_context().exit(7))
    assert CliRunner().invoke(group, ["work"]).exit_code == 0
    assert CliRunner().invoke(group, ["stop"]).exit_code == 7


def test_arguments_come_from_the_command_line_of_a_real_process() -> None:
    program = (
        "from lrdata.commands import Commands\n"
        "from lrdata.errors import LongRecipeError\n"
        "tool = Commands('tool')\n"
        "@tool.command()\n"
        "def work(): raise LongRecipeError('wrong here')\n"
        "tool()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "work"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: wrong here\n")
