"""Engines: results in order, errors as they are, and a server that may fork."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrdata.engines import open_engine
from lrdata.engines.local import _ONE_THREAD, crew
from lrdata.engines.warm import WARM
from lrdata.errors import LongRecipeError


def slower_first(number: int) -> tuple[int, int]:
    time.sleep(0.05 if number % 3 == 0 else 0.0)
    return number, os.getpid()


def fails(number: int) -> int:
    if number == 2:
        raise LongRecipeError("two is wrong")
    return number


def touches(path: Path) -> None:
    path.with_suffix(".begun").touch()
    time.sleep(0.03)
    path.with_suffix(".begun").rename(path)


def dies(number: int) -> int:
    os._exit(1)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    with crew(workers) as processes:
        results = list(processes.run(slower_first, range(12)))
        assert processes.call(fails, 1) == 1
    assert [number for number, _ in results] == list(range(12))
    assert (os.getpid() in {pid for _, pid in results}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_job_is_raised_as_it_is(workers: int) -> None:
    with crew(workers) as processes:
        results = processes.run(fails, range(5))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(LongRecipeError, match="two is wrong"):
            next(results)
        with pytest.raises(LongRecipeError, match="two is wrong"):
            processes.call(fails, 2)


def test_closing_cancels_what_waits_and_waits_for_what_runs(tmp_path: Path) -> None:
    with crew(2) as processes:
        results = processes.run(touches, [tmp_path / str(number) for number in range(40)])
        next(results)
        results.close()
        seen = {path.name for path in tmp_path.iterdir()}
        assert len(seen) < 20
        assert not any(name.endswith(".begun") for name in seen)
        time.sleep(0.1)
        assert {path.name for path in tmp_path.iterdir()} == seen


def test_a_process_that_dies_is_one_clear_line() -> None:
    with pytest.raises(LongRecipeError, match="a worker process died"), crew(2) as processes:
        list(processes.run(dies, range(4)))


def test_unknown_engines_are_named() -> None:
    with pytest.raises(
        LongRecipeError, match="--engine slurm is unknown; choose one of local, ray"
    ):
        open_engine("slurm")


def warm_server(tokenizer: Path, **environment: str) -> dict[str, int]:
    """What a server has when it has imported all: its threads, and the tokenizers it holds."""
    program = (
        "import json, lrdata.engines.warm as warm, lrdata.unit as unit;"
        "loaded = [f.cache_info().currsize for f in (unit._load, unit._open_encoder)];"
        "print(json.dumps({'threads': warm.threads(), 'loaded': sum(loaded)}))"
    )
    wanted = {"name": str(tokenizer), "eot": None, "encoder": "auto"}
    env = {**os.environ, **_ONE_THREAD, WARM: json.dumps(wanted), **environment}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_a_server_with_the_tokenizer_has_one_thread(tiny_tokenizer: Path) -> None:
    """Else it must not fork: this holds the libraries to it."""
    assert warm_server(tiny_tokenizer) == {"threads": 1, "loaded": 2}


def test_a_server_with_threads_loads_nothing(tiny_tokenizer: Path) -> None:
    many = warm_server(tiny_tokenizer, OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2")
    assert many["threads"] > 1
    assert many["loaded"] == 0


def test_a_server_without_its_tokenizer_goes_on(tmp_path: Path) -> None:
    assert warm_server(tmp_path / "none") == {"threads": 1, "loaded": 0}
