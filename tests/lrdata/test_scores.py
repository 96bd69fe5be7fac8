"""A folder of scores: what is written is read again, by other programs too, and damage is found."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrdata.errors import LongRecipeError
from lrdata.manifest import SourceEntry, TokenizerEntry
from lrdata.scores import (
    MEASURES,
    SCORES,
    VOCABULARY,
    ScoredWindow,
    Scores,
    ScoresManifest,
    open_scores,
    write_scores_manifest,
    write_vocabulary,
    write_windows,
)
from lrdata.shards import file_sha256
from lrdata.tokenizer import Tokenizer
from lrdata.vocabulary import TokenBytes, offsets_of, table_fingerprint
from tests.conftest import generated_text

PLACE = ["document", "offset", "position", "token"]
PIECES = [b"<eot>", b"a", b"", b" the", b"\xff\xfe", "ж".encode()]
SPECIAL = np.array([True, False, False, False, False, False])


def table(pieces: Sequence[bytes]) -> TokenBytes:
    values = np.frombuffer(b"".join(pieces), np.uint8)
    return values, offsets_of(map(len, pieces), len(pieces))


def score_folder(
    folder: Path,
    windows: Sequence[ScoredWindow],
    method: str = "lsd",
    token_bytes: TokenBytes | None = None,
    special: np.ndarray = SPECIAL,
) -> Path:
    """A whole folder, written as `lrtrain score` writes it."""
    token_bytes = token_bytes or table(PIECES)
    write_windows(folder / SCORES, method, windows)
    write_vocabulary(folder / VOCABULARY, token_bytes, special)
    fingerprint = table_fingerprint(token_bytes, special)
    manifest = ScoresManifest(
        method=method,
        models={"long": "tiny"},
        fingerprints={"long": "0" * 64},
        tokenizer=TokenizerEntry("tiny", fingerprint, "0" * 64, len(special), 0, None),
        sources=[SourceEntry("books/a.jsonl", "books", None, 12, "0" * 64)],
        recipe={"seed": 0},
        window=64,
        windows=len(windows),
        documents=len({window.document for window in windows}),
        tokens=sum(len(window.ids) for window in windows),
        measured=sum(int(np.isfinite(window.gain).sum()) for window in windows),
        files={name: file_sha256(folder / name) for name in (SCORES, VOCABULARY)},
    )
    write_scores_manifest(folder, manifest)
    return folder


def window(
    document: str = "a", start: int = 0, tokens: int = 4, method: str = "lsd", seed: int = 0
) -> ScoredWindow:
    """Random scores; nothing was measured at the first token and, of the gain, at the second."""
    draw = np.random.default_rng(seed)
    log_prob, *measures = draw.normal(size=(1 + len(MEASURES[method]), tokens)).astype(np.float32)
    for column in (log_prob, *measures):
        column[0] = np.nan
    for column in measures:
        column[:2] = np.nan
    ids = draw.integers(0, len(PIECES), tokens).astype(np.int32)
    return ScoredWindow(document, start, ids, log_prob, tuple(measures))


def assert_same(found: ScoredWindow, expected: ScoredWindow) -> None:
    assert (found.document, found.start) == (expected.document, expected.start)
    columns = [found.ids, found.log_prob, *found.measures]
    wanted = [expected.ids, expected.log_prob, *expected.measures]
    assert [column.dtype for column in columns] == [np.int32] + [np.float32] * (len(columns) - 1)
    for column, want in zip(columns, wanted, strict=True):
        np.testing.assert_array_equal(column, want)  # NaN equals NaN


def reads(folder: Path, windows: Sequence[ScoredWindow]) -> Scores:
    """The folder opened, every window of it compared."""
    scores = open_scores(folder)
    assert len(scores) == len(windows)
    assert scores.index == [(each.document, each.start, len(each.ids)) for each in windows]
    for found, expected in zip(scores, windows, strict=True):
        assert_same(found, expected)
    return scores


_FLOATS = st.floats(width=32, allow_infinity=False) | st.just(float("nan"))


@st.composite
def scored_windows(draw: st.DrawFn, method: str) -> ScoredWindow:
    tokens = draw(st.integers(1, 12))

    def column(values: st.SearchStrategy[Any], dtype: type) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=tokens, max_size=tokens)), dtype)

    return ScoredWindow(
        draw(st.text(min_size=1, max_size=20)),
        draw(st.integers(0, 2**45)),
        column(st.integers(0, 2**31 - 1), np.int32),
        column(_FLOATS, np.float32),
        tuple(column(_FLOATS, np.float32) for _ in MEASURES[method]),
    )


@settings(max_examples=50)
@given(method=st.sampled_from(sorted(MEASURES)), data=st.data())
def test_every_window_is_read_as_it_was_written(
    method: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What was not measured is NaN again, and the index tells what is in the windows."""
    windows = data.draw(st.lists(scored_windows(method), max_size=4))
    folder = score_folder(tmp_path_factory.mktemp("scores"), windows, method)
    scores = reads(folder, windows)
    assert scores.measures == MEASURES[method]


def test_windows_are_read_in_any_order(tmp_path: Path) -> None:
    windows = [window(f"doc {n}", 100 * n, tokens=5 + n, seed=n) for n in range(6)]
    scores = open_scores(score_folder(tmp_path, windows))
    for index in (4, 0, 5, 2, 4):
        assert_same(scores.read(index), windows[index])


@pytest.mark.parametrize("length", [300, 10_000])
def test_an_id_may_be_long(length: int, tmp_path: Path) -> None:
    """Parquet keeps no statistics of values beyond 4,096 bytes."""
    windows = [window("ж" * length, 7), window(f"{'x' * length}/2"), window("short")]
    reads(score_folder(tmp_path, windows), windows)


def test_a_window_may_have_no_gain_at_all(tmp_path: Path) -> None:
    nothing = np.full(3, np.nan, np.float32)
    windows = [ScoredWindow("a", 0, np.arange(3, dtype=np.int32), nothing, (nothing,))]
    reads(score_folder(tmp_path, windows), windows)


def test_a_window_of_many_pages_is_one_window(tmp_path: Path) -> None:
    """131,072 tokens are the largest window that is taken by default."""
    windows = [window(tokens=131_072), window("b", 131_072, tokens=131_072, seed=1)]
    reads(score_folder(tmp_path, windows), windows)


def test_key_tokens_gain_much_and_are_likely() -> None:
    """LongPPL's two thresholds; a token that was not measured is none."""
    nan = np.nan
    gain = np.array([2.5, 2.0, 2.5, 3.0, nan, 5.0], np.float32)
    log_prob = np.array([-1.0, -1.0, -2.0, -1.9, -0.1, nan], np.float32)
    found = ScoredWindow("a", 0, np.zeros(6, np.int32), log_prob, (gain,))
    assert found.keys.tolist() == [True, False, False, True, False, False]


# The vocabulary


@settings(max_examples=50)
@given(
    rows=st.lists(st.tuples(st.binary(max_size=6), st.booleans()), min_size=1, max_size=30),
    data=st.data(),
)
def test_the_vocabulary_is_read_as_it_was_written(
    rows: list[tuple[bytes, bool]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pieces = [piece for piece, _ in rows]
    special = np.array([flag for _, flag in rows])
    folder = tmp_path_factory.mktemp("scores")
    score_folder(folder, [], token_bytes=table(pieces), special=special)
    scores = open_scores(folder)
    values, offsets = scores.vocabulary.token_bytes
    assert [values[a:b].tobytes() for a, b in pairwise(offsets)] == pieces
    assert (values.dtype, offsets.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(scores.vocabulary.special, special)
    assert scores.vocabulary.eot_id == scores.manifest.tokenizer.eot_id
    ids = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    text = b"".join(pieces[id_] for id_ in ids if not special[id_])
    assert scores.text(np.array(ids, np.int32)) == text


def test_the_text_of_tokens_needs_no_tokenizer(tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    text = "".join(generated_text(20, seed=3))
    ids, _ = tokenizer.encode_documents([text])
    score_folder(tmp_path, [], token_bytes=tokenizer.token_bytes, special=tokenizer.special)
    assert open_scores(tmp_path).text(ids).decode() == text  # without the end of text


def test_an_end_of_text_that_tokenizer_json_does_not_flag_is_no_text_either(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """It is special to us, so it must be to who reads the scores."""
    plain = tmp_path / "plain"
    shutil.copytree(tiny_tokenizer, plain)
    raw = json.loads((plain / "tokenizer.json").read_text(encoding="utf-8"))
    for token in raw["added_tokens"]:
        token["special"] = False
    (plain / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    tokenizer = Tokenizer.load(str(plain))
    ids, _ = tokenizer.encode_documents(["Some text."])
    score_folder(
        tmp_path / "scores", [], token_bytes=tokenizer.token_bytes, special=tokenizer.special
    )
    assert open_scores(tmp_path / "scores").text(ids) == b"Some text."


# Other readers


@pytest.mark.parametrize("method", sorted(MEASURES))
def test_polars_reads_the_documented_columns(method: str, tmp_path: Path) -> None:
    windows = [window("a", 0, 5, method), window("b", 70, 3, method, seed=1)]
    score_folder(tmp_path, windows, method)
    scan = pl.scan_parquet(tmp_path / SCORES)
    floats = ["log_prob", *MEASURES[method]]
    types = [pl.String(), pl.Int64(), pl.Int32(), pl.Int32(), *[pl.Float32()] * len(floats)]
    names = [*PLACE, *floats]
    assert dict(scan.collect_schema()) == dict(zip(names, types, strict=True))
    frame = scan.collect()
    assert frame["document"].to_list() == ["a"] * 5 + ["b"] * 3
    assert frame["offset"].to_list() == [0, 1, 2, 3, 4, 70, 71, 72]
    assert frame["position"].to_list() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert frame["token"].to_list() == [*windows[0].ids.tolist(), *windows[1].ids.tolist()]
    for at, name in enumerate(floats):
        columns = [(each.log_prob, *each.measures)[at] for each in windows]
        values = [None if np.isnan(x) else float(x) for part in columns for x in part]
        assert frame[name].to_list() == values
    late = scan.filter((pl.col("document") == "b") & (pl.col("position") > 0)).collect()
    assert late["offset"].to_list() == [71, 72]


@pytest.mark.parametrize("method", sorted(MEASURES))
def test_duckdb_reads_the_documented_columns(method: str, tmp_path: Path) -> None:
    windows = [window("a", 0, 5, method), window("b", 70, 3, method, seed=1)]
    folder = score_folder(tmp_path, windows, method)
    floats = ["log_prob", *MEASURES[method]]
    with duckdb.connect() as connection:
        described = connection.sql(f"describe select * from '{folder / SCORES}'").fetchall()
        kinds = {name: kind for name, kind, *_ in described}
        counted = ", ".join(f"count({name})" for name in floats)
        query = f"select count(*), min(\"offset\"), {counted} from '{folder / SCORES}' "
        rows = connection.sql(f"{query} group by document order by document").fetchall()
        (means,) = connection.sql(
            f"select {', '.join(f'avg({name})' for name in floats)} from '{folder / SCORES}'"
        ).fetchall()
        special = connection.sql(
            f"select bytes from '{folder / VOCABULARY}' where special"
        ).fetchall()
    assert list(kinds) == [*PLACE, *floats]
    assert list(kinds.values()) == ["VARCHAR", "BIGINT", "INTEGER", "INTEGER"] + ["FLOAT"] * len(
        floats
    )
    gains = len(MEASURES[method])
    assert rows == [(5, 0, 4, *[3] * gains), (3, 70, 2, *[1] * gains)]
    for at, mean in enumerate(means):  # what was not measured is left out of a mean
        columns = [(each.log_prob, *each.measures)[at] for each in windows]
        assert mean == pytest.approx(np.nanmean(np.concatenate(columns)), rel=1e-5)
    assert special == [(b"<eot>",)]


# What is refused


def refused(folder: Path) -> str:
    with pytest.raises(LongRecipeError) as caught:
        open_scores(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def changed_manifest(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def without(key: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        raw = json.loads(path.read_text())
        del raw[key]
        path.write_text(json.dumps(raw))

    return change


def flip_a_bit(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return change


def cut_off(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (remove("manifest.json"), ["manifest.json", "lrtrain score"]),
        (flip_a_bit(SCORES), [SCORES, "damaged", "score the corpus again"]),
        (flip_a_bit(VOCABULARY), [VOCABULARY, "damaged", "score the corpus again"]),
        (cut_off(SCORES), [SCORES, "damaged"]),
        (remove(SCORES), [SCORES]),
        (remove(VOCABULARY), [VOCABULARY]),
        (cut_off("manifest.json"), ["manifest.json", "damaged"]),
        (lambda folder: (folder / "manifest.json").write_text("[]"), ["manifest.json", "damaged"]),
        (changed_manifest(format_version="2.0"), ["2.0", "install the version that wrote it"]),
        (changed_manifest(format="longrecipe"), ["'longrecipe'", "longrecipe-scores"]),
        (changed_manifest(method="guess"), ["manifest.json", "guess"]),
        (changed_manifest(tokens="many"), ["manifest.json", "many"]),
        (changed_manifest(files={}), [SCORES, "damaged"]),
        (without("tokenizer"), ["manifest.json", "tokenizer"]),
        (without("window"), ["manifest.json", "window"]),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(
    spoil: Callable[[Path], object], named: list[str], tmp_path: Path
) -> None:
    folder = score_folder(tmp_path / "scores", [window(), window("b")])
    spoil(folder)
    message = refused(folder)
    for part in [str(folder), *named]:
        assert part in message


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refused(tmp_path / "nowhere")


def test_a_later_minor_version_may_know_more(tmp_path: Path) -> None:
    windows = [window()]
    folder = score_folder(tmp_path, windows)
    changed_manifest(format_version="1.9", humidity=0.4)(folder)
    reads(folder, windows)
