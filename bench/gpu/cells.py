"""What the benchmark measures: each cell in a process of its own, to one JSON object.

python bench/gpu/cells.py backends '{"shape": "tiny", "tokens": 768}'
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from plans import MISSING

sys.path.insert(0, str(Path(__file__).parents[2]))  # it need not be installed itself

from lrdata.errors import one_line
from lrtrain.activations import prepare
from lrtrain.attention import IMPLEMENTATION, choose_backend, heads_of, register
from lrtrain.attention_backends import load_backend
from lrtrain.attention_trials import Heads, largest_errors, try_backends
from lrtrain.flops import peak_flops, training_flops
from lrtrain.loader import Batch
from lrtrain.memory import step_memory
from lrtrain.metrics import peak_memory
from lrtrain.model import TORCH_DTYPES
from lrtrain.optim import AdamW
from lrtrain.recipe import TrainRecipe
from lrtrain.step import LossOptions, accumulate

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 896,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
    },
}


def config_of(shape: str, tokens: int) -> Any:
    from transformers import LlamaConfig

    parts = {"tie_word_embeddings": False, **SHAPES[shape]}
    return LlamaConfig(**parts, max_position_embeddings=tokens)


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> dict[str, Any]:
    """What it is measured on."""
    import transformers

    device = device_here()
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {os.cpu_count()} cores"
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else None
    peak = peak_flops(name) if on_gpu else None
    return {
        "device": name,
        "device_bytes": memory,
        "peak_tflops": None if peak is None else peak / 1e12,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda,
    }


def backends(shape: str, tokens: int) -> dict[str, Any]:
    """Every attention backend: errors against float64, seconds of forward and backward."""
    device, config = device_here(), config_of(shape, tokens)
    heads = heads_of(config)
    found = {}
    for trial in try_backends(heads, device, torch.bfloat16, tokens):
        rate = None
        if trial.seconds is not None:
            flops = 3 * 4 * tokens * tokens / 2 * heads.query * heads.width
            rate = flops / trial.seconds / 1e12
        found[trial.name] = {
            "seconds": trial.seconds,
            "tflops": rate,
            "problem": trial.problem,
            **_errors(trial.name, heads, device),
        }
    return {"heads": asdict(heads), "tokens": tokens, "backends": found}


def _errors(name: str, heads: Heads, device: torch.device) -> dict[str, Any]:
    with suppress(Exception):  # why not is said by its trial
        errors = largest_errors(load_backend(name), heads, device, torch.bfloat16)
        return dict(zip(("output", "query", "key", "value"), errors, strict=True))
    return {}


def train(
    shape: str, tokens: int, options: dict[str, Any], rows: int, rows_per_step: int
) -> dict[str, Any]:
    """Seconds a row and an update, and peaks, of training all parameters from random weights.

    The rate is that of a step of `rows_per_step` rows and one update.
    """
    from transformers import AutoModelForCausalLM

    recipe = _recipe(options)
    if recipe.moments == "8bit":
        import bitsandbytes  # noqa: F401  # where it is missing this cell is tried again
    device, config = device_here(), config_of(shape, tokens)
    dtype = TORCH_DTYPES[recipe.dtype]
    register()
    backend = choose_backend(recipe.attention, heads_of(config), device, dtype)
    torch.manual_seed(0)
    before = peak_memory(device)["peak_host_bytes"]
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=IMPLEMENTATION, dtype=dtype
        ).train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    prepare(model, recipe.activations)
    optimizer = AdamW(model, 1e-5, (0.9, 0.95), 0.0, recipe.storage)
    loss_options = LossOptions(device, chunk_tokens=recipe.chunk_tokens)

    def step(count: int) -> tuple[float, float, float]:
        """Seconds of so many rows and of the update; the loss."""
        batches = [_row(config.vocab_size, tokens, seed) for seed in range(count)]
        started = _now(device)
        loss, norm = accumulate(model, batches, optimizer, loss_options)
        done = _now(device)
        optimizer.step(1.0, norm, clip=1.0)
        return done - started, _now(device) - done, float(loss)

    losses = [step(1)[2]]  # loads kernels, compiles, locks host memory
    row_seconds, update_seconds, loss = step(rows)
    losses.append(loss)
    peaks = peak_memory(device)
    if device.type == "cpu":  # it is the process there, and torch itself is no part of a plan
        peaks["peak_memory_bytes"] -= before
    row_seconds /= rows
    whole = rows_per_step * row_seconds + update_seconds
    flops = training_flops(config, [tokens])
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    predicted = predict(shape, tokens, options, on_gpu=device.type == "cuda")
    return {
        "parameters": parameters,
        "backend": backend,
        "row_seconds": row_seconds,
        "update_seconds": update_seconds,
        "tokens_per_s": rows_per_step * tokens / whole,
        "mfu": None if peak is None else rows_per_step * flops / whole / peak,
        "row_flops": flops,
        "row_flops_all_pairs": training_flops(config, [tokens], causal=False),
        "losses": losses,
        "predicted_bytes": predicted["device_bytes"],
        "predicted_host_bytes": predicted["host"],
        **peaks,
    }


def predict(shape: str, tokens: int, options: dict[str, Any], on_gpu: bool) -> dict[str, Any]:
    """What memory `train` will take, without taking it."""
    recipe = _recipe(options)
    memory = step_memory(
        config_of(shape, tokens),
        [tokens],
        dtype=TORCH_DTYPES[recipe.dtype],
        chunk_tokens=recipe.chunk_tokens,
        storage=recipe.storage,
        activations=recipe.activations,
        on_gpu=on_gpu,
    )
    return {**asdict(memory), "device_bytes": memory.total}


def _recipe(options: dict[str, Any]) -> TrainRecipe:
    return TrainRecipe(**{**options, "offload": tuple(options.get("offload", ()))})


def _row(vocabulary: int, tokens: int, seed: int) -> Batch:
    """A row of random tokens whose positions span four times its length, with gaps."""
    generator = torch.Generator().manual_seed(seed)
    segments = torch.arange(tokens) // 88
    gaps = torch.randint(0, 600, (int(segments[-1]) + 1,), generator=generator).cumsum(0)
    weights = torch.ones(tokens)
    weights[0] = 0.0
    return Batch(
        input_ids=torch.randint(vocabulary, (1, tokens), generator=generator, dtype=torch.int32),
        position_ids=(torch.arange(tokens) + gaps[segments]).to(torch.int32)[None],
        seq_lengths=[tokens],
        weights=weights,
        rows=[f"random-{seed}"],
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


CELLS: dict[str, Callable[..., dict[str, Any]]] = {
    "machine": machine,
    "backends": backends,
    "train": train,
    "predict": predict,
}


def main() -> None:
    """`cells.py NAME JSON-OF-ARGUMENTS`; what does not fit says why. So does a package that is not
    here, with an exit code: it is tried again when that has come."""
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    started = time.perf_counter()
    try:
        found = CELLS[name](**arguments)
    except torch.cuda.OutOfMemoryError as problem:
        found = {"skipped": f"out of memory: {one_line(problem)[:120]}"}
    except ImportError as problem:
        print(f"{type(problem).__name__}: {one_line(problem)[:160]}", file=sys.stderr)
        sys.exit(MISSING)
    except (Exception, MemoryError) as problem:
        found = {"skipped": f"{type(problem).__name__}: {one_line(problem)[:160]}"}
    found["cell_seconds"] = time.perf_counter() - started
    print(json.dumps(found))


if __name__ == "__main__":
    main()
