"""While the first rank merges the others stay, and end with it: stopped, failed or done. They wait
as long while it reads the base.

torchrun waits 300 s for a host when the ranks of another have ended, and a merge may take longer.
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lrtrain.run_folder
import lrtrain.stages
from lrdata.errors import LongRecipeError
from lrtrain.distributed import ALONE, Ranks
from lrtrain.model_files import SINGLE
from lrtrain.opening import Run
from lrtrain.recipe import TrainRecipe
from tests.lrtrain.blows import RECIPE, assert_said_once
from tests.lrtrain.many import Inputs, build_inputs, on_ranks, train
from tests.lrtrain.many import Ranks as StartedRanks
from tests.lrtrain.test_distributed_deaths import GONE

MERGE = replace(RECIPE, steps=1, stages=("extend", "merge"))


@pytest.fixture(scope="module")
def inputs(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return build_inputs(tiny_tokenizer, tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def trained(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    on_ranks(1, train, inputs, out, replace(MERGE, stages=("extend",)))
    return out


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    """A run whose merge is left."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def assert_merged(inputs: Inputs, out: Path) -> None:
    """And nothing else is there but what was."""
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"extend", "merged"}
    one, other, merged = (
        load_file(folder / SINGLE) for folder in (inputs.model, out / "extend", out / "merged")
    )
    for name, tensor in merged.items():
        assert torch.allclose(tensor, (one[name] + other[name]) / 2, atol=1e-6)


def _merge_for(seconds: float, inputs: Inputs, out: Path, recipe: TrainRecipe) -> bool:
    """Whether it is done where a rank ends."""
    merge = lrtrain.stages.merge_models

    def slowly(*given: Any) -> None:
        time.sleep(seconds)
        merge(*given)

    lrtrain.stages.merge_models = slowly  # the process ends after it
    train(inputs, out, recipe)
    return (out / "merged").exists()


def test_the_others_stay_till_it_is_done(inputs: Inputs, out: Path) -> None:
    """For longer than a rank may be silent."""
    impatient = replace(MERGE, rank_timeout=3)
    assert on_ranks(2, _merge_for, 5.0, inputs, out, impatient) == [True, True]
    assert_merged(inputs, out)


def _read_the_base_for(seconds: float, inputs: Inputs, out: Path, recipe: TrainRecipe) -> None:
    read = lrtrain.run_folder.model_fingerprint

    def slowly(path: str) -> str:
        time.sleep(seconds)
        return read(path)

    lrtrain.run_folder.model_fingerprint = slowly
    train(inputs, out, recipe)


def test_the_others_wait_for_a_large_base(inputs: Inputs, tmp_path: Path) -> None:
    """For longer than a rank may be silent; the run begins then."""
    impatient = replace(MERGE, rank_timeout=3, stages=("extend",))
    on_ranks(2, _read_the_base_for, 5.0, inputs, tmp_path / "run", impatient)
    assert (tmp_path / "run" / "extend").exists()


def _strike_in_the_merge(
    ranks: Sequence[int], number: signal.Signals, inputs: Inputs, out: Path, recipe: TrainRecipe
) -> None:
    """Some ranks are told twice, in the middle of it, which waits for their word."""
    merge, merging = lrtrain.stages.merge_models, out.with_name("merging")

    def strike() -> None:
        while not merging.exists():
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    def slowly(*given: Any) -> None:
        merging.touch()
        until = time.monotonic() + (2 if number == signal.SIGKILL else 60)
        while time.monotonic() < until and not given[-1]():
            time.sleep(0.01)
        merge(*given)

    lrtrain.stages.merge_models = slowly
    if int(os.environ["RANK"]) in ranks:
        threading.Thread(target=strike, daemon=True).start()
    train(inputs, out, recipe)


@pytest.mark.parametrize("told", [[0], [1], [0, 1]])
def test_all_ranks_stop_where_one_is_told_to(told: list[int], inputs: Inputs, out: Path) -> None:
    """At once and with one line, nothing half made is left, and the same command goes on."""
    ended = StartedRanks(2, _strike_in_the_merge, told, signal.SIGTERM, inputs, out, MERGE).end()
    assert_said_once(ended, "interrupted; the same command goes on", by=0, code=130)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"extend"}
    on_ranks(2, train, inputs, out, MERGE)
    assert_merged(inputs, out)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_dies_ends_the_other(dead: int, inputs: Inputs, out: Path) -> None:
    """Which says so. The first one merges before it does."""
    ended = StartedRanks(2, _strike_in_the_merge, [dead], signal.SIGKILL, inputs, out, MERGE).end()
    assert ended[dead].code == -signal.SIGKILL
    assert_said_once([ended[1 - dead]], GONE, by=0)
    if dead == 0:
        on_ranks(2, train, inputs, out, MERGE)
    assert_merged(inputs, out)


def _merge_badly(inputs: Inputs, out: Path, recipe: TrainRecipe) -> None:
    def refuse(*_: Any) -> None:
        raise LongRecipeError("no merge")

    lrtrain.stages.merge_models = refuse
    train(inputs, out, recipe)


def test_what_goes_wrong_is_said_once(inputs: Inputs, out: Path) -> None:
    assert_said_once(StartedRanks(2, _merge_badly, inputs, out, MERGE).end(), "no merge", by=0)


def test_it_has_the_cpus_of_the_ranks_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun gives each rank one thread."""
    seen, before = list[int](), torch.get_num_threads()
    monkeypatch.setattr(
        lrtrain.stages, "merge_models", lambda *_: seen.append(torch.get_num_threads())
    )
    monkeypatch.setattr(lrtrain.stages, "usable_cpus", lambda: before + 1)
    for ranks in (Ranks(0, 2), ALONE):
        opened = Run(tmp_path, "base", None, MERGE, print, ranks, ranks.device)  # type: ignore[arg-type]
        lrtrain.stages._merge(opened, lambda: False)
        assert torch.get_num_threads() == before
    assert seen == [before + 1, before]
