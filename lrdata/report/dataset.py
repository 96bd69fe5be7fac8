"""What `lrdata report` says of a dataset: one HTML page, and figures as PNG.

    write_report(Path("shards"))        # shards/report/index.html, shards/report/coverage.png

The page is a function of the dataset, the number of rows and whether its tokenizer is at hand: no
dates, the same bytes each time.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lrdata.atomic import write_text
from lrdata.dataset import open_dataset
from lrdata.layout import PAGE, PICTURE
from lrdata.manifest import Ledger, Manifest
from lrdata.report.about import left_out, name, title
from lrdata.report.card import card
from lrdata.report.coverage_html import coverage_sections
from lrdata.report.page import asset, bar, facts, page, section, short, some_rows, table, text
from lrdata.report.quarantine import rejected_by_reason
from lrdata.report.sources import SourceFacts, sources_of
from lrdata.report.statistics import Powers, RowStatistics, read_statistics, replay_shares
from lrdata.report.svg import Axis, Series, column_chart, flow
from lrdata.shards import Shards
from lrdata.sizes import format_bytes, format_tokens
from lrdata.token_classes import CLASSES, token_classes
from lrdata.tokenizer import Tokenizer

_REASONS, _SOURCES = 30, 50


def write_report(
    folder: Path | str,
    out: Path | str | None = None,
    rows: int | None = None,
    tokenizer: Tokenizer | None = None,
    plots: bool = True,
) -> list[Path]:
    """Write the report of a dataset into `out` (its folder `report`); the files written.

    In its own folder the figure of coverage goes into the card, README.md, too, where that is as
    it was built; then the card is one of the files written.

    At most `rows` extend rows are read (None: as many as take a minute or less). Without the
    tokenizer of the build the part on classes of tokens is left out. `plots`: also draw PNGs, for
    which matplotlib is needed. Raises LongRecipeError when the folder is not a dataset or is
    damaged.
    """
    folder = Path(folder)
    shards = open_dataset(folder)
    target = folder / "report" if out is None else Path(out)
    classes = None if tokenizer is None else token_classes(tokenizer)
    found = read_statistics(shards, rows, classes)
    written = [target / Path(PAGE).name]
    write_text(written[0], report_page(shards, found))
    if plots and found.coverage:
        from lrdata.report.coverage_png import draw_coverage

        written.append(target / Path(PICTURE).name)
        draw_coverage(found.coverage, written[1])
        if out is None:
            written += _show_in_card(folder, shards.manifest)
    return written


def _show_in_card(folder: Path, manifest: Manifest) -> list[Path]:
    """Put the figure into the dataset's card, unless somebody has written into it."""
    path = folder / "README.md"
    if not path.exists() or path.read_bytes() != card(manifest).encode():
        return []
    write_text(path, card(manifest, figure=PICTURE))
    return [path]


def report_page(shards: Shards, found: RowStatistics) -> str:
    """The page as HTML."""
    manifest = shards.manifest
    parts = (
        _head(shards),
        _accounting(manifest.ledger, "Where every token went"),
        *coverage_sections(found, manifest.target_len),
        *(_gaps(found) if found.sampled else ()),
        *_documents(found),
        *(_impact(found, manifest) if found.sampled else ()),
        _sources(sources_of(shards)),
        _replay(shards),
        _rejected(shards.folder),
    )
    inner = "\n".join(parts)
    body = f'<main class="page">\n{inner}\n</main>'
    return page(f"{name(manifest)}: report", body, style=asset("lrdata.report", "dataset.css"))


# What it is


def _head(shards: Shards) -> str:
    manifest = shards.manifest
    recipe = manifest.recipe
    share = manifest.train_len / max(manifest.target_len, 1)
    tiles = [
        (format_tokens(manifest.target_len), "tokens: the window"),
        (f"{manifest.train_len:,}", f"tokens: a row ({share:.0%} of it)"),
        *((f"{shards.rows(kind):,}", f"{kind} rows") for kind in shards.kinds),
        (short(sum(entry.tokens for entry in manifest.files)), "tokens in all rows"),
        (format_bytes(sum(entry.bytes for entry in manifest.files)), "on disk"),
    ]
    cells = "".join(f'<div class="tile"><b>{a}</b><span>{b}</span></div>\n' for a, b in tiles)
    options = [
        ("positions", str(recipe.get("positions", ""))),
        ("impact", f"{recipe.get('impact', '')}, select {recipe.get('select', '')}"),
        ("joined documents", "attend" if recipe.get("join") != "mask" else "do not attend"),
        ("tokenizer", f"{manifest.tokenizer.name}, {manifest.tokenizer.vocab_size:,} ids"),
        ("seed", str(manifest.seed)),
        ("name", name(manifest)),
    ]
    part = left_out(manifest)
    return "\n".join(
        [
            f"<h1>{text(title(manifest))}</h1>",
            '<p class="soft">What <code>lrdata report</code> says of this dataset.</p>',
            *([f"<p>{text(part)}</p>"] if part else []),
            f'<div class="tiles">\n{cells}</div>',
            facts(options),
        ]
    )


# Accounting


def _accounting(ledger: Ledger, heading: str) -> str:
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
        return section(heading, f"<p><b>{text('; '.join(problems))}.</b></p>", _records(ledger))
    drawn = ""
    if ledger.encoded + ledger.inserted > 0:
        there = [[part for part in parts if part[1] > 0] for parts in (sources, targets)]
        drawn = flow(there[0], there[1], "where tokens went")
    return section(heading, f"<p>{said}</p>", drawn, _records(ledger))


def _records(ledger: Ledger) -> str:
    """What happened to the documents, in a sentence."""
    aside = f" {ledger.records_filtered:,} more were set aside by the recipe."
    return (
        f"<p>{ledger.records_read:,} documents were read: {ledger.records_built:,} built, "
        f"{ledger.records_quarantined:,} rejected.{aside if ledger.records_filtered else ''}</p>"
    )


# Gaps, documents, impact


def _powers_chart(powers: Powers, series: list[Series], what: str) -> str:
    labels = [format_tokens(2**power) for power in powers.used()]
    highest = max(float(one.values.max(initial=0)) for one in series)
    top = next(step / 20 for step in range(1, 21) if step / 20 >= min(highest, 1))
    ticks = [(top * part / 5, f"{top * part / 5:.0%}") for part in range(6)]
    return column_chart(labels, series, what, Axis("share", 0, top, ticks))


def _gaps(found: RowStatistics) -> Iterator[str]:
    gaps, used = found.gaps, found.gaps.used()
    if not gaps.count:
        yield section("Gaps", "<p>No positions are skipped inside rows.</p>")
        return
    shares = [
        Series("of the gaps", gaps.counts[used] / gaps.count, 0),
        Series("of the skipped positions", gaps.sums[used] / max(gaps.sums.sum(), 1), 2),
    ]
    yield section(
        "How large gaps are",
        f"<p>Positions skipped at once: {gaps.count:,} gaps in "
        f"{some_rows(found.sampled)}, {gaps.count / found.sampled:,.0f} in a row, of "
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
    yield section(
        "How long documents are",
        "<p>Tokens that a window takes of a document: "
        f"{documents.count / found.sampled:,.1f} documents in a window, "
        f"{documents.mean:,.0f} tokens of each on average. Long contexts come from long "
        "documents: the right of this picture.</p>",
        _powers_chart(documents, shares, "tokens of the document, from this number on"),
    )


def _impact(found: RowStatistics, manifest: Manifest) -> Iterator[str]:
    heading = "Which tokens are impactful"
    if found.by_class is None:
        yield section(
            heading,
            f"<p>Left out: the tokenizer {text(manifest.tokenizer.name)} is not at hand. Pass "
            "<code>--tokenizer</code>, a folder or hub id.</p>",
        )
        return
    tokens, impactful = found.by_class
    lines = []
    for at in np.argsort(-impactful, kind="stable").tolist():
        if tokens[at]:
            share = impactful[at] / tokens[at]
            of_all = impactful[at] / max(found.impactful, 1)
            parts = (f"{tokens[at] / found.tokens:.1%}", f"{of_all:.1%}", f"{share:.1%}")
            lines.append((CLASSES[at], *parts, bar(share)))
    overall = found.impactful / max(found.tokens, 1)
    yield section(
        heading,
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
    shown, rest = sources[:_SOURCES], SourceFacts(f"{len(sources) - _SOURCES:,} more")
    for one in sources[_SOURCES:]:
        rest.add(one)
    lines = [
        (
            text(one.name),
            text(_licences(one)),
            f"{one.files:,}",
            format_bytes(one.bytes),
            bar(one.bytes / max(whole, 1)),
            *(f"{one.rows[kind]:,}" for kind in ("extend", "replay", "holdout")),
        )
        for one in [*shown, *([rest] if len(sources) > _SOURCES else [])]
    ]
    header = ("source", "licence", "files", "bytes", "", "extend rows", "replay rows", "held out")
    return section(
        "Sources",
        "<p>A row counts for the source of its first document.</p>",
        table(header, lines, numbers=(2, 3, 5, 6, 7)),
    )


def _licences(one: SourceFacts, shown: int = 3) -> str:
    """`MIT, not stated`; of a source that only rows name, nothing was stated either."""
    names = sorted(one.licences - {None}, key=str)
    listed = [str(name) for name in names[:shown]]
    if len(names) > shown:
        listed.append(f"{len(names) - shown:,} more")
    return ", ".join([*listed, *(["not stated"] if None in one.licences or not names else [])])


def _replay(shards: Shards) -> str:
    ledger, heading = shards.manifest.replay_ledger, "Replay"
    if ledger is None or not shards.rows("replay"):
        return section(heading, "<p>This dataset has no replay rows.</p>")
    sampled, documents, counted = replay_shares(shards)
    extend, replay = shards.tokens("extend"), shards.tokens("replay")
    asked = shards.manifest.recipe.get("replay_ratio")
    said = f", of {asked:.1%} asked for" if isinstance(asked, int | float) else ""
    share = f", {replay / extend:.1%} of the extend tokens{said}" if extend else ""
    return section(
        heading,
        f"<p>{some_rows(shards.rows('replay'))} of short documents keep what the model knows: "
        f"{replay:,} tokens{share}. Of "
        f"{some_rows(sampled)}: {documents:,.1f} documents in a row; {counted:.1%} of the tokens "
        "count in the loss.</p>",
        _records(ledger),
    )


def _rejected(folder: Path) -> str:
    reasons = rejected_by_reason(folder)
    heading = "Rejected records"
    if not reasons:
        return section(heading, "<p>None is listed in the quarantine of this folder.</p>")
    total = sum(count for _, count in reasons)
    shown = [
        (text(reason), f"{count:,}", bar(count / total)) for reason, count in reasons[:_REASONS]
    ]
    rest = sum(count for _, count in reasons[_REASONS:])
    if rest:
        shown.append((f"{len(reasons) - _REASONS:,} more reasons", f"{rest:,}", bar(rest / total)))
    return section(
        heading,
        f"<p>{total:,} records could not be used; <code>quarantine</code> says which.</p>",
        table(("reason", "records", ""), shown, numbers=(1,)),
    )
