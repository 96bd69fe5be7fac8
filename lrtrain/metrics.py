"""What a run says of each step: JSON lines, TensorBoard where it is asked for, peak memory."""

import json
import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lrdata.atomic import write_text
from lrdata.errors import LongRecipeError
from lrdata.sizes import format_bytes
from lrtrain.distributed import ALONE, Ranks

METRICS = "metrics.jsonl"


class MetricsLog:
    """The lines of one stage, in RUN/metrics.jsonl, a line a step, flushed as they are written.

    With `tensorboard` they also go to RUN/tensorboard/STAGE.
    """

    def __init__(self, run: Path, stage: str, tensorboard: bool = False) -> None:
        self._path, self._stage = run / METRICS, stage
        self._board_folder = run / "tensorboard" / stage if tensorboard else None
        self._board: Any = None
        self._last = 0, 0
        """The step that was written last, and where its line begins."""

    def begin(self, after: int) -> None:
        """Drop the lines of an earlier try beyond step `after`, with all behind them, which are of
        later stages; and what a kill cut."""
        if self._path.exists():
            kept = []
            for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
                with suppress(ValueError):
                    values = json.loads(line)
                    own = values["stage"] == self._stage
                    if own and values["step"] > after:
                        break
                    if line.endswith("\n"):
                        kept.append(line)
            write_text(self._path, "".join(kept))
        if self._board_folder is not None:
            self._board = summary_writer()(str(self._board_folder), purge_step=after + 1)

    def write(self, step: int, **values: Any) -> None:
        """One line; `step` counts from 1. Written again, its line is another one."""
        with open(self._path, "a", encoding="utf-8") as stream:
            if self._last[0] == step:
                stream.truncate(self._last[1])
            self._last = step, os.fstat(stream.fileno()).st_size
            stream.write(json.dumps({"stage": self._stage, "step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)
            self._board.flush()

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def summary_writer() -> Any:
    """TensorBoard's writer. Raises LongRecipeError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise LongRecipeError(
            "--tensorboard needs it installed: pip install 'longrecipe[tensorboard]'"
        ) from None
    return SummaryWriter


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [
        json.loads(line)
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")  # a kill may have cut the last one
    ]


def speed(
    work: tuple[int, float], seconds: float, peak: float | None, ranks: Ranks
) -> dict[str, Any]:
    """Of a step: tokens and operations on all ranks, its seconds, what one device can at most."""
    tokens, flops = work
    rate = flops / seconds
    return {
        "tokens": tokens,
        "seconds": round(seconds, 4),
        "tokens_per_s": round(tokens / seconds, 1),
        "tflops": round(rate / 1e12, 4),
        "mfu": None if peak is None else round(rate / (peak * ranks.size), 4),
    }


def peak_memory(device: torch.device, ranks: Ranks = ALONE) -> dict[str, int]:
    """Bytes that were taken at most so far: of the device by tensors, since its statistics were
    reset, of the host by the process, with what is page-locked; on a CPU they are the same. Of
    many ranks the one counts that took most."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else host
    peaks = {"peak_memory_bytes": on_device, "peak_host_bytes": host}
    if device.type == "cuda":  # with what it holds and nobody uses
        peaks["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    everywhere = ranks.exchange(peaks)
    return {name: max(one[name] for one in everywhere) for name in peaks}


def note(values: dict[str, Any]) -> str:
    """What the progress line says of a step."""
    parts = [f"loss {values['loss']:.3f}", f"{values['tokens_per_s']:,.0f} tok/s"]
    if values["mfu"] is not None:
        parts.append(f"MFU {values['mfu']:.0%}")
    parts.append(f"peak {format_bytes(values['peak_memory_bytes'])}")
    if values.get("holdout_loss", 0) is None:
        parts.append("no room for holdout windows")
    return "  ".join(parts)
