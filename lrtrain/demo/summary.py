"""The last page of the demo: what was gained, at what cost, and where the figures are."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lrdata.manifest import read_manifest
from lrtrain.evaluate.report import size_text
from lrtrain.plots import read_metrics

_TRAINED_HERE = {"extended": ("extend",), "annealed": ("extend", "anneal")}
_TRAINED_HERE["merged"] = _TRAINED_HERE["annealed"]


def print_summary(
    out: Path, target_len: int, base_tokens: int, seconds: dict[str, float], console: Console
) -> None:
    """Retrieval and perplexity by length for each model, then tokens, seconds and figures."""
    found = json.loads((out / "eval" / "eval.json").read_text(encoding="utf-8"))
    metrics = read_metrics(out / "run" / "metrics.jsonl")
    console.print(_table(found, metrics, base_tokens))
    manifest = read_manifest(out / "shards")
    rows = sum(entry.rows for entry in manifest.files if entry.path.startswith("extend/"))
    console.print(
        f"{rows:,} rows of {manifest.train_len:,} tokens stood for windows of "
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


def _table(found: dict[str, Any], metrics: list[dict[str, Any]], base_tokens: int) -> Table:
    lengths = sorted({cell["length"] for cell in found["needle"]["by_length"]})
    shares = {
        (cell["model"], cell["length"]): cell["share"][0] for cell in found["needle"]["by_length"]
    }
    nats = {
        (cell["model"], cell["length"]): cell["nats_per_byte"][0]
        for cell in found["perplexity"]["cells"]
    }
    table = Table(title="share of a code's symbols retrieved / nats per byte of text, by context")
    table.add_column("model")
    for length in lengths:
        table.add_column(size_text(length), justify="right")
    table.add_column("trained on", justify="right")
    table.add_column("seconds", justify="right")
    for model in (entry["name"] for entry in found["models"]):
        own = [line for line in metrics if line["stage"] in _TRAINED_HERE.get(model, ())]
        tokens = sum(line["tokens"] for line in own) or base_tokens
        seconds = f"{sum(line['seconds'] for line in own):.0f}" if own else ""
        cells = [f"{shares[model, n]:.2f} / {nats[model, n]:.2f}" for n in lengths]
        table.add_row(model, *cells, f"{tokens:,}", seconds)
    return table
