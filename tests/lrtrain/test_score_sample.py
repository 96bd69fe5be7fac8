"""Which windows are scored: a uniform sample, the same for a seed however the files are cut."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrdata.corpus import find_files
from lrdata.encoding import UNENCODABLE, DocumentEncoder
from lrdata.errors import LongRecipeError
from lrdata.records import Documents, Fields, Rejected
from lrdata.tokenizer import Tokenizer, UnencodableError
from lrdata.windows import Tokens
from lrtrain.scoring.sample import (
    LeftOut,
    TextWindow,
    cut,
    read_sample,
    sample_windows,
    write_sample,
)
from tests.chi_square import assert_follows, evenly
from tests.conftest import generated_text
from tests.corpora import encoded

PARAGRAPHS = list(generated_text(40, seed=5))
Place = tuple[str, int, int]
"""(document, first token, tokens)."""


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: Path) -> DocumentEncoder:
    return DocumentEncoder(Tokenizer.load(str(tiny_tokenizer)))


def record(name: str, paragraphs: int, first: int = 0) -> dict[str, str]:
    """A document that begins with paragraph `first` of the pool."""
    text = "".join(PARAGRAPHS[(first + n) % len(PARAGRAPHS)] for n in range(paragraphs))
    return {"id": name, "text": text}


def write(path: Path, records: Sequence[dict[str, str]], format: str = "jsonl") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(records, format))
    return path


def sample(
    corpus: Path, encoder: DocumentEncoder, *, ids: bool = True, **options: Any
) -> list[TextWindow]:
    """Windows of 32 tokens, all of them and their rests, where `options` do not say otherwise."""
    return sample_and_rest(corpus, encoder, ids=ids, **options)[0]


def sample_and_rest(
    corpus: Path, encoder: DocumentEncoder, *, ids: bool = True, **options: Any
) -> tuple[list[TextWindow], LeftOut]:
    """The same, with what was left out."""
    values = {"window": 32, "least": 1, "tokens": None, "per_document": None, "seed": 0, **options}
    files = find_files([str(corpus)])
    return sample_windows(files, Fields(id="id" if ids else None), encoder, **values)


def places(windows: Sequence[TextWindow]) -> list[Place]:
    return [(window.document, window.start, len(window.ids)) for window in windows]


def same(one: Sequence[TextWindow], other: Sequence[TextWindow]) -> bool:
    return places(one) == places(other) and all(
        np.array_equal(a.ids, b.ids) for a, b in zip(one, other, strict=True)
    )


def all_places(
    records: Sequence[dict[str, str]], encoder: DocumentEncoder, window: int, least: int
) -> list[Place]:
    """Every window that could be taken, in corpus order."""
    found = []
    for each in records:
        tokens = len(encoder.tokenizer.encode_documents([each["text"]])[0])
        if tokens >= least:
            found += [
                (each["id"], start, min(window, tokens - start))
                for start in range(0, tokens, window)
                if min(window, tokens - start) >= min(least, window)
            ]
    return found


# Cutting a document


@given(tokens=st.integers(0, 500), window=st.integers(1, 200), data=st.data())
def test_windows_follow_each_other_and_only_a_short_rest_is_left_out(
    tokens: int, window: int, data: st.DataObject
) -> None:
    least = data.draw(st.integers(1, window))
    windows = cut(tokens, window, least)
    lengths = [stop - start for start, stop in windows]
    assert all(stop == start for (_, stop), (start, _) in pairwise(windows))
    assert all(length == window for length in lengths[:-1])
    assert all(least <= length <= window for length in lengths)
    assert windows == [] or windows[0][0] == 0
    rest = tokens - sum(lengths)
    assert 0 <= rest < least


# Sampling


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=8),
    window=st.integers(2, 80),
    share=st.floats(0, 1),
    tokens=st.none() | st.integers(1, 700),
    per_document=st.none() | st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_a_sample_is_windows_of_documents_up_to_the_budget(
    sizes: list[int],
    window: int,
    share: float,
    tokens: int | None,
    per_document: int | None,
    seed: int,
    encoder: DocumentEncoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    least = 1 + int(share * (window - 1))
    records = [record(f"doc {n}", size, 5 * n) for n, size in enumerate(sizes)]
    corpus = write(tmp_path_factory.mktemp("corpus") / "a.jsonl", records)
    possible = all_places(records, encoder, window, least)
    options: dict[str, Any] = {
        "window": window,
        "least": least,
        "per_document": per_document,
        "seed": seed,
    }
    if not possible:
        with pytest.raises(LongRecipeError, match="no document has"):
            sample(corpus, encoder, tokens=tokens, **options)
        return
    found, left_out = sample_and_rest(corpus, encoder, tokens=tokens, **options)
    assert left_out == LeftOut()
    assert list(left_out.lines()) == []
    chosen = places(found)
    assert chosen == [place for place in possible if place in set(chosen)]  # in corpus order
    for part in found:
        text = next(each["text"] for each in records if each["id"] == part.document)
        ids = encoder.tokenizer.encode_documents([text])[0]
        assert part.ids.dtype == np.int32
        np.testing.assert_array_equal(part.ids, ids[part.start : part.start + len(part.ids)])
    of_each = [sum(place[0] == each["id"] for place in possible) for each in records]
    most = [min(count, per_document or count) for count in of_each]
    taken = [sum(place[0] == each["id"] for place in chosen) for each in records]
    assert all(some <= all_ for some, all_ in zip(taken, most, strict=True))
    scored = sum(length for *_, length in chosen)
    if tokens is None or scored < tokens:
        assert taken == most
    else:
        assert scored < tokens + window


@settings(max_examples=15)
@given(
    less=st.integers(1, 500),
    more=st.integers(1, 500),
    per_document=st.none() | st.just(1),
    seed=st.integers(0, 2**32),
)
def test_a_larger_budget_keeps_what_a_smaller_one_took(
    less: int,
    more: int,
    per_document: int | None,
    seed: int,
    encoder: DocumentEncoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    records = [record(f"doc {n}", 4, 5 * n) for n in range(7)]
    corpus = write(tmp_path_factory.mktemp("corpus") / "a.jsonl", records)
    small, large = (
        places(sample(corpus, encoder, tokens=tokens, per_document=per_document, seed=seed))
        for tokens in (less, less + more)
    )
    assert set(small) <= set(large)


def test_a_sample_is_the_same_for_its_seed_and_another_for_another(
    encoder: DocumentEncoder, tmp_path: Path
) -> None:
    corpus = write(tmp_path / "a.jsonl", [record(f"doc {n}", 6, 3 * n) for n in range(9)])
    first = sample(corpus, encoder, tokens=300, seed=7)
    assert same(first, sample(corpus, encoder, tokens=300, seed=7))
    others = [places(sample(corpus, encoder, tokens=300, seed=seed)) for seed in range(5)]
    assert len({tuple(other) for other in others}) == 5


@pytest.mark.parametrize("per_document", [None, 1])
def test_a_sample_does_not_depend_on_how_the_documents_lie_in_files(
    per_document: int | None, encoder: DocumentEncoder, tmp_path: Path
) -> None:
    records = [record(f"doc {n}", 1 + n % 5, 3 * n) for n in range(20)]
    write(tmp_path / "one" / "all.jsonl", records)
    for n, (start, stop) in enumerate(pairwise([0, 1, 6, 13, 20])):
        write(tmp_path / "four" / f"part{n}.jsonl", records[start:stop])
    write(tmp_path / "mixed" / "part0.jsonl.zst", records[:8], "jsonl.zst")
    write(tmp_path / "mixed" / "part1.parquet", records[8:], "parquet")
    samples = [
        sample(tmp_path / name, encoder, tokens=400, per_document=per_document, seed=3)
        for name in ("one", "four", "mixed")
    ]
    assert len(samples[0]) > 5
    assert same(samples[0], samples[1])
    assert same(samples[0], samples[2])


def test_every_window_is_as_likely_as_any_other(encoder: DocumentEncoder, tmp_path: Path) -> None:
    """Of a long document, of a short one, at the beginning, at the end."""
    records = [record("long", 6), record("short", 1), record("other", 3, 9)]
    corpus = write(tmp_path / "a.jsonl", records)
    possible = all_places(records, encoder, 96, 1)
    assert len(possible) > 6
    draws = [
        place
        for seed in range(40 * len(possible))
        for place in places(sample(corpus, encoder, window=96, tokens=1, seed=seed))
    ]
    assert len(draws) == 40 * len(possible)  # a budget of one token is one window
    assert_follows(draws, evenly(possible))


def test_the_windows_of_a_document_that_count_are_drawn_too(
    encoder: DocumentEncoder, tmp_path: Path
) -> None:
    """With a window a document it is not always the first."""
    records = [record("a", 5), record("b", 5, 11)]
    corpus = write(tmp_path / "a.jsonl", records)
    possible = all_places(records, encoder, 64, 64)
    draws = []
    for seed in range(20 * len(possible)):
        found = places(
            sample(corpus, encoder, window=64, least=64, tokens=None, per_document=1, seed=seed)
        )
        assert [document for document, *_ in found] == ["a", "b"]
        draws += found
    for name in ("a", "b"):
        of_it = [place for place in possible if place[0] == name]
        assert len(of_it) > 2
        assert_follows([place for place in draws if place[0] == name], evenly(of_it))


@pytest.mark.parametrize("least", [1, 150])
@pytest.mark.parametrize("per_document", [None, 1])
def test_documents_whose_id_comes_twice_are_left_out_altogether(
    per_document: int | None, least: int, encoder: DocumentEncoder, tmp_path: Path
) -> None:
    """In one file or two, twice or more often, long enough to be scored or not."""
    first = [record("x", 5), record("y", 5, 8), record("short", 1, 3), record("w", 5, 2)]
    second = [record("x", 6, 20), record("z", 5, 30), record("short", 5), record("v", 5, 12)]
    write(tmp_path / "books" / "a.jsonl", first)
    write(tmp_path / "books" / "b.jsonl", [*second, record("v", 5, 25), record("x", 5)])
    options: dict[str, Any] = {"per_document": per_document, "least": least}
    found, left_out = sample_and_rest(tmp_path / "books", encoder, **options)
    alone = write(tmp_path / "alone.jsonl", [first[1], first[3], second[1]])
    assert same(found, sample(alone, encoder, **options))
    assert {part.document for part in found} == {"y", "w", "z"}
    assert left_out == LeftOut(twice=3)
    (line,) = left_out.lines()
    assert line.startswith("3 ids come twice")


def test_a_record_that_nothing_can_encode_is_left_out_and_named(
    encoder: DocumentEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DocumentEncoder.encode

    def stumbles(self: DocumentEncoder, documents: Documents) -> tuple[Tokens, list[int]]:
        if "y" in documents.ids:
            raise UnencodableError("too many steps")
        return plain(self, documents)

    records = [record("x", 5), record("y", 5, 8), record("z", 5, 30)]
    alone = sample(write(tmp_path / "alone.jsonl", [records[0], records[2]]), encoder)
    monkeypatch.setattr(DocumentEncoder, "encode", stumbles)
    corpus = write(tmp_path / "all.jsonl", records)
    place = len(corpus.read_bytes().splitlines(keepends=True)[0])
    found, left_out = sample_and_rest(corpus, encoder)
    assert same(found, alone)
    assert left_out == LeftOut(1, Rejected("all.jsonl", place, UNENCODABLE))
    (line,) = left_out.lines()
    assert line.endswith(f"all.jsonl record {place}: {UNENCODABLE}")


@settings(max_examples=15)
@given(tokens=st.integers(1, 900), seed=st.integers(0, 2**32), data=st.data())
def test_ids_that_come_twice_bring_no_window_in(
    tokens: int,
    seed: int,
    data: st.DataObject,
    encoder: DocumentEncoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Within a budget what is sampled would have been sampled without them."""
    folder = tmp_path_factory.mktemp("corpus")
    records = [record(f"doc {n}", 4, 5 * n) for n in range(6)]
    more = [record("doc 1", 3, 17), record("doc 4", 2, 9)]
    order = data.draw(st.permutations([*records, *more]))
    once = [each for each in order if each["id"] not in ("doc 1", "doc 4")]
    expected = sample(write(folder / "once.jsonl", once), encoder, tokens=tokens, seed=seed)
    said, found = answer(write(folder / "all.jsonl", order), encoder, tokens=tokens, seed=seed)
    assert "no document has" not in said, "there are such documents"
    assert set(places(found)) <= set(places(expected))


def answer(corpus: Path, encoder: DocumentEncoder, **options: Any) -> tuple[str, list[TextWindow]]:
    """Why there is no sample; else nothing, and the sample."""
    try:
        return "", sample(corpus, encoder, **options)
    except LongRecipeError as problem:
        return str(problem), []


def test_a_corpus_of_nothing_but_ids_that_come_twice_is_refused_for_that(
    encoder: DocumentEncoder, tmp_path: Path
) -> None:
    """A lower --window would not help."""
    corpus = write(tmp_path / "a.jsonl", [record("x", 5), record("x", 5, 8)])
    with pytest.raises(LongRecipeError, match="twice") as problem:
        sample(corpus, encoder)
    assert "--window" not in str(problem.value)
    assert "\n" not in str(problem.value)


def test_without_ids_a_document_is_its_file_and_record(
    encoder: DocumentEncoder, tmp_path: Path
) -> None:
    """As in a dataset's doc_ids; the same text in two records is two documents."""
    records = [record("x", 2), record("x", 2)]
    write(tmp_path / "books" / "a.jsonl", records)
    found = sample(tmp_path / "books", encoder, window=4096, ids=False)
    second = len(json.dumps(records[0])) + 1
    assert [part.document for part in found] == [
        "books/a.jsonl:0",
        f"books/a.jsonl:{second}",
    ]


def test_a_long_text_is_a_document_as_any_other(
    encoder: DocumentEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts beyond 16 MB are encoded in pieces; here already those beyond some hundred bytes."""
    records = [record("a", 2), record("b", 12, 3), record("c", 1, 30)]
    corpus = write(tmp_path / "a.jsonl", records)
    expected = sample(corpus, encoder)
    monkeypatch.setattr("lrdata.jsonl.LONG_BYTES", 500)
    monkeypatch.setattr("lrdata.long_text.PIECE_BYTES", 300)
    assert same(sample(corpus, encoder), expected)


def test_records_without_text_are_passed_over_and_counted(
    encoder: DocumentEncoder, tmp_path: Path
) -> None:
    """The first is named by its file and its place there."""
    records = [record("a", 3), record("b", 3, 8)]
    good = sample(write(tmp_path / "good.jsonl", records), encoder)
    lines = [json.dumps(each) for each in records]
    (tmp_path / "bad.jsonl").write_text("\n".join([lines[0], '{"text": 5}', "{", lines[1], ""]))
    found, left_out = sample_and_rest(tmp_path / "bad.jsonl", encoder)
    assert same(found, good)
    assert (left_out.records, left_out.twice) == (2, 0)
    assert left_out.first is not None
    assert left_out.first.record == len(lines[0]) + 1
    (line,) = left_out.lines()
    for part in ("2 records", "bad.jsonl", f"record {len(lines[0]) + 1}", left_out.first.reason):
        assert part in line


def test_long_texts_that_cannot_be_encoded_are_counted_too(
    encoder: DocumentEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record("a", 2), record("b", 12, 3), record("c", 1, 30), record("d", 12, 9)]
    corpus = write(tmp_path / "a.jsonl", records)
    expected = sample(write(tmp_path / "short.jsonl", [records[0], records[2]]), encoder)
    longest = max(len(records[0]["text"].encode()), len(records[2]["text"].encode()))
    monkeypatch.setattr("lrdata.jsonl.LONG_BYTES", longest + 100)
    monkeypatch.setattr(DocumentEncoder, "encode_long", lambda *_: "it is too long")
    found, left_out = sample_and_rest(corpus, encoder)
    assert same(found, expected)
    assert left_out.records == 2
    assert left_out.first is not None
    assert left_out.first.record == len(json.dumps(records[0])) + 1
    (line,) = left_out.lines()
    assert line.endswith("it is too long")


def test_what_is_left_out_is_told_in_a_line_each() -> None:
    left_out = LeftOut(twice=1234)
    left_out.add([])
    assert left_out.first is None
    left_out.add([Rejected("a.jsonl", 5, "no text", 1000), Rejected("a.jsonl", 7, "bad")])
    left_out.add([Rejected("b.jsonl", 0, "worse", 20)])
    assert left_out.records == 1021
    records, twice = left_out.lines()
    for part in ("1,021 records", "a.jsonl record 5", "no text"):
        assert part in records
    assert "1,234 ids come twice" in twice


def test_a_document_shorter_than_asked_for_has_no_windows(
    encoder: DocumentEncoder, tmp_path: Path
) -> None:
    """However many windows it fills: `least` is of the document, windows may be shorter."""
    records = [record("short", 2), record("long", 9, 4)]
    short, long = (len(encoder.tokenizer.encode_documents([each["text"]])[0]) for each in records)
    assert short > 64
    corpus = write(tmp_path / "a.jsonl", records)
    found = sample(corpus, encoder, window=32, least=short + 1)
    assert places(found) == [("long", start, 32) for start in range(0, long - 31, 32)]


def test_a_corpus_of_short_documents_is_refused_with_what_to_change(
    encoder: DocumentEncoder, tmp_path: Path
) -> None:
    records = [record("a", 2), record("b", 3, 8)]
    longest = max(len(encoder.tokenizer.encode_documents([each["text"]])[0]) for each in records)
    corpus = write(tmp_path / "a.jsonl", records)
    with pytest.raises(LongRecipeError, match=f"5,000 .*the longest has {longest:,}.*--window"):
        sample(corpus, encoder, window=5_000, least=5_000)
    assert len(sample(corpus, encoder, window=longest, least=longest)) == 1


# Keeping a sample


@given(
    windows=st.lists(
        st.builds(
            TextWindow,
            st.text(min_size=1, max_size=20),
            st.integers(0, 2**45),
            st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9).map(
                lambda ids: np.array(ids, np.int32)
            ),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_sample_is_read_as_it_was_kept(
    windows: list[TextWindow], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("sample") / "sample.parquet"
    write_sample(path, windows)
    found = read_sample(path)
    assert same(found, windows)
    assert all(window.ids.dtype == np.int32 for window in found)
