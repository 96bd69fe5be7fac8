"""Colours and bars are for terminals: what goes into a file or another program is plain text."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.lrdata.made_dataset import write_dataset


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "lrdata", "inspect", str(folder)]


def test_a_pipe_gets_plain_text(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    done = subprocess.run(command(tmp_path), capture_output=True, check=True)
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"0 of 6 extend rows" in done.stdout


def test_a_terminal_gets_colours_unless_it_does_not_want_them(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    assert b"\x1b[" in in_a_terminal(command(tmp_path))
    assert b"\x1b[3" not in in_a_terminal(command(tmp_path), NO_COLOR="1")


def in_a_terminal(words: list[str], **more: str) -> bytes:
    """What a program writes to a terminal."""
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR")}
    process = subprocess.Popen(
        words,
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
        env={**env, "TERM": "xterm-256color", **more},
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            part = b""
        if not part:
            break
        written += part
    assert process.wait() == 0, written
    os.close(ours)
    return written
