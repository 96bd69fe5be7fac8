"""`lrdata inspect --html`: the page of a row says of every token what its columns say, and no text
of a dataset does anything in it."""

import gzip
import json
import random
import re
import shutil
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from click.testing import CliRunner

from lrdata.building import build
from lrdata.cli import main
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.inspecting.page import write_page
from lrdata.inspecting.window import _Search
from lrdata.long_text import LongText
from lrdata.recipe import BuildRecipe
from lrdata.shards import Row
from lrdata.tokenizer import Tokenizer
from tests.conftest import BOS, EOT, generated_text
from tests.lrdata.made_dataset import extend_row, tokenizer_entry, write_dataset
from tests.lrdata.pages import Element, Page, what_is_not_its_own
from tests.lrdata.rebuilding import _bytes_of_tokens

TARGET = 512


@dataclass
class Built:
    """A dataset, what it was built from, and the text of each document by its id."""

    folder: Path
    corpora: list[str]
    texts: dict[str, str]
    tokenizer: Tokenizer
    library: tokenizers.Tokenizer

    def window(self, row: Row) -> list[int]:
        """The ids of a row's window from texts and provenance columns, and nothing of ours."""
        bos = self.library.token_to_id(BOS)
        window = [bos] if bos is not None else []
        for name, start, length in zip(row.doc_ids, row.doc_offsets, row.doc_lengths, strict=True):
            ids = self.library.encode(self.texts[name], add_special_tokens=False).ids
            window += [*ids, self.library.token_to_id(EOT)][start : start + length]
        return window

    def spell(self, ids: list[int]) -> str:
        table = _bytes_of_tokens(self.library)
        special = {self.library.token_to_id(name): name.encode() for name in (BOS, EOT)}
        return b"".join(special.get(token, table[token]) for token in ids).decode(errors="replace")


def _texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    pieces = ("".join(generated_text(draw.randint(1, 20), seed + n)) for n in range(count))
    return [
        f"{piece} 😀 <b>{n} & 1</b> 的一是 🤷🏽 {'x' * draw.randint(0, 9)}"
        for n, piece in enumerate(pieces)
    ]


def _write_corpus(folder: Path) -> dict[str, str]:
    """Four formats; the text of each record by the id that it has without one of its own."""
    folder.mkdir()
    texts = {}
    for name in ("a.jsonl", "b.jsonl.gz"):
        lines, size = [], 0
        for at, text in enumerate(_texts(15, len(name))):
            texts[f"books/{name}:{size}"] = text
            lines.append(json.dumps({"text": text, "name": f"{name}-{at}"}).encode() + b"\n")
            size += len(lines[-1])
        data = b"".join(lines)
        (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    rows = _texts(15, 7)
    table = pa.table({"text": rows, "name": [f"c-{at}" for at in range(15)]})
    pq.write_table(table, folder / "c.parquet", row_group_size=4)
    texts |= {f"books/c.parquet:{at}": text for at, text in enumerate(rows)}
    for name in ("d.txt", "e.txt"):
        texts[f"books/{name}:0"] = _texts(1, ord(name[0]))[0]
        (folder / name).write_text(texts[f"books/{name}:0"], encoding="utf-8")
    return texts


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_bos_tokenizer: Path) -> Built:
    folder = tmp_path_factory.mktemp("inspected")
    texts = _write_corpus(folder / "books")
    corpora = [str(folder / "books")]
    recipe = BuildRecipe(
        corpora=tuple(corpora),
        tokenizer=str(tiny_bos_tokenizer),
        target_len=TARGET,
        segment_tokens=30,
        holdout=0.2,
        replay=tuple(corpora),
    )
    build(recipe, folder / "shards", workers=1)
    return Built(
        folder / "shards",
        corpora,
        texts,
        Tokenizer.load(str(tiny_bos_tokenizer), encoder="tokenizers"),
        tokenizers.Tokenizer.from_file(str(tiny_bos_tokenizer / "tokenizer.json")),
    )


def _page(built: Built, kind: str, row: int, out: Path, whole: bool, rows: int = 1) -> Page:
    corpora = built.corpora if whole else []
    write_page(built.folder, kind, row, out / "row.html", built.tokenizer, corpora, rows)
    return Page((out / "row.html").read_text(encoding="utf-8"))


def _spans(page: Page) -> list[Element]:
    return [element for element in page.elements if "data-t" in element.attributes]


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _offsets(row: Row) -> list[int]:
    pieces = zip(row.segment_starts.tolist(), row.segment_lengths.tolist(), strict=True)
    return [at for start, length in pieces for at in range(start, start + length)]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("index", [0, 7])
def test_every_token_is_shown_as_its_columns_say(
    built: Built, tmp_path: Path, index: int, whole: bool
) -> None:
    row = open_dataset(built.folder).read_row("extend", index)
    offsets, window = _offsets(row), built.window(row)
    assert [window[at] for at in offsets] == row.input_ids.tolist()
    page = _page(built, "extend", index, tmp_path, whole)
    assert not what_is_not_its_own(page)
    (data,) = page.data("tokens")
    spans = _spans(page)
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
        assert _units(span.text) == sum(data["chars"][begin:end])
        tags = [tag for tag, text in span.runs for _ in range(_units(text))]
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
    places = zip([-1, *_offsets(row)], [-1, *row.position_ids.tolist()], strict=True)
    steps = [(b[0] - a[0] - 1, b[1] - a[1] - 1) for a, b in pairwise(places)]
    shown = []
    for chip in _page(built, "extend", 2, tmp_path, whole).having("gap"):
        if chip.parents[-1] == "div":  # in the text: the legend's are in a span
            found = re.fullmatch(r"(?:−([\d,]+))? ?(?:\+([\d,]+))?", chip.text)
            assert found, chip.text
            shown.append(tuple(int((part or "0").replace(",", "")) for part in found.groups()))
    assert shown == [step for step in steps if step != (0, 0)]
    assert len(shown) > 3


@pytest.mark.parametrize("kind", ["extend", "holdout", "replay"])
def test_the_script_can_tell_every_position(built: Built, tmp_path: Path, kind: str) -> None:
    """From the last jump at or before a token, and so many tokens on. That the script itself does
    so is tested in a browser, below."""
    row = open_dataset(built.folder).read_row(kind, 0)
    page = _page(built, kind, 0, tmp_path, whole=kind == "extend")
    (data,) = page.data("tokens")
    runs = np.searchsorted(data["jumps"], np.arange(len(row.input_ids)), side="right") - 1
    found = np.array(data["positions"])[runs] + np.arange(len(runs)) - np.array(data["jumps"])[runs]
    assert found.tolist() == row.position_ids.tolist()
    ids = {
        element.attributes["id"]: element for element in _spans(page) if "id" in element.attributes
    }
    assert list(ids) == [f"r0-s{at}" for at in range(len(row.segment_starts))]
    firsts = np.cumsum(row.segment_lengths) - row.segment_lengths
    expected = row.segment_starts if data["whole"] else firsts
    assert [int(ids[name].attributes["data-t"]) for name in ids] == expected.tolist()
    text = "".join(span.text for span in _spans(page))
    if kind != "extend":
        assert data["whole"] is False  # nothing was dropped
        assert text == built.spell(row.input_ids.tolist())


def test_rows_and_documents_have_names_and_places(built: Built, tmp_path: Path) -> None:
    page = _page(built, "extend", 1, tmp_path, whole=True, rows=3)
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
    assert len(_page(built, "extend", last, tmp_path, whole=False, rows=9).tagged("article")) == 1


def test_ids_of_their_own_are_found_wherever_they_are(
    built: Built, tmp_path: Path, tiny_bos_tokenizer: Path
) -> None:
    """And a record with the same id is passed over where its text is another."""
    folder = tmp_path / "corpus"
    shutil.copytree(built.corpora[0], folder / "books")
    recipe = BuildRecipe(
        corpora=(str(folder / "books"),),
        tokenizer=str(tiny_bos_tokenizer),
        target_len=TARGET,
        id_field="name",
    )
    build(recipe, tmp_path / "shards", workers=1)
    twins = [json.dumps({"text": "another", "name": f"{n}-{at}"}) for n in "ac" for at in range(15)]
    (folder / "books" / "0.jsonl").write_text("\n".join(twins).replace("a-", "a.jsonl-"))
    rows = open_dataset(tmp_path / "shards").rows("extend")
    found = Built(tmp_path / "shards", [str(folder / "books")], {}, built.tokenizer, built.library)
    page = _page(found, "extend", 0, tmp_path, whole=True, rows=rows)
    assert len(page.tagged("article")) == rows
    assert [data["whole"] for data in page.data("tokens")] == [True] * rows
    assert not page.having("note")


def test_a_row_that_is_not_in_the_corpus(built: Built, tmp_path: Path) -> None:
    """The row that was asked for: an error. Its neighbours: the page says so."""
    shards = open_dataset(built.folder)
    of_a = [
        index
        for index in range(shards.rows("extend"))
        if all(":" in n and "a.jsonl" in n for n in shards.read_row("extend", index).doc_ids)
    ]
    folder = tmp_path / "books"
    folder.mkdir()
    shutil.copy(Path(built.corpora[0]) / "a.jsonl", folder)
    part = Built(built.folder, [str(folder)], built.texts, built.tokenizer, built.library)
    page = _page(part, "extend", of_a[0], tmp_path, whole=True, rows=shards.rows("extend"))
    wholes = [data["whole"] for data in page.data("tokens")]
    assert wholes[0]
    assert not wholes[-1]
    assert len(page.having("note")) == wholes.count(False)
    with pytest.raises(
        LongRecipeError, match=r"is not in the given --corpus.*as the build did: books"
    ):
        _page(part, "extend", shards.rows("extend") - 1, tmp_path, whole=True)


def test_changed_text_is_not_taken_for_the_source(built: Built, tmp_path: Path) -> None:
    folder = tmp_path / "books"
    shutil.copytree(built.corpora[0], folder)
    data = (folder / "a.jsonl").read_bytes()
    (folder / "a.jsonl").write_bytes(data.replace(b" the ", b" eht "))
    part = Built(built.folder, [str(folder)], built.texts, built.tokenizer, built.library)
    with pytest.raises(LongRecipeError, match="is not in the given --corpus"):
        _page(part, "extend", 0, tmp_path, whole=True)


def test_long_texts_are_encoded_as_far_as_needed(built: Built) -> None:
    text = "".join(generated_text(40, 5))
    search = _Search([], open_dataset(built.folder).manifest, built.tokenizer)
    ids = built.library.encode(text, add_special_tokens=False).ids
    expected = [*ids, built.library.token_to_id(EOT)]
    for given in (text, LongText(memoryview(text.encode()))):
        assert search._encoded(given, len(expected)).tolist() == expected
        assert search._encoded(given, 10)[:10].tolist() == expected[:10]


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
    shown = "".join(span.text for span in _spans(page))
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
    text = "".join(span.text for span in _spans(page))
    assert text.startswith("a😀b🤷")
    assert text.endswith("\ufffd")
    assert sum(data["chars"]) == _units(text)
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
    assert "".join(span.text for span in _spans(page)) == "▪" * 400


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


_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(_CHROMIUM is None, reason="no chromium here")
def test_a_browser_runs_the_page_s_own_script(built: Built, tmp_path: Path) -> None:
    """Its policy allows it, and it gets to the end: the status line is written there."""
    _page(built, "extend", 0, tmp_path, whole=True)
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    command = [
        *(str(_CHROMIUM), *options.split(), "--virtual-time-budget=4000", "--dump-dom"),
        f"--user-data-dir={tmp_path / 'profile'}",
        (tmp_path / "row.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    page = Page(done.stdout)
    (status,) = [e for e in page.elements if e.attributes.get("id") == "status"]
    assert "press ?" in status.text
