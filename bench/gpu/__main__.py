"""What one GPU does: rows of 30 % against rows of full length, memory options, attention backends.

    python bench/gpu --out /tmp/gpu

Models are made at random from a config: no network, no weights. Each cell runs in a process of
its own and is kept as JSON in --out, so the same command goes on where it was stopped; what does
not fit says so. At the end it prints the tables and writes OUT/results.json. Shapes by the card:
Llama-3-8B from 75 GB on, Llama-3.2-1B from 15 GB on, tiny else and on a CPU.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from plans import MISSING, PLANS, Cell, cells
from tables import print_predictions, print_tables

HERE = Path(__file__).parent


@click.command(help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    "))
@click.option("--out", type=click.Path(path_type=Path), default=Path("/tmp/gpu"), show_default=True)
@click.option("--size", type=click.Choice(["auto", *PLANS]), default="auto", show_default=True)
@click.option(
    "--seconds",
    type=float,
    default=540.0,
    show_default=True,
    help="No cell is begun after so many; the same command goes on.",
)
@click.option("--predict", is_flag=True, help="Only say what memory each cell will take.")
def main(out: Path, size: str, seconds: float, predict: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    machine = _measured(out, Cell("machine", "machine", {}))
    plan = PLANS[_size(machine) if size == "auto" else size]
    due = [cell.predicted(plan.on_gpu) for cell in cells(plan) if cell.kind == "train"]
    due = due if predict else list(cells(plan))
    results = {"machine": machine}
    for number, cell in enumerate(due, 1):
        if not _path(out, cell).exists() and time.monotonic() - started > seconds:
            click.echo(f"stopped before {cell.name}; run the same command to go on")
            return
        results[cell.name] = found = _measured(out, cell)
        click.echo(f"{number}/{len(due)} {cell.name}: {_line(found)}", err=True)
    if predict:
        print_predictions(plan, results)
        return
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print_tables(plan, results)
    click.echo(json.dumps(results))


def _size(machine: dict[str, Any]) -> str:
    memory = machine["device_bytes"] or 0
    return "large" if memory >= 75e9 else "middle" if memory >= 15e9 else "small"


def _path(out: Path, cell: Cell) -> Path:
    return out / (cell.name.replace(" ", "_").replace(".", "") + ".json")


def _measured(out: Path, cell: Cell) -> dict[str, Any]:
    """What is kept of a cell, or what its process finds now."""
    path = _path(out, cell)
    asked = {"kind": cell.kind, "arguments": cell.arguments}
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept["asked"] == asked:
            found: dict[str, Any] = kept["found"]
            return found
    done = subprocess.run(
        [sys.executable, HERE / "cells.py", cell.kind, json.dumps(cell.arguments)],
        capture_output=True,
        text=True,
        # The C library would keep freed blocks, and a CPU's peak would be of those too.
        env={"MALLOC_MMAP_THRESHOLD_": "65536", **os.environ},
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.splitlines() or ["nothing said"])[-1]
        if cell.kind == "machine":
            raise SystemExit(f"error: the machine cannot be measured: {last}")
        found = {"skipped": f"ended with {done.returncode}: {last[:160]}"}
        if done.returncode == MISSING:
            return found
    else:
        found = json.loads(lines[-1])
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"asked": asked, "found": found}))
    partial.rename(path)
    return found


def _line(found: dict[str, Any]) -> str:
    if "skipped" in found:
        return f"skipped, {found['skipped']}"
    if "tokens_per_s" not in found:
        return f"{found['cell_seconds']:.0f} s"
    return (
        f"{found['tokens_per_s']:,.0f} tokens/s, {found['peak_memory_bytes'] / 1e9:.1f} GB, "
        f"{found['cell_seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
