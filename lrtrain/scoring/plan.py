"""What is scored, by which models and how: everything that is known before a window is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrdata.corpus import SourceFile, find_files
from lrdata.errors import LongRecipeError
from lrdata.tokenizer import Tokenizer
from lrtrain.attention import heads_of
from lrtrain.attention_backends import Backend, load_backend
from lrtrain.attention_trials import fastest
from lrtrain.model import (
    TORCH_DTYPES,
    automatic_dtype,
    check_architecture,
    check_extensible,
    check_vocabulary,
    choose_device,
    load_config,
    load_model,
    open_weights,
)
from lrtrain.model_spec import ModelSpec, parse_models
from lrtrain.rope import parse_rope
from lrtrain.scoring.readings import read_short, read_whole, short_blocks
from lrtrain.scoring.recipe import ScoreRecipe
from lrtrain.scoring.sample import TextWindow

_LARGEST_WINDOW, _LARGEST_CONTEXT, _LARGEST_STRIDE = 131_072, 4096, 1024
Say = Callable[[str], None]


@dataclass(frozen=True)
class Reading:
    """One way in which windows are read: a role in `ScoresManifest.models`, or `short`."""

    name: str
    model: ModelSpec
    short: bool = False


@dataclass(frozen=True)
class Plan:
    """A recipe with all that was looked up: what is scored, and how. Sizes are in tokens."""

    recipe: ScoreRecipe
    readings: list[Reading]
    tokenizer: Tokenizer
    files: list[SourceFile]
    window: int
    short_context: int
    stride: int
    dtype: torch.dtype
    device: torch.device

    @property
    def content(self) -> int:
        """Tokens of a document in a window: a start-of-text token takes up one, as in a build."""
        return self.window - (self.tokenizer.bos_id is not None)

    @property
    def models(self) -> dict[str, ModelSpec]:
        """The model of each role."""
        return {reading.name: reading.model for reading in self.readings if not reading.short}

    def cost(self, reading: Reading, window: TextWindow) -> int:
        """Tokens that go through the model."""
        tokens = len(window.ids)
        if not reading.short:
            return tokens
        blocks = short_blocks(tokens, self.short_context, self.stride)
        return sum(block.stop - block.start for block in blocks)

    def read(self, model: Any, reading: Reading, window: TextWindow) -> np.ndarray:
        """float32 [2, n]: see `lrtrain.scoring.readings`."""
        bos_id, chunk = self.tokenizer.bos_id, self.recipe.chunk_tokens
        if not reading.short:
            return read_whole(model, window.ids, bos_id, chunk)
        blocks = short_blocks(len(window.ids), self.short_context, self.stride)
        return read_short(model, window.ids, bos_id, blocks, self.recipe.batch_tokens, chunk)

    def describe(self, windows: list[TextWindow]) -> str:
        """In a line, for the terminal."""
        tokens = sum(len(window.ids) for window in windows)
        documents = len({window.document for window in windows})
        names = {role: Path(spec.path).name for role, spec in self.models.items()}
        how = (
            f"{names['long']} against the last {self.short_context:,} to "
            f"{self.short_context + self.stride - 1:,} tokens"
            if self.recipe.method == "lsd"
            else f"{names['long']} against {names['base']}"
        )
        asked = self.recipe.tokens
        one = self.recipe.per_document
        more = "" if one is None else f", {one} a document at most (--per-document all gives more)"
        few = f", all that there are{more}" if asked is not None and tokens < asked else ""
        return (
            f"scoring {tokens:,} tokens in {len(windows):,} windows of {documents:,} documents"
            f"{few}: {how}, on {self.device}"
        )

    def backend(self, spec: ModelSpec) -> Backend:
        """The attention of a model: its own, whatever a run in this process has chosen for another.

        Tried with nothing else on the device.
        """
        heads = heads_of(load_config(spec.path))
        return load_backend(fastest(heads, self.device, self.dtype)[0])

    def load(self, spec: ModelSpec) -> Any:
        """A model, ready to read."""
        rope = None if spec.rope is None else parse_rope(spec.rope)
        return load_model(
            spec.path, dtype=self.dtype, rope=rope, target_len=spec.target_len, device=self.device
        ).eval()


def open_plan(recipe: ScoreRecipe, say: Say) -> Plan:
    """Look everything up. Raises LongRecipeError for all that can be known to be wrong."""
    specs = parse_models([recipe.model, *([recipe.long_model] if recipe.long_model else [])])
    base, long = specs[0], specs[-1]
    configs = [_config(spec) for spec in specs]
    limit = long.target_len or int(configs[-1].max_position_embeddings)
    window = recipe.window or min(limit, _LARGEST_WINDOW)
    if window > limit:
        raise LongRecipeError(
            f"--window {window} is more than the {limit:,} tokens of {long.path}; choose less, or "
            f"give it another RoPE: {long.path}@target={window}"
        )
    if recipe.method == "contrast":
        readings = [Reading("base", base), Reading("long", long)]
        own = base.target_len or int(configs[0].max_position_embeddings)
        if own < window:
            say(
                f"{base.path} is read beyond its window of {own:,} tokens, where it may fail for "
                f"reasons of its own; {base.path}@target={window} gives it the RoPE for it"
            )
    else:
        readings = [Reading("long", long), Reading("short", long, short=True)]
    short_context = recipe.short_context or min(max(window // 8, 1), _LARGEST_CONTEXT)
    stride = recipe.stride or min(short_context, _LARGEST_STRIDE)
    device = choose_device(recipe.device)
    plan = Plan(
        recipe=recipe,
        readings=readings,
        tokenizer=_tokenizer(specs, configs, recipe.eot),
        files=find_files(recipe.corpora),
        window=window,
        short_context=short_context,
        stride=stride,
        dtype=TORCH_DTYPES.get(recipe.dtype) or automatic_dtype(device),
        device=device,
    )
    if recipe.method == "lsd" and plan.content <= short_context + stride:
        raise LongRecipeError(
            f"a window of {window} tokens has no token beyond a short context of {short_context} + "
            f"{stride}; raise --window or lower --short-context and --stride"
        )
    return plan


def _config(spec: ModelSpec) -> Any:
    """The model's config; raises LongRecipeError for all that loading it would."""
    config = load_config(spec.path)
    check_architecture(config, spec.path)
    if spec.rope is not None:
        parse_rope(spec.rope)
        if spec.target_len is None:
            raise LongRecipeError(
                f"{spec.path}@{spec.rope} needs a window; write {spec.path}@{spec.rope},target=128k"
            )
        check_extensible(config, spec.path, spec.target_len)
    open_weights(spec.path, config).check_tied()
    return config


def _tokenizer(specs: list[ModelSpec], configs: list[Any], eot: str | None) -> Tokenizer:
    """The models' tokenizer; both must have the same, and an embedding for each of its ids."""
    found = [Tokenizer.load(spec.path, eot=eot) for spec in specs]
    for spec, config, tokenizer in zip(specs, configs, found, strict=True):
        check_vocabulary(tokenizer, config.vocab_size, spec.path)
    if found[0].fingerprint != found[-1].fingerprint:
        raise LongRecipeError(
            f"{specs[0].path} and {specs[-1].path} have different tokenizers; their scores of a "
            "token cannot be compared"
        )
    return found[0]
