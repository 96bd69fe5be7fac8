"""The disk fills while a build runs: a clear line, nothing half, and the same command goes on.

Every build runs in a mount namespace of its own, with a small file system in memory: as root, or
as anybody where the kernel lets people have user namespaces.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpora import content, several_files
from tests.lrdata.build_runs import ROOT, SECONDS_TO_FINISH, Death, command, error_lines, run

OPTIONS = ("--target-len", "1k", "--workers", "1")
ENOUGH = 64 * 1024**2
"""Bytes in which the whole build has room."""

NAMESPACE = ["unshare", "--mount"]
if os.geteuid() != 0:
    NAMESPACE += ["--user", "--map-root-user"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight units."""
    return several_files(tmp_path_factory.mktemp("corpus"), 2_000_000)


@pytest.fixture(scope="module")
def whole(
    corpus: list[Path], tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("reference") / "shards"
    done = run(command(corpus, out, tiny_tokenizer, *OPTIONS))
    assert done.returncode == 0, done.stderr
    return content(out)


PLACES = {
    "in the first shard": r"\.build/.*unit-00000.*parquet$",
    "in a later shard": r"\.build/.*unit-00004.*parquet$",
    "in the last receipt": r"\.build/.*unit-00007.json$",
    "at the list of final names": r"\.build/.*publish\.json$",
    "at the card": r"shards/README\.md$",
    "at the manifest": r"shards/manifest\.json$",
}
"""Which file is the first that has no room."""


def space_without(pattern: str, arguments: list[str], out: Path) -> int:
    """Bytes that a build takes on a file system in memory when it has written, but not yet named,
    the file that the pattern finds: less one page, in which it does not fit."""
    died = run(arguments, Death("before", "replace", pattern))
    assert died.returncode == -signal.SIGKILL, died.stderr
    page = os.sysconf("SC_PAGE_SIZE")
    pages = sum(-(-len(data) // page) for data in content(out).values())
    return (pages - 1) * page


@pytest.mark.slow
@pytest.mark.parametrize("place", list(PLACES))
def test_a_full_disk_is_one_clear_line_and_room_is_all_it_needs(
    place: str,
    corpus: list[Path],
    whole: dict[str, bytes],
    tiny_tokenizer: Path,
    tmp_path: Path,
) -> None:
    trial = tmp_path / "trial" / "shards"
    arguments = command(corpus, trial, tiny_tokenizer, *OPTIONS)
    sizes = [space_without(PLACES[place], arguments, trial), ENOUGH]
    mount, seen = tmp_path / "disk", tmp_path / "seen"
    mount.mkdir()
    arguments = command(corpus, mount / "shards", tiny_tokenizer, *OPTIONS)
    program = [sys.executable, "-m", "tests.lrdata.test_disk_full", str(mount), str(seen)]
    done = subprocess.run(
        [*NAMESPACE, *program, json.dumps(sizes), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS_TO_FINISH,
    )
    assert done.returncode == 0, done.stderr
    full, roomy = (json.loads((seen / f"{at}.json").read_text()) for at in range(2))
    assert full["code"] == 1, full
    assert "Traceback" not in full["stderr"]
    (line,) = error_lines(full["stderr"])
    assert "no space left" in line
    assert "free some and run the same command" in line
    left = content(seen / "0" / "shards")
    assert not any(re.search(PLACES[place], f"shards/{name}") for name in left)
    assert not any(name.endswith(".partial") for name in left)  # what is half gives its room back
    for name, data in left.items():  # renames take no room: some may be done
        assert name.startswith(".build/") or data == whole[name]
    assert roomy["code"] == 0, roomy
    assert content(seen / "1" / "shards") == whole


def _inside(mount: Path, seen: Path, sizes: list[int], arguments: list[str]) -> None:
    """Run a command on a file system of each size in turn; keep its result and a copy of all."""
    for at, size in enumerate(sizes):
        action = ["-o", f"remount,size={size}"] if at else ["-t", "tmpfs", "-o", f"size={size}"]
        source = ["--options-source=disable"] if at else ["tmpfs"]
        subprocess.run(["mount", *action, *source, str(mount)], check=True)
        done = run(arguments)
        subprocess.run(["cp", "-a", f"{mount}/.", str(seen / str(at))], check=True)
        result = {"code": done.returncode, "stderr": done.stderr}
        (seen / f"{at}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    _mount, _seen, _sizes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    _seen.mkdir()
    _inside(_mount, _seen, _sizes, sys.argv[4:])
