"""The loss and the memory of a run as pictures."""

from pathlib import Path
from typing import Any

from lrtrain.metrics import read_metrics

COLOURS = {"extend": "#1f6fb4", "anneal": "#d1762a"}
_GB = 1e9


def plot_run(metrics: Path, loss: Path, memory: Path) -> bool:
    """Draw a run's loss and its memory by step; False when matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
    except ImportError:
        return False
    lines = read_metrics(metrics)
    _draw(lines, "loss (nats per token)", loss, _loss_curves)
    _draw(lines, "peak memory of the stage so far (GB)", memory, _memory_curves)
    return True


def _draw(lines: list[dict[str, Any]], what: str, picture: Path, curves: Any) -> None:
    """One figure: `curves` draws a stage's lines over its steps, which go on from the last's."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    first = 0
    for stage in dict.fromkeys(line["stage"] for line in lines):
        part = [line for line in lines if line["stage"] == stage]
        steps = [first + line["step"] for line in part]
        curves(axes, stage, steps, part)
        first = steps[-1]
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(what)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(picture)
    pyplot.close(figure)


def _loss_curves(axes: Any, stage: str, steps: list[int], lines: list[dict[str, Any]]) -> None:
    colour, dot = COLOURS.get(stage, "grey"), _dot(steps)
    axes.plot(
        steps, [line["loss"] for line in lines], color=colour, lw=1.4, marker=dot, label=stage
    )
    measured = [
        (step, line["holdout_loss"])
        for step, line in zip(steps, lines, strict=True)
        if line.get("holdout_loss") is not None
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


def _dot(steps: list[int]) -> str | None:
    """A marker for what a line does not show."""
    return "o" if len(steps) == 1 else None


def _memory_curves(axes: Any, stage: str, steps: list[int], lines: list[dict[str, Any]]) -> None:
    colour, dot = COLOURS.get(stage, "grey"), _dot(steps)
    on_device = [line["peak_memory_bytes"] / _GB for line in lines]
    on_host = [line.get("peak_host_bytes", 0) / _GB for line in lines]  # older runs lack it
    if on_device != on_host:
        axes.plot(steps, on_device, color=colour, lw=1.4, marker=dot, label=f"{stage}, device")
    axes.plot(steps, on_host, "--", color=colour, lw=1.4, marker=dot, label=f"{stage}, host")
    highest = max(max(line.get_ydata()) for line in axes.lines)  # of all stages so far
    axes.set_ylim(0, 1.15 * highest or 1)
