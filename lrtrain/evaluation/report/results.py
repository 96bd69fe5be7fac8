"""Everything that an evaluation found."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from lrtrain.evaluation.suite import Cell

_Cell = TypeVar("_Cell", bound=Cell)


@dataclass(frozen=True)
class ModelEntry:
    """A model that was evaluated. `window`: its max_position_embeddings, in tokens."""

    name: str
    path: str
    rope: str | None
    target_len: int | None
    window: int
    rope_type: str
    theta: float | None
    parameters: int
    tokenizer: str
    dtype: str
    device: str
    seconds: float = 0.0
    tokens: int = 0


@dataclass
class Report:
    """Everything that was found. `settings` and `versions` are what it takes to repeat it."""

    settings: dict[str, Any]
    versions: dict[str, str]
    models: list[ModelEntry] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    """Of all suites and models, in the order in which they were measured."""
    seconds: float = 0.0

    def of(self, kind: type[_Cell]) -> list[_Cell]:
        """The cells of one kind, which is one suite's."""
        return [cell for cell in self.cells if isinstance(cell, kind)]
