"""What many ranks would take, on paper: memory is what real ones take, time follows from bytes."""

import math
import re
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from lrdata.errors import LongRecipeError
from lrtrain.activations import Activations, prepare
from lrtrain.attention import IMPLEMENTATION, register
from lrtrain.cli import main
from lrtrain.cli_run import plan
from lrtrain.distributed import ALONE, many, pretended, shard
from lrtrain.loader import Batch
from lrtrain.memory import LiveBytes, StepMemory, step_memory
from lrtrain.optim import AdamW, Storage
from lrtrain.plan import make_plan
from lrtrain.plan_ranks import (
    LINK,
    NETWORK,
    Cluster,
    check_cluster,
    fastest,
    keys_and_values,
    mixes,
    parameters_and_gradients,
    splits,
)
from lrtrain.recipe import TrainRecipe
from lrtrain.step import LossOptions, accumulate
from tests.lrtrain.many import on_ranks
from tests.lrtrain.tiny_models import llama3_8b_config, tiny_config
from tests.lrtrain.tiny_runs import ROW, build_shards, save_tiny_model

ROW_OF_TWO = [100, 60]
SOME_MEMORY = StepMemory(1, 1, 1, 1, 1)


@pytest.fixture(scope="module")
def shards(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tiny_tokenizer, tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tiny_tokenizer, tmp_path_factory.mktemp("models") / "tiny")


# Memory


def a_config() -> Any:
    return tiny_config("llama", vocab_size=1000, hidden_size=96, num_hidden_layers=3)


def peak_of_a_rank(context: int, dtype: torch.dtype, how: Activations) -> tuple[int, int]:
    """Bytes of tensors at the peak of two steps of two micro-batches, and of all parameters."""
    with many(context, None, "cpu", 60) as ranks, LiveBytes() as live:
        register()
        model = AutoModelForCausalLM.from_config(
            a_config(), dtype=dtype, attn_implementation=IMPLEMENTATION
        )
        model.train()
        whole = sum(parameter.nbytes for parameter in model.parameters())
        shard(model, ranks, lambda module: None)
        prepare(model, how)
        optimizer = AdamW(model, 1e-4, (0.9, 0.95), 0.0, Storage())
        live.peak = live.now
        ids = torch.arange(sum(ROW_OF_TWO), dtype=torch.int32)[None]
        batch = Batch(ids, ids, ROW_OF_TWO, torch.ones(ids.shape[1]), ["row"])
        with ranks.splitting():
            for _ in range(2):
                options = LossOptions(ranks.device)
                _, norm = accumulate(model, [batch, batch], optimizer, options, ranks=ranks)
                optimizer.step(1.0, norm, 1.0)
        return live.peak, whole


@pytest.mark.parametrize(
    ("ranks", "context", "dtype", "how"),
    [
        (2, 1, torch.float32, Activations()),
        (2, 2, torch.bfloat16, Activations(checkpointing=True, mlp_tokens=32)),
        (4, 2, torch.float32, Activations(checkpointing=True)),
    ],
)
def test_a_rank_takes_what_the_plan_says(
    ranks: int, context: int, dtype: torch.dtype, how: Activations
) -> None:
    planned = step_memory(
        a_config(), ROW_OF_TWO, dtype=dtype, activations=how, ranks=ranks, context=context
    )
    peaks, wholes = zip(*on_ranks(ranks, peak_of_a_rank, context, dtype, how), strict=True)
    assert peaks[0] == pytest.approx(planned.total, rel=0.01)
    assert max(peaks) < 1.05 * planned.total, "on a CPU others have more masks of attention"
    assert planned.parameters == pytest.approx(wholes[0] / ranks, rel=0.02), "a share of it"
    assert planned.total < step_memory(a_config(), ROW_OF_TWO, dtype=dtype, activations=how).total


def test_a_plan_leaves_no_process_group_behind() -> None:
    step_memory(a_config(), ROW_OF_TWO, dtype=torch.float32, ranks=4, context=4)
    assert not dist.is_initialized()


def test_an_8b_model_is_sharded_to_what_an_80_gb_card_holds() -> None:
    """Exact AdamW: 16 bytes a parameter over 8 ranks, and less than 30 GB to work with."""
    how = {"activations": Activations(checkpointing=True), "on_gpu": True}
    found = step_memory(
        llama3_8b_config(), [39_312], dtype=torch.bfloat16, ranks=8, context=8, **how
    )
    kept = found.parameters + found.masters + found.moments + found.gradients
    assert kept == pytest.approx(8.03e9 * 16 / 8, rel=0.01)
    assert found.working < 30e9


# Time


def test_rows_are_split_over_what_divides_the_ranks() -> None:
    assert splits(1) == [1]
    assert splits(8) == [1, 2, 4, 8]
    assert splits(6) == [1, 2, 3, 6]


def found_for(cluster: Cluster, **changes: Any) -> list[Any]:
    """Llama-3-8B: 96 rows of 39,312 tokens, 8 seconds each on one GPU."""
    recipe = TrainRecipe(checkpointing=True, **changes)
    return list(mixes(llama3_8b_config(), recipe, 39_312, 96, cluster, 8.0))


def test_with_links_that_take_no_time_a_step_takes_its_share() -> None:
    at_once = Cluster(8, link=1e30, network=1e30)
    for mix in found_for(at_once):
        assert mix.seconds == pytest.approx(96 * 8.0 / 8)
        assert mix.bound_by == "computing"
        assert mix.data * mix.context == 8


def test_rows_that_the_groups_do_not_divide_wait_for_the_last() -> None:
    at_once = Cluster(64, link=1e30, network=1e30)
    seconds = {mix.data: mix.seconds for mix in found_for(at_once)}
    assert seconds[64] == pytest.approx(2 * 8.0), "96 rows on 64 ranks: two rounds"
    assert seconds[32] == pytest.approx(3 * 8.0 / 2)


def test_rows_are_joined_as_far_as_a_rank_has_them() -> None:
    """Parameters are sent once a micro-batch, however many rows it has."""
    recipe = TrainRecipe(checkpointing=True)

    def step(gpus: int, joined: int) -> list[float]:
        slow = Cluster(gpus, link=1e6, network=1e6)
        found = mixes(llama3_8b_config(), recipe, 39_312, 96, slow, 8.0, joined)
        return [mix.seconds for mix in found if mix.bound_by == "parameters"]

    assert step(8, 4)[0] == 3 * step(8, 100)[0], "12 rows a rank"
    assert step(64, 2)[0] == step(64, 100)[0], "two at most"
    at_once = Cluster(8, link=1e30, network=1e30)
    for joined in (5, 100):  # of the last micro-batch there may be fewer rows
        for mix in mixes(llama3_8b_config(), recipe, 39_312, 96, at_once, 8.0, joined):
            assert mix.seconds == pytest.approx(96 * 8.0 / 8)


def test_what_ranks_send_each_other() -> None:
    """By hand: 8.03 billion parameters, 32 layers of 8 key and value heads of 128."""
    config, bf16, fp32 = llama3_8b_config(), TrainRecipe(), TrainRecipe(dtype="fp32")
    again = TrainRecipe(checkpointing=True)
    sent = parameters_and_gradients(config, 8, bf16)
    assert sent == pytest.approx(7 / 8 * 8.03e9 * (2 + 2 + 4), 0.01)
    assert parameters_and_gradients(config, 8, fp32) == 1.5 * sent
    one = 2 * 8 * 128 * 2 * 32
    assert keys_and_values(config, 1000, 4, bf16) == 3 / 4 * 1000 * one * 2
    assert keys_and_values(config, 1000, 4, fp32) == 3 / 4 * 1000 * one * 2 * 2
    assert keys_and_values(config, 1000, 4, again) == 3 / 4 * 1000 * one * 3
    assert keys_and_values(config, 1000, 1, again) == 0


@pytest.mark.parametrize(("name", "speed"), [("link", LINK), ("network", NETWORK)])
def test_the_default_speed_of_a_link_is_what_its_help_says(name: str, speed: float) -> None:
    (option,) = (each for each in plan.params if each.name == name)
    assert isinstance(option, click.Option)
    (said,) = re.findall(r"default: (\w+),", option.help or "")
    assert option.type.convert(said, option, None) == speed


def test_over_the_network_of_hosts_it_takes_longer() -> None:
    inside, across = found_for(Cluster(8)), found_for(Cluster(8, per_host=4, network=1e9))
    for one, other in zip(inside, across, strict=True):
        assert other.sharding > one.sharding
        assert (other.waits > one.waits) == (one.context == 8), "smaller groups are neighbours"


@pytest.mark.parametrize(
    ("gpus", "per_host"), [(8, 8), (6, 8), (16, 8), (24, 8), (48, 16), (14, 8), (20, 8), (9, 8)]
)
def test_groups_take_the_network_where_one_is_on_several_hosts(
    gpus: int, per_host: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The groups are those that torch is asked for."""
    groups, new_group = list[list[int]](), dist.new_group

    def noted(ranks: list[int], **how: Any) -> Any:
        groups.append(ranks)
        return new_group(ranks, **how)

    monkeypatch.setattr(dist, "new_group", noted)
    cluster = Cluster(gpus, per_host, network=1e9)
    assert cluster.speed(1) == cluster.link
    for ranks in splits(gpus)[1:]:
        groups.clear()
        with pretended(gpus, ranks):
            assert [gpu for group in groups for gpu in group] == list(range(gpus))
        spans = any(group[0] // per_host != group[-1] // per_host for group in groups)
        assert (cluster.speed(ranks) < cluster.link) == spans
        if spans and gpus % per_host == 0:
            assert cluster.speed(ranks) == 1e9 * math.gcd(ranks, per_host)


def test_a_group_has_the_adapters_of_its_own_gpus() -> None:
    """By hand: GPUs 6 to 11 of hosts of 8 have two on the first; the last of 9 is alone."""
    assert Cluster(24, network=1e9).speed(6) == 2e9
    assert Cluster(24, network=1e9).speed(24) == 8e9
    assert Cluster(14, network=1e9).speed(14) == 6e9
    assert Cluster(9, network=1e9).speed(9) == 1e9
    assert Cluster(24).speed(24) == 8 * 40e9
    assert Cluster(24, network=100e9).speed(24) == Cluster(24).link


def test_a_slow_network_binds() -> None:
    slow = found_for(Cluster(16, network=1e8))
    assert {mix.bound_by for mix in slow if mix.context <= 8} == {"parameters"}


def test_the_fastest_that_fits_is_taken() -> None:
    found = [(mix, SOME_MEMORY) for mix in found_for(Cluster(8))]
    best = fastest(found, lambda memory: True)
    assert best is not None
    assert best.seconds == min(mix.seconds for mix, _ in found)
    assert fastest(found, lambda memory: None) == best, "nothing is known of the card"
    assert fastest(found, lambda memory: False) is None


# The command


@pytest.fixture(scope="module")
def plan_of_8(shards: Path, model: Path) -> Any:
    recipe = TrainRecipe(rows_per_step=16, context_parallel=2)
    cluster = Cluster(8)
    return make_plan(
        shards, str(model), recipe, memory=10**9, device_name="H100", cluster=cluster, mfu=0.5
    )


def test_a_plan_of_many_ranks_has_every_mix_and_the_time_of_the_one_asked_for(
    plan_of_8: Any,
) -> None:
    assert [(mix.data, mix.context) for mix, _ in plan_of_8.mixes] == [
        (8, 1),
        (4, 2),
        (2, 4),
        (1, 8),
    ]
    assert plan_of_8.seconds == plan_of_8.mixes[1][0].seconds
    own = plan_of_8.ways[0].memory
    assert own == plan_of_8.mixes[1][1], "the ways are those of a rank of what was asked for"
    compute = plan_of_8.flops / 16 / (989e12 * 0.5)
    assert plan_of_8.mixes[0][0].compute == pytest.approx(compute)
    assert plan_of_8.ways[0].tokens == ROW


def test_a_rank_joins_no_more_rows_than_it_gets(shards: Path, model: Path) -> None:
    """Of 8 rows a step: 4 on each of two groups, 2 or 8 with another mix."""
    recipe = TrainRecipe(rows_per_step=8, micro_tokens=100 * ROW, context_parallel=2)
    how: dict[str, Any] = {
        "memory": 10**9,
        "device_name": "H100",
        "cluster": Cluster(4),
        "mfu": 0.5,
    }
    plan = make_plan(shards, str(model), recipe, **how)
    assert plan.ways[0].tokens == 4 * ROW
    assert plan.ways[0].memory == plan.mixes[1][1]
    row = plan.flops / 8 / (989e12 * 0.5)
    for (mix, _), rows in zip(plan.mixes, (2, 4, 8), strict=True):
        assert mix.compute == pytest.approx(rows * row / mix.context)


def test_the_command_shows_them(shards: Path, model: Path) -> None:
    options = ["--gpus", "4", "--gpu", "H100", "--gpu-memory", "80GB"]
    done = CliRunner().invoke(main, ["plan", str(shards), "--model", str(model), *options])
    assert done.exit_code == 0, done.output
    for text in ("4 GPUs, 8 a host", "4 x 1", "2 x 2", "1 x 4", "fastest: --data-parallel 4"):
        assert text in done.output


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LongRecipeError, match="does not divide --gpus 8"):
        check_cluster(Cluster(8), TrainRecipe(context_parallel=3))


def test_one_process_is_the_first_of_one() -> None:
    with many(1, None, "cpu", 1) as ranks:
        assert ranks is ALONE
