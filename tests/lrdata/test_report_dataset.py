"""`lrdata report`: its numbers are those of the rows, and it loads and runs nothing."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lrdata.cli_look import report
from lrdata.dataset import open_dataset
from lrdata.manifest import MANIFEST, read_manifest, write_manifest
from lrdata.report.card import card
from lrdata.report.coverage_png import coverage_png
from lrdata.report.dataset import write_report
from lrdata.report.quarantine import rejected_by_reason
from lrdata.report.statistics import read_statistics, replay_shares
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
    assert coverage["full"].pairs[1:].tolist() == list(range(TARGET - 1, 0, -1))
    assert coverage["rows"].rows == coverage["pose"].rows == coverage["randpos"].rows == 6


def test_documents_that_do_not_see_each_other_share_no_distance(tmp_path: Path) -> None:
    """Of rows and of what they would be at full length."""
    row = extend_row(seq_lengths=np.array([14, 18], np.int32))
    write_dataset(tmp_path, {"extend": [[row]]}, join="mask")
    coverage = read_statistics(open_dataset(tmp_path)).coverage
    assert coverage["rows"].pairs.sum() == 14 * 13 // 2 + 18 * 17 // 2
    first, second = row.doc_lengths.tolist()
    assert coverage["full"].pairs.sum() == (first * (first - 1) + second * (second - 1)) // 2


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
    assert not any("distances training" in heading.text for heading in page.tagged("h2"))
    assert any("gaps" in heading.text for heading in page.tagged("h2"))


def test_a_dataset_of_replay_alone_and_an_empty_ledger(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"replay": [[replay_row()]]})
    page = _page(tmp_path)
    assert "1 row of short documents" in _section(page, "Replay")
    assert not any("gaps" in heading.text for heading in page.tagged("h2"))


def test_the_card_shows_the_figure_unless_it_was_rewritten(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path)
    (tmp_path / "README.md").write_text(card(manifest), encoding="utf-8")
    write_report(tmp_path, tmp_path / "elsewhere")
    assert "coverage.png" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    for _ in range(2):
        write_report(tmp_path)
        shown = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert shown == card(manifest, figure="report/coverage.png") != card(manifest)
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    write_report(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"


def test_the_command_writes_the_same_bytes_each_time(tmp_path: Path) -> None:
    write_dataset(tmp_path / "made")
    found = []
    for out in ("one", "two"):
        done = CliRunner().invoke(report, [str(tmp_path / "made"), "--out", str(tmp_path / out)])
        assert done.exit_code == 0, done.output
        found.append({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()})
    assert sorted(found[0]) == ["coverage.png", "index.html"]
    assert found[0] == found[1]
    assert found[0]["coverage.png"].startswith(b"\x89PNG\r\n")
    coverage_png(tmp_path / "made", tmp_path / "alone.png")
    assert (tmp_path / "alone.png").read_bytes() == found[0]["coverage.png"]
    done = CliRunner().invoke(report, [str(tmp_path / "made"), "--no-plots"])
    assert [path.name for path in (tmp_path / "made" / "report").iterdir()] == ["index.html"]
