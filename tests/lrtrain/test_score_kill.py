"""`lrtrain score`, killed at random and at the worst moments: no byte is another."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from lrdata.manifest import MANIFEST
from lrdata.scores import open_scores
from lrtrain.scoring import ScoreRecipe
from tests.corpora import content
from tests.lrtrain.scoring import FILES, RECIPES, TEXTS, lsd, save_models, write_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base` and `long`."""
    return save_models(tiny_tokenizer, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four documents of more than 512 tokens, and one of fewer than a window."""
    return write_corpus(tmp_path_factory.mktemp("data") / "books", TEXTS)


DEATH = """
import os, re, shutil, signal, sys
moment, call, pattern, nth = sys.argv.pop(1).split(" ")
home = shutil if call == "rmtree" else os
real, calls = getattr(home, call), 0
def dying(*arguments, **options):
    global calls
    found = re.search(pattern, str(arguments[1 if call == "replace" else 0])) is not None
    calls += found
    due = found and calls == int(nth)
    if due and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **options)
    if due and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(home, call, dying)
from lrtrain.cli import main
main()
"""
"""`lrtrain`, with a function of `os` or `shutil` that kills the process around its n-th call for a
path of some form."""

MOMENTS = (
    r"before replace \.score/recipe\.json$ 1",
    r"before replace \.score/sample\.parquet$ 1",
    r"after replace \.score/sample\.parquet$ 1",
    r"before replace \.score/.*\.npy$ 2",
    r"after replace \.score/short.*\.npy$ 1",
    r"before replace scores/scores\.parquet$ 1",
    r"after replace scores/scores\.parquet$ 1",
    r"before replace scores/vocabulary\.parquet$ 1",
    r"before replace scores/manifest\.json$ 1",
    r"after replace scores/manifest\.json$ 1",
)
"""The worst moments of a run, in their order."""


def start(words: Sequence[str], death: str | None = None) -> subprocess.Popen[str]:
    program = ["-m", "lrtrain"] if death is None else ["-c", DEATH, death]
    return subprocess.Popen(
        [sys.executable, *program, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_to_its_end(words: Sequence[str], death: str | None = None) -> tuple[int, str]:
    """(exit status, standard error)."""
    process = start(words, death)
    try:
        _, stderr = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, stderr


def command(recipe: ScoreRecipe, out: Path) -> list[str]:
    """A recipe as the command line that a person would write: all windows of 64 tokens."""
    long = ["--long-model", recipe.long_model] if recipe.long_model else []
    options = ["--window", "64", "--id-field", "id", "--tokens", "all", "--per-document", "all"]
    words = ["score", *recipe.corpora, "--model", recipe.model, *long, *options, "--device", "cpu"]
    return [*words, "--out", str(out)]


def assert_nothing_half(out: Path, whole: dict[str, bytes]) -> None:
    """What has a final name has its final bytes; where there is a manifest, all is there."""
    found = content(out) if out.exists() else {}
    for name, data in found.items():
        if not name.startswith("."):
            assert data == whole[name], f"{name} has other bytes than it will have"
    if MANIFEST in found:
        open_scores(out)


@pytest.mark.slow
@pytest.mark.parametrize("method", list(RECIPES))
def test_kills_at_random_moments_change_no_byte(
    method: str, models: Path, corpus: str, tmp_path: Path
) -> None:
    recipe, out = RECIPES[method](corpus, models), tmp_path / "scores"
    whole_code, stderr = run_to_its_end(command(recipe, tmp_path / "whole"))
    assert whole_code == 0, stderr
    whole = content(tmp_path / "whole")
    readings = 2 * open_scores(tmp_path / "whole").manifest.windows
    assert set(whole) == FILES
    draw, midway, code = random.Random(method), 0, -signal.SIGKILL
    targets = sorted(draw.sample(range(readings + 2), 5))  # readings that are there
    for target in targets:
        process = start(command(recipe, out))
        while process.poll() is None and len(list(out.glob(".score/*.npy"))) < target:
            time.sleep(0.001)
        time.sleep(draw.random() / 100)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        code = process.returncode
        assert code in (0, -signal.SIGKILL)
        midway += code != 0 and any(out.glob(".score/*.npy"))
        assert_nothing_half(out, whole)
    assert midway, "no kill came while some readings were there"
    if code:
        code, stderr = run_to_its_end(command(recipe, out))
        assert code == 0, stderr
    assert content(out) == whole


@pytest.mark.slow
def test_a_run_that_dies_at_every_worst_moment_changes_no_byte(
    models: Path, corpus: str, tmp_path: Path
) -> None:
    """At one after the other, each time going on from where the one before died."""
    recipe, out = lsd(corpus, models), tmp_path / "scores"
    code, stderr = run_to_its_end(command(recipe, tmp_path / "whole"))
    assert code == 0, stderr
    whole = content(tmp_path / "whole")
    for moment in MOMENTS:
        code, stderr = run_to_its_end(command(recipe, out), moment)
        assert code == -signal.SIGKILL, f"it did not die {moment}: {stderr}"
        assert_nothing_half(out, whole)
    assert (out / ".score").exists()
    code, stderr = run_to_its_end(command(recipe, out), r"after unlink \.npy$ 3")
    assert code == -signal.SIGKILL, stderr
    assert_nothing_half(out, whole)
    code, stderr = run_to_its_end(command(recipe, out))
    assert code == 0, stderr
    assert content(out) == whole
