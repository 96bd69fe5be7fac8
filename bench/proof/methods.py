"""What is compared: how rows are made, with which attention scale they train, and how long."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lrtrain.attention_scale import AttentionScale

ROW_SHARE = 0.3


@dataclass(frozen=True)
class Method:
    """`build`: options of `lrdata build`; `scale`: of `lrtrain run --attention-scale`."""

    name: str
    build: Mapping[str, Any] = field(default_factory=dict, hash=False)
    scale: AttentionScale = 1.0
    share: float = ROW_SHARE
    """Tokens of a row as a share of the target."""

    @property
    def key(self) -> str:
        """The name as part of a file's."""
        return self.name.lower().replace(", ", "-").replace(" ", "-")

    @property
    def is_full(self) -> bool:
        return self.build.get("positions") == "full"

    def train_len(self, target: int) -> int:
        """Tokens of a row."""
        return target if self.is_full else int(self.share * target) // 16 * 16

    def rows_key(self, target: int) -> str:
        """The same for methods that train on the same rows."""
        named = (f"{name}-{value}" for name, value in sorted(self.build.items()))
        return "-".join([str(target), str(self.train_len(target)), *named]).replace(":", "-")


@dataclass(frozen=True)
class Budget:
    """Rows of a step, for rows of the whole window and for shorter ones, and the steps."""

    name: str
    title: str
    full_rows: int
    short_rows: int
    steps: int
    first_seed: int = 0
    """Added to a seed for the draws of a run, so that no run stands in two tables."""

    def rows(self, method: Method) -> int:
        return self.full_rows if method.is_full else self.short_rows


FULL = Method("full length", {"positions": "full"})


def evidence(distance: int) -> dict[str, Any]:
    """Tokens that return after so many others, with what they may be copied from."""
    return {"impact": f"returns:{distance}", "evidence": distance}


def as_published(name: str) -> Method:
    """A rival's positions, and what it takes of a window."""
    return Method(name, {"positions": name.lower(), "impact": "none"})
