"""The last page of the demo: what was gained, at what cost, and where the figures are."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lrdata.manifest import read_manifest
from lrtrain.evaluation.report import size_text
from lrtrain.metrics import read_metrics


def print_summary(
    out: Path, target_len: int, base_tokens: int, seconds: dict[str, float], console: Console
) -> None:
    """Retrieval and prediction by length for each model, then tokens, seconds and figures."""
    found = json.loads((out / "eval" / "eval.json").read_text(encoding="utf-8"))
    models = [entry["name"] for entry in found["models"]]
    retrieved = {
        (cell["model"], cell["length"]): cell["share"][0] for cell in found["needle"]["by_length"]
    }
    predicted = {
        (cell["model"], cell["length"]): cell["nats_per_byte"][0]
        for cell in found["perplexity"]["cells"]
    }
    console.print("\nShare of a code's symbols retrieved, by context:")
    console.print(_by_length(models, retrieved))
    console.print("Nats per byte of held-out text, by context:")
    console.print(_by_length(models, predicted))
    _print_cost(read_metrics(out / "run" / "metrics.jsonl"), base_tokens, console)
    manifest = read_manifest(out / "shards")
    rows = sum(entry.rows for entry in manifest.files if entry.path.startswith("extend/"))
    console.print(
        f"{rows:,} rows of {manifest.train_len:,} tokens were built for windows of "
        f"{target_len:,}; chance is 1/62."
    )
    spent = ", ".join(f"{what} {value:.0f}" for what, value in seconds.items())
    console.print(f"Seconds: {spent}; together {sum(seconds.values()):.0f}.")
    for path, what in (
        (out / "run" / "loss.png", "loss by step"),
        (out / "eval" / "needle.png", "retrieval by length and depth"),
        (out / "eval" / "perplexity.png", "perplexity by length"),
        (out / "shards" / "README.md", "the dataset's card"),
        (out / "run" / "merged", "the model, in plain Hugging Face format"),
    ):
        console.print(f"  {path}  {what}", highlight=False)


def _print_cost(metrics: list[dict[str, Any]], base_tokens: int, console: Console) -> None:
    """Tokens and seconds of each training."""
    parts = [f"base {base_tokens:,} tokens"]
    for stage in ("extend", "anneal"):
        own = [line for line in metrics if line["stage"] == stage]
        tokens, seconds = (sum(line[key] for line in own) for key in ("tokens", "seconds"))
        parts.append(f"{stage} {tokens:,} tokens in {seconds:.0f} s")
    console.print("Trained: " + "; ".join(parts) + ".")


def _by_length(models: list[str], cells: dict[tuple[str, int], float]) -> Table:
    lengths = sorted({length for _, length in cells})
    table = Table()
    table.add_column("model")
    for length in lengths:
        table.add_column(size_text(length), justify="right")
    for model in models:
        table.add_row(model, *(f"{cells[model, length]:.2f}" for length in lengths))
    return table
