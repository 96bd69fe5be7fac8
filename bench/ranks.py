"""Many ranks: what splitting a row costs, what a rank holds, and what 64 GPUs would do, on paper.

    python bench/ranks.py attention    # gathered keys and values beside PyTorch's own ring
    python bench/ranks.py memory       # peaks of real ranks beside what `lrtrain plan` says
    python bench/ranks.py paper        # Llama-3-8B on up to 64 GPUs, rows for windows of up to 1M

The first two start ranks on this machine's CPU, over gloo. What is printed comes from one run.
"""

import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from memory import PeakMemory, pss
from torch.distributed.tensor.experimental._context_parallel import _attention as torchs
from transformers import LlamaConfig

from lrtrain.activations import Activations, prepare
from lrtrain.attention import IMPLEMENTATION, register
from lrtrain.attention_backends import Backend, sdpa
from lrtrain.context_parallel import SplitRows
from lrtrain.distributed import Ranks, many, shard
from lrtrain.flops import peak_flops, training_flops
from lrtrain.loader import Batch
from lrtrain.loss import training_loss
from lrtrain.memory import LiveBytes, StepMemory, step_memory
from lrtrain.optim import AdamW, Storage
from lrtrain.plan import ASSUMED_MFU
from lrtrain.plan_ranks import Cluster, Mix, mixes
from lrtrain.recipe import TrainRecipe
from lrtrain.sharded import local
from lrtrain.step import LossOptions, accumulate

ROUNDS = 5
_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@click.group(help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    "))
def main() -> None:
    pass


def on_ranks(ranks: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(Ranks, ...)` gives on each of so many processes."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        found = manager.dict()
        mp.spawn(_begin, (ranks, port, work, arguments, found), nprocs=ranks)
        return [found[rank] for rank in range(ranks)]


def _begin(
    rank: int, ranks: int, port: int, work: Callable[..., Any], arguments: Any, found: Any
) -> None:
    os.environ.update(
        {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)},
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    context, *rest = arguments
    with many(context, None, "cpu", 600) as these:
        found[rank] = work(these, *rest)


# Attention


@main.command()
@click.option("--ranks", default=2, show_default=True)
@click.option("--tokens", default=8192, show_default=True, help="Of a row.")
def attention(ranks: int, tokens: int) -> None:
    """A layer's attention, forward and backward: ours, PyTorch's ring, and a rank's share alone."""
    print(f"{ranks} ranks, a row of {tokens:,} tokens, 8 heads of 64, fp32, forward and backward")
    limit = on_ranks(1, whole_row, 1, tokens)[0] / ranks
    found = on_ranks(ranks, each_way, ranks, tokens)[0]
    for name, (seconds, error) in found.items():
        print(f"{name:44} {seconds:6.2f} s  {seconds / limit:5.2f} x  off by {error:.0e}")
    print(f"{'the limit: a share of it, alone on a core':44} {limit:6.2f} s   1.00 x")


def whole_row(ranks: Ranks, tokens: int) -> float:
    """Seconds of a whole row on one core."""
    inputs = a_row(tokens)
    return _median(lambda: torch.autograd.grad(sdpa(*inputs, [tokens], 0.125).sum(), inputs))


def each_way(ranks: Ranks, tokens: int) -> dict[str, tuple[float, float]]:
    """Seconds and error of every way, by its name; all ranks in step."""
    whole = a_row(tokens)
    exact = sdpa(*whole, [tokens], 0.125)
    exact_gradients = torch.autograd.grad(exact, whole, outer_of(exact))
    own = [own_chunks(x, 2, ranks).contiguous().requires_grad_() for x in whole]
    outer = own_chunks(outer_of(exact), 1, ranks).contiguous()
    split = SplitRows(ranks.context_rank, ranks.context, ranks.group)

    def ours(backend: Backend) -> list[torch.Tensor]:
        out = split(backend, *own, [tokens], 0.125)
        return [out, *torch.autograd.grad(out, own, outer)]

    def ring() -> list[torch.Tensor]:
        return torchs_ring(own, outer, ranks.group)

    found = {}
    ways = {
        "ours: gathered, a kernel as GPUs have": (partial(ours, last_queries), None),
        "ours: gathered, sdpa of a CPU, with a mask": (partial(ours, sdpa), None),
        "PyTorch's ring, sending on": (ring, torchs._RotateMethod.ALL_TO_ALL),
        "PyTorch's ring, gathering (its default)": (ring, torchs._RotateMethod.ALL_GATHER),
    }
    wanted = [own_chunks(exact, 1, ranks), *(own_chunks(g, 2, ranks) for g in exact_gradients)]
    for name, (way, method) in ways.items():
        if method is not None:
            torchs._cp_options.rotate_method = method
        values = way()
        error = max(
            float((x.detach() - y).abs().max()) for x, y in zip(values, wanted, strict=True)
        )
        found[name] = (_median(lambda way=way: (dist.barrier(), way())), error)
    return found


def torchs_ring(own: list[torch.Tensor], outer: torch.Tensor, group: Any) -> list[torch.Tensor]:
    """Forward and backward of PyTorch's ring attention with its CPU kernel: [1, S, H, D] first."""
    query, key, value = (x.detach() for x in own)
    known = {"is_causal": True, "dropout_p": 0.0, "scale": 0.125}
    out, logsumexp, *_ = torchs._templated_ring_attention(
        group, 2, _KERNEL, query, key, value, **known
    )
    gradients = torchs._templated_ring_attention_backward(
        group,
        2,
        _BACKWARD,
        grad_out=outer.transpose(1, 2).contiguous(),
        grad_out_name="grad_out",
        query=query,
        key=key,
        value=value,
        out=out,
        logsumexp=logsumexp,
        **known,
    )
    return [out.transpose(1, 2), *gradients[:3]]


class _LastQueries(torch.autograd.Function):
    """Causal attention of the last tokens to all: that to the tokens before them and that among
    them, put together by their logsumexps. Flash kernels of GPUs do it in one."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
        before = key.shape[2] - query.shape[2]
        parts = [
            _KERNEL(query, k, v, is_causal=causal, scale=0.125)
            for k, v, causal in _halves(key, value, before)
        ]
        total = torch.logsumexp(torch.stack([lse for _, lse in parts]), 0)
        out = sum(part * (lse - total).exp()[..., None] for part, lse in parts)
        ctx.save_for_backward(query, key, value, out, total)
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        query, key, value, out, total = ctx.saved_tensors
        halves = _halves(key, value, key.shape[2] - query.shape[2])
        gradients = [
            _BACKWARD(outer[0].contiguous(), query, k, v, out, total, 0.0, causal, scale=0.125)
            for k, v, causal in halves
        ]
        queries, keys, values = zip(*gradients, strict=True)
        return sum(queries), torch.cat(keys, 2), torch.cat(values, 2)


def _halves(key: torch.Tensor, value: torch.Tensor, before: int) -> list[tuple[Any, Any, bool]]:
    """Keys and values before the queries, and the queries' own."""
    own = (key[:, :, before:], value[:, :, before:], True)
    return [(key[:, :, :before], value[:, :, :before], False), own] if before else [own]


def last_queries(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_lengths: Sequence[int],
    scale: float,
) -> torch.Tensor:
    """A backend for one document."""
    return _LastQueries.apply(query, key, value).transpose(1, 2)


def a_row(tokens: int) -> list[torch.Tensor]:
    """Query, key and value: [1, 8, S, 64]."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 8, tokens, 64, generator=generator).requires_grad_() for _ in range(3)]


def outer_of(out: torch.Tensor) -> torch.Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1))


def own_chunks(x: torch.Tensor, dim: int, ranks: Ranks) -> torch.Tensor:
    """A rank's two chunks of a row."""
    chunks = x.detach().chunk(2 * ranks.context, dim)
    return torch.cat([chunks[ranks.context_rank], chunks[-1 - ranks.context_rank]], dim)


def _median(work: Callable[[], Any]) -> float:
    work()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


# Memory

SHAPE = LlamaConfig(
    vocab_size=8_192,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)
ROW = [700, 300]
HOW = Activations(checkpointing=True)


@main.command()
def memory() -> None:
    """Peaks of ranks that train a model of 8 million parameters, beside the plan's."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of the ranks: what is freed is given back
    print("fp32, rows of 1,000 tokens in two documents, checkpointing; MB of the fullest rank")
    print(
        f"{'ranks':>5} {'share a row':>11} {'plan':>7} {'tensors':>14} {'process':>14}", flush=True
    )
    for ranks, context in ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)):
        plan = step_memory(
            SHAPE, ROW, dtype=torch.float32, activations=HOW, ranks=ranks, context=context
        ).total
        tensors, process = (
            max(peaks) for peaks in zip(*on_ranks(ranks, train_steps, context), strict=True)
        )
        print(
            f"{ranks:5} {context:11} {plan / 1e6:7,.0f} {tensors / 1e6:7,.0f} "
            f"({tensors / plan:.2f}) {process / 1e6:7,.0f} ({process / plan:.2f})",
            flush=True,
        )


def train_steps(ranks: Ranks) -> tuple[int, int]:
    """Bytes at the peak of two steps: of tensors, and by which the process grew."""
    from transformers import AutoModelForCausalLM

    register()
    torch.manual_seed(0)
    once = AutoModelForCausalLM.from_config(
        LlamaConfig(**{**SHAPE.to_dict(), "num_hidden_layers": 1, "vocab_size": 64}),
        attn_implementation=IMPLEMENTATION,
    )
    training_loss(once, *[torch.arange(64)[None]] * 2, [64], torch.ones(64)).backward()
    before = pss(os.getpid())  # all code is loaded
    with PeakMemory(os.getpid()) as peak, LiveBytes() as live:
        model = AutoModelForCausalLM.from_config(
            SHAPE, dtype=torch.float32, attn_implementation=IMPLEMENTATION
        )
        model.train()
        if ranks.size > 1:
            shard(model, ranks, lambda module: None)
        prepare(model, HOW)
        optimizer = AdamW(model, 1e-4, (0.9, 0.95), 0.0, Storage())
        live.peak = live.now
        peak.bytes = 0
        tokens = sum(ROW)
        ids = torch.arange(tokens, dtype=torch.int32)[None] % SHAPE.vocab_size
        batch = Batch(ids, ids, ROW, torch.ones(tokens), ["row"])
        with ranks.splitting():
            for _ in range(2):
                options = LossOptions(ranks.device)
                _, norm = accumulate(model, [batch, batch], optimizer, options, ranks=ranks)
                optimizer.step(1.0, norm, 1.0)
    assert all(local(parameter).isfinite().all() for parameter in model.parameters())
    return live.peak, peak.bytes - before


# On paper

LLAMA = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)
ROWS = {
    "128k window, rows of 30 %": (39_312, 128),
    "128k window, whole": (131_072, 32),
    "1M window, rows of 30 %": (314_560, 16),
    "1M window, whole": (1_048_576, 4),
}
"""Tokens of a row, and rows of a step: about 4M tokens."""
CARD = 80e9 * 0.95


@main.command()
def paper() -> None:
    """The fastest mix that fits, for every number of GPUs and kind of row: H100s of 80 GB."""
    peak = peak_flops("H100")
    assert peak is not None
    recipe = TrainRecipe(checkpointing=True, mlp_tokens=8192)
    print(
        f"Llama-3-8B, bf16 with fp32 masters and moments, --checkpointing --mlp-tokens 8k; "
        f"{ASSUMED_MFU:.0%} of {peak / 1e12:,.0f} TFLOP/s\n"
    )
    print("| row | tokens | GPUs | data x context | GB a GPU | row | tok/s | a GPU | bound by |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (tokens, rows) in ROWS.items():
        seconds = training_flops(LLAMA, [tokens]) / (peak * ASSUMED_MFU)
        for gpus in (1, 8, 16, 32, 64):
            found = sorted(
                mixes(LLAMA, recipe, tokens, rows, Cluster(gpus), seconds),
                key=lambda mix: (mix.seconds, mix.context),
            )
            print(
                _line(name, tokens, gpus, *_first_that_fits(found, tokens, gpus), rows), flush=True
            )


def _first_that_fits(
    found: list[Mix], tokens: int, gpus: int
) -> tuple[Mix | None, StepMemory | None]:
    for mix in found:
        took = step_memory(
            LLAMA,
            [tokens],
            dtype=torch.bfloat16,
            activations=Activations(checkpointing=True, mlp_tokens=8192),
            on_gpu=True,
            ranks=gpus,
            context=mix.context,
        )
        if took.total <= CARD:
            return mix, took
    return None, None


def _line(
    name: str, tokens: int, gpus: int, mix: Mix | None, took: StepMemory | None, rows: int
) -> str:
    if mix is None or took is None:
        return f"| {name} | {tokens:,} | {gpus} | none fits | | | | | |"
    rate = rows * tokens / mix.seconds
    micro = mix.seconds / -(-rows // mix.data)
    return (
        f"| {name} | {tokens:,} | {gpus} | {mix.data} x {mix.context} | {took.total / 1e9:.0f} | "
        f"{micro:.1f} s | {rate:,.0f} | {rate / gpus:,.0f} | {mix.bound_by} |"
    )


if __name__ == "__main__":
    main()
