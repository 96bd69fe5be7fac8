"""Tiny random models of every family the trainer knows, and their float64 reference."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
VOCABULARY, WINDOW, THETA = 96, 64, 10_000.0


def tiny_config(family: str, **changes: Any) -> Any:
    """Two layers, six query heads on two key-value heads; the family's own biases and norms.

    A head is 8 wide; Qwen3's are wider than hidden_size / heads, and Qwen2's config does not say.
    """
    special: dict[str, dict[str, Any]] = {
        "llama": {"head_dim": 8},
        "mistral": {"head_dim": 8, "sliding_window": None},
        "qwen2": {},
        "qwen3": {"head_dim": 12},
    }
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": WINDOW,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
    }
    return FAMILIES[family](**{**values, **special[family], **changes})


def llama3_8b_config() -> Any:
    """The shape of Llama-3-8B, for what needs no weights."""
    return tiny_config(
        "llama",
        hidden_size=4096,
        head_dim=128,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_hidden_layers=32,
        intermediate_size=14336,
        vocab_size=128_256,
    )


def save_tiny(family: str, folder: Path, *, seed: int = 0, **changes: Any) -> str:
    """A model in plain Hugging Face format; returns its path.

    Every parameter is random, norms and biases too, and large enough for attention to be far from
    uniform: a wrong mask or scale shows.
    """
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + noise / 5 if "norm" in name else noise / 5
    model.save_pretrained(folder)
    return str(folder)


def download_from(hub: Path, cache: Path) -> Callable[..., str]:
    """huggingface_hub's snapshot_download of a model that is in a folder."""

    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        cache.mkdir(exist_ok=True)
        names = [path.name for path in hub.iterdir()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            shutil.copyfile(hub / name, cache / name)
        return str(cache)

    return download


def reference_model(folder: str, rope_parameters: dict[str, Any], window: int) -> Any:
    """transformers' own model in float64 with its eager attention."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters = rope_parameters
    config.max_position_embeddings = window
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float64, attn_implementation="eager"
    )


def document_mask(seq_lengths: Sequence[int]) -> torch.Tensor:
    """float64 [1, 1, S, S] to add to the logits: 0 inside a document's past, else the minimum."""
    total = sum(seq_lengths)
    mask = torch.full((total, total), torch.finfo(torch.float64).min, dtype=torch.float64)
    start = 0
    for length in seq_lengths:
        for row in range(start, start + length):
            mask[row, start : row + 1] = 0
        start += length
    return mask[None, None]
