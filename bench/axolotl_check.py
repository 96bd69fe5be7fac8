"""Does axolotl train on what `lrdata export --format axolotl` wrote? axolotl itself is asked.

    lrdata export shards --format axolotl --out for-axolotl
    ENV/bin/python bench/axolotl_check.py for-axolotl shards    # ENV has axolotl; five minutes

A small random Llama trains for an epoch on a CPU, with the settings of the export's README.md and
with others. What axolotl prepared, and what its model was called with, is compared with the rows
of the dataset, which pyarrow alone reads. Then a token is changed, to see which others attend to
it. FlashAttention needs a GPU; asked is only where transformers would cut a batch for it.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": ""}

import pyarrow.parquet as pq
import torch
import yaml
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

BASE: dict[str, Any] = {
    **{"base_model": "model", "output_dir": "run", "dataset_prepared_path": "prepared"},
    **{"micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1},
    **{"learning_rate": 1e-3, "dataset_num_proc": 1, "bf16": False, "fp16": False},
}
Batch = dict[str, torch.Tensor]


class Row(NamedTuple):
    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    positions: tuple[int, ...]


class Span(NamedTuple):
    """Where positions of a batch do not fall."""

    line: int
    start: int
    end: int


@dataclass
class Seen:
    prepared: list[Row]
    trained: list[Row]
    attention: str
    """The implementation, and what the model was called with."""
    within: bool
    """The last token of a row attends to its first, across gaps."""
    between: bool | None
    """A row attends to the one before it; None where no batch holds two."""
    flash: bool | None
    """For FlashAttention transformers would cut between rows only; None where it cuts by mask."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--kind", default="extend", help="what was exported (default: extend)")
    arguments = parser.parse_args()
    given = settings(arguments.export)
    rows = list(rows_of(arguments.dataset / arguments.kind))
    padding = {"micro_batch_size": 2, "pad_to_sequence_len": True}
    packing = {"sample_packing": True, "sequence_len": 4 * given["sequence_len"]}
    cases: dict[str, dict[str, Any]] = {
        "README.md": {},
        "two padded rows": padding | {"sample_packing": False, "attn_implementation": None},
        "packing, sdpa": packing | {"attn_implementation": "sdpa"},
        "packing, no attn_implementation": packing | {"attn_implementation": None},
    }
    names = ("axolotl", "transformers", "datasets", "torch")
    print(", ".join(f"{name} {version(name)}" for name in names))
    print(f"{len(rows)} rows of {sum(len(row.tokens) for row in rows)} tokens")
    vocabulary = 1 + max(max(row.tokens) for row in rows)
    # axolotl patches transformers for its settings, so each of them gets its own process.
    with ProcessPoolExecutor(1, get_context("spawn"), silence, max_tasks_per_child=1) as pool:
        for name, changes in cases.items():
            print(name, flush=True)
            seen = pool.submit(asked, BASE | given | changes, vocabulary).result()
            print("\n".join(f"    {line}" for line in report(seen, rows)), flush=True)


def settings(export: Path) -> dict[str, Any]:
    """Those of its README.md, in which DIR is filled in."""
    text = (export / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    given: dict[str, Any] = yaml.safe_load(block)
    given["datasets"][0]["path"] = str(export.resolve())
    return given


def rows_of(folder: Path) -> Iterator[Row]:
    """What a trainer should see of a kind: its documents that have a target."""
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            start = 0
            for length in row["seq_lengths"]:
                part = slice(start, start + length)
                start += length
                tokens, counts = row["input_ids"][part], [False, *row["loss_mask"][part][1:]]
                labels = [i if on else -100 for i, on in zip(tokens, counts, strict=True)]
                if any(counts):
                    yield Row(tuple(tokens), tuple(labels), tuple(row["position_ids"][part]))


def report(seen: Seen, rows: Sequence[Row]) -> Iterator[str]:
    labels, all_ = {row[:2] for row in rows}, set(rows)
    for what, theirs in (("prepared", seen.prepared), ("trained", seen.trained)):
        yield (
            f"{what} {len(theirs)} rows: tokens and labels are ours in "
            f"{sum(row[:2] in labels for row in theirs)}, position_ids too in "
            f"{sum(row in all_ for row in theirs)}; position_ids are 0, 1, 2, ... in "
            f"{sum(row.positions == tuple(range(len(row.tokens))) for row in theirs)}"
        )
    yield (
        f"{seen.attention}: first token reaches the last of its row: {seen.within}, the next row: "
        f"{seen.between}; FlashAttention's cuts are those between rows: {seen.flash}"
    )


def silence() -> None:
    """Progress bars of others. An exception still arrives."""
    sink = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(sink, stream.fileno())


def asked(given: dict[str, Any], vocabulary: int) -> Seen:
    with tempfile.TemporaryDirectory(prefix="longrecipe-axolotl-") as scratch:
        os.chdir(scratch)
        save_model(Path("model"), vocabulary)
        Path("axolotl.yml").write_text(yaml.safe_dump(given), encoding="utf-8")
        try:
            return epoch("axolotl.yml")
        finally:
            os.chdir("/")


def save_model(folder: Path, vocabulary: int) -> None:
    words = models.WordLevel({str(number): number for number in range(vocabulary)}, unk_token="0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="0")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def epoch(config: str) -> Seen:
    """As `axolotl train` goes about it."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import execute_training, setup_model_and_trainer

    cfg = load_cfg(config)
    data = load_datasets(cfg=cfg)
    trainer = setup_model_and_trainer(cfg, data)[0]
    batches: list[Batch] = []

    def watch(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        tensors = {name: value for name, value in inputs.items() if torch.is_tensor(value)}
        batches.append({name: value.clone() for name, value in tensors.items()})

    watching = trainer.model.register_forward_pre_hook(watch, with_kwargs=True)
    execute_training(cfg, trainer, None)
    watching.remove()
    columns = [data.train_dataset[name] for name in ("input_ids", "labels", "position_ids")]
    batch = max(batches, key=lambda each: len(rows_in(each)))  # one with two rows, if there is one
    return Seen(
        [Row(*map(tuple, row)) for row in zip(*columns, strict=True)],
        [row for each in batches for row in trained_in(each)],
        f"{trainer.model.config._attn_implementation} with {', '.join(sorted(batch))}",
        *attended(trainer.model.eval(), batch),
        cut_between_rows(batch),
    )


def spans(batch: Batch) -> list[Span]:
    found = []
    for line, positions in enumerate(batch["position_ids"].tolist()):
        starts = [i for i, p in enumerate(positions) if i == 0 or p <= positions[i - 1]]
        ends = [*starts[1:], len(positions)]
        found += [Span(line, *each) for each in zip(starts, ends, strict=True)]
    return found


def rows_in(batch: Batch) -> list[Span]:
    """Without padding, which has no target; every row has one."""
    return [s for s in spans(batch) if (batch["labels"][s.line, s.start : s.end] >= 0).any()]


def trained_in(batch: Batch) -> Iterator[Row]:
    for line, start, end in rows_in(batch):
        columns = (batch[name] for name in ("input_ids", "labels", "position_ids"))
        yield Row(*(tuple(column[line, start:end].tolist()) for column in columns))


def attended(model: Any, batch: Batch) -> tuple[bool, bool | None]:
    """Does changing the first token of a row change its last one's logits, and the next row's?"""
    line, start, end = rows_in(batch)[0]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    other = inputs | {"input_ids": inputs["input_ids"].clone()}
    other["input_ids"][line, start] = 1 - other["input_ids"][line, start].clamp(0, 1)
    with torch.no_grad():
        one, two = (model(**each, use_cache=False).logits for each in (inputs, other))
    moved = (one != two).any(dim=-1)[line]
    following = [s for s in rows_in(batch) if s.line == line and s.start >= end]
    between = bool(moved[following[0].start : following[0].end].any()) if following else None
    return bool(moved[end - 1]), between


def cut_between_rows(batch: Batch) -> bool | None:
    if len(batch["input_ids"]) > 1 or (batch.get("attention_mask", torch.ones(1)) == 0).any():
        return None
    (cuts, _), _ = prepare_fa_kwargs_from_position_ids(batch["position_ids"])
    starts = [s.start for s in spans(batch)]
    return bool(cuts.tolist() == [*starts, batch["position_ids"].numel()])


if __name__ == "__main__":
    main()
