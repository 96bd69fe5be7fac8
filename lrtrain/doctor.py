"""`lrtrain doctor`: will a run with this model and these shards train what it should, here?

    for finding in examine(Path("shards"), "./llama3-8b", TrainRecipe()):
        print(finding)

Every check is made, whatever the others find; each gives a line, with what to do where it fails.
The cheap ones are those that `lrtrain run` makes itself before its first step.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError, describe
from lrdata.shards import Shards
from lrdata.verifying import verify
from lrtrain.attention import choose_backend, heads_of
from lrtrain.checks import (
    attention_crosses_gaps,
    attention_stops_at_documents,
    chunked_loss_is_plain,
)
from lrtrain.model import (
    TORCH_DTYPES,
    check_architecture,
    check_extensible,
    check_saved,
    choose_device,
    load_config,
    load_model,
    open_weights,
    save_config,
)
from lrtrain.moments import need_bitsandbytes
from lrtrain.opening import check_tokenizer
from lrtrain.plan import check_memory
from lrtrain.recipe import TrainRecipe
from lrtrain.rope import head_dim_of, parse_rope, set_rope


@dataclass(frozen=True)
class Finding:
    """One check: what it looked at, whether it is well, and what it saw or what to do."""

    check: str
    ok: bool
    said: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.check}: {self.said}"


def examine(folder: Path | str, model: str, recipe: TrainRecipe) -> Iterator[Finding]:
    """Check shards, tokenizer, architecture, RoPE, attention and loss; a finding for each.

    folder: of the shards, or their address.

    What cannot be looked at because something before it failed is left out.
    """
    shards: list[Shards] = []
    yield _finding("shards", lambda: _shards(folder, shards))
    if not shards:
        return
    yield _finding("tokenizer", lambda: _tokenizer(shards[0], model))
    architecture = _finding("architecture", lambda: _architecture(shards[0], model))
    yield architecture
    if not architecture.ok:
        return
    weights = _finding("weights", lambda: _weights(model))
    yield weights
    yield _finding("memory", lambda: _memory(shards[0], model, recipe))
    yield _finding("RoPE after saving", lambda: _saved_rope(shards[0], model, recipe))
    if not weights.ok:
        return
    loaded: list[Any] = []
    yield _finding("RoPE after loading", lambda: _load(shards[0], model, recipe, loaded))
    if not loaded:
        return
    for name, check in (
        ("attention crosses gaps", attention_crosses_gaps),
        ("attention stops at documents", attention_stops_at_documents),
        ("loss in chunks", chunked_loss_is_plain),
    ):
        yield _finding(name, lambda check=check: check(loaded[0]))  # type: ignore[misc]


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except torch.OutOfMemoryError:
        return Finding(name, False, "the device ran out of memory; use --device cpu")
    except Exception as problem:  # whatever it is, the other checks are made
        return Finding(name, False, describe(problem))


def _shards(folder: Path | str, opened: list[Shards]) -> str:
    shards = open_dataset(folder)
    opened.append(shards)
    problems = [] if shards.remote else verify(folder)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise LongRecipeError(f"{problems[0]}{more}; see `lrdata verify {folder}`")
    rows = ", ".join(f"{shards.rows(kind):,} {kind}" for kind in shards.kinds)
    said = f"{rows} rows as the manifest says, for a window of {shards.target_len:,} tokens"
    return said + ("; each file is checked when it is fetched" if shards.remote else "")


def _tokenizer(shards: Shards, model: str) -> str:
    check_tokenizer(shards, model, load_config(model))
    return f"fingerprint {shards.fingerprint[:16]}, that of the shards"


def _architecture(shards: Shards, model: str) -> str:
    config = load_config(model)
    check_architecture(config, model)
    check_extensible(config, model, shards.target_len)
    return (
        f"{config.model_type}, {config.num_hidden_layers} layers, a window of "
        f"{config.max_position_embeddings:,} tokens"
    )


def _weights(model: str) -> str:
    weights = open_weights(model, load_config(model))
    weights.check_tied()
    return f"{len(weights.names())} tensors, those of the config"


def _memory(shards: Shards, model: str, recipe: TrainRecipe) -> str:
    device = choose_device(recipe.device)
    if recipe.moments == "8bit":
        need_bitsandbytes(device)
    return check_memory(shards, load_config(model), recipe, device)


def _saved_rope(shards: Shards, model: str, recipe: TrainRecipe) -> str:
    config = load_config(model)
    set_rope(config, parse_rope(recipe.rope), shards.target_len)
    with tempfile.TemporaryDirectory() as scratch:
        save_config(config, Path(scratch))
        check_saved(Path(scratch), config)
    return f"theta {config.rope_parameters['rope_theta']:.4g} comes back as it was written"


def _load(shards: Shards, model: str, recipe: TrainRecipe, loaded: list[Any]) -> str:
    device = choose_device(recipe.device)
    dtype = TORCH_DTYPES[recipe.dtype]
    backend = choose_backend(recipe.attention, heads_of(load_config(model)), device, dtype)
    loaded.append(
        load_model(
            model,
            dtype=dtype,
            rope=parse_rope(recipe.rope),
            target_len=shards.target_len,
            device=device,
        ).eval()
    )
    config = loaded[0].config
    return (
        f"theta {config.rope_parameters['rope_theta']:.4g} over heads {head_dim_of(config)} wide, "
        f"in the model that transformers made; attention {backend} on {device}"
    )
