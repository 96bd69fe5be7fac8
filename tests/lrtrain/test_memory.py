"""What is predicted without data is what tensors with data take."""

from itertools import product
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrtrain.activations import Activations, prepare
from lrtrain.attention import IMPLEMENTATION, register
from lrtrain.loss import training_loss
from lrtrain.memory import LiveBytes, StepMemory, step_memory
from lrtrain.optim import EXACT, AdamW, Storage, stored_bytes
from lrtrain.recipe import GRADIENTS, MASTERS, MOMENTS
from tests.lrtrain.tiny_models import FAMILIES, llama3_8b_config, tiny_config

TOKENS = 96
WIDE = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 256}
"""Of a tiny model all of whose matrices, of heads 64 wide, have rows that may go to 8 bits."""


def measured(
    config: Any,
    dtype: torch.dtype,
    how: Activations,
    storage: Storage = EXACT,
    chunk: int = 32,
    tokens: int = TOKENS,
) -> LiveBytes:
    """Two real micro-batches and an optimizer step on a CPU, followed by the same ledger."""
    register()
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=IMPLEMENTATION, dtype=dtype
    )
    model.train()
    prepare(model, how)
    optimizer = AdamW(model, 1e-5, (0.9, 0.95), 0.0, storage)
    ids = torch.randint(config.vocab_size, (1, tokens))
    with LiveBytes() as live:
        for _ in range(2):
            loss = training_loss(
                model, ids, torch.arange(tokens)[None], [tokens], torch.ones(tokens), 1.0, chunk
            )
            (loss / tokens).backward()
        optimizer.step(1.0, optimizer.gradient_norm(), clip=1.0)
    optimizer.close()
    return live


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_working_memory_is_that_of_a_real_step(
    family: str, dtype: torch.dtype, checkpointing: bool
) -> None:
    config = tiny_config(family, num_hidden_layers=3, vocab_size=500)
    how = Activations(checkpointing=checkpointing)
    real = measured(config, dtype, how)
    found = step_memory(config, [TOKENS], dtype=dtype, activations=how, chunk_tokens=32)
    assert found.working + found.gradients == pytest.approx(real.peak, rel=0.02)


@pytest.mark.parametrize(
    ("how", "storage"),
    [
        (Activations(mlp_tokens=40), EXACT),
        (Activations(checkpointing=True, mlp_tokens=40), EXACT),
        (Activations(checkpointing=True), Storage(gradients="bf16")),
        (Activations(checkpointing=True), Storage(masters="none")),
        (Activations(checkpointing=True), Storage(moments="8bit")),
        (Activations(checkpointing=True), Storage(offload=True)),
        (Activations(mlp_tokens=32), Storage("none", "bf16", "8bit")),
        (Activations(checkpointing=True, mlp_tokens=32), Storage("none", "bf16", "8bit")),
    ],
    ids=str,
)
def test_it_is_with_every_option_that_saves(how: Activations, storage: Storage) -> None:
    """With a small vocabulary activations are most of it, with a large one the optimizer's step."""
    tokens = 4 * TOKENS
    for vocabulary in (128, 6400):
        config = tiny_config("llama", head_dim=64, vocab_size=vocabulary, **WIDE)
        real = measured(config, torch.bfloat16, how, storage, tokens=tokens)
        found = step_memory(
            config,
            [tokens],
            dtype=torch.bfloat16,
            activations=how,
            storage=storage,
            chunk_tokens=32,
        )
        assert found.working + found.gradients == pytest.approx(real.peak, rel=0.02)
        assert real.host_peak == found.host == 0
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        eight_bit = found.moments < 2.1 * parameters
        assert eight_bit == (storage.moments == "8bit")


def test_offloading_moves_a_row_of_every_layer_to_the_host() -> None:
    """All but two of the inputs leave the card: the one in use and the one on its way."""
    layers, tokens, width, dtype = 6, 256, 48, torch.bfloat16
    config = tiny_config("llama", num_hidden_layers=layers)

    def found(offload: bool, on_gpu: bool) -> StepMemory:
        return step_memory(
            config,
            [tokens],
            dtype=dtype,
            activations=Activations(checkpointing=True, offload=offload),
            chunk_tokens=tokens,
            on_gpu=on_gpu,
        )

    here, away = found(False, True), found(True, True)
    one = tokens * width * dtype.itemsize
    assert here.working - away.working == pytest.approx((layers - 2) * one, abs=one / 10)
    assert here.host == 0
    assert layers * one <= away.host <= (layers + 1) * one, "and what the last norm keeps"
    assert away.parameters == here.parameters
    assert found(True, False) == found(False, False), "a CPU has no other memory"


def test_the_host_of_a_real_step_is_the_one_that_is_planned() -> None:
    config = tiny_config("llama", num_hidden_layers=4)
    how = Activations(checkpointing=True, offload=True)
    for dtype in (torch.float32, torch.bfloat16):
        real = measured(config, dtype, how)
        found = step_memory(
            config, [TOKENS], dtype=dtype, activations=how, chunk_tokens=32, on_gpu=True
        )
        assert found.host == real.host_peak > 4 * TOKENS * 48 * dtype.itemsize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_what_the_optimizer_says(dtype: torch.dtype) -> None:
    config = tiny_config("qwen2", num_hidden_layers=1, **WIDE)
    parameters = list(AutoModelForCausalLM.from_config(config, dtype=dtype).parameters())
    for masters, gradients, moments in product(MASTERS, GRADIENTS, MOMENTS):
        storage = Storage(masters, gradients, moments)
        kept = stored_bytes(parameters, storage)
        found = step_memory(config, [8], dtype=dtype, storage=storage, on_gpu=True)
        numbers = found.masters, found.moments, found.gradients
        assert numbers == (kept.masters, kept.moments, kept.gradients), storage
        assert (kept.moments < stored_bytes(parameters, EXACT).moments / 3) == (moments == "8bit")
        assert found.host == 0
        assert found.total == sum(numbers) + found.parameters + found.working
    offloaded = step_memory(config, [8], dtype=dtype, storage=Storage(offload=True), on_gpu=True)
    kept = stored_bytes(parameters, EXACT)
    assert offloaded.masters == offloaded.moments == 0
    assert offloaded.host == kept.masters + kept.moments
    assert offloaded.gradients == kept.gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stays_is_counted_by_parameters(dtype: torch.dtype) -> None:
    config = tiny_config("llama")
    count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    found = step_memory(config, [TOKENS], dtype=dtype, chunk_tokens=32)
    assert found.parameters == count * dtype.itemsize
    assert found.masters == (0 if dtype == torch.float32 else 2 * count)
    assert found.moments == 8 * count
    assert found.gradients == 4 * count
    kept = found.parameters + found.masters + found.moments + found.gradients
    assert found.total == kept + found.working


def test_options_that_save_memory_do() -> None:
    config = tiny_config("llama", num_hidden_layers=6, vocab_size=2000)

    def working(checkpointing: bool, chunk_tokens: int, tokens: int = 256) -> int:
        return step_memory(
            config,
            [tokens],
            dtype=torch.float32,
            activations=Activations(checkpointing=checkpointing),
            chunk_tokens=chunk_tokens,
        ).working

    assert working(True, 256) < working(False, 256)
    assert working(True, 32) < working(True, 256)
    assert working(True, 32, tokens=512) > working(True, 32)


def test_a_model_that_fits_no_machine_is_planned_in_no_memory() -> None:
    """The 8B shape with rows of 39k tokens."""
    config = llama3_8b_config()
    storage = Storage(moments="8bit", offload=True)
    how = Activations(checkpointing=True, offload=True)
    found = step_memory(
        config,
        [39_312],
        dtype=torch.bfloat16,
        storage=storage,
        activations=how,
        on_gpu=True,
    )
    assert 8.0e9 < found.parameters / 2 < 8.1e9
    assert found.total < 75e9, "one card"
    assert found.host < 60e9, "64 GB beside it"


def test_the_ledger_follows_what_is_alive() -> None:
    with LiveBytes() as live:
        one = torch.ones(1000)  # 4,000 bytes
        assert live.now == 4000
        view = one[:10]
        two = one + 1
        assert (live.now, live.peak) == (8000, 8000)
        del two
        assert (live.now, live.peak) == (4000, 8000)
        del one
        assert live.now == 4000, "the view still holds it"
        del view
        assert live.now == 0


def test_what_was_there_before_is_not_counted_again() -> None:
    linear = torch.nn.Linear(1000, 1000)
    with torch.no_grad(), LiveBytes() as live:
        out = linear(torch.ones(2, 1000))
    assert live.now == out.nbytes
    assert live.peak == out.nbytes + 8000  # and its input
