"""Small shards and a tiny model with their tokenizer, for tests of whole runs."""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lrdata.building import build
from lrdata.recipe import BuildRecipe
from lrtrain.model import copy_tokenizer
from lrtrain.recipe import TrainRecipe
from tests.conftest import generated_text

WINDOW, TARGET, ROW = 128, 512, 144
WIDE = 256
"""Of rows that are so wide running averages may be kept in 8 bits."""
RECIPE = TrainRecipe(
    steps=4, anneal_steps=3, rows_per_step=4, lr=3e-3, anneal_lr=1e-3, dtype="fp32", device="cpu"
)
"""A run of all stages in seconds."""


def save_tiny_model(tokenizer: Path, folder: Path, window: int = WINDOW, width: int = 32) -> Path:
    """A random Llama of two layers in plain Hugging Face format."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1008,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    copy_tokenizer(str(tokenizer), folder, window)
    return folder


def build_shards(tokenizer: Path, folder: Path, replay: bool = True, target: int = TARGET) -> Path:
    """Shards with extend, replay and holdout rows."""
    corpus = folder.with_name(f"{folder.name}-corpus")
    corpus.mkdir(parents=True)
    texts = ["".join(generated_text(30, seed)) for seed in range(24)]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (corpus / "long.jsonl").write_text("".join(lines), encoding="utf-8")
    pairs = [
        {"prompt": "".join(generated_text(1, seed)), "text": "".join(generated_text(1, seed + 1))}
        for seed in range(200, 400)
    ]
    lines = [json.dumps(pair) + "\n" for pair in pairs]
    (corpus / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    recipe = BuildRecipe(
        corpora=(str(corpus / "long.jsonl"),),
        tokenizer=str(tokenizer),
        target_len=target,
        segment_tokens=24,
        holdout=0.15,
        replay=(str(corpus / "pairs.jsonl"),) if replay else (),
        replay_ratio=0.4,
        prompt_field="prompt" if replay else None,
        response_field="text" if replay else None,
    )
    build(recipe, folder, workers=1)
    return folder
