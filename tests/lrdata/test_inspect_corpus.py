"""`lrdata inspect --corpus` finds what selection dropped, wherever it lies, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from lrdata.building import build
from lrdata.corpus import find_files
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.inspecting import window
from lrdata.inspecting.places import likely_units
from lrdata.inspecting.spelling import open_tokenizer
from lrdata.inspecting.window import _Search
from lrdata.long_text import LongText
from lrdata.reader import read_unit
from lrdata.recipe import BuildRecipe
from lrdata.records import READ_BYTES, Fields
from lrdata.tokenizer import Tokenizer
from tests.conftest import CHAT_TOKENS, EOT, generated_text
from tests.lrdata.inspected import TARGET, Built, build_books, page_of, spans_of

STOP = "<|stop|>"
"""An end of text that no list of known names has."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_bos_tokenizer: Path) -> Built:
    return build_books(tmp_path_factory.mktemp("corpus"), tiny_bos_tokenizer)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Built:
    """Records name their source, those of one are used twice; the end of text is the recipe's: the
    tokenizer says none."""
    folder = tmp_path_factory.mktemp("odd")
    shutil.copytree(tiny_tokenizer, folder / "tokenizer")
    for path, removed in (("tokenizer.json", ()), ("tokenizer_config.json", ("eos_token",))):
        text = (folder / "tokenizer" / path).read_text(encoding="utf-8")
        text = text.replace(EOT, STOP).replace(CHAT_TOKENS[1], "<|end|>")
        raw = json.loads(text)
        for name in removed:
            del raw[name]
        (folder / "tokenizer" / path).write_text(json.dumps(raw), encoding="utf-8")
    return build_books(
        folder, folder / "tokenizer", eot=STOP, source_field="kind", weights={"k0": 2.0}
    )


@pytest.mark.parametrize("long_from", [None, 300])
@pytest.mark.parametrize("name", ["built", "odd"])
def test_every_window_is_found_where_the_ids_say(
    request: pytest.FixtureRequest,
    name: str,
    long_from: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In all formats; texts that come in pieces, too. The corpus is not searched."""
    made: Built = request.getfixturevalue(name)
    shards = open_dataset(made.folder)
    rows = [shards.read_row("extend", index) for index in range(shards.rows("extend"))]
    assert {doc.rpartition(":")[0] for row in rows for doc in row.doc_ids} == {
        f"books/{file.name}" for file in Path(made.corpora[0]).iterdir()
    }
    if long_from is not None:
        for module in ("jsonl", "columnar"):
            monkeypatch.setattr(f"lrdata.{module}.LONG_BYTES", long_from)
    monkeypatch.setattr(window, "plan_units", lambda files: pytest.fail("all of it is read"))
    page = page_of(made, "extend", 0, tmp_path, whole=True, rows=len(rows))
    assert [data["whole"] for data in page.data("tokens")] == [True] * len(rows)
    shown = "".join(span.text for span in spans_of(page))
    assert shown == "".join(made.spell(made.window(row)) for row in rows)
    lead = made.library.token_to_id("<s>") is not None
    unchecked = [heading.text for heading in page.tagged("h2") if "not checked" in heading.text]
    nothing_kept = 0
    for row in rows:
        ends = [int(lead + end) for end in row.doc_lengths.cumsum()]
        kept = [
            place
            for start, length in zip(row.segment_starts, row.segment_lengths, strict=True)
            for place in range(start, start + length)
        ]
        for begin, end in zip([int(lead), *ends], ends, strict=False):
            nothing_kept += not any(begin <= place < end for place in kept)
    assert len(unchecked) == nothing_kept
    assert nothing_kept or name == "built"


def test_the_end_of_text_is_that_of_the_build(odd: Built, tmp_path: Path) -> None:
    with pytest.raises(LongRecipeError, match="--eot"):
        Tokenizer.load(odd.tokenizer.name)
    tokenizer = open_tokenizer(odd.folder, odd.tokenizer.name)
    assert tokenizer is not None
    assert tokenizer.eot_id == odd.library.token_to_id(STOP)
    assert tokenizer.special[tokenizer.eot_id]
    assert open_tokenizer(odd.folder, None) is None  # it is not where this runs


def test_a_tokenizer_that_ends_texts_otherwise_shows_the_build(odd: Built, tmp_path: Path) -> None:
    """Who opens it by hand may leave `eot` out."""
    other = Tokenizer.load(odd.tokenizer.name, eot="<|im_start|>", encoder="tokenizers")
    same = Built(odd.folder, odd.corpora, odd.texts, other, odd.library, STOP)
    row = open_dataset(odd.folder).read_row("extend", 0)
    page = page_of(same, "extend", 0, tmp_path, whole=True)
    assert "".join(span.text for span in spans_of(page)) == odd.spell(odd.window(row))


def _pieces(ids: list[str], corpora: list[str]) -> list[tuple[str, int, int]]:
    units = list(likely_units(ids, find_files(corpora)))
    found = {id_ for unit in units for batch, _ in read_unit(unit, Fields()) for id_ in batch.ids}
    assert not units or set(ids) <= found
    return [(piece.file.name, piece.start, piece.stop) for unit in units for piece in unit.pieces]


def test_only_the_row_groups_that_hold_the_rows_are_read(built: Built) -> None:
    ids = [f"books/c.parquet:{row}" for row in (14, 5, 6)]  # groups are of four rows
    found = _pieces(ids, built.corpora)
    assert found == [("books/c.parquet", 1, 2), ("books/c.parquet", 3, 4)]


def test_lines_that_are_near_are_read_at_once(built: Built, tmp_path: Path) -> None:
    lines = [json.dumps({"text": "x" * 1000}).encode() + b"\n" for _ in range(3000)]
    (tmp_path / "long.jsonl").write_bytes(b"".join(lines))
    size = len(lines[0])
    assert 2500 * size > 2 * READ_BYTES
    offsets = [0, size, 100 * size, 2500 * size, 2600 * size]
    found = _pieces([f"long.jsonl:{at}" for at in offsets], [str(tmp_path / "long.jsonl")])
    assert found == [
        ("long.jsonl", 0, offsets[2] + 1),
        ("long.jsonl", offsets[3], offsets[4] + 1),
    ]


def test_ids_that_are_no_places_are_passed_over(built: Built, tmp_path: Path) -> None:
    odd_ids = ["a", "books/a.jsonl", "books/a.jsonl:x", "books/no.jsonl:3", "books/c.parquet:15"]
    odd_ids += [f"books/{name}:{'9' * 30}" for name in ("a.jsonl", "c.parquet")]
    odd_ids += ["books/a.jsonl:999999999", "books/a.jsonl:²"]
    assert not _pieces(odd_ids, built.corpora)
    (tmp_path / "d.parquet").write_bytes(b"PAR1 is no file")
    assert not _pieces(["d.parquet:0"], [str(tmp_path / "d.parquet")])


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
    page = page_of(found, "extend", 0, tmp_path, whole=True, rows=rows)
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
    page = page_of(part, "extend", of_a[0], tmp_path, whole=True, rows=shards.rows("extend"))
    wholes = [data["whole"] for data in page.data("tokens")]
    assert wholes[0]
    assert not wholes[-1]
    assert len(page.having("note")) == wholes.count(False)
    with pytest.raises(
        LongRecipeError, match=r"is not in the given --corpus.*as the build did: books"
    ):
        page_of(part, "extend", shards.rows("extend") - 1, tmp_path, whole=True)


def test_changed_text_is_not_taken_for_the_source(built: Built, tmp_path: Path) -> None:
    folder = tmp_path / "books"
    shutil.copytree(built.corpora[0], folder)
    data = (folder / "a.jsonl").read_bytes()
    (folder / "a.jsonl").write_bytes(data.replace(b" the ", b" eht "))
    part = Built(built.folder, [str(folder)], built.texts, built.tokenizer, built.library)
    with pytest.raises(LongRecipeError, match="is not in the given --corpus"):
        page_of(part, "extend", 0, tmp_path, whole=True)


def test_long_texts_are_encoded_as_far_as_needed(built: Built) -> None:
    text = "".join(generated_text(40, 5))
    search = _Search([], open_dataset(built.folder).manifest, built.tokenizer)
    ids = built.library.encode(text, add_special_tokens=False).ids
    expected = [*ids, built.library.token_to_id(EOT)]
    for given in (text, LongText(memoryview(text.encode()))):
        assert search._encoded(given, len(expected)).tolist() == expected
        assert search._encoded(given, 10)[:10].tolist() == expected[:10]
