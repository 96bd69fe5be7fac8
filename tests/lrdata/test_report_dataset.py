"""`lrdata report`: its numbers are those of the rows, and it loads and runs nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lrdata.cli_look import report
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.manifest import MANIFEST, read_manifest, write_manifest
from lrdata.report.card import card
from lrdata.report.dataset import write_report
from lrdata.report.quarantine import rejected_by_reason
from lrdata.report.sources import sources_of
from lrdata.report.statistics import read_statistics, replay_shares
from lrdata.report.svg import Axis, Series, line_chart
from lrdata.token_classes import CLASSES, class_of, token_classes
from lrdata.tokenizer import Tokenizer
from lrdata.vocabulary import each_token
from tests.lrdata.made_dataset import (
    TARGET,
    extend_row,
    good_rows,
    replay_row,
    tokenizer_entry,
    write_dataset,
)
from tests.lrdata.pages import Page, what_is_not_its_own

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202e"\x1b[31m'


def _page(folder: Path, **options: object) -> Page:
    path, *_ = write_report(folder, plots=False, **options)  # type: ignore[arg-type]
    return Page(path.read_text(encoding="utf-8"))


def _section(page: Page, title: str) -> str:
    (found,) = [
        element.text for element in page.tagged("section") if element.text.strip().startswith(title)
    ]
    return " ".join(found.split())


def _rows(folder: Path, kind: str) -> list[dict]:
    files = sorted((folder / kind).glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def test_the_page_is_whole_and_says_where_tokens_went(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path)
    page = _page(tmp_path)
    assert not what_is_not_its_own(page)
    assert not page.tagged("script")
    went = _section(page, "Where every token went")
    for amount in (manifest.ledger.kept, manifest.ledger.dropped, manifest.ledger.held_out):
        assert f"{amount:,} (" in went
    assert "10 documents were read: 9 built, 1 rejected." in went
    assert "of 6 rows out of 6" in _section(page, "Which distances training sees").replace("O", "o")


def test_gaps_and_documents_are_those_of_the_rows(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    found = read_statistics(open_dataset(tmp_path))
    rows = _rows(tmp_path, "extend")
    assert (found.sampled, found.total) == (len(rows), len(rows))
    steps = [np.diff(row["position_ids"]) - 1 for row in rows]
    gaps = [int(step) for row in steps for step in row if step > 0]
    lengths = [length for row in rows for length in row["doc_lengths"]]
    assert (found.gaps.count, found.gaps.sums.sum()) == (len(gaps), sum(gaps))
    assert (found.documents.count, found.documents.sums.sum()) == (len(lengths), sum(lengths))
    page = _page(tmp_path)
    assert f"{len(gaps):,} gaps in {len(rows)} rows" in _section(page, "How large gaps are")
    lengths_said = _section(page, "How long documents are")
    assert f"{len(lengths) / len(rows):,.1f} documents in a window" in lengths_said


def test_only_so_many_rows_are_read(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    assert read_statistics(open_dataset(tmp_path), rows=2).sampled == 2
    page = _page(tmp_path, rows=2)
    assert "Of 2 rows out of 6." in _section(page, "Which distances training sees")


def test_coverage_is_of_the_rows_and_of_full_length(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    coverage = read_statistics(open_dataset(tmp_path)).coverage
    for name, one in coverage.items():
        tokens = TARGET if name == "full" else len(extend_row().input_ids)
        assert one.pairs.sum() == one.rows * tokens * (tokens - 1) // 2
    assert coverage["full"].pairs[1:].tolist() == list(range(6 * (TARGET - 1), 0, -6))
    assert {one.rows for one in coverage.values()} == {6}
    # Two chunks: neighbours are neighbours, but for one. Random positions: about half of them.
    count = len(extend_row().input_ids)
    assert coverage["pose"].pairs[1] >= 6 * (count - 2)
    assert coverage["randpos"].pairs[1] < 6 * (count - 2)


def test_documents_that_do_not_see_each_other_share_no_distance(tmp_path: Path) -> None:
    """Of rows and of what they would be at full length."""
    row = extend_row(seq_lengths=np.array([14, 18], np.int32))
    write_dataset(tmp_path, {"extend": [[row]]}, join="mask")
    coverage = read_statistics(open_dataset(tmp_path)).coverage
    assert coverage["rows"].pairs.sum() == 14 * 13 // 2 + 18 * 17 // 2
    first, second = row.doc_lengths.tolist()
    assert coverage["full"].pairs.sum() == (first * (first - 1) + second * (second - 1)) // 2


@pytest.mark.parametrize("masked_first", [True, False])
def test_at_full_length_rows_have_the_documents_of_their_windows(
    tmp_path: Path, masked_first: bool
) -> None:
    """Whatever selection kept of them: a row may have tokens of one of its documents alone."""
    two = extend_row(0, doc_lengths=np.array([30, 34], np.int32))
    one = extend_row(1, doc_ids=["c"], doc_offsets=np.array([0]), doc_lengths=np.array([TARGET]))
    rows = [two, one, one] if masked_first else [one, one, two]
    counts = {"attend": 3 * [64], "mask": [30, 34, 64, 64]}
    for join, lengths in counts.items():
        folder = tmp_path / join
        write_dataset(folder, {"extend": [rows]}, join=join)
        full = read_statistics(open_dataset(folder)).coverage["full"]
        assert (full.rows, full.tokens) == (3, 3 * TARGET)
        assert full.pairs.sum() == sum(length * (length - 1) // 2 for length in lengths)
        assert full.rows_at[TARGET - 1] == lengths.count(TARGET)


@pytest.mark.parametrize("join", ["attend", "mask"])
def test_a_window_of_another_length(tmp_path: Path, join: str) -> None:
    """Retargeted, and no power of two. Nobody knows the documents of longer windows."""
    write_dataset(tmp_path, join=join, retargeted_from=TARGET)
    manifest = read_manifest(tmp_path)
    manifest.target_len = 100
    write_manifest(tmp_path, manifest)
    coverage = read_statistics(open_dataset(tmp_path)).coverage
    assert {one.target_len for one in coverage.values()} == {100}
    assert ("full" in coverage) == (join == "attend")
    said = _section(_page(tmp_path), "Which distances training sees")
    assert ("full-length rows are left out" in said) == (join == "mask")
    assert ("full-length rows PoSE" in said) == (join == "attend")
    write_report(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "coverage.png").stat().st_size


@pytest.mark.parametrize(
    "change",
    [
        {"position_ids": np.tile(np.arange(2, dtype=np.int32), 16)},
        {"doc_lengths": np.array([30, 2], np.int32)},
        {"doc_lengths": np.array([-1, TARGET + 1], np.int32)},
    ],
    ids=str,
)
def test_rows_that_are_none_are_refused(tmp_path: Path, change: dict) -> None:
    seq_lengths = np.full(16, 2, np.int32)
    write_dataset(
        tmp_path, {"extend": [[extend_row(seq_lengths=seq_lengths, **change)]]}, join="mask"
    )
    with pytest.raises(LongRecipeError, match="run `lrdata verify`"):
        write_report(tmp_path, plots=False)


def test_impact_by_class_is_that_of_counting_tokens(tmp_path: Path, tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizer), encoder="tokenizers")
    entry = tokenizer_entry(fingerprint=tokenizer.fingerprint)
    write_dataset(tmp_path, tokenizer=entry)
    spelt = list(each_token(tokenizer.token_bytes))
    counts = {name: [0, 0] for name in CLASSES}
    for row in _rows(tmp_path, "extend"):
        for token, impactful in zip(row["input_ids"], row["impact_mask"], strict=True):
            name = "special" if tokenizer.special[token] else class_of(spelt[token])
            counts[name][0] += 1
            counts[name][1] += impactful
    found = read_statistics(open_dataset(tmp_path), classes=token_classes(tokenizer))
    assert found.by_class is not None
    by_class = np.stack(found.by_class, axis=1).tolist()
    assert dict(zip(CLASSES, by_class, strict=True)) == counts
    said = _section(_page(tmp_path, tokenizer=tokenizer), "Which tokens are impactful")
    tokens, impactful = counts["word start"]
    assert tokens
    assert f"{impactful / tokens:.1%}" in said
    assert "is not at hand" in _section(_page(tmp_path), "Which tokens are impactful")


def test_sources_replay_and_rejected_records(tmp_path: Path) -> None:
    """A record's own source, which the manifest does not list, is there too."""
    files = good_rows()
    files["extend"][0].append(extend_row(9, source="essays"))
    write_dataset(tmp_path, files, replay_ratio=0.25)
    entries = [("text is empty", 1)] * 3 + [("not JSON", 40), ("text is empty", 2)]
    (tmp_path / "quarantine").mkdir()
    lines = [json.dumps({"file": "a", "record": 1, "reason": r, "count": n}) for r, n in entries]
    lines += ["not JSON", "[]", '{"reason": 3, "count": 1}', '{"reason": "odd", "count": true}']
    (tmp_path / "quarantine" / "unit-00000.jsonl").write_text("\n".join(lines))
    assert rejected_by_reason(tmp_path) == [("not JSON", 40), ("text is empty", 5)]
    assert {one.name: dict(one.rows) for one in sources_of(open_dataset(tmp_path))} == {
        "books": {"extend": 6, "holdout": 3},
        "chat": {"replay": 3},
        "essays": {"extend": 1},
    }
    page = _page(tmp_path)
    sources = _section(page, "Sources")
    assert "books CC-BY-4.0 1 1.2 kB 6 0 3" in sources
    assert "chat not stated 1 567 bytes 0 3 0" in sources
    assert "essays not stated 0 0 bytes 1 0 0" in sources
    replay = _rows(tmp_path, "replay")
    counted = sum(map(sum, (row["loss_mask"] for row in replay)))
    total = sum(len(row["loss_mask"]) for row in replay)
    sampled, documents, share = replay_shares(open_dataset(tmp_path))
    assert (sampled, documents, share) == (3, 2.0, pytest.approx(counted / total))
    extend = sum(len(row["input_ids"]) for row in _rows(tmp_path, "extend"))
    assert f"{total / extend:.1%} of the extend tokens, of 25.0%" in _section(page, "Replay")
    assert "45 records could not be used" in _section(page, "Rejected records")


def test_reasons_are_one_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "quarantine").mkdir()
    reasons = [
        f"{reason} {at} {rest}".strip()
        for at in (3, 17, 4096)
        for reason, rest in (
            ("not JSON, at character", "of the line"),
            ("not UTF-8, at byte", "of the line"),
            ("damaged row group", ""),
        )
    ]
    lines = [json.dumps({"reason": reason}) for reason in [*reasons, "longer than 384 MB"]]
    (tmp_path / "quarantine" / "a.jsonl").write_text("\n".join(lines))
    assert rejected_by_reason(tmp_path) == [
        ("damaged row group …", 3),
        ("not JSON, at character … of the line", 3),
        ("not UTF-8, at byte … of the line", 3),
        ("longer than 384 MB", 1),
    ]


def test_many_sources_and_a_source_under_two_licences(tmp_path: Path) -> None:
    rows = [extend_row(n, source=f"essay-{n:02d}") for n in range(60)]
    folder = tmp_path / "a[1]*"  # no pattern
    write_dataset(folder, {"extend": [rows[:30], rows[30:]]})
    manifest = read_manifest(folder)
    entry = manifest.sources[0]
    manifest.sources = [
        replace(entry, name=f"books/{licence}", licence=licence) for licence in ("MIT", None, "CC0")
    ]
    write_manifest(folder, manifest)
    said = _section(_page(folder), "Sources")
    assert "essay-49 not stated" in said
    assert "essay-50" not in said
    assert "11 more CC0, MIT, not stated 3 3.7 kB 10 0 0" in said
    rows = [extend_row(source="books")]
    write_dataset(tmp_path / "one", {"extend": [rows]})
    write_manifest(
        tmp_path / "one",
        replace(read_manifest(tmp_path / "one"), sources=manifest.sources),
    )
    assert "books CC0, MIT, not stated 3 3.7 kB 1 0 0" in _section(
        _page(tmp_path / "one"), "Sources"
    )


@pytest.mark.parametrize("kind", ["extend", "replay", "holdout"])
def test_no_damaged_file_is_counted(tmp_path: Path, kind: str) -> None:
    """Of a file whose bytes are others nothing is said, though it may be read as Parquet."""
    manifest = write_dataset(tmp_path)
    path = tmp_path / next(entry.path for entry in manifest.files if entry.kind == kind)
    data = path.read_bytes()
    at = data.index(b"books" if kind != "replay" else b"chat")
    path.write_bytes(data[:at] + b"B" + data[at + 1 :])
    with pytest.raises(LongRecipeError, match="sha256 is not the manifest's"):
        write_report(tmp_path, plots=False)


def test_very_many_reasons_are_counted_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "quarantine").mkdir()
    lines = (json.dumps({"reason": f"reason {n}", "count": 2}) for n in range(5_000))
    (tmp_path / "quarantine" / "a.jsonl").write_text("\n".join(lines))
    found = rejected_by_reason(tmp_path)
    assert len(found) <= 1_001
    assert sum(count for _, count in found) == 10_000


def test_hostile_names_and_reasons_are_text(tmp_path: Path) -> None:
    row = extend_row(source=HOSTILE, doc_ids=[HOSTILE, HOSTILE], sample_id=HOSTILE)
    folder = tmp_path / "a<b>&'\"c"
    write_dataset(folder, {"extend": [[row]]}, impact=HOSTILE, positions=HOSTILE, select=HOSTILE)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["tokenizer"]["name"] = HOSTILE
    for entry in manifest["sources"]:
        entry |= {"source": HOSTILE + "\ud800", "licence": HOSTILE}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    raw = {"file": HOSTILE, "record": 0, "reason": HOSTILE, "count": 1}
    (folder / "quarantine").mkdir()
    (folder / "quarantine" / "a.jsonl").write_text(json.dumps(raw) + "\n")
    page = _page(folder)
    assert not what_is_not_its_own(page)
    assert not page.tagged("script")
    for title in ("Sources", "Which tokens are impactful", "Rejected records"):
        assert "</script><script>alert(1)</script>" in _section(page, title)


@pytest.mark.parametrize("target", [2**23, 2**40, 1, 0, -5])
def test_a_window_that_is_none_leaves_coverage_out(tmp_path: Path, target: int) -> None:
    write_dataset(tmp_path)
    manifest = read_manifest(tmp_path)
    manifest.target_len = target
    write_manifest(tmp_path, manifest)
    page = _page(tmp_path)
    said = _section(page, "Which distances training sees")
    assert f"windows of 2 to 4,194,304 tokens, and these have {target:,}" in said
    assert not any("positions training" in heading.text for heading in page.tagged("h2"))
    assert any("gaps" in heading.text for heading in page.tagged("h2"))


def test_a_dataset_of_replay_alone_and_an_empty_ledger(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"replay": [[replay_row()]]})
    page = _page(tmp_path)
    assert "1 row of short documents" in _section(page, "Replay")
    assert "of the extend tokens" not in _section(page, "Replay")
    titles = " ".join(heading.text for heading in page.tagged("h2"))
    for of_extend_rows in ("gaps", "impactful", "distances"):
        assert of_extend_rows not in titles


def test_a_part_of_a_dataset_says_so(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    manifest = read_manifest(tmp_path)
    kept = [entry for entry in manifest.files if entry.kind == "replay"]
    manifest.left_out = [entry for entry in manifest.files if entry.kind != "replay"]
    manifest.left_out[0] = replace(manifest.left_out[0], kind="<b>*extend*")
    manifest.files = kept
    write_manifest(tmp_path, manifest)
    page = _page(tmp_path)
    assert (
        "A part of a dataset: its <b>*extend*, extend, holdout rows were left"
        in page.tagged("main")[0].text
    )
    limits = [line for line in card(manifest).splitlines() if line.startswith("- A part")]
    assert limits == [
        "- A part of a dataset: its \\<b\\>\\*extend\\*, extend, holdout rows were left out; the "
        "accounting is of the whole. `left_out` in `manifest.json` names the files."
    ]


def test_the_card_shows_the_figure_unless_it_was_rewritten(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path)
    (tmp_path / "README.md").write_text(card(manifest), encoding="utf-8")
    write_report(tmp_path, tmp_path / "elsewhere")
    assert "coverage.png" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    report = [tmp_path / "report" / name for name in ("index.html", "coverage.png")]
    for card_too in ([tmp_path / "README.md"], []):
        assert write_report(str(tmp_path)) == [*report, *card_too]
        shown = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert shown == card(manifest, figure="report/coverage.png") != card(manifest)
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    write_report(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"


def test_the_command_writes_the_same_bytes_each_time(tmp_path: Path) -> None:
    """For the dataset in whatever folder."""
    found = []
    for name in ("one", "two"):
        write_dataset(tmp_path / name)
        out = tmp_path / "out" / name
        done = CliRunner().invoke(report, [str(tmp_path / name), "--out", str(out)])
        assert done.exit_code == 0, done.output
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert sorted(found[0]) == ["coverage.png", "index.html"]
    assert found[0] == found[1]
    assert found[0]["coverage.png"].startswith(b"\x89PNG\r\n")
    done = CliRunner().invoke(report, [str(tmp_path / "one"), "--no-plots"])
    assert [path.name for path in (tmp_path / "one" / "report").iterdir()] == ["index.html"]


def test_no_line_leaves_its_chart() -> None:
    """A value below an axis that ends there lies on it."""
    up = Axis.powers("share", 1e-3, 10)
    values = np.array([1e-9, 1e-3, 1.0, 10.0, 1e9])
    drawn = line_chart(np.arange(5.0), [Series("a", values, 0)], Axis.tokens("x", 4), up, "chart")
    (path,) = [e for e in Page(drawn).having("line") if e.tag == "path"]
    heights = [float(y) for _, y in (part.split() for part in path.attributes["d"][1:].split("L"))]
    assert heights == sorted(heights, reverse=True)
    assert [one.text for one in Page(drawn).tagged("title")] == ["a: 1e-09 to 1e+09"]
    assert heights[0] == heights[1]
    assert heights[-1] == heights[-2]
