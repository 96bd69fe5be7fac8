"""`python bench/gpu` runs to its end where there is no GPU, and goes on from where it was."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def bench(out: Path, *options: str, **more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, ROOT / "bench" / "gpu", "--out", out, "--size", "small", *options]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}
    return subprocess.run(command, capture_output=True, text=True, env=own)


def test_what_fails_for_a_package_is_tried_again_when_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "zstandard.py").write_text("raise ImportError('no zstandard here')")
    out = tmp_path / "out"
    done = bench(out, "--seconds", "0", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "the machine cannot be measured: ImportError: no zstandard here" in done.stderr
    (tmp_path / "zstandard.py").unlink()
    assert bench(out, "--seconds", "0").returncode == 0


def test_a_cell_that_lacks_bitsandbytes_is_not_kept(tmp_path: Path) -> None:
    """By its exit code, which is that of a missing package."""
    (tmp_path / "bitsandbytes.py").write_text("raise ImportError('no bitsandbytes here')")
    size = {"shape": "tiny", "tokens": 64, "rows": 1, "rows_per_step": 1}
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "bench" / "gpu" / "cells.py", "train"),
            json.dumps({**size, "options": {"moments": "8bit"}}),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines()[-1] == "ImportError: no bitsandbytes here"


@pytest.mark.slow
def test_the_small_shapes_run_to_their_end_on_a_cpu(tmp_path: Path) -> None:
    done = bench(tmp_path, "--seconds", "0")
    assert done.returncode == 0, done.stderr
    assert "stopped before backends; run the same command to go on" in done.stdout
    done = bench(tmp_path)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == results
    skipped = {name: cell["skipped"] for name, cell in results.items() if "skipped" in cell}
    assert not skipped
    for name in ("short", "short-least", "long"):
        cell = results[name]
        assert cell["losses"][1] < cell["losses"][0], "the same first row again, after an update"
        assert cell["tokens_per_s"] > 0
        assert cell["predicted_bytes"] > 4 * cell["parameters"]
    assert results["backends"]["backends"]["sdpa"]["output"] < 0.02
    for title in ("tiny, all parameters", "What an option saves and costs", "Attention there"):
        assert title in done.stdout
    assert "seconds / operations" in done.stdout
    started = time.monotonic()
    again = bench(tmp_path)
    assert again.stdout == done.stdout, "what is kept is not measured again"
    assert time.monotonic() - started < 20
