"""`lrtrain plan`: what a person reads before paying."""

import os
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrtrain import plan as planning
from lrtrain.cli import main
from lrtrain.flops import training_flops
from lrtrain.memory import StepMemory, step_memory
from lrtrain.model import load_config
from lrtrain.plan import ASSUMED_MFU, Plan, Way, make_plan
from lrtrain.plan_print import print_plan
from lrtrain.recipe import TrainRecipe
from tests.lrtrain.tiny_runs import ROW, TARGET, WIDE, build_shards, save_tiny_model


@pytest.fixture(scope="module")
def shards(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shards(tiny_tokenizer, tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tiny_tokenizer, tmp_path_factory.mktemp("models") / "tiny", width=WIDE)


@pytest.fixture(autouse=True, scope="module")
def _each_step_is_measured_once() -> Iterator[None]:
    """The same ways come up in most tests; models differ by their width alone."""
    known: dict[Any, StepMemory] = {}

    def remembered(config: Any, seq_lengths: list[int], **how: Any) -> StepMemory:
        key = config.hidden_size, *seq_lengths, *sorted(how.items(), key=lambda item: item[0])
        if key not in known:
            known[key] = step_memory(config, seq_lengths, **how)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "step_memory", remembered)
        yield


def test_each_way_takes_less_than_the_one_before(shards: Path, model: Path) -> None:
    plan = make_plan(shards, str(model), TrainRecipe(dtype="fp32", rows_per_step=4))
    names = [way.name for way in plan.ways]
    assert names[0] == "as asked for"
    assert names[1] == "--checkpointing"
    assert "--mlp-tokens" not in names[-1], "rows are shorter than that"
    totals = [way.memory.total for way in plan.ways]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)
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


def test_no_more_rows_are_joined_than_a_step_has(
    shards: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in a plan nor in what a run says of its memory."""
    whole, more = (
        TrainRecipe(rows_per_step=4, micro_tokens=rows * ROW, device="cpu") for rows in (4, 100)
    )
    plan = make_plan(shards, str(model), more)
    assert plan.ways[0].tokens == 4 * ROW
    assert plan.ways[0].memory == make_plan(shards, str(model), whole).ways[0].memory
    monkeypatch.setattr(planning, "_memory_here", lambda _: (10**12, None))
    opened, config, cpu = open_dataset(shards), load_config(str(model)), torch.device("cpu")
    said = [planning.check_memory(opened, config, recipe, cpu) for recipe in (whole, more)]
    assert said[0] == said[1]


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
    for mfu in (0.0, -0.4, 1.5, 40.0, float("nan")):
        with pytest.raises(LongRecipeError, match=f"--mfu {mfu} must be above 0 and at most 1"):
            make_plan(shards, str(tmp_path), TrainRecipe(), mfu=mfu)


# A card and the host beside it

PROCESS = 3 * 10**9
"""What the host needs for the process itself."""


def card(way: Way) -> int:
    """The memory of a card on which a way just fits, 5 % left free."""
    return -(-way.memory.total * 100 // 95)


def said(shards: Path, model: Path, *words: Any) -> str:
    """What `lrtrain plan` prints in a wide window, as one line."""
    command = ["plan", str(shards), "--model", str(model), *map(str, words)]
    result = CliRunner().invoke(main, command, env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def test_the_first_way_that_fits_both_card_and_host_is_advised(shards: Path, model: Path) -> None:
    """For every card that a way just fits on, and a host with its room, or one byte less."""
    recipe = TrainRecipe()
    ways = make_plan(shards, str(model), recipe).ways
    assert any(way.memory.host for way in ways)
    for target in ways:
        for missing in (0, 1):
            memory, host = card(target), PROCESS + target.memory.host - missing
            plan = make_plan(shards, str(model), recipe, memory=memory, host_memory=host)
            fitting = [
                way.memory.host + PROCESS <= host and way.memory.total <= memory * 0.95
                for way in plan.ways
            ]
            assert fitting == [bool(plan.fits(way)) for way in plan.ways]
            assert not any(fitting[:-1]), "nothing is tried after the first that fits"
            if not missing:
                assert fitting[-1]


@pytest.mark.parametrize("of_the_host", [True, False])
def test_the_advice_says_what_to_add_and_what_room_there_is(
    shards: Path, model: Path, of_the_host: bool
) -> None:
    ways = make_plan(shards, str(model), TrainRecipe()).ways
    target = next(way for way in ways if way.name.endswith("--offload optimizer"))
    words: list[Any] = ["--gpu-memory", card(target)]
    room = "0 GiB, 5% of it left free"
    if of_the_host:
        words += ["--host-memory", PROCESS + target.memory.host]
        room += ", and 3 GiB of host memory"
    assert said(shards, model, *words).endswith(
        f"it fits with --checkpointing --moments 8bit --offload optimizer ({room})"
    )


def test_a_host_without_room_is_not_offloaded_to(shards: Path, model: Path) -> None:
    """What saves memory on the card alone is tried without it then."""
    ways = make_plan(shards, str(model), TrainRecipe(device="cpu")).ways
    memory = card(ways[-1])  # without offloading; nothing before it is as small
    text = said(shards, model, "--gpu-memory", memory, "--host-memory", PROCESS)
    advice = text[text.index("it fits") :]
    assert "--gradients bf16 --masters none" in advice
    assert "--offload" not in advice
    asked = said(shards, model, "--gpu-memory", memory)
    assert "--offload optimizer" in asked[asked.index("it fits") :], "a host of unknown size"


def test_a_host_that_holds_nothing_is_said_not_to_fit(shards: Path, model: Path) -> None:
    text = said(shards, model, "--gpu-memory", "80GB", "--host-memory", PROCESS - 1)
    assert "nothing here fits 80 GiB, 5% of it left free, and 3 GiB of host memory" in text
    assert "lrdata build --train-len" in text


def _printed(plan: Plan) -> str:
    """In a window of the usual width."""
    printed = StringIO()
    print_plan(plan, Console(width=80, file=printed))
    return printed.getvalue()


def test_the_table_has_a_row_for_each_way_and_for_full_length(shards: Path, model: Path) -> None:
    ways = make_plan(shards, str(model), TrainRecipe()).ways
    offloaded = next(way for way in ways if "--offload" in way.name)
    host = PROCESS + offloaded.memory.host
    plan = make_plan(shards, str(model), TrainRecipe(), memory=card(offloaded), host_memory=host)
    text = _printed(plan)
    assert "…" not in text, "no number is cut"
    lines = text.splitlines()
    (header,) = (line for line in lines if line.startswith("rows of") or " rows of" in line[:9])
    assert header.split() == [
        *("rows", "of", f"{ROW}", "weights", "optim", "grads", "working", "device", "host", "fits")
    ]
    labels = ["as asked for", "--checkpointing", "--moments 8bit", "--offload optimizer"]
    labels.append(f"full length, {TARGET}")
    for label, way in zip(labels, (*plan.ways, plan.full_length), strict=True):
        (line,) = (line for line in lines if line.strip().startswith(f"{label} "))
        memory = way.memory
        sizes = (
            *(memory.parameters, memory.masters + memory.moments, memory.gradients),
            *(memory.working, memory.total, memory.host),
        )
        fits = "yes" if way is plan.ways[-1] else "no"
        numbers = [f"{size / 1e6:,.1f}" for size in sizes if size]
        assert line.strip().removeprefix(label).split() == [*numbers, fits]


# A CPU


@pytest.mark.parametrize("words", [(), ("--gpu-memory", 1000), ("--checkpointing",)])
def test_a_cpu_is_never_advised_to_offload(
    shards: Path, model: Path, words: tuple[Any, ...]
) -> None:
    text = said(shards, model, "--device", "cpu", "--host-memory", PROCESS, *words)
    assert "--offload" not in text
    for option in ("--moments 8bit", "--gradients bf16", "--masters none"):
        assert f" {option} " in text


def test_what_a_cpu_offloads_is_in_its_working_memory(
    shards: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """Of a narrow model: a wide one's optimizer needs more than its activations, and copies more
    where it is told to offload."""
    model = save_tiny_model(tiny_tokenizer, tmp_path / "narrow")
    asked = TrainRecipe(device="cpu", checkpointing=True, offload=("optimizer", "activations"))
    plan = make_plan(shards, str(model), asked)
    without = make_plan(shards, str(model), replace(asked, offload=()))
    assert [way.memory for way in plan.ways] == [way.memory for way in without.ways]
    assert all(way.memory.host == 0 for way in plan.ways)
    assert all(way.recipe.offload == asked.offload for way in plan.ways)


def test_a_plan_for_a_cpu_asks_nothing_of_the_card_that_is_here(
    shards: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (30 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2 * 10**9)
    here = make_plan(shards, str(model), TrainRecipe())
    assert here.available == 32 * 10**9, "what is free, and what this process has of the rest"
    assert here.host_available is not None
    assert here.seconds is not None
    cpu = make_plan(shards, str(model), TrainRecipe(device="cpu"))
    assert cpu.available is cpu.host_available is cpu.seconds is None


def test_a_container_has_no_more_host_memory_than_it_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = _control_groups(tmp_path, monkeypatch, "0::/\n")
    machine = _host_memory()
    limit = groups / "memory.max"
    limit.write_text("123456789\n")
    assert _host_memory() == 123_456_789
    limit.write_text("max\n")
    assert _host_memory() == machine


def _host_memory() -> int:
    return planning._memory_here(torch.device("cpu"))[0]


def _control_groups(folder: Path, monkeypatch: pytest.MonkeyPatch, own: str) -> Path:
    """The folder of a tree of control groups, of which this process is in these."""
    (folder / "cgroup").write_text(own)
    monkeypatch.setattr(planning, "_OWN_GROUPS", folder / "cgroup")
    monkeypatch.setattr(planning, "_GROUPS", folder / "groups")
    (folder / "groups").mkdir()
    return folder / "groups"


@pytest.mark.parametrize(
    ("own", "tree", "name"),
    [
        ("0::/system.slice/job_7/step_0\n", ".", "memory.max"),
        ("0::/../system.slice/job_7/step_0\n", ".", "memory.max"),
        (
            "12:pids:/elsewhere\n5:cpu,memory:/system.slice/job_7/step_0\n0::/other\n",
            "memory",
            "memory.limit_in_bytes",
        ),
    ],
)
def test_a_job_has_no_more_host_memory_than_any_of_its_groups(
    own: str, tree: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As batch systems limit it: in a group above the process's own, below the root."""
    root = _control_groups(tmp_path, monkeypatch, own) / tree
    machine = _host_memory()
    job = root / "system.slice" / "job_7"
    (job / "step_0").mkdir(parents=True)
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / name).write_text("1\n")
    (job / "step_0" / name).write_text("max\n" if tree == "." else f"{2**63 - 4096}\n")
    assert _host_memory() == machine
    (job / name).write_text("64000000\n")
    (root / "system.slice" / name).write_text("96000000\n")
    assert _host_memory() == 64_000_000
    (job / "step_0" / name).write_text("32000000\n")
    assert _host_memory() == 32_000_000


def test_where_there_are_no_control_groups_the_machine_is_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_OWN_GROUPS", tmp_path / "none")
    assert _host_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
