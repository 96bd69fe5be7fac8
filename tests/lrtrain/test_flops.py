"""Operations counted by the formula are those that torch counts in transformers' own models."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from lrtrain.flops import linear_weights, peak_flops, peak_of, training_flops
from tests.lrtrain.tiny_models import FAMILIES, llama3_8b_config, tiny_config


def counted(config: Any, tokens: int, backward: bool) -> int:
    """By torch, of a full forward (and backward) with explicit attention."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.zeros((1, tokens), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=ids, use_cache=False).logits
        if backward:
            logits.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_is_what_torch_counts(family: str) -> None:
    """Eager attention computes all pairs; rotary frequencies are all that we leave out."""
    config = tiny_config(family)
    ours = training_flops(config, [48], causal=False) / 3
    assert ours == pytest.approx(counted(config, 48, backward=False), rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backward_is_twice_the_forward(family: str) -> None:
    config = tiny_config(family)
    ours = training_flops(config, [48], causal=False)
    assert ours == pytest.approx(counted(config, 48, backward=True), rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_linear_weights_are_all_matrices_but_the_input_embedding(tied: bool) -> None:
    config = tiny_config("llama", tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    matrices = {
        name: weight.numel()
        for name, weight in model.named_parameters()
        if weight.dim() > 1 and "embed_tokens" not in name
    }
    if tied:  # the output embedding is the input's
        matrices["lm_head"] = config.vocab_size * config.hidden_size
    assert linear_weights(config) == sum(matrices.values())


def test_documents_do_not_pay_for_each_other() -> None:
    config = tiny_config("llama")
    one, parts = training_flops(config, [1000]), training_flops(config, [500, 500])
    linear = training_flops(config, [1000], causal=False) - 2 * (
        training_flops(config, [1000], causal=False) - one
    )
    assert one - linear == pytest.approx(2 * (parts - linear))


def test_a_row_of_30_percent_costs_what_design_says() -> None:
    """The 8B shape: 39k of 131k tokens, causal attention counted once: about 0.155."""
    config = llama3_8b_config()
    ratio = training_flops(config, [39_312]) / training_flops(config, [131_072])
    assert ratio == pytest.approx(0.155, abs=0.01)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GB200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
    ],
)
def test_known_devices(name: str, tflops: float) -> None:
    assert peak_flops(name) == tflops * 1e12
    assert peak_flops("a pocket calculator") is None


def test_fp32_has_no_peak_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    gpu = torch.device("cuda")
    assert peak_of(gpu, "bf16") == 989e12
    assert peak_of(gpu, "fp32") is None
    assert peak_of(torch.device("cpu"), "bf16") is None
