"""The loss of a run as a picture."""

import json
from pathlib import Path
from typing import Any

COLOURS = {"extend": "#1f6fb4", "anneal": "#d1762a"}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [
        json.loads(line)
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")  # a kill may have cut the last one
    ]


def plot_loss(metrics: Path, picture: Path) -> bool:
    """Draw train and holdout loss by step; False when matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    lines = read_metrics(metrics)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    first = 0
    for stage in dict.fromkeys(line["stage"] for line in lines):
        part = [line for line in lines if line["stage"] == stage]
        steps = [first + line["step"] for line in part]
        colour = COLOURS.get(stage, "grey")
        axes.plot(steps, [line["loss"] for line in part], color=colour, lw=1.4, label=stage)
        measured = [
            (x, line["holdout_loss"])
            for x, line in zip(steps, part, strict=True)
            if "holdout_loss" in line
        ]
        if measured:
            axes.plot(
                *zip(*measured, strict=True),
                "o--",
                color=colour,
                ms=4,
                lw=1,
                alpha=0.7,
                label=f"{stage}, on holdout windows",
            )
        first = steps[-1]
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(picture)
    pyplot.close(figure)
    return True
