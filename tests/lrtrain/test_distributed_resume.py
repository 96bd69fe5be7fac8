"""A run that was stopped goes on with any number of ranks, from what another number wrote.

To the losses of a run that nobody disturbed, within what is measured and let pass in
`test_distributed_runs`; with as many ranks as before, to the same bits. A checkpoint that others
load and save has the same bits.
"""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lrtrain.loop
from lrtrain import moments
from lrtrain.checkpoint import Checkpoints
from lrtrain.distributed import many
from lrtrain.metrics import METRICS, read_metrics
from lrtrain.model import load_model
from lrtrain.model_files import SINGLE
from lrtrain.optim import AdamW, Storage
from lrtrain.recipe import TrainRecipe
from tests.lrtrain.blows import (
    FP32,
    RECIPE,
    StoppedAfterThree,
    Undisturbed,
    steps_of,
)
from tests.lrtrain.many import (
    Inputs,
    build_inputs,
    differences,
    on_ranks,
    train,
    with_model,
)
from tests.lrtrain.tiny_models import save_tiny


@pytest.fixture(scope="module")
def inputs(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return build_inputs(tiny_tokenizer, tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory)


@pytest.fixture(scope="module")
def stopped_after_three(tmp_path_factory: pytest.TempPathFactory) -> StoppedAfterThree:
    return StoppedAfterThree(tmp_path_factory)


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
    moments._functional()  # takes a second to load: before ranks are forked
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


def _train_by_clock(inputs: Inputs, out: Path, recipe: TrainRecipe) -> list[int]:
    """The steps after which a rank saves what it has. The clock of the last rank goes fast: it
    alone sees 20 minutes go by, after the third step."""
    begin, update, saved = Checkpoints._begin, AdamW.step, list[int]()
    seconds = 0.0

    def beginning(checkpoints: Checkpoints, partial: Path) -> None:
        saved.append(int(partial.stem.rpartition("-")[2]))
        begin(checkpoints, partial)

    def step(optimizer: AdamW, *given: Any) -> None:
        nonlocal seconds
        seconds += 401 if os.environ["RANK"] == "1" else 1
        update(optimizer, *given)

    Checkpoints._begin = beginning  # type: ignore[method-assign]
    AdamW.step = step  # type: ignore[method-assign]
    lrtrain.loop.time = SimpleNamespace(monotonic=lambda: seconds)  # type: ignore[assignment]
    train(inputs, out, recipe)
    return saved


def test_all_ranks_save_when_it_is_time_for_one(
    inputs: Inputs, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, checkpoint_every=None)
    saved = on_ranks(2, _train_by_clock, inputs, tmp_path / "run", recipe)
    assert saved == [[3, 5], [3, 5]], "and before the holdout rows of the last step"
    assert_same_bits(inputs, tmp_path / "run", undisturbed(inputs, RECIPE, 2))


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
    moments._functional()
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
