"""What goes wrong on one rank, or on all, is said once, in a line; the others end quietly.

None of them waits for one that has failed.
"""

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lrtrain.checkpoint
import lrtrain.distributed
import lrtrain.loop
import lrtrain.model
import lrtrain.stages
from lrdata.atomic import locked
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.retargeting import retarget
from lrtrain.cli import main
from lrtrain.model_files import SINGLE
from lrtrain.recipe import TrainRecipe
from lrtrain.weights import none
from tests.lrtrain.blows import (
    RECIPE,
    StoppedAfterThree,
    assert_said_once,
    latest,
    steps_of,
)
from tests.lrtrain.lives import command
from tests.lrtrain.many import (
    Inputs,
    Ranks,
    build_inputs,
    on_ranks,
    train,
)


@pytest.fixture(scope="module")
def inputs(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return build_inputs(tiny_tokenizer, tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def stopped_after_three(tmp_path_factory: pytest.TempPathFactory) -> StoppedAfterThree:
    return StoppedAfterThree(tmp_path_factory)


def refused(
    size: int, pattern: str, work: Callable[..., Any], *arguments: Any, by: int = 0
) -> None:
    started = time.monotonic()
    assert_said_once(Ranks(size, work, *arguments).end(), pattern, by)
    assert time.monotonic() - started < RECIPE.rank_timeout, "some waited for others"


@pytest.mark.parametrize(
    ("numbers", "pattern"),
    [
        ({"context_parallel": 3}, "--context-parallel 3 does not make the number of ranks, 4"),
        ({"context_parallel": 8}, "8 does not make .* ranks, 4.*--nproc-per-node 8 "),
        (
            {"context_parallel": 2, "data_parallel": 3},
            "2 times --data-parallel 3 does not make .* ranks, 4; .*--nproc-per-node 6 ",
        ),
        ({"data_parallel": 2}, "1 times --data-parallel 2 does not make the number of ranks, 4"),
    ],
)
def test_numbers_that_do_not_make_the_ranks(
    numbers: dict[str, int], pattern: str, inputs: Inputs, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, **numbers)  # type: ignore[arg-type]
    refused(4, pattern, train, inputs, tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


def test_a_split_without_torchrun_says_how_to_start_it(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(RECIPE, anneal_steps=1)
    words = [*command(inputs, recipe, tmp_path / "run"), "--context-parallel", "2"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --context-parallel 2 does not make the number of ranks, 1;")
    assert "torchrun --nproc-per-node 2 -m lrtrain run" in line


def _train_where_torch_sees_gpus(
    ranks: list[int], inputs: Inputs, out: Path, recipe: TrainRecipe
) -> None:
    """On some hosts, each of one rank."""
    rank = int(os.environ["RANK"])
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    lrtrain.distributed._device = lambda _: gpu if rank in ranks else cpu
    socket.gethostname = lambda: f"host-{rank}"
    train(inputs, out, recipe)


@pytest.mark.parametrize(
    ("gpus", "without"), [([0], "host-1"), ([1], "host-0"), ([1, 2], "host-0, host-3")]
)
def test_a_host_whose_gpus_are_not_seen_is_named_at_once(
    gpus: list[int], without: str, inputs: Inputs, tmp_path: Path
) -> None:
    """Before NCCL there waits for gloo here."""
    size = 2 if len(gpus) == 1 else 4
    pattern = f"torch sees no GPU on {without}, for other ranks it does; .* --device cpu"
    refused(size, pattern, _train_where_torch_sees_gpus, gpus, inputs, tmp_path / "run", RECIPE)


def test_a_damaged_shard_is_said_by_the_rank_that_reads_it(inputs: Inputs, tmp_path: Path) -> None:
    """Each rank reads some of the files."""
    shards = tmp_path / "shards"
    for place, name in enumerate(("extend/train", "replay/train", "holdout/test")):
        shutil.rmtree(shards, ignore_errors=True)
        shutil.copytree(inputs.shards, shards)
        path = shards / f"{name}-00000-of-00001.parquet"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        damaged = replace(inputs, shards=shards)
        pattern = f"{path} does not have the checksum"
        refused(4, pattern, train, damaged, tmp_path / "run", RECIPE, by=place)


def test_what_the_first_rank_refuses(inputs: Inputs, tmp_path: Path) -> None:
    """Another run in the folder, another that is at work there, a kernel that is not here."""
    out = tmp_path / "run"
    with_kernel = replace(RECIPE, attention="flash3")
    refused(2, "--attention flash3 needs a GPU", train, inputs, out, with_kernel)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").touch()
    refused(2, f"{out} is not an empty folder", train, inputs, out, RECIPE)
    (out / "mine.txt").unlink()
    with_lr = replace(RECIPE, lr=1e-3)
    refused(2, "holds another run", _after_claiming, RECIPE, train, inputs, out, with_lr)
    with locked(out, out):
        refused(2, "another run is at work in", train, inputs, out, RECIPE)


def _after_claiming(
    claimed: TrainRecipe, work: Callable[..., Any], inputs: Inputs, out: Path, recipe: TrainRecipe
) -> None:
    """The folder holds another recipe's run."""
    if os.environ["RANK"] == "0":
        manifest = open_dataset(inputs.shards).manifest
        shards = {"shards": [entry.sha256 for entry in manifest.files]}
        values = {**claimed.as_json(), "model": str(inputs.model), **shards}
        (out / "recipe.json").write_text(json.dumps(values))
    work(inputs, out, recipe)


def _train_something_else(
    inputs: Inputs, other: Inputs, out: Path, recipe: TrainRecipe, changed: TrainRecipe
) -> None:
    """On the second rank: as where another host has a copy of its own, or was started by hand."""
    second = os.environ["RANK"] == "1"
    train(other if second else inputs, out, changed if second else recipe)


def test_ranks_that_were_given_different_things(inputs: Inputs, tmp_path: Path) -> None:
    """Each host's half of the weights would be another model's, and nobody would know."""
    out, alike = tmp_path / "run", "rank 1 was given something else than the first"
    retarget(inputs.shards, 600, tmp_path / "600")
    for pattern, other, recipe in (
        (rf"{alike} \(lr: ", inputs, replace(RECIPE, lr=1e-3)),
        (rf"{alike} \(model: ", changed_model(inputs, tmp_path / "model", _halved), RECIPE),
        (rf"{alike} \(shards: ", replace(inputs, shards=tmp_path / "600"), RECIPE),
    ):
        refused(2, pattern, _train_something_else, inputs, other, out, RECIPE, recipe)
    assert not out.exists()


def _halved(tensors: dict[str, torch.Tensor]) -> None:
    for tensor in tensors.values():
        tensor /= 2


def changed_model(inputs: Inputs, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Inputs:
    shutil.copytree(inputs.model, folder)
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    return replace(inputs, model=folder)


def test_a_model_that_cannot_be_trained_is_said_once(inputs: Inputs, tmp_path: Path) -> None:
    """A tensor that is missing; weights that are no numbers: in layers, or where the loss is."""
    down = "model.layers.1.mlp.down_proj.weight"
    lacking = changed_model(inputs, tmp_path / "lacking", lambda x: x.pop(down))
    refused(2, f"{down} is not there", train, lacking, tmp_path / "1", RECIPE)
    broken = changed_model(inputs, tmp_path / "nan", lambda x: x[down].fill_(float("nan")))
    refused(2, "weights hold NaN", train, broken, tmp_path / "2", RECIPE)
    wrong = changed_model(
        inputs, tmp_path / "wrong", lambda x: x["lm_head.weight"][5:9].fill_(float("nan"))
    )
    pattern = (
        r"gradient norm nan are not finite; the rows of the step: (long\S+, ){4}long\S+; lower"
    )
    for size, context in ((2, 2), (4, 1)):
        recipe = replace(RECIPE, context_parallel=context)
        refused(size, pattern, train, wrong, tmp_path / f"of {size}", recipe)


def _train_on_nothing(inputs: Inputs, out: Path, recipe: TrainRecipe) -> None:
    lrtrain.stages.WEIGHTS["none"] = lambda row: 0 * none(row)
    train(inputs, out, recipe)


def test_rows_of_which_no_token_counts(inputs: Inputs, tmp_path: Path) -> None:
    recipe = replace(RECIPE, token_weights="none")
    pattern = r"extend: no token of (long\S+, ){4}long\S+ counts in the loss"
    refused(4, pattern, _train_on_nothing, inputs, tmp_path / "run", recipe)


def test_a_damaged_checkpoint_is_said_once(
    inputs: Inputs, stopped_after_three: StoppedAfterThree, tmp_path: Path
) -> None:
    out = stopped_after_three(inputs, RECIPE, 2, tmp_path / "run")
    (file,) = out.glob("checkpoints/*/rank-001-*")
    file.write_bytes(file.read_bytes()[:-100])
    refused(2, "extend-000003 is damaged", train, inputs, out, RECIPE)
    assert file.exists()


def _train_in_ones_own(inputs: Inputs, out: Path, recipe: TrainRecipe) -> None:
    train(inputs, out / os.environ["RANK"], recipe)


def test_a_folder_that_ranks_do_not_share(
    inputs: Inputs,
    stopped_after_three: StoppedAfterThree,
    tmp_path: Path,
) -> None:
    """When a checkpoint is written, and when one is looked for, while others still wait for it."""
    out = tmp_path / "run"
    saving = replace(RECIPE, checkpoint_every=1)
    pattern = "--out must be a folder that all hosts share"
    (out / "1").mkdir(parents=True)
    refused(2, pattern, _train_in_ones_own, inputs, out, saving)
    shutil.rmtree(out)
    stopped_after_three(inputs, RECIPE, 2, out / "0")
    impatient = replace(RECIPE, rank_timeout=6)
    refused(2, pattern, _train_in_ones_own, inputs, out, impatient, by=1)


def _train_on_a_full_disk(rank: str, inputs: Inputs, out: Path, recipe: TrainRecipe) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "the disk")

    if os.environ["RANK"] == rank:
        lrtrain.checkpoint.save_file = full
        lrtrain.model.copy_tokenizer = full
    train(inputs, out, recipe)


def test_a_full_disk_is_said_by_the_rank_that_writes(inputs: Inputs, tmp_path: Path) -> None:
    """A checkpoint, of any rank; a model, of the first."""
    saving, exporting = replace(RECIPE, checkpoint_every=1), replace(RECIPE, steps=1)
    full = (2, "no space left on the disk", _train_on_a_full_disk)
    refused(*full, "1", inputs, tmp_path / "1", saving, by=1)
    refused(*full, "0", inputs, tmp_path / "2", exporting, by=0)
    assert not (tmp_path / "2" / "extend").exists()
    on_ranks(2, train, inputs, tmp_path / "2", exporting)


def _train_without_a_tokenizer(inputs: Inputs, out: Path, recipe: TrainRecipe) -> None:
    def missing(*_: Any) -> None:
        raise LongRecipeError("no tokenizer")

    lrtrain.model.copy_tokenizer = missing
    train(inputs, out, recipe)


def test_a_model_that_cannot_be_saved_costs_no_step(inputs: Inputs, tmp_path: Path) -> None:
    """All ranks keep what they have, though the first alone knows why."""
    refused(2, "no tokenizer", _train_without_a_tokenizer, inputs, tmp_path / "run", RECIPE)
    assert latest(tmp_path / "run") == RECIPE.steps


def _train_without_room(inputs: Inputs, out: Path, recipe: TrainRecipe) -> None:
    def full(*_: Any) -> float:
        raise torch.OutOfMemoryError

    if os.environ["RANK"] == "1":
        lrtrain.loop.holdout_loss = full
    train(inputs, out, recipe)


def test_a_last_holdout_window_that_does_not_fit_costs_no_step(
    inputs: Inputs, tmp_path: Path
) -> None:
    """It is whole, where a row is a third of it; and the others are in the middle of it."""
    out, recipe = tmp_path / "run", replace(RECIPE, checkpoint_every=None)
    ended = Ranks(2, _train_without_room, inputs, out, recipe).end()
    assert "ran out of memory in a holdout window" in ended[1].said
    assert latest(out) == recipe.steps
    assert steps_of(out) == list(range(1, recipe.steps + 1))
    on_ranks(2, _train_without_room, inputs, out, recipe)
    assert steps_of(out) == list(range(1, recipe.steps + 1))
    assert (out / "extend" / SINGLE).exists()
