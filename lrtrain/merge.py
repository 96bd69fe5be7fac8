"""Merge two models of one shape, tensor by tensor: (1 - w) * base + w * tuned.

Memory is one tensor of each: the inputs are read lazily and the output is written as a stream.
Config, tokenizer and RoPE come from the tuned model: its theta is what its weights were trained at.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrtrain.model import appearing, check_saved, copy_tokenizer, load_config
from lrtrain.model_files import SINGLE, Weights, model_folder, write_safetensors


def merge_models(
    base: str,
    tuned: str,
    out: Path,
    weight: float = 0.5,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Write (1 - weight) * base + weight * tuned as a plain Hugging Face folder.

    The paper's merge is weight 0.5. Math in float32, stored in the tuned model's dtype. Raises
    LongRecipeError for models of different shapes; says so in one line when their thetas differ.
    stop: asked before each tensor; where it says so that is a KeyboardInterrupt.
    """
    if not 0 <= weight <= 1:
        raise LongRecipeError(f"--weight {weight} must be between 0 (base) and 1 (tuned)")
    base_folder, tuned_folder = model_folder(base), model_folder(tuned)
    configs = _comparable_configs(base, tuned)
    one, other = (
        Weights(folder, config.tie_word_embeddings)
        for folder, config in zip((base_folder, tuned_folder), configs, strict=True)
    )
    _compare_shapes(base, one, tuned, other)
    for weights in (one, other):
        weights.check_tied()
    with appearing(out) as partial:
        names = other.names()
        with progress("merging", len(names)) as task:

            def merged() -> Iterator[tuple[str, torch.Tensor]]:
                for name in names:
                    if stop():
                        raise KeyboardInterrupt
                    task.advance()
                    yield name, torch.lerp(one[name].float(), other[name].float(), weight)

            write_safetensors(partial / SINGLE, merged(), _header(other, names))
        for name in ("config.json", "generation_config.json"):
            if (tuned_folder / name).exists():
                (partial / name).write_bytes((tuned_folder / name).read_bytes())
        copy_tokenizer(tuned, partial, None)
        card = _card(base, tuned, weight)
        (partial / "README.md").write_text(card, encoding="utf-8")
        check_saved(partial, configs[1])


def _header(weights: Weights, names: list[str]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (weights.dtype(name), weights.shape(name)) for name in names}


def _comparable_configs(base: str, tuned: str) -> tuple[Any, Any]:
    """Both configs, of one architecture; says so when their thetas differ."""
    one, other = load_config(base), load_config(tuned)
    if one.model_type != other.model_type:
        raise LongRecipeError(
            f"{base} is a {one.model_type} model, {tuned} a {other.model_type} one; both must be "
            "the same architecture"
        )
    thetas = [config.rope_parameters["rope_theta"] for config in (one, other)]
    if thetas[0] != thetas[1]:
        print(
            f"note: {base} was trained at theta {thetas[0]:g}, {tuned} at {thetas[1]:g}; the "
            "merged model takes the latter: evaluate it",
            file=sys.stderr,
        )
    return one, other


def _compare_shapes(base: str, one: Weights, tuned: str, other: Weights) -> None:
    for name in sorted({*one.names(), *other.names()}):
        for where, weights in ((base, one), (tuned, other)):
            if name not in weights:
                raise LongRecipeError(
                    f"{where} has no tensor {name}; merge models of one shape (and both with tied "
                    "or both with untied embeddings)"
                )
            weights.dtype(name)  # refuses what is not plain floats
        if one.shape(name) != other.shape(name):
            raise LongRecipeError(
                f"{name} is {one.shape(name)} in {base} and {other.shape(name)} in {tuned}; merge "
                "models of one shape"
            )


def _card(base: str, tuned: str, weight: float) -> str:
    return (
        f"# Merged long-context model\n\n{1 - weight:g} x `{Path(base).name}` + {weight:g} x "
        f"`{Path(tuned).name}`, tensor by tensor, with longrecipe (LongRecipe, arXiv 2409.00509).\n"
        "Config, RoPE and tokenizer are those of the second.\n"
    )
