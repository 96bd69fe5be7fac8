"""What `lrdata report` says of a dataset: one HTML page, and figures as PNG.

    write_report(Path("shards"))        # shards/report/index.html, shards/report/coverage.png

The page is a function of the dataset alone: no dates, the same bytes each time.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lrdata.atomic import write_text
from lrdata.dataset import open_dataset
from lrdata.manifest import Ledger, Manifest
from lrdata.report.card import card
from lrdata.report.coverage import Coverage, octaves
from lrdata.report.page import asset, bar, facts, page, table, text
from lrdata.report.quarantine import rejected_by_reason
from lrdata.report.sources import SourceFacts, sources_of
from lrdata.report.statistics import (
    NAMES,
    ROWS,
    Powers,
    RowStatistics,
    read_statistics,
    replay_shares,
)
from lrdata.report.svg import (
    Axis,
    Series,
    column_chart,
    flow,
    line_chart,
    tokens_label,
)
from lrdata.shards import Shards
from lrdata.sizes import format_bytes
from lrdata.token_classes import CLASSES, token_classes
from lrdata.tokenizer import Tokenizer

INDEX, COVERAGE = "index.html", "coverage.png"
_DISTANCE_BINS = 128
_REASONS = 30


def write_report(
    folder: Path,
    out: Path | None = None,
    rows: int = ROWS,
    tokenizer: Tokenizer | None = None,
    plots: bool = True,
) -> list[Path]:
    """Write the report of a dataset into `out` (its folder `report`); the files written.

    In its own folder the figure of coverage goes into the card, README.md, too, where that is as
    it was built.

    At most `rows` extend rows are read. Without the tokenizer of the build the part on classes of
    tokens is left out. `plots`: also draw PNGs, for which matplotlib is needed. Raises
    LongRecipeError when the folder is not a dataset or is damaged.
    """
    shards = open_dataset(folder)
    target = folder / "report" if out is None else out
    classes = None if tokenizer is None else token_classes(tokenizer)
    found = read_statistics(shards, rows, classes)
    written = [target / INDEX]
    write_text(written[0], report_page(shards, found))
    if plots and found.coverage:
        from lrdata.report.coverage_png import draw_coverage

        written.append(target / COVERAGE)
        draw_coverage(found.coverage, written[1])
        if out is None:
            _show_in_card(folder, shards.manifest)
    return written


def _show_in_card(folder: Path, manifest: Manifest) -> None:
    """Put the figure into the dataset's card, unless somebody has written into it."""
    path = folder / "README.md"
    if path.exists() and path.read_bytes() == card(manifest).encode():
        write_text(path, card(manifest, figure=f"report/{COVERAGE}"))


def report_page(shards: Shards, found: RowStatistics) -> str:
    """The page as HTML."""
    manifest, name = shards.manifest, shards.folder.resolve().name
    parts = (
        _head(shards, name),
        _accounting(manifest.ledger, "Where every token went"),
        *(_coverage(found, manifest) if found.coverage else ()),
        *(_gaps(found) if found.sampled else ()),
        *_documents(found),
        _impact(found, manifest),
        _sources(sources_of(shards)),
        _replay(shards),
        _rejected(shards.folder),
    )
    inner = "\n".join(parts)
    body = f'<div class="page">\n{inner}\n</div>'
    return page(f"{name}: report", body, style=asset("lrdata.report", "dataset.css"))


def _section(title: str, *parts: str) -> str:
    return "\n".join(["<section>", f"<h2>{title}</h2>", *parts, "</section>"])


# What it is


def _head(shards: Shards, name: str) -> str:
    manifest = shards.manifest
    recipe = manifest.recipe
    share = manifest.train_len / max(manifest.target_len, 1)
    tiles = [
        (tokens_label(manifest.target_len), "tokens: the window"),
        (f"{manifest.train_len:,}", f"tokens: a row ({share:.0%} of it)"),
        *((f"{shards.rows(kind):,}", f"{kind} rows") for kind in shards.kinds),
        (_short(sum(entry.tokens for entry in manifest.files)), "tokens in all rows"),
        (format_bytes(sum(entry.bytes for entry in manifest.files)), "on disk"),
    ]
    cells = "".join(f'<div class="tile"><b>{a}</b><span>{b}</span></div>\n' for a, b in tiles)
    options = [
        ("positions", str(recipe.get("positions", ""))),
        ("impact", f"{recipe.get('impact', '')}, select {recipe.get('select', '')}"),
        ("joined documents", "attend" if recipe.get("join") != "mask" else "do not attend"),
        ("tokenizer", f"{manifest.tokenizer.name}, {manifest.tokenizer.vocab_size:,} ids"),
        ("seed", str(manifest.seed)),
    ]
    return "\n".join(
        [
            f"<h1>{text(name)}</h1>",
            '<p class="soft">A dataset of long-context training rows, by '
            "<code>lrdata report</code>.</p>",
            f'<div class="tiles">\n{cells}</div>',
            facts(options),
        ]
    )


def _short(count: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,}"


# Accounting


def _accounting(ledger: Ledger, title: str) -> str:
    targets = [
        ("kept in rows", ledger.kept, 0),
        ("dropped by selection", ledger.dropped, 1),
        ("held out", ledger.held_out, 3),
        ("tail, too short for a window", ledger.tail, 4),
    ]
    sources = [("encoded", ledger.encoded, 0), ("inserted", ledger.inserted, 2)]
    said = "Tokens encoded + inserted = kept + dropped + held out + tail, exactly."
    problems = ledger.problems()
    if problems:  # bands would not add up
        return _section(title, f"<p><b>{text('; '.join(problems))}.</b></p>", _records(ledger))
    drawn = ""
    if ledger.encoded + ledger.inserted > 0:
        there = [[part for part in parts if part[1] > 0] for parts in (sources, targets)]
        drawn = flow(there[0], there[1], "where tokens went")
    return _section(title, f"<p>{said}</p>", drawn, _records(ledger))


def _records(ledger: Ledger) -> str:
    """What happened to the documents, in a sentence."""
    aside = f" {ledger.records_filtered:,} more were set aside by the recipe."
    return (
        f"<p>{ledger.records_read:,} documents were read: {ledger.records_built:,} built, "
        f"{ledger.records_quarantined:,} rejected.{aside if ledger.records_filtered else ''}</p>"
    )


# Coverage


def _coverage(found: RowStatistics, manifest: Manifest) -> Iterator[str]:
    coverage, target = found.coverage, manifest.target_len
    names = {key: NAMES[key] for key in coverage}
    mine = coverage["rows"]
    densities = {key: one.density(_DISTANCE_BINS) for key, one in coverage.items()}
    series = [
        Series(names[key], values, at, dashed=key != "rows")
        for at, (key, (_, values)) in enumerate(densities.items())
    ]
    positive = np.concatenate([one.values[one.values > 0] for one in series])
    up = Axis.powers("pairs a row", max(positive.min(initial=1.0), 1e-3), positive.max(initial=10))
    across = Axis.tokens("distance between two tokens", target)
    yield _section(
        "Which distances training sees",
        "<p>With rotary positions a model sees how far apart two tokens are. Of each distance up "
        f"to {target:,}: how many pairs a row has, of a token and an earlier one that it attends "
        f"to. A row of these shows {mine.seen_by_a_row:.1%} of all distances, "
        f"{_rows(mine.rows)} together {mine.seen:.1%}; "
        f"a row with the positions of PoSE shows {coverage['pose'].seen_by_a_row:.1%}.</p>",
        line_chart(densities["rows"][0], series, across, up, "pairs by distance"),
        _distance_table(coverage, names, target),
        f'<p class="soft">Of {_rows(found.sampled)} out of {found.total:,}. PoSE and RandPos are '
        "positions drawn for the same rows; full-length rows are as long as the window, and cost "
        "accordingly. In the table: pairs a row, and the share of the distances of the line that "
        "occur in a row.</p>",
    )
    bins = len(mine.occupied)
    places = (np.arange(bins) + 0.5) * target / bins
    occupancy = [
        Series(names[key], one.occupancy(), at, dashed=key != "rows")
        for at, (key, one) in enumerate(coverage.items())
        if key != "full"
    ]
    yield _section(
        "Which positions training sees",
        f"<p>The window in {bins:,} equal parts of about {target / bins:,.0f} positions: the share "
        "of rows that have a token in each.</p>",
        line_chart(
            places,
            occupancy,
            Axis.tokens("position", target),
            Axis.shares("share of rows"),
            "rows by position",
        ),
    )


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _distance_table(coverage: dict[str, Coverage], names: dict[str, str], target: int) -> str:
    def cell(one: Coverage, low: int, high: int) -> str:
        pairs, share = one.between(low, high)
        return f'{_short(round(pairs))} <span class="soft">{share:.0%}</span>'

    lines = [
        (f"{low:,}–{high - 1:,}", *(cell(one, low, high) for one in coverage.values()))
        for low, high in octaves(target)
    ]
    every = coverage.values()
    of_a_row = ("share of all, in a row", *(f"{one.seen_by_a_row:.1%}" for one in every))
    of_all = ("share of all, in any row", *(f"{one.seen:.1%}" for one in every))
    tokens = ("tokens a row", *(f"{one.tokens / one.rows:,.0f}" for one in every))
    header = ("distance", *(text(name) for name in names.values()))
    columns = range(1, len(header))
    return table(header, [*lines, of_a_row, of_all, tokens], numbers=columns)


# Gaps, documents, impact


def _powers_chart(powers: Powers, series: list[Series], what: str) -> str:
    labels = [tokens_label(2**power) for power in powers.used()]
    highest = max(float(one.values.max(initial=0)) for one in series)
    top = next(step / 20 for step in range(1, 21) if step / 20 >= min(highest, 1))
    ticks = [(top * part / 5, f"{top * part / 5:.0%}") for part in range(6)]
    return column_chart(labels, series, what, Axis("share", 0, top, ticks))


def _gaps(found: RowStatistics) -> Iterator[str]:
    gaps, used = found.gaps, found.gaps.used()
    if not gaps.count:
        yield _section("Gaps", "<p>No positions are skipped inside rows.</p>")
        return
    shares = [
        Series("of the gaps", gaps.counts[used] / gaps.count, 0),
        Series("of the skipped positions", gaps.sums[used] / max(gaps.sums.sum(), 1), 2),
    ]
    yield _section(
        "How large gaps are",
        f"<p>Positions skipped at once: {gaps.count:,} gaps in "
        f"{_rows(found.sampled)}, {gaps.count / found.sampled:,.0f} in a row, of "
        f"{gaps.mean:,.0f} positions on average, {gaps.largest:,} at most.</p>",
        _powers_chart(gaps, shares, "positions skipped, from this number on"),
    )


def _documents(found: RowStatistics) -> Iterator[str]:
    documents, used = found.documents, found.documents.used()
    if not documents.count:
        return
    shares = [
        Series("of the documents", documents.counts[used] / documents.count, 0),
        Series("of the tokens", documents.sums[used] / documents.sums.sum(), 2),
    ]
    yield _section(
        "How long documents are",
        "<p>Tokens that a window takes of a document: "
        f"{documents.count / found.sampled:,.1f} documents in a window, "
        f"{documents.mean:,.0f} tokens of each on average. Long contexts come from long "
        "documents: the right of this picture.</p>",
        _powers_chart(documents, shares, "tokens of the document, from this number on"),
    )


def _impact(found: RowStatistics, manifest: Manifest) -> str:
    title = "Which tokens are impactful"
    if found.by_class is None:
        return _section(
            title,
            f"<p>Left out: the tokenizer {text(manifest.tokenizer.name)} is not at hand. Pass "
            "<code>--tokenizer</code>, a folder or hub id.</p>",
        )
    tokens, impactful = found.by_class
    lines = []
    for at in np.argsort(-impactful, kind="stable").tolist():
        if tokens[at]:
            share = impactful[at] / tokens[at]
            of_all = impactful[at] / max(found.impactful, 1)
            parts = (f"{tokens[at] / found.tokens:.1%}", f"{of_all:.1%}", f"{share:.1%}")
            lines.append((CLASSES[at], *parts, bar(share)))
    overall = found.impactful / max(found.tokens, 1)
    return _section(
        title,
        f"<p>{overall:.1%} of the kept tokens are impactful, by the rule "
        f"{text(manifest.recipe.get('impact', ''))}. By what the tokens look like:</p>",
        table(
            ("class", "of all tokens", "of the impactful", "impactful", ""),
            lines,
            numbers=(1, 2, 3),
        ),
    )


# Sources, replay, rejected records


def _sources(sources: list[SourceFacts]) -> str:
    whole = sum(one.bytes for one in sources)
    lines = [
        (
            text(one.name),
            text(one.licence or "not stated"),
            f"{one.files:,}",
            format_bytes(one.bytes),
            bar(one.bytes / max(whole, 1)),
            *(f"{one.rows.get(kind, 0):,}" for kind in ("extend", "replay", "holdout")),
        )
        for one in sources
    ]
    header = ("source", "licence", "files", "bytes", "", "extend rows", "replay rows", "held out")
    return _section(
        "Sources",
        "<p>A row counts for the source of its first document.</p>",
        table(header, lines, numbers=(2, 3, 5, 6, 7)),
    )


def _replay(shards: Shards) -> str:
    ledger, title = shards.manifest.replay_ledger, "Replay"
    if ledger is None or not shards.rows("replay"):
        return _section(title, "<p>This dataset has no replay rows.</p>")
    sampled, documents, counted = replay_shares(shards)
    extend, replay = shards.tokens("extend"), shards.tokens("replay")
    asked = shards.manifest.recipe.get("replay_ratio")
    said = f", of {asked:.1%} asked for" if isinstance(asked, int | float) else ""
    return _section(
        title,
        f"<p>{_rows(shards.rows('replay'))} of short documents keep what the model knows: "
        f"{replay:,} tokens, {replay / max(extend, 1):.1%} of the extend tokens{said}. Of "
        f"{_rows(sampled)}: {documents:,.1f} documents in a row; {counted:.1%} of the tokens "
        "count in the loss.</p>",
        _records(ledger),
    )


def _rejected(folder: Path) -> str:
    reasons = rejected_by_reason(folder)
    title = "Rejected records"
    if not reasons:
        return _section(title, "<p>None is listed in the quarantine of this folder.</p>")
    total = sum(count for _, count in reasons)
    shown = [
        (text(reason), f"{count:,}", bar(count / total)) for reason, count in reasons[:_REASONS]
    ]
    rest = sum(count for _, count in reasons[_REASONS:])
    if rest:
        shown.append((f"{len(reasons) - _REASONS:,} more reasons", f"{rest:,}", bar(rest / total)))
    return _section(
        title,
        f"<p>{total:,} records could not be used; <code>quarantine</code> says which.</p>",
        table(("reason", "records", ""), shown, numbers=(1,)),
    )
