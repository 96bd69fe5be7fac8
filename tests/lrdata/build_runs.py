"""`lrdata build` as people run it: in a process of its own, which may be killed.

    python -m tests.lrdata.build_runs DEATH build corpus/ ...    # DEATH: a `Death` as JSON

runs the command line with a function of `os` or `shutil` replaced by one that kills the process
before or after its n-th call for a path of some form: no hook in lrdata is needed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
SECONDS_TO_FINISH = 300
"""A build that takes longer hangs."""

_HOMES = {"replace": os, "rename": os, "unlink": os, "rmdir": os, "rmtree": shutil}


@dataclass(frozen=True)
class Death:
    """When a build is to die: around the n-th call of `call` for a path with `pattern` in it.

    call: replace, rename (whose target counts), unlink, rmdir or rmtree. pattern: a regular
    expression.
    """

    moment: Literal["before", "after"]
    call: str
    pattern: str
    nth: int = 1


def command(corpora: Sequence[Path], out: Path, tokenizer: Path, *options: str) -> list[str]:
    """The arguments of `lrdata` for a build."""
    paths = [str(path) for path in corpora]
    return ["build", *paths, "--out", str(out), "--tokenizer", str(tokenizer), *options]


def start(arguments: Sequence[str], death: Death | None = None, **env: str) -> subprocess.Popen:
    """A build in a process group of its own, so that all of it can be killed at once."""
    program = ["lrdata", *arguments]
    if death is not None:
        program = ["tests.lrdata.build_runs", json.dumps(asdict(death)), *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", *program],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(
    arguments: Sequence[str], death: Death | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """A build, waited for. Its processes are gone when this returns, whatever happened."""
    process = start(arguments, death, **env)
    try:
        out, err = process.communicate(timeout=SECONDS_TO_FINISH)
    finally:
        kill(process)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def kill(process: subprocess.Popen) -> bool:
    """SIGKILL to the whole group; False where nothing of it was left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        process.communicate()
    return True


def wait_until_gone(process: subprocess.Popen) -> None:
    """Wait for what a build that ended has started; fails where something of it stays."""
    deadline = time.monotonic() + 30
    while left := [pid for pid in _running() if _group(pid) == process.pid]:
        assert time.monotonic() < deadline, f"processes {left} outlive their build"
        time.sleep(0.05)


def _running() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _group(pid: int) -> int | None:
    """The process group; None for a process that has ended, reaped or not."""
    try:
        state, _, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(group)


def error_lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def _arm(death: Death) -> None:
    home, calls = _HOMES[death.call], 0
    real: Any = getattr(home, death.call)

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        target = str(arguments[1 if death.call in ("replace", "rename") else 0])
        found = re.search(death.pattern, target) is not None
        calls += found
        due = found and calls == death.nth
        if due and death.moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **options)
        if due and death.moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(home, death.call, dying)


if __name__ == "__main__":
    _arm(Death(**json.loads(sys.argv[1])))
    from lrdata.cli import main

    main(sys.argv[2:], prog_name="lrdata")
