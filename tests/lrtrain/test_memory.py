"""What is predicted without data is what tensors with data take."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrtrain.activations import Activations, prepare
from lrtrain.attention import IMPLEMENTATION, register
from lrtrain.loss import training_loss
from lrtrain.memory import LiveBytes, step_memory
from lrtrain.optim import AdamW, Storage
from tests.lrtrain.tiny_models import FAMILIES, llama3_8b_config, tiny_config

TOKENS = 96


def measured(config: Any, dtype: torch.dtype, checkpointing: bool, chunk: int) -> int:
    """The most bytes that are alive in two real micro-batches, followed by the same ledger."""
    register()
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=IMPLEMENTATION, dtype=dtype
    )
    model.train()
    if checkpointing:
        prepare(model, Activations(checkpointing=True))
    optimizer = AdamW(model, 1e-5, (0.9, 0.95), 0.0)
    ids = torch.randint(config.vocab_size, (1, TOKENS))
    with LiveBytes() as live:
        for _ in range(2):
            loss = training_loss(
                model, ids, torch.arange(TOKENS)[None], [TOKENS], torch.ones(TOKENS), 1.0, chunk
            )
            (loss / TOKENS).backward()
        optimizer.step(1.0, optimizer.gradient_norm(), clip=1.0)
    optimizer.close()
    return live.peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_working_memory_is_that_of_a_real_step(
    family: str, dtype: torch.dtype, checkpointing: bool
) -> None:
    config = tiny_config(family, num_hidden_layers=3, vocab_size=500)
    real = measured(config, dtype, checkpointing, chunk=32)
    how = Activations(checkpointing=checkpointing)
    found = step_memory(config, [TOKENS], dtype=dtype, activations=how, chunk_tokens=32)
    assert found.working + found.gradients == pytest.approx(real, rel=0.02)


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
