"""The Ray engine: the contract of every engine, a cluster's ways to fail, and the same bytes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrdata.engines import ray as engine
from lrdata.errors import LongRecipeError
from tests.corpora import content, several_files
from tests.lrdata import build_runs

WORKERS = 2
SECONDS_TO_START = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster of one machine, started elsewhere, that this process is told of by RAY_ADDRESS."""
    folder = tmp_path_factory.mktemp("cluster")
    # Sockets lie in the folder, and the path of a socket must be short.
    state = Path("/tmp", f"longrecipe-ray-{os.getpid()}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    secrets = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test-alone-0123456789abcdef"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    options = [f"--port={port}", f"--num-cpus={WORKERS}", f"--temp-dir={state}"]
    options += [
        "--include-dashboard=false",
        "--disable-usage-stats",
        "--object-store-memory=100000000",
    ]
    with pytest.MonkeyPatch.context() as patch, open(folder / "log", "w+") as log:
        for name, value in secrets.items():
            patch.setenv(name, value)
        head = subprocess.Popen([*command, *options], cwd=folder, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + SECONDS_TO_START
            while "Ray runtime started" not in Path(log.name).read_text():
                assert head.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline, Path(log.name).read_text()
                time.sleep(0.1)
            patch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
            yield
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(SECONDS_TO_START)
            shutil.rmtree(state)


def wait_for_any(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not any(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"{folder / pattern} did not appear"
        time.sleep(0.02)


# The contract. Jobs are local functions: they travel by value, so a worker need not import tests.


@pytest.mark.usefixtures("cluster")
def test_results_come_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    def square(number: int) -> int:
        if number == 0:  # finishes after the job behind it
            while not (tmp_path / "1").exists():
                time.sleep(0.02)
        (tmp_path / str(number)).touch()
        return number * number

    assert list(engine.run(square, range(20), WORKERS)) == [n * n for n in range(20)]
    assert list(engine.run(square, [], WORKERS)) == []


@pytest.mark.usefixtures("cluster")
def test_closing_cancels_what_waits_and_what_runs(tmp_path: Path) -> None:
    def touch_and_stay(number: int) -> int:
        (tmp_path / f"{number} began").touch()
        while number:  # until it is interrupted
            time.sleep(0.02)
        (tmp_path / f"{number} ended").touch()
        return number

    results = engine.run(touch_and_stay, range(100), WORKERS)
    assert next(results) == 0
    wait_for_any(tmp_path, "1 began")
    results.close()
    seen = {path.name for path in tmp_path.iterdir()}
    assert [name for name in seen if name.endswith("ended")] == ["0 ended"]
    assert len(seen) <= 1 + 1 + 2 * WORKERS  # no more were ever given to Ray
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.usefixtures("cluster")
def test_an_error_of_a_job_is_the_error_it_was(tmp_path: Path) -> None:
    def refuse(number: int) -> int:
        if number == 3:
            raise LongRecipeError("c.jsonl has no field 'text'; use --text-field")
        return number

    results = engine.run(refuse, range(50), WORKERS)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LongRecipeError) as raised:
        next(results)
    assert type(raised.value) is LongRecipeError
    assert str(raised.value) == "c.jsonl has no field 'text'; use --text-field"


@pytest.mark.usefixtures("cluster")
def test_a_job_whose_worker_was_killed_is_done_again(tmp_path: Path) -> None:
    def die_once(number: int) -> int:
        first = tmp_path / str(number)
        if number == 2 and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert list(engine.run(die_once, range(4), WORKERS)) == [0, 1, 2, 3]
    assert (tmp_path / "2").exists()


@pytest.mark.usefixtures("cluster")
def test_a_job_that_always_kills_its_worker_is_an_error_with_a_way_on() -> None:
    def die(number: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(LongRecipeError, match=r"Ray lost a unit .*the same command goes on"):
        list(engine.run(die, [1], WORKERS))


@pytest.mark.usefixtures("cluster")
def test_relative_paths_of_a_job_are_those_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: str) -> str:
        return Path(path).read_text()

    (tmp_path / "here.txt").write_text("found")
    monkeypatch.chdir(tmp_path)
    assert list(engine.run(read, ["here.txt"], WORKERS)) == ["found"]


@pytest.mark.usefixtures("cluster")
def test_sigterm_and_usage_statistics_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)

    def handler(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert list(engine.run(abs, [-1], WORKERS)) == [1]
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    list(engine.run(abs, [1], WORKERS))
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


# Without a cluster


def test_a_killed_build_ends_with_the_bytes_of_a_local_one(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """Ray is started by the build, and what the killed one had finished is not done again."""
    corpus = several_files(tmp_path / "corpus", 400_000)
    options = ["--target-len", "1k", "--workers", "2"]
    local = build_runs.command(corpus, tmp_path / "local" / "shards", tiny_tokenizer, *options)
    assert build_runs.run(local).returncode == 0
    arguments = build_runs.command(corpus, tmp_path / "ray" / "shards", tiny_tokenizer, *options)
    env = {"HOME": str(tmp_path), "RAY_ADDRESS": "local"}
    process = build_runs.start([*arguments, "--engine", "ray"], **env)
    wait_for_any(tmp_path / "ray" / "shards", ".build/*/unit-*.json")
    assert build_runs.kill(process)
    finished = build_runs.run([*arguments, "--engine", "ray"], **env)
    assert finished.returncode == 0, finished.stderr
    assert "ray" not in finished.stderr.lower().replace("array", "")  # nothing of its own logs
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LongRecipeError, match=r"pip install 'longrecipe\[ray\]'"):
        list(engine.run(abs, [1], WORKERS))


def test_an_address_that_is_none_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(LongRecipeError, match=r"cannot use Ray at nonsense .*check RAY_ADDRESS"):
        list(engine.run(abs, [1], WORKERS))
