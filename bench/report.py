"""The benchmark's figures as tables for a terminal, and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from corpora import Corpus
from rich import box
from rich.table import Table
from runs import Measured

AIMS = (
    ("fastokens", "raw fastokens, as it comes", 0.4),
    ("fastokens_threads", "raw fastokens, several callers", None),
    ("tokenizers", "raw tokenizers", 6.0),
    ("datatrove", "datatrove's tokenization", 12.0),
)
"""Least times as fast as each that `lrdata build` should be, or None."""
PEAK_AIM = 1_500_000_000
GROWTH_AIM = 0.10
_DIFFERENCE = 0.001
"""Share of tokens by which two contestants may differ before it is said."""


def speed_table(corpus: Corpus, found: Sequence[Measured]) -> Table:
    """Every contestant on one corpus; the last columns: how many times as fast ours is."""
    builds = _builds(found)
    table = _table(f"{corpus.name}: {corpus.bytes / 1e6:.1f} MB, {corpus.documents:,} documents")
    table.add_column("")
    for name in ("Mtok", "seconds", "spread", "Mtok/s", "with\nstart-up", "peak\nMB"):
        table.add_column(name, justify="right", no_wrap=True)
    for build in builds:
        table.add_column(f"ours\n({build.contestant.workers}) is", justify="right", no_wrap=True)
    for measured in found:
        whole, peak = measured.whole_rate, measured.peak_bytes
        table.add_row(
            measured.contestant.label + _part(measured.contestant.corpus, corpus),
            f"{measured.run.tokens / 1e6:.1f}",
            f"{measured.run.seconds:.2f}",
            _spread(measured),
            f"{measured.rate / 1e6:.2f}",
            f"{whole / 1e6:.2f}" if whole else "",
            _megabytes(peak) if peak else "",
            *(_times(build.rate / measured.rate) for build in builds),
            style="bold" if measured in builds else None,
        )
    if builds:
        table.caption = "ours (n) is: times as fast as this is lrdata build with n workers"
    return table


def aims_table(results: dict[str, list[Measured]]) -> Table:
    """The build with most workers against each aim; red where it is missed."""
    builds = {name: _builds(found)[-1] for name, found in results.items()}
    command = next(iter(builds.values())).contestant.label
    table = _table(f"{command}, against its aims")
    table.add_column("times as fast as")
    table.add_column("aim", justify="right")
    for name in results:
        table.add_column(name, justify="right")
    for rival, label, aim in AIMS:
        ratios = [_ratio(builds[name], rival, found) for name, found in results.items()]
        if any(ratios):
            cells = [_judged(_times(r), aim is None or r >= aim) if r else "" for r in ratios]
            table.add_row(label, f"≥ {_times(aim)}" if aim else "", *cells)
    peaks = [build.peak_bytes for build in builds.values()]
    cells = [_judged(_megabytes(peak), peak <= PEAK_AIM) for peak in peaks]
    table.add_row("peak PSS, MB", f"≤ {_megabytes(PEAK_AIM)}", *cells)
    return table


def stage_table(results: dict[str, list[Measured]]) -> Table:
    """Where `lrdata build` spends its time."""
    builds = [(name, build) for name, found in results.items() for build in _builds(found)]
    stages = list(dict.fromkeys(stage for _, build in builds for stage in build.run.stages))
    table = _table("lrdata build by stage, CPU seconds")
    table.add_column("corpus", no_wrap=True)
    for name in ("workers", "start-up\ns", "build\ns", *stages, "all\nstages", "cores\nbusy"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, build in builds:
        run = build.run
        spent = sum(run.stages.values())
        startup = (run.whole_seconds or run.seconds) - run.seconds
        table.add_row(
            name,
            str(build.contestant.workers),
            f"{startup:.2f}",
            f"{run.seconds:.2f}",
            *(f"{run.stages.get(stage, 0):.2f}" for stage in stages),
            f"{spent:.2f}" if stages else "n/a",
            f"{spent / run.seconds:.2f}" if stages else "n/a",
        )
    return table


def scaling_table(corpus: Corpus, found: dict[int, Measured]) -> Table:
    """The same corpus several times over: `found` by how many times."""
    (label,) = {measured.contestant.label for measured in found.values()}
    table = _table(f"{label}: {corpus.name}, {corpus.bytes / 1e6:.0f} MB, several times over")
    rates = ("Mtok", "seconds", "Mtok/s", "with\nstart-up")
    for name in ("corpus", "MB", *rates, "peak\nMB", f"of x{min(found)}"):
        table.add_column(name, justify="right")
    smallest = found[min(found)]
    for times, measured in found.items():
        growth = measured.peak_bytes / max(smallest.peak_bytes, 1)
        table.add_row(
            f"x{times}",
            f"{measured.contestant.corpus.bytes / 1e6:,.0f}",
            f"{measured.run.tokens / 1e6:,.1f}",
            f"{measured.run.seconds:.2f}",
            f"{measured.rate / 1e6:.2f}",
            f"{(measured.whole_rate or 0) / 1e6:.2f}",
            _judged(_megabytes(measured.peak_bytes), measured.peak_bytes <= PEAK_AIM),
            _judged(f"{growth:.0%}", growth <= 1 + GROWTH_AIM),
        )
    table.caption = f"one watched run each; aim: a peak within {GROWTH_AIM:.0%}"
    return table


def disagreements(corpus: Corpus, found: Sequence[Measured]) -> list[str]:
    """A line for each contestant whose tokens are not those of raw fastokens on the same text."""
    raw = next((m.run for m in found if m.contestant.name == "fastokens"), None)
    if raw is None:
        return []
    known = {raw.documents: raw.tokens, **raw.tokens_of_first}
    lines = []
    for measured in found:
        tokens = measured.run.tokens
        expected = known[measured.contestant.corpus.documents]
        if abs(tokens - expected) > _DIFFERENCE * expected:
            lines.append(
                f"{corpus.name}: {measured.contestant.label} counts {tokens:,} tokens where "
                f"fastokens counts {expected:,} ({tokens / expected - 1:+.2%})"
            )
    return lines


def document_table(found: Sequence[Measured]) -> Table:
    """One document, as large as it is in each form."""
    table = _table(f"{found[0].contestant.label}, one document")
    table.add_column("")
    for name in ("MB", "Mtok", "seconds", "Mtok/s", "peak\nMB"):
        table.add_column(name, justify="right", no_wrap=True)
    for measured in found:
        peak = measured.peak_bytes
        table.add_row(
            measured.contestant.corpus.name,
            f"{measured.contestant.corpus.bytes / 1e6:,.0f}",
            f"{measured.run.tokens / 1e6:.1f}",
            f"{measured.run.seconds:.2f}",
            f"{measured.rate / 1e6:.2f}",
            _judged(_megabytes(peak), peak <= PEAK_AIM),
        )
    return table


def figures(
    results: dict[str, list[Measured]],
    scaling: dict[int, Measured],
    documents: Sequence[Measured],
    warnings: list[str],
) -> dict[str, Any]:
    """All of it for `--json`: rates in tokens per second, memory in bytes."""
    return {
        "corpora": {
            name: {
                measured.contestant.name: {
                    **_figures(measured),
                    "ours_is": {
                        build.contestant.name: build.rate / measured.rate
                        for build in _builds(found)
                    },
                }
                for measured in found
            }
            for name, found in results.items()
        },
        "scaling": {f"x{times}": _figures(measured) for times, measured in scaling.items()},
        "documents": {
            measured.contestant.corpus.name: _figures(measured) for measured in documents
        },
        "warnings": warnings,
    }


def _figures(measured: Measured) -> dict[str, Any]:
    return {
        "label": measured.contestant.label,
        "corpus_bytes": measured.contestant.corpus.bytes,
        "tokens_per_second": measured.rate,
        "tokens_per_second_with_startup": measured.whole_rate,
        **asdict(measured.run),
        "peak_bytes": measured.peak_bytes,
        "seconds_of_all_runs": [run.seconds for run in measured.runs],
    }


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _builds(found: Sequence[Measured]) -> list[Measured]:
    """Those of `lrdata build`; the most workers come last."""
    return [measured for measured in found if measured.contestant.workers]


def _ratio(build: Measured, rival: str, found: Sequence[Measured]) -> float | None:
    against = next((m for m in found if m.contestant.name == rival), None)
    return build.rate / against.rate if against else None


def _part(part: Corpus, whole: Corpus) -> str:
    return "" if part == whole else f", first {part.bytes / 1e6:.0f} MB"


def _spread(measured: Measured) -> str:
    """From the fastest to the slowest of the timed runs, as a share of the median."""
    seconds = [run.seconds for run in measured.runs]
    return f"{(max(seconds) - min(seconds)) / measured.run.seconds:.0%}" if len(seconds) > 1 else ""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f} x" if ratio < 10 else f"{ratio:.0f} x"


def _judged(text: str, met: bool) -> str:
    return f"[green]{text}[/]" if met else f"[red]{text} ![/]"
