"""Tiny random models of every family that the trainer knows, and what they should compute."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 24}),
}


def save_family(name: str, folder: Path, **changes: Any) -> Path:
    """A random model of two layers, 4 heads over 2 key-value heads, window 64, vocabulary 97."""
    config, model, special = FAMILIES[name]
    torch.manual_seed(1)
    values = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "initializer_range": 0.2,  # so that attention is far from uniform
        **special,
        **changes,
    }
    if name == "qwen2":
        del values["head_dim"]
    model(config(**values)).save_pretrained(folder)
    return folder


def document_mask(lengths: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [1, 1, S, S]: causal inside each document, nothing between them."""
    blocks = [torch.ones(n, n).tril() for n in lengths]
    seen = torch.block_diag(*blocks).bool()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[
        None, None
    ]
