"""`lrtrain plan`: what a person reads before paying."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from lrdata.errors import LongRecipeError
from lrtrain.cli import main
from lrtrain.flops import training_flops
from lrtrain.model import load_config
from lrtrain.plan import ASSUMED_MFU, make_plan
from lrtrain.recipe import TrainRecipe
from tests.lrtrain.tiny_runs import ROW, TARGET, build_shards, save_tiny_model


@pytest.fixture(scope="module")
def shards(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tiny_tokenizer, tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tiny_tokenizer, tmp_path_factory.mktemp("models") / "tiny")


def test_each_way_takes_less_than_the_one_before(shards: Path, model: Path) -> None:
    plan = make_plan(shards, str(model), TrainRecipe(dtype="fp32", rows_per_step=4))
    names = [way.name for way in plan.ways]
    assert names[0] == "as asked for"
    assert names[1] == "--checkpointing"
    assert names[2].endswith("--dtype bf16")
    working = [way.memory.working for way in plan.ways]
    assert working[1] < working[0]
    assert working[-1] < working[0]
    assert plan.full_length.memory.working > plan.ways[1].memory.working
    assert plan.full_length.tokens == TARGET
    assert plan.ways[0].tokens == ROW


def test_an_option_that_is_asked_for_is_not_advised(shards: Path, model: Path) -> None:
    recipe = TrainRecipe(
        checkpointing=True,
        masters="none",
        gradients="bf16",
        moments="8bit",
        offload=("optimizer", "activations"),
        mlp_tokens=64,
        chunk_tokens=128,
    )
    assert len(make_plan(shards, str(model), recipe).ways) == 1
    without = replace(recipe, offload=("activations",), moments="fp32")
    names = [way.name for way in make_plan(shards, str(model), without).ways]
    assert names == [
        "as asked for",
        "--moments 8bit",
        "--moments 8bit --offload optimizer,activations",
    ]


def test_operations_and_time_are_those_of_a_step(shards: Path, model: Path) -> None:
    plan = make_plan(shards, str(model), TrainRecipe(rows_per_step=4, steps=7), device_name="H100")
    config = load_config(str(model))
    assert plan.flops == training_flops(config, [ROW] * 4)
    assert plan.full_flops == training_flops(config, [TARGET] * 4)
    assert plan.seconds == plan.flops / (989e12 * ASSUMED_MFU)
    assert plan.steps == 7
    assert plan.flops / plan.full_flops < plan.all_pairs[0] / plan.all_pairs[1] * 1.5


def test_rows_joined_to_a_micro_batch_are_planned_together(shards: Path, model: Path) -> None:
    alone = make_plan(shards, str(model), TrainRecipe())
    joined = make_plan(shards, str(model), TrainRecipe(micro_tokens=3 * ROW + 5))
    assert joined.ways[0].tokens == 3 * ROW
    assert joined.ways[0].memory.working > alone.ways[0].memory.working


def test_the_advice_is_the_first_way_that_fits(shards: Path, model: Path) -> None:
    def said(memory: int) -> str:
        command = ["plan", str(shards), "--model", str(model), "--dtype", "fp32"]
        result = CliRunner().invoke(main, [*command, "--gpu-memory", str(memory)])
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.split())

    ways = make_plan(shards, str(model), TrainRecipe(dtype="fp32")).ways
    totals = [way.memory.total for way in ways]
    assert "it fits (" in said(totals[0] * 2)
    assert "it fits with --checkpointing (" in said(int(totals[1] / 0.95) + 100)
    assert "nothing here fits" in said(1000)


def test_without_a_card_it_asks_for_one(shards: Path, model: Path) -> None:
    result = CliRunner().invoke(main, ["plan", str(shards), "--model", str(model)])
    assert result.exit_code == 0, result.output
    assert "--gpu-memory 80GB" in result.stdout


def test_what_cannot_be_planned_is_one_line(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(LongRecipeError, match="config"):
        make_plan(shards, str(tmp_path), TrainRecipe())
