"""What is known of another trainer: what it does with positions, and which settings are right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lrdata.exporting.documents import Tally


@dataclass(frozen=True)
class Trainer:
    """Every text is for rows that have gaps (`Tally.gapped`), or for rows that have none."""

    name: str
    known_from: str
    """Which version was read or run, so that a reader can tell when this is out of date."""
    settings: Callable[[Tally], Sequence[str]]
    """Lines of Markdown: how to train on the export, as it is to be copied."""
    behaviour: Callable[[Tally], Sequence[str]]
    """What it does with the rows: a sentence or two each."""
    when: str
    """Set how it goes wrong on rows with gaps: `as it is`, `with ...`."""
    wrong: str
    """And what it then does: `it drops position_ids ...`."""
    fix: str
    """The way out, as an imperative."""


def warning(trainer: Trainer, tally: Tally) -> str | None:
    """Where the trainer would train something else than a reader thinks; None where it would not.

    One line: what, and what to do.
    """
    if not tally.gapped:
        return None
    return (
        f"{trainer.name} {trainer.when} would train {tally.gapped:,} of {tally.documents:,} rows "
        f"wrongly, and its loss would still fall: {trainer.wrong}. So no two tokens would be more "
        f"than {tally.longest - 1:,} apart, though their positions reach {tally.reach:,}. "
        f"{trainer.fix}; or train with `lrtrain run`; or build with `--positions full`, whose "
        "positions have no gaps"
    )
