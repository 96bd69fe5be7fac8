"""What a suite is: one thing that is measured of every model.

    suite = NeedleSuite(...)                # reads and checks all that needs no model
    suite.check(opened)                     # can this model be asked?
    for cell in suite.cells(loaded): ...    # what one model did, a part at a time

A suite is made once and asked about one model after another, so that all of them are asked the
same. It measures and no more: how its cells are written and shown is a section of the report, see
`lrtrain.evaluation.report.section`.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from lrtrain.evaluation.models import LoadedModel, OpenModel


class Cell(Protocol):
    """Part of what one model did in one suite, with an entry for each sample: a frozen record."""

    @property
    def model(self) -> str:
        """The model's name."""

    @property
    def tokens_read(self) -> int:
        """Tokens that the model read for it, all samples together."""

    @property
    def longest_read(self) -> int:
        """Tokens of the longest sample."""


def seed_of_each(samples: int, seeds: Sequence[int]) -> list[int]:
    """The seed of each sample: as many of the first seed, then of the next one, and so on."""
    return [seed for seed in seeds for _ in range(samples // len(seeds))]


class OfWindows:
    """Of a cell with an entry for each window: tokens read of each are its `context`."""

    context: tuple[int, ...]

    @property
    def tokens_read(self) -> int:
        return sum(self.context)

    @property
    def longest_read(self) -> int:
        return max(self.context)


class Suite(Protocol):
    """One thing that is measured of every model."""

    @property
    def name(self) -> str:
        """As it is written behind --suite."""

    @property
    def kind(self) -> type[Cell]:
        """What its cells are: a frozen dataclass of numbers, texts, and tuples of such."""

    @property
    def size(self) -> int:
        """Cells of each model."""

    @property
    def compares(self) -> bool:
        """Whether the others are measured with what the base says, so that it must be read."""

    @property
    def joins(self) -> bool:
        """Whether it reads documents one after another, as rows do, with the end of text between
        them."""

    def settings(self) -> dict[str, object]:
        """What it takes to repeat it, ready for JSON."""

    def check(self, opened: OpenModel) -> None:
        """Raises LongRecipeError where the model or its tokenizer cannot be asked, as far as that
        can be known without its weights. The base is checked first."""

    def cells(self, loaded: LoadedModel, done: int = 0) -> Iterator[Cell]:
        """Measure one model, with a progress bar of its own, but for the first `done` cells."""
