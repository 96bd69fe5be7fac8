"""A build that is killed, at random and at the worst moments, ends with the bytes of a whole one.

Every build here is the command line in processes of its own. After each death: what has a final
name has its final bytes, and where there is a manifest there is all that it names.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from lrdata.manifest import MANIFEST
from lrdata.verifying import verify
from tests.corpora import content, several_files
from tests.lrdata.build_runs import Death, command, error_lines, kill, run, start, wait_until_gone

KILLS = {1: 16, 2: 16, 4: 12, 5: 8}
"""How many kills at random moments, by the number of workers: more than 50 in all. From five on,
workers are processes."""

OPTIONS = ("--target-len", "1k", "--holdout", "10%", "--seed", "7", "--max-bad", "50%")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight units of all formats, one of them with a record that is rejected."""
    paths = several_files(tmp_path_factory.mktemp("corpus"), 5_000_000)
    with open(paths[0], "a") as file:
        file.write('{"text": 5}\n')
    return paths


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = several_files(tmp_path_factory.mktemp("small"), 300_000)
    with open(paths[0], "a") as file:
        file.write('{"text": 5}\n')
    return paths


@pytest.fixture(scope="module")
def whole(
    corpus: list[Path], tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    return built(corpus, tiny_tokenizer, tmp_path_factory.mktemp("reference") / "shards")


@pytest.fixture(scope="module")
def small_built(
    small_corpus: list[Path], tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    return built(small_corpus, tiny_tokenizer, tmp_path_factory.mktemp("reference") / "shards")


def built(corpus: list[Path], tokenizer: Path, out: Path) -> dict[str, bytes]:
    """The files of a build that nobody disturbs."""
    done = run(command(corpus, out, tokenizer, *OPTIONS, "--workers", "1"))
    assert done.returncode == 0, done.stderr
    return content(out)


def assert_nothing_half(out: Path, whole: dict[str, bytes]) -> None:
    """What a reader can see of a folder in which a build died."""
    for name, data in content(out).items() if out.exists() else ():
        empty = name.endswith("/")
        if not empty and not any(part.startswith(".") for part in Path(name).parts):
            assert data == whole[name], f"{name} has other bytes than it will have"
    if (out / MANIFEST).exists():
        assert verify(out, deep=True) == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", list(KILLS))
def test_kills_at_random_moments_change_no_byte(
    workers: int,
    corpus: list[Path],
    whole: dict[str, bytes],
    tiny_tokenizer: Path,
    tmp_path: Path,
) -> None:
    def build(name: str, workers: int) -> list[str]:
        options = (*OPTIONS, "--workers", str(workers))
        return command(corpus, tmp_path / name / "shards", tiny_tokenizer, *options)

    began = time.monotonic()
    done = run(build("whole", workers))
    duration = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "whole" / "shards") == whole
    draw, kills, folders, midway = random.Random(workers), 0, 0, 0
    while kills < KILLS[workers] or not midway:  # a folder for each build that comes to its end
        folders += 1
        out = tmp_path / f"{folders}" / "shards"
        while not (out / MANIFEST).exists():
            process = start(build(f"{folders}", workers))
            time.sleep(
                duration * draw.random() ** draw.choice((1.0, 0.3))
            )  # rather late than early
            kills += process.poll() is None
            kill(process)
            assert process.returncode in (0, -signal.SIGKILL)
            done_some = any(out.glob(".build/*/unit-*.json"))
            midway += done_some
            if (out / MANIFEST).exists():  # the machine is not as busy, or busier, than it was
                duration *= 0.95
            elif not done_some:
                duration *= 1.05
            assert_nothing_half(out, whole)
        done = run(build(f"{folders}", workers))  # the staging folder may still be there
        assert done.returncode == 0, done.stderr
        assert content(out) == whole
        assert kills < 5 * KILLS[workers], "no kill comes while units are done and others are not"


# One death at each of the worst moments

PLACES = {
    "before the plan has its name": Death("before", "replace", r"\.build/recipe\.json$"),
    "before a shard has its name": Death("before", "replace", r"\.build/.*extend.*parquet$", 3),
    "after a shard has its name": Death("after", "replace", r"\.build/.*extend.*parquet$", 3),
    "before a quarantine has its name": Death("before", "replace", r"\.build/.*quarantine"),
    "before a receipt": Death("before", "replace", r"\.build/.*unit-\d+\.json$", 3),
    "after a receipt": Death("after", "replace", r"\.build/.*unit-\d+\.json$", 3),
    "before the list of final names": Death("before", "replace", r"\.build/.*publish\.json$"),
    "before the first final name": Death("before", "replace", r"/extend/train-"),
    "between two final names": Death("after", "replace", r"/extend/train-", 3),
    "between two kinds": Death("before", "replace", r"/holdout/test-"),
    "before the quarantine's final name": Death("before", "replace", r"shards/quarantine/"),
    "before the card": Death("before", "replace", r"shards/README\.md$"),
    "after the card": Death("after", "replace", r"shards/README\.md$"),
    "before the manifest": Death("before", "replace", r"shards/manifest\.json$"),
    "after the manifest": Death("after", "replace", r"shards/manifest\.json$"),
    "before the staging folder goes": Death("before", "unlink", r"(^|/)publish\.json$"),
    "while the staging folder goes": Death("after", "unlink", r"(^|/)unit-\d+\.json$"),
    "when the staging folder is empty": Death("before", "rmdir", r"/\.build$"),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", list(PLACES))
def test_a_death_at_the_worst_moment_changes_no_byte(
    place: str,
    small_corpus: list[Path],
    small_built: dict[str, bytes],
    tiny_tokenizer: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "shards"
    arguments = command(small_corpus, out, tiny_tokenizer, *OPTIONS, "--workers", "1")
    died = run(arguments, PLACES[place])
    assert died.returncode == -signal.SIGKILL, f"it did not die {place}: {died.stderr}"
    assert_nothing_half(out, small_built)
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert content(out) == small_built


@pytest.mark.slow
def test_a_death_while_an_old_build_is_removed(
    small_corpus: list[Path],
    small_built: dict[str, bytes],
    tiny_tokenizer: Path,
    tmp_path: Path,
) -> None:
    """`--overwrite` that died goes on: the folder is still known to be ours."""
    out = tmp_path / "shards"
    other = command(small_corpus[:3], out, tiny_tokenizer, *OPTIONS, "--workers", "1")
    assert run(other).returncode == 0
    arguments = command(small_corpus, out, tiny_tokenizer, *OPTIONS, "--workers", "1")
    died = run([*arguments, "--overwrite"], Death("before", "rmtree", r"/holdout$"))
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (out / MANIFEST).exists()
    done = run([*arguments, "--overwrite"])
    assert done.returncode == 0, done.stderr
    assert content(out) == small_built


@pytest.mark.slow
def test_deaths_do_not_fill_the_disk(
    small_corpus: list[Path],
    small_built: dict[str, bytes],
    tiny_tokenizer: Path,
    tmp_path: Path,
) -> None:
    """As of machines that are taken away again and again: one half shard is left, not one each."""
    out = tmp_path / "shards"
    arguments = command(small_corpus, out, tiny_tokenizer, *OPTIONS, "--workers", "1")
    death = Death("before", "replace", r"\.build/.*unit-00002.*extend.*parquet$")
    for _ in range(3):
        assert run(arguments, death).returncode == -signal.SIGKILL
        assert len(list(out.rglob(".*.partial"))) == 1
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert content(out) == small_built


# Asked to stop; a part of it killed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_build_that_is_asked_to_stop_says_so_and_goes_on_later(
    number: int,
    workers: int,
    corpus: list[Path],
    whole: dict[str, bytes],
    tiny_tokenizer: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "shards"
    arguments = command(corpus, out, tiny_tokenizer, *OPTIONS, "--workers", str(workers))
    process = start(arguments)
    wait_for_receipt(out)
    # The key reaches all processes that a terminal runs, a batch system's signal one of them.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGKILL)
    assert "Traceback" not in stderr
    assert len(error_lines(stderr)) == 1, stderr
    assert "resource_tracker" not in stderr
    wait_until_gone(process)
    assert [path.name for path in out.iterdir()] == [".build"]
    finished = {
        path.stat().st_mtime_ns
        for receipt in out.glob(".build/*/unit-*.json")
        for path in out.glob(f".build/*/{receipt.stem}.*parquet")
    }
    assert finished
    died = run(arguments, Death("before", "replace", r"shards/README\.md$"))
    assert died.returncode == -signal.SIGKILL
    kept = {path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    assert finished <= kept, "what was finished was done again"
    assert run(arguments).returncode == 0
    assert content(out) == whole


def wait_for_receipt(out: Path) -> None:
    deadline = time.monotonic() + 60
    while not any(out.glob(".build/*/unit-*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_worker_is_one_clear_line_and_no_loss(
    corpus: list[Path], whole: dict[str, bytes], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """What the out-of-memory killer does: it takes one process of many."""
    out = tmp_path / "shards"
    arguments = command(corpus, out, tiny_tokenizer, *OPTIONS, "--workers", "5")
    process = start(arguments)
    wait_for_receipt(out)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    lines = error_lines(stderr)
    assert (process.returncode, len(lines), "Traceback" in stderr) == (1, 1, False), stderr
    assert "memory" in lines[0] or "killed" in lines[0], lines
    wait_until_gone(process)
    assert run(arguments).returncode == 0
    assert content(out) == whole


@pytest.mark.slow
def test_workers_end_when_the_build_is_killed_above_them(
    corpus: list[Path], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """They must neither stay for ever nor write into a folder that another build finished."""
    out = tmp_path / "shards"
    process = start(command(corpus, out, tiny_tokenizer, *OPTIONS, "--workers", "5"))
    wait_for_receipt(out)
    workers = children(process.pid)
    assert workers
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until_gone(process)


def workers_of(pid: int) -> list[int]:
    """The processes that build units: children of the server that the build started."""
    commands = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children(pid)}
    (server,) = (child for child, command in commands.items() if "forkserver" in command)
    return children(server)


def children(pid: int) -> list[int]:
    names = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(name) for name in names]
