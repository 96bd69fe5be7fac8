"""What an evaluation found: as JSON, as tables in the terminal, as figures.

`eval.json` holds the outcome of every sample beside the means, and everything that is needed to
repeat the evaluation. Intervals are 95 % bootstrap intervals over samples (percentiles of 2,000
resamples, seeded), those of several seeds together; where all samples agree an interval has no
width, and of a single one there is none: null, or ±? in a table. A mean over the depths of needles,
or over RULER's tasks, is resampled within them, see `lrdata.bootstrap.ratio`; LongPPL's samples are
documents.

`results` is what was found, `statistics` its intervals. `section` says how a suite is written and
shown; `needle`, `ruler`, `perplexity`, `short` and `longppl` are those there are; `tables` and
`figures` are what they have in common, and `compare` is one figure of all of them.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrdata.atomic import write_json
from lrtrain.evaluation.report import longppl, needle, perplexity, ruler, short
from lrtrain.evaluation.report.compare import COMPARE_NAME, draw_comparison
from lrtrain.evaluation.report.figures import check_plots, save
from lrtrain.evaluation.report.results import ModelEntry, Report
from lrtrain.evaluation.report.statistics import Mean, mean
from lrtrain.evaluation.report.tables import size_text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "SECTIONS",
    "Mean",
    "ModelEntry",
    "Report",
    "check_plots",
    "content",
    "mean",
    "print_report",
    "size_text",
    "write_report",
]

JSON_NAME = "eval.json"
FORMAT = "longrecipe-eval"
FORMAT_VERSION = "1.0"

SECTIONS = (needle.SECTION, ruler.SECTION, perplexity.SECTION, short.SECTION, longppl.SECTION)


def content(report: Report) -> dict[str, Any]:
    """What eval.json holds."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "settings": report.settings,
        "versions": report.versions,
        "seconds": round(report.seconds, 3),
        "models": [asdict(model) for model in report.models],
    } | {section.key: section.values(report) for section in SECTIONS}


def print_report(report: Report, console: "Console | None" = None) -> None:
    """One table for each suite: models as rows, lengths or positions as columns."""
    from rich.console import Console

    if console is None:
        plain = Console()
        console = plain if plain.is_terminal else Console(width=160)
    for section in SECTIONS:
        if section.ran(report):
            section.show(report, console)
    windows = {model.name: model.window for model in report.models}
    if any(cell.longest_read > windows[cell.model] for cell in report.cells):
        console.print("* beyond the model's max_position_embeddings", style="dim")


def write_report(report: Report, out: Path, *, plots: bool = True) -> list[Path]:
    """Write eval.json, the figures of the suites that ran, and with several models one that
    compares them. Returns the files written.

    Raises LongRecipeError when there are to be figures and they cannot be drawn here.
    """
    written = [out / JSON_NAME]
    write_json(out / JSON_NAME, content(report), allow_nan=False)
    if not plots:
        return written
    check_plots()
    for section in SECTIONS:
        if section.ran(report):
            save(section.draw(report), out / section.figure)
            written.append(out / section.figure)
    if len(report.models) > 1 and any(one.panel and one.ran(report) for one in SECTIONS):
        save(draw_comparison(report, SECTIONS), out / COMPARE_NAME)
        written.append(out / COMPARE_NAME)
    return written
