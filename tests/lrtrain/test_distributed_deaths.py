"""Ranks that stop, die, hang or fail: the others end in time, one says why, and it goes on.

A run that was stopped goes on with any number of ranks, from a checkpoint that another number
wrote, to the losses of a run that nobody disturbed; with as many as before, to the same bits. What
is measured and let pass is said in `test_distributed_runs`.
"""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

import lrtrain.checkpoint
import lrtrain.distributed
import lrtrain.model
import lrtrain.stages
import lrtrain.step
from lrdata.atomic import locked
from lrdata.dataset import open_dataset
from lrtrain.checkpoint import Checkpoints
from lrtrain.cli import main
from lrtrain.distributed import many
from lrtrain.metrics import METRICS, read_metrics
from lrtrain.model import load_model
from lrtrain.model_files import SINGLE
from lrtrain.moments import need_bitsandbytes
from lrtrain.optim import AdamW, Storage
from lrtrain.recipe import TrainRecipe
from lrtrain.weights import none
from tests.lrtrain.many import (
    Ended,
    Inputs,
    Ranks,
    build_inputs,
    differences,
    on_ranks,
    train,
    with_model,
)
from tests.lrtrain.test_resume import command
from tests.lrtrain.tiny_models import save_tiny

ROOT = Path(__file__).parents[2]
RECIPE = TrainRecipe(
    stages=("extend",),
    steps=5,
    rows_per_step=5,
    micro_tokens=300,
    token_weights="impact",
    weight_decay=0.1,
    clip=0.5,
    lr=3e-3,
    holdout_rows=2,
    checkpoint_every=0,
    dtype="fp32",
    device="cpu",
    rank_timeout=60,
)
FP32 = {"losses": 2e-6, "weights": 1e-4}
SECONDS_TO_NOTICE = 20
"""That a rank died; measured: 0.1. That one hangs: so many after what the run has for a limit."""


@pytest.fixture(scope="module")
def inputs(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return build_inputs(tiny_tokenizer, tmp_path_factory.mktemp("inputs"))


Undisturbed = Callable[..., Path]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The folder of a run by some ranks that came to its end at once."""
    made: dict[Any, Path] = {}

    def folder(inputs: Inputs, recipe: TrainRecipe, size: int = 1) -> Path:
        if (key := (inputs, recipe, size)) not in made:
            made[key] = tmp_path_factory.mktemp("whole") / "run"
            on_ranks(size, train, inputs, made[key], recipe)
        return made[key]

    return folder


# What happens to ranks

Where = Literal[
    "in a check",
    "before a step",
    "in a step",
    "after a step",
    "in a checkpoint",
    "in an export",
]


@dataclass(frozen=True)
class Blow:
    """A signal that some ranks give themselves, at a step (from 1) or when they save something."""

    ranks: Sequence[int]
    number: signal.Signals
    where: Where
    step: int = 0

    def strike(self, where: Where, step: int) -> None:
        if int(os.environ["RANK"]) in self.ranks and (where, step) == (self.where, self.step):
            Path(os.environ["BLOW"]).touch()
            os.kill(os.getpid(), self.number)

    def prepare(self) -> None:
        """For the rest of a process's life."""
        steps = 0
        loss, update = lrtrain.step.piece_loss, AdamW.step
        write, export = Checkpoints._write, lrtrain.model.copy_tokenizer
        check = lrtrain.stages.attention_crosses_gaps

        def checked(model: Any) -> str:
            self.strike("in a check", 0)
            return check(model)

        def piece_loss(*given: Any) -> torch.Tensor:
            if torch.is_grad_enabled():
                self.strike("before a step", steps + 1)
                value = loss(*given)
                self.strike("in a step", steps + 1)
                return value
            return loss(*given)

        def step(optimizer: AdamW, *given: Any) -> None:
            nonlocal steps
            update(optimizer, *given)
            steps = optimizer.steps
            self.strike("after a step", steps)

        def written(*given: Any) -> list[str]:
            self.strike("in a checkpoint", 0)
            return write(*given)

        def exported(*given: Any) -> None:
            self.strike("in an export", 0)
            export(*given)

        lrtrain.stages.attention_crosses_gaps = checked
        lrtrain.step.piece_loss = piece_loss
        AdamW.step = step  # type: ignore[method-assign]
        Checkpoints._write = written  # type: ignore[method-assign]
        lrtrain.model.copy_tokenizer = exported


def train_until(blow: Blow, at: Path, inputs: Inputs, out: Path, recipe: TrainRecipe) -> None:
    os.environ["BLOW"] = str(at)
    blow.prepare()
    train(inputs, out, recipe)


def stopped(inputs: Inputs, recipe: TrainRecipe, out: Path, size: int, blow: Blow) -> list[Ended]:
    """The ends of a run's ranks but of one that hangs."""
    at = out.with_name(f"{out.name}.blow")
    ranks = Ranks(size, train_until, blow, at, inputs, out, recipe)
    ended = ranks.end(but=blow.ranks if blow.number == signal.SIGSTOP else ())
    limit = 2 * recipe.rank_timeout if blow.number == signal.SIGSTOP else 0
    assert time.time() - at.stat().st_mtime < limit + SECONDS_TO_NOTICE
    return ended


def assert_said_once(ended: Sequence[Ended], pattern: str, by: int, code: int = 1) -> None:
    """One line by one rank; the others are quiet; all end with one code, and no bug."""
    assert [one.code for one in ended] == [code] * len(ended), [one.said for one in ended]
    for rank, one in enumerate(ended):
        assert len(one.errors) == (rank == by), one.said
    assert re.search(pattern, ended[by].errors[0]), ended[by].errors
    assert "add --debug" not in ended[by].said


def latest(out: Path) -> int:
    checkpoint = Checkpoints(out, "extend", keep=1).latest()
    assert checkpoint is not None
    return checkpoint.step


def steps_of(out: Path) -> list[int]:
    return [line["step"] for line in read_metrics(out / METRICS)]


# Other numbers of ranks


@pytest.fixture(scope="module")
def stopped_after_three(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Inputs, TrainRecipe, int, Path], Path]:
    """A copy of the folder of a run that was stopped after its third step."""
    made: dict[Any, Path] = {}

    def folder(inputs: Inputs, recipe: TrainRecipe, size: int, out: Path) -> Path:
        if (key := (inputs, recipe, size)) not in made:
            made[key] = tmp_path_factory.mktemp("stopped") / "run"
            blow = Blow([size - 1], signal.SIGTERM, "after a step", 3)
            ended = stopped(inputs, recipe, made[key], size, blow)
            assert [one.code for one in ended] == [130] * size
            assert latest(made[key]) == 3
            assert steps_of(made[key]) == [1, 2, 3]
        shutil.copytree(made[key], out)
        return out

    return folder


StoppedAfterThree = Callable[[Inputs, TrainRecipe, int, Path], Path]


@pytest.mark.parametrize(
    ("before", "after", "context"), [(4, 2, 1), (4, 1, 1), (1, 4, 2), (2, 4, 1), (2, 2, 2)]
)
def test_a_run_goes_on_with_another_number_of_ranks(
    before: int,
    after: int,
    context: int,
    inputs: Inputs,
    undisturbed: Undisturbed,
    stopped_after_three: StoppedAfterThree,
    tmp_path: Path,
) -> None:
    out = stopped_after_three(inputs, RECIPE, before, tmp_path / "run")
    on_ranks(after, train, inputs, out, replace(RECIPE, context_parallel=context))
    assert steps_of(out) == [1, 2, 3, 4, 5]
    found = differences(inputs, out, undisturbed(inputs, RECIPE))
    assert found.within(**FP32), found
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("size", [1, 4])
def test_with_as_many_ranks_it_goes_on_to_the_same_bits(
    size: int,
    inputs: Inputs,
    undisturbed: Undisturbed,
    stopped_after_three: StoppedAfterThree,
    tmp_path: Path,
) -> None:
    out = stopped_after_three(inputs, RECIPE, size, tmp_path / "run")
    on_ranks(size, train, inputs, out, RECIPE)
    assert_same_bits(inputs, out, undisturbed(inputs, RECIPE, size))


def assert_same_bits(inputs: Inputs, out: Path, whole: Path) -> None:
    found = differences(inputs, out, whole)
    assert found.within(losses=0.0, weights=0.0), found
    assert (out / "extend" / SINGLE).read_bytes() == (whole / "extend" / SINGLE).read_bytes()


def wide(inputs: Inputs, folder: Path) -> Inputs:
    """With a model of one layer whose averages can be kept in 8 bits: rows of 256."""
    need_bitsandbytes()  # takes a second to load: before ranks are forked
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8}
    shape = {"hidden_size": 256, "intermediate_size": 32, "num_hidden_layers": 1}
    return with_model(inputs, "llama", folder, **shape, **heads)


def test_averages_in_8_bits_go_on_with_another_number_of_ranks(
    inputs: Inputs,
    undisturbed: Undisturbed,
    stopped_after_three: StoppedAfterThree,
    tmp_path: Path,
) -> None:
    """Blocks never reach over rows: those of other ranks have the same. Measured: 7e-5 of how far
    the model is from the base."""
    ours, recipe = wide(inputs, tmp_path / "wide"), replace(RECIPE, moments="8bit")
    whole = undisturbed(ours, recipe)
    for before, after in ((4, 2), (1, 4)):
        out = stopped_after_three(ours, recipe, before, tmp_path / f"{before}")
        (checkpoint,) = Checkpoints(out, "extend", keep=1).all()
        assert any(name.endswith("_codes.lm_head.weight") for name, _ in checkpoint.tensors())
        on_ranks(after, train, ours, out, recipe)
        found = differences(ours, out, whole)
        assert found.within(losses=2e-6, weights=1e-3), found


def test_weights_that_are_rounded_by_chance_go_on(
    inputs: Inputs,
    undisturbed: Undisturbed,
    stopped_after_three: StoppedAfterThree,
    tmp_path: Path,
) -> None:
    """With as many ranks by the same chance. With others by another, from the same weights: the
    first loss is the same, later ones differ by what chance does; measured: 4e-4 of them."""
    ours = wide(inputs, tmp_path / "wide")
    recipe = replace(RECIPE, dtype="bf16", masters="none", gradients="bf16", moments="8bit")
    whole = undisturbed(ours, recipe, 4)
    same = stopped_after_three(ours, recipe, 4, tmp_path / "same")
    on_ranks(4, train, ours, same, recipe)
    assert_same_bits(ours, same, whole)
    other = stopped_after_three(ours, recipe, 4, tmp_path / "other")
    on_ranks(2, train, ours, other, recipe)
    fourth, expected = (read_metrics(out / METRICS)[3]["loss"] for out in (other, whole))
    assert fourth == pytest.approx(expected, rel=1e-5)
    found = differences(ours, other, whole)
    assert found.within(losses=4e-3, weights=0.5), found


STORAGES = {
    "fp32": (torch.float32, Storage()),
    "bf16 and masters": (torch.bfloat16, Storage()),
    "as small as can be": (torch.bfloat16, Storage("none", "bf16", "8bit")),
}


def _made(folder: Path, dtype: torch.dtype, storage: Storage, run: Path) -> None:
    """A checkpoint of a model that was trained with gradients at random."""
    model = load_model(str(folder), dtype=dtype)
    optimizer = AdamW(model, 1e-2, (0.9, 0.95), 0.1, storage)
    for _ in range(2):
        sum((p.float() * torch.randn(p.shape)).sum() for p in model.parameters()).backward()
        optimizer.step(1.0, torch.ones(()), 0.0)
    Checkpoints(run, "extend", 1).save(2, optimizer.state(), optimizer.rows)


def _passed_on(folder: Path, dtype: torch.dtype, storage: Storage, run: Path, then: Path) -> int:
    """Load one checkpoint and save another; how many rows of all tensors are here."""
    with many(1, None, "cpu", 60) as ranks:
        model = load_model(str(folder), dtype=dtype, ranks=ranks)
        optimizer = AdamW(model, 1e-2, (0.9, 0.95), 0.1, storage)
        latest = Checkpoints(run, "extend", 1, ranks).latest()
        assert latest is not None
        optimizer.load(latest.tensors(optimizer.rows))
        Checkpoints(then, "extend", 1, ranks).save(2, optimizer.state(), optimizer.rows)
        return sum(len(p.to_local() if ranks.size > 1 else p) for p in optimizer.parameters)


@pytest.mark.parametrize("name", list(STORAGES))
def test_a_checkpoint_that_others_load_and_save_has_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    """Also of matrices with fewer rows than there are ranks, and of averages in 8 bits of them."""
    dtype, storage = STORAGES[name]
    need_bitsandbytes()
    shape = {"hidden_size": 2048, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 33}
    folder = Path(save_tiny("llama", tmp_path / "model", **shape, **heads))
    on_ranks(1, _made, folder, dtype, storage, tmp_path / "0")
    for place, size in enumerate((4, 3, 1, 2, 1)):
        runs = (tmp_path / f"{place}", tmp_path / f"{place + 1}")
        rows = on_ranks(size, _passed_on, folder, dtype, storage, *runs)
        assert min(rows) > 0
    (first,) = Checkpoints(tmp_path / "0", "extend", 1).all()
    expected = {key: bits(tensor) for key, tensor in first.tensors()}
    key = "exp_avg_codes" if storage.moments == "8bit" else "exp_avg"
    assert f"{key}.model.layers.0.self_attn.k_proj.weight" in expected
    for place in range(1, 6):
        (checkpoint,) = Checkpoints(tmp_path / f"{place}", "extend", 1).all()
        assert {name: bits(tensor) for name, tensor in checkpoint.tensors()} == expected


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    return tensor.dtype, tensor.shape, flat.numpy().tobytes()


# Signals

STOPS: dict[str, tuple[int, int, Blow, int]] = {
    "one, in the middle of a step": (2, 2, Blow([1], signal.SIGTERM, "in a step", 3), 2),
    "the first, after a step": (2, 1, Blow([0], signal.SIGTERM, "after a step", 3), 3),
    "all, in the middle of a step": (4, 2, Blow(range(4), signal.SIGTERM, "in a step", 3), 2),
    "all, after the last step": (2, 2, Blow(range(2), signal.SIGINT, "after a step", 5), 5),
    "one, while the model is saved": (2, 1, Blow([0], signal.SIGTERM, "in an export"), 0),
}
"""Ranks, how many share a row, who is told and when, and the step of the checkpoint."""


@pytest.mark.parametrize("name", list(STOPS))
def test_all_ranks_stop_where_one_is_told_to(
    name: str, inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """With a checkpoint of the last whole step, and one line; the same command goes on."""
    size, context, blow, step = STOPS[name]
    out, recipe = tmp_path / "run", replace(RECIPE, context_parallel=context)
    ended = stopped(inputs, recipe, out, size, blow)
    assert_said_once(ended, "interrupted; the same command goes on", by=0, code=130)
    if step:
        assert latest(out) == step
        assert steps_of(out) == list(range(1, step + 1))
        assert dict(Checkpoints(out, "extend", 1).all()[-1].tensors())
    before = (out / METRICS).read_text()
    on_ranks(size, train, inputs, out, recipe)
    assert (out / METRICS).read_text().startswith(before), "steps were done again"
    found = differences(inputs, out, undisturbed(inputs, RECIPE))
    assert found.within(**FP32), found


def _interrupted_twice(inputs: Inputs, out: Path, recipe: TrainRecipe) -> None:
    blow = Blow([1], signal.SIGTERM, "in a checkpoint")
    blow.prepare()
    train_until(
        Blow([0, 1], signal.SIGINT, "after a step", 3), out.parent / "blow", inputs, out, recipe
    )


def test_a_signal_that_is_passed_on_does_not_stop_the_saving(
    inputs: Inputs, tmp_path: Path
) -> None:
    """Whatever started the ranks tells them once more, in its own way."""
    out = tmp_path / "run"
    ended = Ranks(2, _interrupted_twice, inputs, out, RECIPE).end()
    assert_said_once(ended, "interrupted", by=0, code=130)
    assert latest(out) == 3


# Death

DEATHS: dict[str, tuple[int, int, Blow]] = {
    "in a check": (2, 1, Blow([1], signal.SIGKILL, "in a check")),
    "before a step": (2, 1, Blow([1], signal.SIGKILL, "before a step", 3)),
    "in a step, of a row's ranks": (4, 2, Blow([2], signal.SIGKILL, "in a step", 3)),
    "after a step": (2, 2, Blow([1], signal.SIGKILL, "after a step", 3)),
    "in a checkpoint": (2, 1, Blow([1], signal.SIGKILL, "in a checkpoint")),
    "the first, in an export": (2, 2, Blow([0], signal.SIGKILL, "in an export")),
    "the first, in a step": (2, 2, Blow([0], signal.SIGKILL, "in a step", 3)),
}
"""Ranks, how many share a row, who dies and when."""
GONE = r"rank \d of \d: another rank died or did not answer in time \(.+\); run the same command"


@pytest.mark.parametrize("name", list(DEATHS))
def test_a_rank_that_dies_ends_the_others_and_the_run_goes_on(
    name: str, inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    size, context, blow = DEATHS[name]
    out, recipe = tmp_path / "run", replace(RECIPE, context_parallel=context, checkpoint_every=2)
    ended = stopped(inputs, recipe, out, size, blow)
    for rank, one in enumerate(ended):
        if rank in blow.ranks:
            assert one.code == -signal.SIGKILL
        else:
            assert (one.code, len(one.errors)) == (1, 1), one.said
            assert re.search(GONE, one.errors[0]), one.errors
    for checkpoint in Checkpoints(out, "extend", 1).all():
        assert dict(checkpoint.tensors())
    on_ranks(size, train, inputs, out, recipe)
    assert steps_of(out) == [1, 2, 3, 4, 5]
    found = differences(inputs, out, undisturbed(inputs, RECIPE))
    assert found.within(**FP32), found


@pytest.mark.parametrize(
    "where", ["in a step", pytest.param("after a step", marks=pytest.mark.slow)]
)
def test_a_rank_that_hangs_ends_the_others(where: Where, inputs: Inputs, tmp_path: Path) -> None:
    blow = Blow([1], signal.SIGSTOP, where, 2)
    recipe = replace(RECIPE, rank_timeout=3, context_parallel=2)
    for one in stopped(inputs, recipe, tmp_path / "run", 4, blow):
        assert (one.code, len(one.errors)) == (1, 1), one.said
        assert re.search(GONE, one.errors[0]), one.errors


# Errors


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


# The command


def torchrun(inputs: Inputs, recipe: TrainRecipe, out: Path) -> subprocess.Popen[str]:
    """On two ranks, in a process group of its own, as a terminal would start it."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lrtrain"]
    split = ["--context-parallel", str(recipe.context_parallel)]
    return subprocess.Popen(
        [sys.executable, *start, *command(inputs, recipe, out), *split],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_command_under_torchrun(
    inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Ctrl-C leaves a checkpoint, the same command goes on to the end, and one rank speaks."""
    out = tmp_path / "run"
    recipe = TrainRecipe(
        steps=40, anneal_steps=2, rows_per_step=3, lr=1e-3, dtype="fp32", device="cpu"
    )
    split = replace(recipe, context_parallel=2, checkpoint_every=0)
    process = torchrun(inputs, split, out)
    try:
        while process.poll() is None and not ((out / METRICS).exists() and len(steps_of(out)) > 2):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        said, complained = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert complained.count("error: interrupted; the same command goes on") == 1, complained
    assert complained.count("Traceback") == complained.count("SignalException: ") == 1, "torchrun's"
    assert "lrtrain/" not in complained, complained
    assert said.count("attention: sdpa, on 2 ranks, cpu, a row over 2 of them") == 1
    done = latest(out)
    assert steps_of(out) == list(range(1, done + 1))
    assert 2 < done < 40, "it came too late"
    process = torchrun(inputs, replace(split, checkpoint_every=7), out)
    try:
        said, complained = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, complained
    made = ", ".join(str(out / name) for name in ("extend", "anneal", "merged"))
    lines = [line for line in said.splitlines() if line]
    assert lines == [
        "attention: sdpa, on 2 ranks, cpu, a row over 2 of them",
        f"made {made}",
        f"see what it retrieves with: lrtrain eval {inputs.model} {out / 'merged'}",
    ]
    for stage in ("extend: 40/40 loss ", "anneal: 2/2 loss "):
        assert complained.count(stage) == 1, complained
    assert "Warning" not in complained.replace("OMP_NUM_THREADS", ""), complained
    found = differences(inputs, out, undisturbed(inputs, recipe))
    assert found.within(losses=2e-5, weights=1e-3), found
    assert (out / "loss.png").exists()
