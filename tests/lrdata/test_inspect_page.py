"""`lrdata inspect --html`: the page of a row says of every token what its columns say, and no text
of a dataset does anything in it."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lrdata.cli import main
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.inspecting.page import write_page
from lrdata.manifest import read_manifest, write_manifest
from lrdata.report.page import asset
from lrdata.shards import Row
from lrdata.tokenizer import Tokenizer
from tests.lrdata.inspected import Built, build_books, offsets_of, page_of, spans_of, units_of
from tests.lrdata.made_dataset import extend_row, tokenizer_entry, write_dataset
from tests.lrdata.pages import Page, what_is_not_its_own


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_bos_tokenizer: Path) -> Built:
    folder = tmp_path_factory.mktemp("inspected")
    return build_books(folder, tiny_bos_tokenizer, holdout=0.2, replay=(str(folder / "books"),))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("index", [0, 7])
def test_every_token_is_shown_as_its_columns_say(
    built: Built, tmp_path: Path, index: int, whole: bool
) -> None:
    row = open_dataset(built.folder).read_row("extend", index)
    offsets, window = offsets_of(row), built.window(row)
    assert [window[at] for at in offsets] == row.input_ids.tolist()
    page = page_of(built, "extend", index, tmp_path, whole)
    assert not what_is_not_its_own(page)
    (data,) = page.data("tokens")
    spans = spans_of(page)
    shown = list(range(len(window))) if whole else offsets  # places in the window
    if whole:
        assert "".join(span.text for span in spans) == built.spell(window)
    for around in [*page.having("text"), *page.having("block")]:
        assert "div" not in [tag for tag, _ in around.runs], "text that no span has"
    assert len(data["chars"]) == len(shown)
    numbers = {place: token for token, place in enumerate(offsets)}
    edges = [*(int(span.attributes["data-t"]) for span in spans), len(shown)]
    assert edges[0] == 0
    for span, (begin, end) in zip(spans, pairwise(edges), strict=True):
        tokens = [numbers.get(place, -1) for place in shown[begin:end]]
        assert len({token < 0 for token in tokens}) == 1
        assert span.classes == (["d"] if tokens[0] < 0 else ["k"])
        assert units_of(span.text) == sum(data["chars"][begin:end])
        tags = [tag for tag, text in span.runs for _ in range(units_of(text))]
        at = 0
        for shown_at, token in zip(range(begin, end), tokens, strict=True):
            length = data["chars"][shown_at]
            special = built.tokenizer.special[window[shown[shown_at]]]
            expected = "i" if special else "b" if row.impact_mask[token] else "span"
            if token >= 0 and length:
                assert set(tags[at : at + length]) == {expected}
            at += length


@pytest.mark.parametrize("whole", [True, False])
def test_every_gap_is_there_with_its_size(built: Built, tmp_path: Path, whole: bool) -> None:
    row = open_dataset(built.folder).read_row("extend", 2)
    places = zip([-1, *offsets_of(row)], [-1, *row.position_ids.tolist()], strict=True)
    steps = [(b[0] - a[0] - 1, b[1] - a[1] - 1) for a, b in pairwise(places)]
    shown = []
    for chip in page_of(built, "extend", 2, tmp_path, whole).having("gap"):
        if chip.parents[-1] == "div":  # in the text: the legend's are in a span
            found = re.fullmatch(r"(?:−([\d,]+))? ?(?:\+([\d,]+))?", chip.text)
            assert found, chip.text
            shown.append(tuple(int((part or "0").replace(",", "")) for part in found.groups()))
    assert shown == [step for step in steps if step != (0, 0)]
    assert len(shown) > 3


@pytest.mark.parametrize("kind", ["extend", "holdout", "replay"])
def test_the_script_can_tell_every_position(built: Built, tmp_path: Path, kind: str) -> None:
    """From the last jump at or before a token, and so many tokens on. That the script itself does
    so is tested in a browser."""
    row = open_dataset(built.folder).read_row(kind, 0)
    page = page_of(built, kind, 0, tmp_path, whole=kind == "extend")
    (data,) = page.data("tokens")
    runs = np.searchsorted(data["jumps"], np.arange(len(row.input_ids)), side="right") - 1
    found = np.array(data["positions"])[runs] + np.arange(len(runs)) - np.array(data["jumps"])[runs]
    assert found.tolist() == row.position_ids.tolist()
    ids = {
        element.attributes["id"]: element
        for element in spans_of(page)
        if "id" in element.attributes
    }
    assert list(ids) == [f"r0-s{at}" for at in range(len(row.segment_starts))]
    firsts = np.cumsum(row.segment_lengths) - row.segment_lengths
    expected = row.segment_starts if data["whole"] else firsts
    assert [int(ids[name].attributes["data-t"]) for name in ids] == expected.tolist()
    text = "".join(span.text for span in spans_of(page))
    if kind != "extend":
        assert data["whole"] is False  # nothing was dropped
        assert text == built.spell(row.input_ids.tolist())


def test_rows_and_documents_have_names_and_places(built: Built, tmp_path: Path) -> None:
    page = page_of(built, "extend", 1, tmp_path, whole=True, rows=3)
    articles = page.tagged("article")
    assert [article.attributes["id"] for article in articles] == ["row-1", "row-2", "row-3"]
    assert not any("hidden" in article.attributes for article in articles)  # without the script
    shards = open_dataset(built.folder)
    names = [
        e.attributes["id"] for e in page.elements if e.attributes.get("id", "").startswith("r")
    ]
    assert len(set(names)) == len(names)
    for index in (1, 2, 3):
        row = shards.read_row("extend", index)
        for at, name in enumerate(row.doc_ids):
            assert f"r{index}-d{at}" in names
            assert any(name in heading.text for heading in page.tagged("h2"))
    links = [e.attributes["href"].removeprefix("#") for e in page.tagged("a")]
    assert set(links) <= set(names)
    rows = [link for link in links if link.startswith("row-")]
    assert rows == ["row-2", "row-1", "row-3", "row-2"]  # the neighbours of 1, of 2, of 3
    assert len(page.tagged("main")) == 1
    last = shards.rows("extend") - 1
    assert len(page_of(built, "extend", last, tmp_path, whole=False, rows=9).tagged("article")) == 1


# What is hostile, odd, or missing


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "\u202eevil\u2066 \x1b[31m \0 \r\n]]>--><!--",
    "&lt;b&gt; &#60;",
]


def _row_of(ids: np.ndarray, **changes: object) -> Row:
    count = len(ids)
    values: dict = {
        "input_ids": np.asarray(ids, np.int32),
        "position_ids": np.arange(count, dtype=np.int32),
        "seq_lengths": np.array([count], np.int32),
        "impact_mask": np.arange(count) % 3 == 0,
        "loss_mask": np.ones(count, bool),
        "segment_starts": np.array([0], np.int32),
        "segment_lengths": np.array([count], np.int32),
        "doc_ids": ["d"],
        "doc_offsets": np.array([0], np.int64),
        "doc_lengths": np.array([count], np.int32),
        "window_tokens": count,
        "target_len": max(count, 64),
    }
    return extend_row(**{**values, **changes})


def test_hostile_text_and_names_are_text(tmp_path: Path, tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizer), encoder="tokenizers")
    ids, _ = tokenizer.encode(HOSTILE)
    name = "".join(HOSTILE).replace("\0", "")
    row = _row_of(ids, doc_ids=[name], sample_id=name, source=name)
    entry = tokenizer_entry(fingerprint=tokenizer.fingerprint)
    write_dataset(tmp_path / "a<b>&'\"", {"extend": [[row]]}, entry)
    write_page(tmp_path / "a<b>&'\"", "extend", 0, tmp_path / "row.html", tokenizer)
    page = Page((tmp_path / "row.html").read_text(encoding="utf-8"))
    assert not what_is_not_its_own(page)
    assert [script.attributes.get("type") for script in page.tagged("script")] == [
        "application/json",
        None,
    ]
    shown = "".join(span.text for span in spans_of(page))
    assert shown.startswith("".join(HOSTILE[:3]))
    assert shown.endswith(HOSTILE[4])
    assert "�evil� ␛[31m ␀ ␍\n]]>" in shown
    assert any("<svg onload=alert(1)>" in heading.text for heading in page.tagged("h2"))


def test_characters_that_no_token_holds_whole_belong_to_the_last(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizer), encoder="tokenizers")
    ids, _ = tokenizer.encode(["a😀b", "🤷🏽"])
    ids = ids[:-1]  # the last character is broken off
    write_dataset(
        tmp_path,
        {"extend": [[_row_of(ids)]]},
        tokenizer_entry(fingerprint=tokenizer.fingerprint),
    )
    write_page(tmp_path, "extend", 0, tmp_path / "row.html", tokenizer)
    page = Page((tmp_path / "row.html").read_text(encoding="utf-8"))
    (data,) = page.data("tokens")
    text = "".join(span.text for span in spans_of(page))
    assert text.startswith("a😀b🤷")
    assert text.endswith("\ufffd")
    assert sum(data["chars"]) == units_of(text)
    assert 0 in data["chars"]


def test_positions_that_skip_before_most_tokens_make_no_gaps(tmp_path: Path) -> None:
    """The pointer tells them; a sign before each token would bury the text."""
    places = np.sort(np.random.default_rng(0).choice(2_000, 400, replace=False)).astype(np.int32)
    lsd = np.where(np.arange(400) % 2, 0.25, np.nan).astype(np.float16)
    row = _row_of(np.full(400, 9), position_ids=places, target_len=2_000, lsd=lsd)
    write_dataset(tmp_path, {"extend": [[row]]})
    write_page(tmp_path, "extend", 0, tmp_path / "row.html", None)
    page = Page((tmp_path / "row.html").read_text(encoding="utf-8"))
    assert not [chip for chip in page.having("gap") if chip.parents[-1] == "div"]
    (data,) = page.data("tokens")
    assert data["positions"] == places[data["jumps"]].tolist()
    assert "is not at hand" in page.having("note")[0].text
    assert "".join(span.text for span in spans_of(page)) == "▪" * 400


@pytest.mark.parametrize(
    "change",
    [
        {"segment_lengths": np.array([8, 12, 11], np.int32)},
        {"segment_starts": np.array([0, 4, 40], np.int32)},
        {"segment_starts": np.array([0, 20, 400], np.int32)},
        {"doc_ids": []},
        {"doc_lengths": np.array([30, -4], np.int32)},
        {"impact_mask": np.zeros(3, bool)},
        {"input_ids": np.full(32, 10**6, np.int32)},
        {"position_ids": np.full(32, -1, np.int32)},
    ],
    ids=str,
)
def test_columns_that_do_not_fit_together_are_said(tmp_path: Path, change: dict) -> None:
    write_dataset(tmp_path, {"extend": [[extend_row(**change)]]})
    done = CliRunner().invoke(main, ["inspect", str(tmp_path), "--html", str(tmp_path / "a.html")])
    assert done.exit_code == 1
    assert "do not fit together" in done.stderr
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--corpus", "books/"], "add --html"),
        (["--rows", "3"], "--rows is for the page"),
        (["--html", "HTML", "--full"], "--full is for the terminal"),
        (["--html", "HTML", "--corpus", "books/"], "needs the tokenizer"),
        (["--html", "HTML", "--row", "77"], "there is no row 77"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    write_dataset(tmp_path)
    html = str(tmp_path / "row.html")
    given = [html if argument == "HTML" else argument for argument in arguments]
    done = CliRunner().invoke(main, ["inspect", str(tmp_path), *given])
    assert done.exit_code == 1
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_writes_the_same_page_each_time(built: Built, tmp_path: Path) -> None:
    pages = []
    for name in ("one.html", "two.html"):
        options = ["--tokenizer", built.tokenizer.name, "--corpus", built.corpora[0], "--rows", "2"]
        done = CliRunner().invoke(
            main, ["inspect", str(built.folder), "--html", str(tmp_path / name), *options]
        )
        assert done.exit_code == 0, done.output
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_a_whole_row_needs_no_corpus(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Nothing of its window was dropped. Of other kinds that is so always: there it is an error."""
    tokenizer = Tokenizer.load(str(tiny_tokenizer), encoder="tokenizers")
    ids, _ = tokenizer.encode(["a text of some words"])
    entry = tokenizer_entry(fingerprint=tokenizer.fingerprint)
    row = _row_of(ids)
    write_dataset(tmp_path, {"extend": [[row]], "holdout": [[replace(row, kind="holdout")]]}, entry)
    html = tmp_path / "row.html"
    write_page(tmp_path, "extend", 0, html, tokenizer, [str(tmp_path / "nowhere")])
    page = Page(html.read_text(encoding="utf-8"))
    assert page.data("tokens")[0]["whole"]
    assert "".join(span.text for span in spans_of(page)) == "a text of some words"
    with pytest.raises(LongRecipeError, match="holdout rows are whole"):
        write_page(tmp_path, "holdout", 0, html, tokenizer, [str(tmp_path)])


@pytest.mark.parametrize(("target", "rows"), [(64, 5), (2**17, 5), (2**19, 1), (2**20, 1)])
def test_a_page_has_fewer_rows_of_long_windows(tmp_path: Path, target: int, rows: int) -> None:
    write_dataset(tmp_path)
    manifest = read_manifest(tmp_path)
    manifest.target_len = target
    write_manifest(tmp_path, manifest)
    for asked, expected in ((None, rows), (6, 6)):
        write_page(tmp_path, "extend", 0, tmp_path / "a.html", None, rows=asked)
        page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
        assert len(page.tagged("article")) == expected


def test_so_many_rows_are_no_page(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["inspect", str(tmp_path), "--html", str(tmp_path / "a.html"), "--rows", "101"]
    )
    assert done.exit_code == 2
    assert "101 is not in the range" in done.stderr


def _luminance(colour: str) -> float:
    """Of sRGB, as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_dropped_text_can_be_read_and_is_told_apart_by_more_than_colour() -> None:
    """WCAG 2 asks for a contrast of 4.5, in the light and in the dark."""
    style = asset("lrdata.inspecting", "page.css")
    rules = dict(re.findall(r"^([^{}@\n]+) \{([^}]*)\}", style, re.MULTILINE))
    names = {
        re.findall(r"(?<![-\w])color: var\(--(\w+)\)", rules[of])[0] for of in (".d", ".gap.none")
    }
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", part))
        for part in asset("lrdata.report", "page.css").split("@media")
    )
    for palette in (light, dark):
        paper = _luminance(palette["paper"])
        for name in names:
            low, high = sorted((paper, _luminance(palette[name])))
            assert (high + 0.05) / (low + 0.05) >= 4.5
    assert "border-bottom" in rules[".whole .k"]
