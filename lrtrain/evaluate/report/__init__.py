"""What an evaluation found: as JSON, as tables in the terminal, as figures.

`eval.json` holds the outcome of every sample beside the means, and everything that is needed to
repeat the evaluation. Intervals are 95 % bootstrap intervals over samples (percentiles of 2,000
resamples, seeded); where all samples agree an interval has no width.

`results` is what was found and its JSON, `statistics` its intervals, `tables` and `figures` how it
is shown.
"""

from pathlib import Path

from lrdata.atomic import write_json
from lrtrain.evaluate.report.figures import check_plots, write_figures
from lrtrain.evaluate.report.results import ModelEntry, Report
from lrtrain.evaluate.report.statistics import Mean, mean
from lrtrain.evaluate.report.tables import print_report, size_text

__all__ = [
    "Mean",
    "ModelEntry",
    "Report",
    "check_plots",
    "mean",
    "print_report",
    "size_text",
    "write_report",
]

JSON_NAME = "eval.json"


def write_report(report: Report, out: Path, *, plots: bool = True) -> list[Path]:
    """Write eval.json and the figures of the suites that ran. Returns the files written."""
    write_json(out / JSON_NAME, report.as_dict())
    return [out / JSON_NAME, *(write_figures(report, out) if plots else [])]
