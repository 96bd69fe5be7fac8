"""Runs on 2 and 4 ranks are the run of one process, but for the order of sums.

Parameters sharded (FSDP2), rows split (context parallelism), and both, over gloo: what the metrics
say of every step, and the weights of every model, on rows with gaps and on packed documents, for
every family and every option that saves memory. What is exported is what one process exports.

Measured in fp32: losses differ by up to 2e-7 of them, norms of gradients by 7e-7, models by 1e-5 of
how far they are from the base; in bf16 by 3e-5, 1e-3 and 0.03. Ten times that is let pass.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lrtrain.stages
from lrdata.dataset import open_dataset
from lrdata.shards import Row
from lrtrain.metrics import METRICS, read_metrics
from lrtrain.model_files import SINGLE
from lrtrain.opening import FOLDERS
from lrtrain.recipe import TrainRecipe
from lrtrain.weights import none
from tests.lrtrain.many import (
    Inputs,
    build_inputs,
    differences,
    on_ranks,
    train,
    with_model,
)
from tests.lrtrain.tiny_models import FAMILIES

RECIPE = TrainRecipe(
    steps=4,
    anneal_steps=3,
    rows_per_step=5,
    micro_tokens=300,
    token_weights="impact",
    weight_decay=0.1,
    clip=0.5,
    lr=3e-3,
    anneal_lr=1e-3,
    holdout_every=2,
    holdout_rows=3,
    checkpoint_every=0,
    dtype="fp32",
    device="cpu",
    rank_timeout=60,
)
EXTEND = replace(RECIPE, stages=("extend",), steps=3)
SPLITS = {
    "sharded": (2, 1),
    "split": (2, 2),
    "sharded over four": (4, 1),
    "split in two, twice": (4, 2),
    "split in four": (4, 4),
}
"""Ranks, and how many share a row."""
FP32 = {"losses": 2e-6, "weights": 1e-4}
BF16 = {"losses": 3e-4, "weights": 0.25}

Alone = Callable[[Inputs, TrainRecipe], Path]


@pytest.fixture(scope="module")
def inputs(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return build_inputs(tiny_tokenizer, tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The folder of a recipe's run by one process."""
    made: dict[tuple[Inputs, TrainRecipe], Path] = {}

    def folder(inputs: Inputs, recipe: TrainRecipe) -> Path:
        if (inputs, recipe) not in made:
            made[inputs, recipe] = tmp_path_factory.mktemp("alone") / "run"
            on_ranks(1, train, inputs, made[inputs, recipe], recipe)
        return made[inputs, recipe]

    return folder


def of_ranks(inputs: Inputs, out: Path, recipe: TrainRecipe, split: str) -> Path:
    """The folder of its run by many."""
    size, context = SPLITS[split]
    on_ranks(size, train, inputs, out, replace(recipe, context_parallel=context))
    return out


@pytest.mark.parametrize("split", list(SPLITS))
def test_a_run_of_many_ranks_is_that_of_one_process(
    split: str, inputs: Inputs, alone: Alone, tmp_path: Path
) -> None:
    """Five rows a step are no multiple of the ranks; rows are joined, weighted, and clipped."""
    out, whole = of_ranks(inputs, tmp_path / "run", RECIPE, split), alone(inputs, RECIPE)
    found = differences(inputs, out, whole)
    assert found.within(**FP32), found
    lines = read_metrics(out / METRICS)
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("extend", 1 + number) for number in range(4)),
        *(("anneal", 1 + number) for number in range(3)),
    ]
    measured = [line["step"] for line in lines if "holdout_loss" in line]
    assert measured == [2, 4, 2, 3]


def test_the_rows_are_what_can_go_wrong(inputs: Inputs, alone: Alone) -> None:
    """Gaps, many documents, lengths that no number of ranks divides; clipping at some steps."""
    shards = open_dataset(inputs.shards)
    extend = [shards.read_row("extend", index) for index in range(shards.rows("extend"))]
    assert all(max(row.position_ids[1:] - row.position_ids[:-1]) > 1 for row in extend)
    assert any(row.impact_mask.any() for row in extend)
    replay = [shards.read_row("replay", index) for index in range(shards.rows("replay"))]
    assert max(len(row.seq_lengths) for row in replay) > 10
    assert all(0 < row.loss_mask.mean() < 1 for row in replay)
    for rows in (extend, replay):
        assert all(any(len(row.input_ids) % ranks for row in rows) for ranks in (4, 8))
    norms = [line["grad_norm"] for line in read_metrics(alone(inputs, RECIPE) / METRICS)]
    assert min(norms) < RECIPE.clip < max(norms)


def test_a_rank_may_have_no_row(inputs: Inputs, alone: Alone, tmp_path: Path) -> None:
    recipe = replace(EXTEND, rows_per_step=3)
    out = of_ranks(inputs, tmp_path / "run", recipe, "sharded over four")
    found = differences(inputs, out, alone(inputs, recipe))
    assert found.within(**FP32), found


def _train_on_some(inputs: Inputs, out: Path, recipe: TrainRecipe) -> None:
    """Rows of every other window count."""

    def weigh(row: Row) -> np.ndarray:
        return none(row) * (int(row.sample_id.split(":")[2]) % 1000 == 0)

    lrtrain.stages.WEIGHTS["none"] = weigh  # the process ends after it
    train(inputs, out, recipe)


def test_no_token_of_a_ranks_rows_may_count(inputs: Inputs, tmp_path: Path) -> None:
    recipe = replace(EXTEND, token_weights="none", micro_tokens=0, rows_per_step=4)
    on_ranks(1, _train_on_some, inputs, tmp_path / "one", recipe)
    on_ranks(4, _train_on_some, inputs, tmp_path / "four", recipe)
    found = differences(inputs, tmp_path / "four", tmp_path / "one")
    assert found.within(**FP32), found


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family(family: str, inputs: Inputs, alone: Alone, tmp_path: Path) -> None:
    ours = with_model(inputs, family, tmp_path / family)
    out = of_ranks(ours, tmp_path / "run", EXTEND, "split")
    found = differences(ours, out, alone(ours, EXTEND))
    assert found.within(**FP32), found


@pytest.mark.parametrize(
    "split", ["split in two, twice", pytest.param("sharded", marks=pytest.mark.slow)]
)
def test_tied_embeddings(split: str, inputs: Inputs, alone: Alone, tmp_path: Path) -> None:
    """They are one parameter, whose gradients come from both ends of the model."""
    ours = with_model(inputs, "qwen2", tmp_path / "tied", tie_word_embeddings=True)
    out, whole = of_ranks(ours, tmp_path / "run", EXTEND, split), alone(ours, EXTEND)
    found = differences(ours, out, whole)
    assert found.within(**FP32), found
    assert "lm_head.weight" not in load_file(out / "extend" / SINGLE)
    assert_exported_alike(out / "extend", whole / "extend")


def test_options_that_save_memory_change_nothing(
    inputs: Inputs, alone: Alone, tmp_path: Path
) -> None:
    saving = replace(
        RECIPE, checkpointing=True, mlp_tokens=48, offload=("optimizer", "activations")
    )
    out = of_ranks(inputs, tmp_path / "run", saving, "split in two, twice")
    found = differences(inputs, out, alone(inputs, RECIPE))
    assert found.within(**FP32), found


@pytest.mark.parametrize(
    "split", ["split", pytest.param("split in two, twice", marks=pytest.mark.slow)]
)
def test_bf16(split: str, inputs: Inputs, alone: Alone, tmp_path: Path) -> None:
    """With master weights in fp32."""
    recipe = replace(RECIPE, dtype="bf16")
    out, whole = of_ranks(inputs, tmp_path / "run", recipe, split), alone(inputs, recipe)
    found = differences(inputs, out, whole)
    assert found.within(**BF16), found
    for name in FOLDERS.values():
        assert_exported_alike(out / name, whole / name)


def assert_exported_alike(folder: Path, whole: Path) -> None:
    """But for the numbers; plain transformers reads it."""
    files = {path.name for path in whole.iterdir()}
    assert files == {path.name for path in folder.iterdir()}
    for name in files - {SINGLE}:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    one, other = (load_file(path / SINGLE) for path in (folder, whole))
    assert {name: (x.dtype, x.shape) for name, x in one.items()} == {
        name: (x.dtype, x.shape) for name, x in other.items()
    }
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md"} <= files
    model, how = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not any(how.values()), how
    for name, tensor in one.items():
        assert torch.equal(model.state_dict()[name], tensor)
