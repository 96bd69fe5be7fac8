"""What only a GPU shows: `make test-gpu`. Training there equals the reference on a CPU."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lrdata.errors import LongRecipeError
from lrtrain import attention
from lrtrain.activations import Activations, prepare
from lrtrain.attention_backends import BACKENDS, load_backend
from lrtrain.checks import attention_crosses_gaps, attention_stops_at_documents
from lrtrain.host_memory import host_zeros
from lrtrain.loader import Batch
from lrtrain.model import load_model
from lrtrain.optim import EXACT, AdamW, Storage
from lrtrain.step import LossOptions, accumulate
from tests.lrtrain.tiny_models import FAMILIES, VOCABULARY, save_tiny

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
WIDE = {"hidden_size": 192, "num_hidden_layers": 4}
"""Heads 32 wide; Qwen3's and others' own widths would be 12 and 8, which flash kernels refuse."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    heads = {family: {} if family == "qwen2" else {"head_dim": 32} for family in FAMILIES}
    return {family: save_tiny(family, root / family, **WIDE, **heads[family]) for family in heads}


@pytest.fixture(scope="module")
def eight_bit_rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama all of whose matrices may have running averages in 8 bits."""
    wide = {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 256}
    return save_tiny(
        "llama", tmp_path_factory.mktemp("rows"), head_dim=32, num_hidden_layers=4, **wide
    )


def batches(lengths: Sequence[Sequence[int]] = ((200, 1, 99), (300,))) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for seq_lengths in lengths:
        tokens = sum(seq_lengths)
        weights = torch.rand(tokens, generator=generator)
        starts = torch.tensor([0, *seq_lengths[:-1]]).cumsum(0)
        weights[starts] = 0
        ids = torch.randint(VOCABULARY, (1, tokens), generator=generator, dtype=torch.int32)
        positions = torch.randint(1, 5, (tokens,), generator=generator).cumsum(0)
        made.append(Batch(ids, positions.to(torch.int32)[None], [*seq_lengths], weights, ["row"]))
    return made


def gradients(
    folder: str,
    device: torch.device,
    dtype: torch.dtype,
    how: Activations | None = None,
    backend: str = "sdpa",
) -> tuple[float, torch.Tensor]:
    """The loss of a step and all its gradients in one vector."""
    model = load_model(folder, dtype=dtype, device=device).train()
    prepare(model, how or Activations())
    optimizer = AdamW(model, 1e-3, (0.9, 0.95), 0.0)
    with attention.using(load_backend(backend)):
        loss, _ = accumulate(model, batches(), optimizer, LossOptions(device, 0.8, 64))
    flat = torch.cat([gradient.flatten().float().cpu() for gradient in optimizer.gradients()])
    return float(loss), flat


def available(name: str) -> str:
    try:
        load_backend(name)
    except LongRecipeError as problem:
        pytest.skip(str(problem))
    return name


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "dense"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_in_bf16_is_as_near_to_fp32_as_the_definition_is(
    family: str, backend: str, folders: dict[str, str]
) -> None:
    """These models are far from linear: bf16 alone moves their gradients by a half."""
    folder = folders[family]
    expected_loss, expected = gradients(folder, torch.device("cpu"), torch.float32)
    _, rounded = gradients(folder, CUDA, torch.bfloat16, backend="dense")
    loss, found = gradients(folder, CUDA, torch.bfloat16, backend=available(backend))
    assert loss == pytest.approx(expected_loss, rel=0.02)
    assert float((found - expected).norm()) < 1.5 * float((rounded - expected).norm())


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "dense"])
def test_attention_crosses_gaps_and_stops_at_documents(
    backend: str, folders: dict[str, str]
) -> None:
    model = load_model(folders["llama"], dtype=torch.bfloat16, device=CUDA)
    with attention.using(load_backend(available(backend))):
        attention_crosses_gaps(model)
        attention_stops_at_documents(model)


@pytest.mark.parametrize(
    "how",
    [
        Activations(checkpointing=True),
        Activations(checkpointing=True, offload=True),
        Activations(checkpointing=True, offload=True, mlp_tokens=64),
        Activations(compile=True),
        Activations(checkpointing=True, offload=True, mlp_tokens=64, compile=True),
    ],
    ids=str,
)
def test_what_is_done_about_activations_changes_no_gradient(
    how: Activations, folders: dict[str, str]
) -> None:
    expected_loss, expected = gradients(folders["llama"], CUDA, torch.float32)
    loss, found = gradients(folders["llama"], CUDA, torch.float32, how)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_offloaded_inputs_leave_the_device(folders: dict[str, str]) -> None:
    def peak(offload: bool) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        how = Activations(checkpointing=True, offload=offload)
        gradients(folders["llama"], CUDA, torch.bfloat16, how)
        return torch.cuda.max_memory_allocated()

    assert peak(True) < peak(False)


@pytest.mark.parametrize("moments", ["fp32", "8bit"])
def test_an_offloaded_optimizer_takes_the_same_steps(moments: str, eight_bit_rows: str) -> None:
    ends = []
    for offload in (False, True):
        model = load_model(eight_bit_rows, dtype=torch.bfloat16, device=CUDA).train()
        storage = Storage(moments=moments, offload=offload)
        optimizer = AdamW(model, 1e-3, (0.9, 0.95), 0.1, storage)
        for _ in range(3):
            norm = accumulate(model, batches(), optimizer, LossOptions(CUDA))[1]
            optimizer.step(1.0, norm, clip=1.0)
        ends.append({name: tensor.cpu() for name, tensor in optimizer.state()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert ("exp_avg_codes.model.layers.0.mlp.down_proj.weight" in ends[0]) == (moments == "8bit")


@pytest.mark.parametrize("storage", [EXACT, Storage("none", "bf16", "8bit", True)], ids=str)
def test_a_step_waits_for_nothing(storage: Storage, eight_bit_rows: str) -> None:
    """torch raises where the host would wait for the device."""
    model = load_model(eight_bit_rows, dtype=torch.bfloat16, device=CUDA).train()
    prepare(model, Activations(checkpointing=True, offload=True, mlp_tokens=64))
    optimizer = AdamW(model, 1e-3, (0.9, 0.95), 0.1, storage)
    rows = batches()
    for number in range(3):
        if number:  # the first step makes buffers and loads kernels
            torch.cuda.set_sync_debug_mode("error")
        try:
            _, norm = accumulate(model, rows, optimizer, LossOptions(CUDA))
            optimizer.step(1.0, norm, clip=1.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_host_memory_is_locked_and_no_larger_than_asked() -> None:
    tensor = host_zeros(3_000_001, torch.uint8, CUDA)
    assert tensor.is_pinned()
    assert tensor.untyped_storage().nbytes() == 3_000_001
    on_device = torch.arange(3_000_001, device=CUDA, dtype=torch.uint8)
    tensor.copy_(on_device, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(tensor, on_device.cpu())


def test_a_run_from_shards_to_a_merged_model(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """All the memory options at once, checkpoints included."""
    from lrtrain.recipe import TrainRecipe
    from lrtrain.stages import run
    from tests.lrtrain import tiny_runs
    from tests.lrtrain.tiny_runs import build_shards, save_tiny_model

    shards = build_shards(tiny_tokenizer, tmp_path / "shards")
    model = save_tiny_model(tiny_tokenizer, tmp_path / "tiny", width=tiny_runs.WIDE)
    recipe = TrainRecipe(
        steps=3,
        anneal_steps=2,
        rows_per_step=4,
        checkpointing=True,
        moments="8bit",
        offload=("optimizer", "activations"),
        mlp_tokens=64,
        checkpoint_every=2,
        device="cuda",
    )
    made = run(shards, str(model), tmp_path / "run", recipe, lambda _: None)
    assert [folder.name for folder in made] == ["extend", "anneal", "merged"]
