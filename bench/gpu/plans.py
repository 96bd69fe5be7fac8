"""Which cells a card is given: shapes, rows, options."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MISSING = 3
"""Exit code of a cell for which a package is missing."""

ROWS_PER_STEP = 96
"""Of the paper."""

EXACT_8BIT = {
    "checkpointing": True,
    "moments": "8bit",
    "offload": ["optimizer", "activations"],
}
"""8B on one card: all but the moments is as exact as without it."""
LEAST = {**EXACT_8BIT, "masters": "none"}
CHECKPOINTING = {"checkpointing": True}
TRAINED = ("short", "short-least", "long")
"""The long row, and the short one with the same options, for the ratio."""
OPTIONS: dict[str, dict[str, Any]] = {
    "--checkpointing": CHECKPOINTING,
    "nothing": {},
    "... --offload activations": {**CHECKPOINTING, "offload": ["activations"]},
    "... --mlp-tokens": {**CHECKPOINTING, "mlp_tokens": 0},  # filled in by the shape
    "... --chunk-tokens 256": {**CHECKPOINTING, "chunk_tokens": 256},
    "... --gradients bf16": {**CHECKPOINTING, "gradients": "bf16"},
    "... --masters none": {**CHECKPOINTING, "masters": "none"},
    "... --moments 8bit": {**CHECKPOINTING, "moments": "8bit"},
    "... --offload optimizer": {**CHECKPOINTING, "offload": ["optimizer"]},
    "... --compile": {**CHECKPOINTING, "compile": True},
}
"""Each against the first."""


@dataclass(frozen=True)
class Plan:
    """Which shapes and rows a card is given."""

    shape: str
    short: int
    long: int
    options_shape: str
    options_tokens: int
    mlp_tokens: int
    rows: int
    """Timed rows of the short length; of the long one a third, at least one."""
    on_gpu: bool = True


PLANS = {
    "large": Plan("llama-3-8b", 39_312, 131_072, "llama-3.2-1b", 39_312, 4096, 3),
    "middle": Plan("llama-3.2-1b", 39_312, 131_072, "llama-3.2-1b", 16_384, 4096, 3),
    "cpu": Plan("smollm2-135m", 2048, 4096, "smollm2-135m", 4096, 512, 2, on_gpu=False),
    "small": Plan("tiny", 384, 1280, "tiny", 384, 128, 3, on_gpu=False),
}


@dataclass(frozen=True)
class Cell:
    """A measurement: what to run, and under what name it is kept."""

    name: str
    kind: str
    arguments: dict[str, Any]

    def predicted(self, on_gpu: bool) -> "Cell":
        """The cell that says what memory this one will take."""
        given = {key: self.arguments[key] for key in ("shape", "tokens", "options")}
        return Cell(f"predict {self.name}", "predict", {**given, "on_gpu": on_gpu})


def cells(plan: Plan) -> Iterator[Cell]:
    least = {**LEAST, "mlp_tokens": plan.mlp_tokens}
    common = {"rows_per_step": ROWS_PER_STEP}
    yield Cell("backends", "backends", {"shape": plan.shape, "tokens": plan.short})
    for name, tokens, options, rows in (
        (TRAINED[0], plan.short, EXACT_8BIT, plan.rows),
        (TRAINED[1], plan.short, least, plan.rows),
        (TRAINED[2], plan.long, least, max(1, plan.rows // 3)),
    ):
        yield Cell(
            name,
            "train",
            {**common, "shape": plan.shape, "tokens": tokens, "options": options, "rows": rows},
        )
    for option, given in OPTIONS.items():
        options = {**given, "mlp_tokens": plan.mlp_tokens} if "mlp_tokens" in given else given
        size = {"shape": plan.options_shape, "tokens": plan.options_tokens, "rows": plan.rows}
        yield Cell(f"option {option}", "train", {**common, **size, "options": options})
