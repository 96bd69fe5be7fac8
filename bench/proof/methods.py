"""What the small proof compares: how rows are made, and with which attention scale they train."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TARGET = 2048
LENGTHS = (256, 1024, TARGET)
"""At which models are measured: the base's window, between, and the target."""
ROW_SHARE = 0.3


@dataclass(frozen=True)
class Method:
    """`build`: options of `lrdata build`; `scale`: of `lrtrain run --attention-scale`."""

    name: str
    build: Mapping[str, Any] = field(default_factory=dict, hash=False)
    scale: str = "1"

    @property
    def key(self) -> str:
        """The name as part of a file's."""
        return self.name.lower().replace(", ", "-").replace(" ", "-")

    @property
    def rows_key(self) -> str:
        """The same for methods that train on the same rows."""
        return self.key.removesuffix("-scale")

    def attention_scale(self, train_len: int) -> float:
        return math.log(train_len) / math.log(TARGET) if self.scale == "auto" else float(self.scale)

    @property
    def is_full(self) -> bool:
        return self.build.get("positions") == "full"


FULL = Method("full length", {"positions": "full"})
EVIDENCE = {"impact": "returns:256", "evidence": 256}

METHODS = (
    FULL,
    # As published: a piece of the document, other positions.
    Method("RandPos", {"positions": "randpos", "impact": "none"}),
    Method("PoSE", {"positions": "pose", "impact": "none"}),
    Method("CREAM", {"positions": "cream", "impact": "none"}),
    Method("EndPrompt", {"positions": "endprompt", "impact": "none"}),
    # LongRecipe's positions, with what chooses the sentences.
    Method("LongRecipe, none", {"impact": "none"}),
    Method("LongRecipe, random", {"impact": "random"}),
    Method("LongRecipe, digits", {"impact": "digits"}),
    Method("LongRecipe, lexicon", {"impact": "lexicon"}),
    Method("LongRecipe, evidence", EVIDENCE),
    # The same sentences as the last one, other positions: what is left are the positions.
    Method("RandPos, evidence", {"positions": "randpos", **EVIDENCE}),
    Method("PoSE, evidence", {"positions": "pose", **EVIDENCE}),
    # And a smaller softmax scale while training.
    Method("LongRecipe, evidence, scale", EVIDENCE, scale="auto"),
    Method("LongRecipe, none, scale", {"impact": "none"}, scale="auto"),
    Method("PoSE, scale", {"positions": "pose", "impact": "none"}, scale="auto"),
)
"""In the order of the tables."""

CHOSEN = METHODS[-3]
"""The one that is annealed and merged; fixed before the runs."""


@dataclass(frozen=True)
class Budget:
    """Rows of a step, for rows of the whole window and for rows of a share of it."""

    name: str
    title: str
    full_rows: int
    short_rows: int
    steps: int
    first_seed: int

    def rows(self, method: Method) -> int:
        return self.full_rows if method.is_full else self.short_rows


BUDGETS = (
    Budget("tokens", "equal tokens", full_rows=3, short_rows=10, steps=120, first_seed=0),
    Budget("rows", "equal rows and steps", full_rows=3, short_rows=3, steps=120, first_seed=1000),
)
"""`first_seed` is added to a seed for the draws of a run, so that no run stands in both tables."""

RATES = (1e-3, 2e-3, 4e-3)
"""Every method is trained with each of them on the tuning seed, with equal tokens."""

ANNEAL_STEPS, ANNEAL_RATE = 20, 3e-4
MERGE_WEIGHTS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the trained model; 0 is the base with its new theta, 1 what was annealed."""
