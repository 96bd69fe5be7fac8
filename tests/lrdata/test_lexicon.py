"""A lexicon: shares counted as a loop counts them, shrunk sensibly, and read by other programs."""

import importlib.util
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from lrdata.cli import main
from lrdata.errors import LongRecipeError
from lrdata.impact.lexicon import read_significance
from lrdata.lexicon import (
    _TOKENS_OF_A_BIN,
    Lexicon,
    make_lexicon,
    measured_tokens,
    shrink,
    write_lexicon,
)
from lrdata.manifest import TokenizerEntry
from lrdata.report import lexicon as report
from lrdata.scores import KEY_GAIN, KEY_LOG_PROB, ScoredWindow, open_scores
from lrdata.token_classes import CLASSES, class_of
from lrdata.tokenizer import Tokenizer
from tests.lrdata.made_scores import (
    random_window,
    random_windows,
    scored_window,
    tokens_of,
    write_scores,
)

COLUMNS = {
    "token": (pl.Int32(), "INTEGER"),
    "text": (pl.String(), "VARCHAR"),
    "class": (pl.String(), "VARCHAR"),
    "count": (pl.Int64(), "BIGINT"),
    "mean_gain": (pl.Float32(), "FLOAT"),
    "top_share": (pl.Float32(), "FLOAT"),
    "key_share": (pl.Float32(), "FLOAT"),
    "significance": (pl.Float32(), "FLOAT"),
    "expected_gain": (pl.Float32(), "FLOAT"),
}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return Tokenizer.load(str(tiny_tokenizer))


@pytest.fixture(scope="module")
def windows(tokenizer: Tokenizer) -> list[ScoredWindow]:
    return random_windows(tokenizer, documents=7, tokens=400)


@pytest.fixture(scope="module")
def folder(
    tokenizer: Tokenizer, windows: list[ScoredWindow], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_scores(tmp_path_factory.mktemp("scores"), tokenizer, windows)


@pytest.fixture(scope="module")
def lexicon(folder: Path) -> Lexicon:
    return make_lexicon([open_scores(folder)])


# Shrinking


@st.composite
def observed(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts, means, variances and groups of types; some types, and whole groups, never seen."""
    types = draw(st.integers(1, 12))

    def column(values: st.SearchStrategy[float], dtype: type) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=types, max_size=types)), dtype)

    share = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32)
    spread = st.sampled_from([0.0, 0.04, 0.25])
    count = column(st.sampled_from([0, 0, 1, 2]) | st.integers(0, 200), np.int64)
    return (
        count,
        np.where(count > 0, column(share, np.float64), 0.0),
        np.where(count > 1, column(spread, np.float64), 0.0),
        column(st.integers(0, 3), np.uint8),
    )


def with_unseen(
    count: np.ndarray, mean: np.ndarray, variance: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What types are shrunk to, and a type of the same group that was never seen: [types] each."""
    groups = np.arange(group.max() + 1, dtype=np.uint8)
    nothing = np.zeros(len(groups))
    found = shrink(
        np.concatenate([count, nothing.astype(np.int64)]),
        np.concatenate([mean, nothing]),
        np.concatenate([variance, nothing]),
        np.concatenate([group, groups]),
    )
    return found[: len(count)], found[len(count) :][group]


def shrunk_slowly(
    count: np.ndarray, mean: np.ndarray, variance: np.ndarray, group: np.ndarray
) -> list[float]:
    """n / (n + k) of a mean and k / (n + k) of its prior, types to groups, groups to all."""
    types = list(zip(count.tolist(), mean.tolist(), variance.tolist(), group.tolist(), strict=True))
    spare = sum(n - 1 for n, _, _, _ in types if n)
    within = sum(n * v for n, _, v, _ in types) / max(spare, 1)

    def credible(
        counts: list[int], means: list[float], priors: list[float], groups: list[int]
    ) -> list[float]:
        apart, free, size = 0.0, 0, 0.0
        for number in set(groups):
            members = [
                (n, m) for n, m, of in zip(counts, means, groups, strict=True) if of == number and n
            ]
            if not members:
                continue
            total = sum(n for n, _ in members)
            around = sum(n * m for n, m in members) / total
            apart += sum(n * (m - around) ** 2 for n, m in members)
            free += len(members) - 1
            size += total - sum(n * n for n, _ in members) / total
        if free == 0 or apart <= free * within:
            return priors
        among = (apart - free * within) / size
        k = within / among
        three = zip(counts, means, priors, strict=True)
        return [n / (n + k) * m + k / (n + k) * p if n else p for n, m, p in three]

    total = sum(n for n, *_ in types)
    overall = sum(n * m for n, m, _, _ in types) / max(total, 1)
    counts, means = [], []
    for number in range(max(group.tolist()) + 1):
        members = [(n, m) for n, m, _, of in types if of == number]
        counts.append(sum(n for n, _ in members))
        means.append(sum(n * m for n, m in members) / max(counts[-1], 1))
    priors = credible(counts, means, [overall] * len(counts), [0] * len(counts))
    every = [[row[at] for row in types] for at in (0, 1)]
    groups = [of for *_, of in types]
    return credible(every[0], every[1], [priors[of] for of in groups], groups)


ONCE_EACH = (
    np.array([1, 1, 0]),
    np.array([0.0, 1.0, 0.0]),
    np.zeros(3),
    np.zeros(3, np.uint8),
)
"""Types that were seen once have no variance, and nothing says how much tokens of a type vary."""


@given(observed())
@example(ONCE_EACH)
def test_shrinking_is_the_loop_over_types(
    types: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    found = shrink(*types)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, shrunk_slowly(*types), atol=1e-9)


@given(observed())
@example(ONCE_EACH)
def test_a_shrunk_mean_is_between_its_own_and_that_of_an_unseen_type(
    types: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    count, mean, _, _ = types
    found, unseen = with_unseen(*types)
    own = np.where(count > 0, mean, unseen)
    assert (found >= np.minimum(own, unseen) - 1e-9).all()
    assert (found <= np.maximum(own, unseen) + 1e-9).all()
    if count.any():  # and that one is between the extremes of what was seen
        seen = mean[count > 0]
        assert (unseen >= seen.min() - 1e-9).all()
        assert (unseen <= seen.max() + 1e-9).all()


@given(observed())
@example(ONCE_EACH)
def test_an_unseen_type_has_what_its_group_has(
    types: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    count = types[0]
    found, unseen = with_unseen(*types)
    np.testing.assert_array_equal(found[count == 0], unseen[count == 0])


@given(observed(), st.data())
def test_a_type_that_is_seen_ever_more_often_keeps_its_own_mean(
    types: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    count, mean, variance, group = types
    often = data.draw(st.integers(0, len(count) - 1))
    count[often], variance[often] = 10**9, mean[often] * (1 - mean[often])
    assert shrink(count, mean, variance, group)[often] == pytest.approx(mean[often], abs=1e-3)


@given(observed(), st.floats(0, 1, width=32))
@example(ONCE_EACH, 0.5)
def test_equal_means_stay_as_they_are(
    types: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], mean: float
) -> None:
    count, _, variance, group = types
    count[0] = max(count[0], 1)
    found = shrink(count, np.where(count > 0, mean, 0.0), variance, group)
    np.testing.assert_allclose(found, mean, atol=1e-9)


@given(observed(), st.randoms(use_true_random=False))
def test_the_order_of_types_does_not_matter(
    types: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], random: Any
) -> None:
    order = list(range(len(types[0])))
    random.shuffle(order)
    found = shrink(*(column[order] for column in types))
    np.testing.assert_allclose(found, shrink(*types)[order], atol=1e-9)


def test_the_more_often_a_type_is_seen_the_less_it_is_shrunk() -> None:
    """Three types whose tokens are at the top as often, among many others that are not."""
    count = np.array([2, 20, 200, *[100] * 10])
    mean = np.array([0.8, 0.8, 0.8, *np.linspace(0.1, 0.3, 10)])
    found = shrink(count, mean, mean * (1 - mean), np.zeros(13, np.uint8))
    assert 0.2 < found[0] < found[1] < found[2] < 0.8


WITHIN, AMONG, BETWEEN = 1.0, 0.3, 0.5
"""True standard deviations: of the tokens of a type, of types of a group, and of groups."""


def drawn_types(
    seed: int, types: int = 600
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """True means of types in 12 groups, and what was observed of them: most once, a few often."""
    draw = np.random.default_rng(seed)
    group = (np.arange(types) % 12).astype(np.uint8)
    count = np.minimum(draw.zipf(1.5, types), 10_000)
    truth = draw.normal(0, BETWEEN, 12)[group] + draw.normal(0, AMONG, types)
    mean = truth + draw.normal(0, WITHIN, types) / np.sqrt(count)
    spare = np.maximum(count - 1, 1)
    variance = np.where(count > 1, WITHIN**2 * draw.chisquare(spare) / count, 0.0)
    return truth, (count, mean, variance, group)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_shrunk_is_nearer_to_the_truth(seed: int) -> None:
    """Than the means that were seen, than their groups alone, and but for a tenth as near as the
    true spread would bring it."""
    truth, types = drawn_types(seed)
    count, mean, *_ = types
    found, prior = with_unseen(*types)

    def error(estimate: np.ndarray) -> float:
        return float(((estimate - truth) ** 2).mean())

    weight = count / (count + (WITHIN / AMONG) ** 2)
    assert error(found) < 0.5 * error(mean)
    assert error(found) < 0.8 * error(prior)
    assert error(found) < 1.1 * error(weight * mean + (1 - weight) * prior)


def test_the_weight_of_a_mean_is_that_of_the_true_spread() -> None:
    """n / (n + k) with k = WITHIN^2 / AMONG^2, in the middle of many draws."""
    found = []
    for seed in range(41):
        _, types = drawn_types(seed)
        count, mean, *_ = types
        shrunk, prior = with_unseen(*types)
        far = np.abs(mean - prior).argmax()
        weight = (shrunk - prior)[far] / (mean - prior)[far]
        found.append(count[far] * (1 - weight) / weight)
    assert np.median(found) == pytest.approx((WITHIN / AMONG) ** 2, rel=0.25)


# Counting


def counted_slowly(folders: Sequence[Sequence[ScoredWindow]]) -> dict[int, dict[str, float]]:
    """Of each token id: count, mean gain, share at the top, share of key tokens."""
    found: dict[int, list[tuple[float, bool, bool]]] = defaultdict(list)
    for windows in folders:
        width = -(-_TOKENS_OF_A_BIN // len(windows))
        bins = defaultdict(list)
        for window in windows:
            for place, gain in enumerate(window.gain.tolist()):
                if not np.isnan(gain):
                    row = (int(window.ids[place]), gain, float(window.log_prob[place]))
                    bins[place // width].append(row)
        for rows in bins.values():
            ranked = sorted(gain for _, gain, _ in rows)
            least = ranked[-(-4 * (len(ranked) - 1) // 5)]  # the 80th percentile, or the one above
            for token, gain, log_prob in rows:
                key = gain > KEY_GAIN and log_prob > KEY_LOG_PROB
                found[token].append((gain, gain >= least and gain > 0, key))
    names = ("mean_gain", "top_share", "key_share")
    return {
        token: {
            "count": len(rows),
            **{name: sum(row[at] for row in rows) / len(rows) for at, name in enumerate(names)},
        }
        for token, rows in found.items()
    }


def assert_counted(lexicon: Lexicon, expected: dict[int, dict[str, float]]) -> None:
    table = lexicon.table.filter(pl.col("count") > 0)
    assert table["token"].to_list() == sorted(expected)
    for row in table.iter_rows(named=True):
        wanted = expected[row["token"]]
        assert row["count"] == wanted["count"]
        for name in ("mean_gain", "top_share", "key_share"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("method", ["lsd", "contrast"])
@pytest.mark.parametrize("documents", [1, 3, 30])
def test_shares_are_those_of_a_loop_over_the_tokens(
    method: str, documents: int, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    windows = random_windows(tokenizer, documents, tokens=150, seed=documents, method=method)
    windows[-1] = first_tokens(windows[-1], 70)  # the rest of a document
    scores = open_scores(write_scores(tmp_path, tokenizer, windows, method))
    assert_counted(make_lexicon([scores]), counted_slowly([windows]))


def first_tokens(window: ScoredWindow, tokens: int) -> ScoredWindow:
    """The first tokens of a window."""
    parts = (window.ids[:tokens], window.log_prob[:tokens])
    return ScoredWindow(
        window.document, window.start, *parts, tuple(x[:tokens] for x in window.measures)
    )


def test_of_several_folders_each_ranks_its_own_tokens(
    windows: list[ScoredWindow], folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A model whose gains are all larger does not take the places of another's."""
    more = random_windows(tokenizer, 3, tokens=200, seed=5)
    more = [each._replace(measures=(each.gain * 100,)) for each in more]
    scores = [open_scores(folder), open_scores(write_scores(tmp_path, tokenizer, more))]
    assert_counted(make_lexicon(scores), counted_slowly([windows, more]))


def test_a_lexicon_of_some_documents_is_that_of_a_folder_of_them(
    windows: list[ScoredWindow], folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    some = [windows[index] for index in (1, 4, 5)]
    part = make_lexicon([open_scores(folder)], [window.document for window in some])
    alone = make_lexicon([open_scores(write_scores(tmp_path, tokenizer, some))])
    assert part.table.equals(alone.table)


def test_about_a_fifth_of_the_tokens_is_at_the_top_everywhere(folder: Path) -> None:
    tokens = measured_tokens(open_scores(folder)).collect()
    assert tokens["top"].mean() == pytest.approx(0.2, abs=0.01)
    later = tokens.filter(pl.col("position") >= 300)
    assert later["top"].mean() == pytest.approx(0.2, abs=0.02)
    assert (tokens.filter("top")["gain"] > 0).all()


def test_no_token_without_a_gain_is_at_the_top(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = tokens_of(tokenizer, "Nothing helps here, and it never did.")
    window = scored_window("a", ids, -np.arange(len(ids)))
    lexicon = make_lexicon([open_scores(write_scores(tmp_path, tokenizer, [window]))])
    assert not lexicon.significance.any()
    assert not lexicon.expected_gain.any()


def test_each_id_has_its_text_and_class(lexicon: Lexicon, tokenizer: Tokenizer) -> None:
    values, offsets = tokenizer.token_bytes
    pieces = [values[a:b].tobytes() for a, b in pairwise(offsets)]
    texts = [piece.decode(errors="backslashreplace") for piece in pieces]
    assert lexicon.table["token"].to_list() == list(range(tokenizer.vocab_size))
    assert lexicon.table["text"].to_list() == texts
    classes = [
        "special" if special else class_of(piece)
        for piece, special in zip(pieces, tokenizer.special, strict=True)
    ]
    assert lexicon.table["class"].to_list() == classes


def test_a_type_that_was_never_seen_has_what_its_class_has(lexicon: Lexicon) -> None:
    unseen = lexicon.table.filter((pl.col("count") == 0) & (pl.col("class") != "special"))
    for column in ("significance", "expected_gain"):
        assert unseen.group_by("class").agg(pl.col(column).n_unique())[column].max() == 1
        assert lexicon.table[column].is_finite().all()
        assert (lexicon.table[column] >= 0).all()


def test_what_gains_more_is_more_significant_seen_or_not(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Numbers gain in every window; so a number that was never seen is worth more than a word."""
    values, offsets = tokenizer.token_bytes
    number = np.array([class_of(values[a:b].tobytes()) == "number" for a, b in pairwise(offsets)])
    draw = np.random.default_rng(0)
    windows = [
        each._replace(measures=((draw.uniform(-1, 0.1, 400) + 3 * number[each.ids]).astype("f4"),))
        for each in random_windows(tokenizer, 8, tokens=400)
    ]
    lexicon = make_lexicon([open_scores(write_scores(tmp_path, tokenizer, windows))])
    seen = lexicon.table["count"].to_numpy() > 0
    assert (number & seen).any()
    assert (number & ~seen).any()
    for column in (lexicon.significance, lexicon.expected_gain):
        assert column[number].min() > column[~number].max()


def test_special_tokens_have_no_significance_even_where_they_gain(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    windows = []
    for window in random_windows(tokenizer, 5, tokens=100):
        ids, gain = window.ids.copy(), window.gain.copy()
        ids[-1], gain[-1] = tokenizer.eot_id, 9.0
        windows.append(window._replace(ids=ids, measures=(gain,)))
    lexicon = make_lexicon([open_scores(write_scores(tmp_path, tokenizer, windows))])
    assert lexicon.table["count"][tokenizer.eot_id] == 5
    assert lexicon.table["top_share"][tokenizer.eot_id] == 1
    assert tokenizer.special.any()
    assert not lexicon.significance[tokenizer.special].any()
    assert not lexicon.expected_gain[tokenizer.special].any()


def test_types_that_were_seen_once_leave_no_hole(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A short text, in which nothing comes twice, says nothing of how tokens of a type vary."""
    ids = np.arange(300, 330, dtype=np.int32)
    window = scored_window("a", ids, np.linspace(-1, 4, 30))
    lexicon = make_lexicon([open_scores(write_scores(tmp_path, tokenizer, [window]))])
    assert np.isfinite(lexicon.significance).all()
    assert np.isfinite(lexicon.expected_gain).all()


# What is refused


def refused(*folders: Path, documents: Sequence[str] | None = None) -> str:
    with pytest.raises(LongRecipeError) as caught:
        make_lexicon([open_scores(folder) for folder in folders], documents)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_tokenizer_or_method_is_refused(
    windows: list[ScoredWindow], folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    entry = TokenizerEntry("other", "1" * 64, "0" * 64, tokenizer.vocab_size, 0, None)
    write_scores(tmp_path / "other", tokenizer, windows, tokenizer=entry)
    contrast = random_windows(tokenizer, 2, tokens=100, method="contrast")
    write_scores(tmp_path / "contrast", tokenizer, contrast, "contrast")
    for name, said in (("other", "another tokenizer"), ("contrast", "contrast scores")):
        message = refused(folder, tmp_path / name)
        assert said in message
        assert str(tmp_path / name) in message
        assert str(folder) in message


def test_scores_without_a_measured_token_are_refused(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    nothing = scored_window("a", np.arange(300, 310), np.full(10, np.nan))
    write_scores(tmp_path, tokenizer, [nothing])
    assert "no measured token" in refused(tmp_path)
    assert "no measured token" in refused(folder, documents=["not there"])


# The file


def test_polars_and_duckdb_read_the_documented_columns(lexicon: Lexicon, tmp_path: Path) -> None:
    path = tmp_path / "some" / "lexicon.parquet"
    write_lexicon(path, lexicon)
    frame = pl.read_parquet(path)
    assert dict(frame.schema) == {name: kind for name, (kind, _) in COLUMNS.items()}
    assert frame.equals(lexicon.table)
    with duckdb.connect() as connection:
        described = connection.sql(f"describe select * from '{path}'").fetchall()
        counts = connection.sql(
            "select count(*), count(mean_gain), count(top_share), count(key_share), "
            f"count(significance), count(expected_gain), sum(count) from '{path}'"
        ).fetchall()
    kinds = {name: kind for name, kind, *_ in described}
    assert kinds == {name: kind for name, (_, kind) in COLUMNS.items()}
    # What was not seen has no mean and no shares, and it has all the rest.
    seen, every = (lexicon.table["count"] > 0).sum(), len(lexicon.table)
    assert 0 < seen < every
    assert counts == [(every, seen, seen, seen, every, every, lexicon.table["count"].sum())]


def test_the_significance_is_read_as_it_was_written(
    lexicon: Lexicon, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_lexicon(tmp_path / "lexicon.parquet", lexicon)
    found = read_significance(tmp_path / "lexicon.parquet", tokenizer.fingerprint)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, lexicon.significance)


def test_the_same_scores_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_lexicon(tmp_path / name, make_lexicon([open_scores(folder)]))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_no_lexicon_is_one_line_that_names_it(lexicon: Lexicon, tmp_path: Path) -> None:
    path = tmp_path / "lexicon.parquet"
    write_lexicon(path, lexicon)
    whole = path.read_bytes()
    lacking = pq.read_table(path).drop_columns(["significance"])
    pq.write_table(pa.table({"significance": [1.0]}), tmp_path / "parquet")
    pq.write_table(lacking, tmp_path / "lacking")
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text").write_text("significance\n")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    fingerprint = lexicon.fingerprint
    for name in ("parquet", "lacking", "cut", "text", "empty", "folder", "missing"):
        with pytest.raises(LongRecipeError, match="make one with `lrdata lexicon`") as caught:
            read_significance(tmp_path / name, fingerprint)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(LongRecipeError, match="another tokenizer"):
        read_significance(path, "1" * 64)


# What a person looks at


def test_the_classes_are_those_of_a_loop_over_the_tokens(
    lexicon: Lexicon, folder: Path, windows: list[ScoredWindow]
) -> None:
    tokens = measured_tokens(open_scores(folder)).collect().to_dicts()
    names = lexicon.table["class"].to_list()
    expected: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in tokens:
        expected[names[row["token"]]].append(row)
    table = report.class_table(lexicon)
    assert set(table["class"]) == set(expected)
    assert table["tokens"].sum() == sum(np.isfinite(window.gain).sum() for window in windows)
    for row in table.iter_rows(named=True):
        rows = expected[row["class"]]
        assert row["tokens"] == len(rows)
        assert row["share"] == pytest.approx(len(rows) / len(tokens))
        for name, column in (("top_share", "top"), ("key_share", "key"), ("mean_gain", "gain")):
            mean = sum(each[column] for each in rows) / len(rows)
            assert row[name] == pytest.approx(mean, rel=1e-4, abs=1e-5)
    assert table["top_share"].to_list() == sorted(table["top_share"], reverse=True)


def test_shares_along_the_window_add_up(lexicon: Lexicon, folder: Path) -> None:
    positions = report.position_table([open_scores(folder)], lexicon)
    tops = positions.select(
        tokens=pl.col("tokens"), top=(pl.col("tokens") * pl.col("top_share")).round().cast(pl.Int64)
    )
    every = measured_tokens(open_scores(folder)).collect()
    assert tops["tokens"].sum() == len(every)
    assert tops["top"].sum() == every["top"].sum()
    assert positions["position"].is_between(0, 400).all()
    assert set(positions["class"]) <= set(CLASSES)


def test_the_top_types_were_seen_often_enough(lexicon: Lexicon) -> None:
    table = report.top_types(lexicon, 10, least=5)
    assert len(table) == 10
    assert (table["count"] >= 5).all()
    seen = lexicon.table.filter(pl.col("count") >= 5)["significance"]
    assert table["significance"].to_list() == seen.top_k(10).sort(descending=True).to_list()


def test_every_class_that_was_measured_is_printed(lexicon: Lexicon) -> None:
    console = Console(file=io.StringIO(), width=200)
    report.print_lexicon(lexicon, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for name in report.class_table(lexicon)["class"]:
        assert name in printed


def test_the_text_of_a_token_is_printed_as_it_is(lexicon: Lexicon) -> None:
    """Brackets are no markup, and white space does not break the line."""
    texts = ["[bold]", "[/]", "\n\t", "     x", " y", "\\", "[red]z[/red]"]
    table = lexicon.table.head(len(texts)).with_columns(
        pl.Series("text", texts), pl.lit("symbol").alias("class"), count=pl.lit(5, pl.Int64)
    )
    table = table.with_columns(pl.lit(0.5, pl.Float32).alias(name) for name in list(COLUMNS)[4:])
    console = Console(file=io.StringIO(), width=300)
    report.print_lexicon(replace(lexicon, table=table), console)
    (line,) = [
        line
        for line in console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        if line.startswith("  symbol")
    ]
    assert line.split()[1:] == ["[bold]", "[/]", "\\n\\t", "␣*5x", "␣y", "\\", "[red]z[/red]"]


# The command


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["lexicon", *map(str, arguments)])


def test_the_command_writes_a_lexicon_its_tables_and_a_figure(
    folder: Path, lexicon: Lexicon, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "mine.parquet"
    result = run(folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert pl.read_parquet(out).equals(lexicon.table)
    assert (tmp_path / "new" / "mine.png").read_bytes().startswith(PNG)
    tables = json.loads((tmp_path / "new" / "mine.json").read_text())
    assert [row["class"] for row in tables["classes"]] == report.class_table(lexicon)[
        "class"
    ].to_list()
    assert {"class", "position", "tokens", "top_share"} == set(tables["positions"][0])
    assert all(row["count"] >= 3 for row in tables["types"])
    for name in ("number", "word start", "punctuation"):
        assert name in result.stdout
    assert f"--impact lexicon:{out}" in result.stdout
    assert sorted(path.suffix for path in out.parent.iterdir()) == [".json", ".parquet", ".png"]


def test_the_command_takes_several_folders_and_draws_nothing_if_told(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = write_scores(tmp_path / "other", tokenizer, random_windows(tokenizer, 2, 200, seed=9))
    out = tmp_path / "lexicon.parquet"
    result = run(folder, other, "--out", out, "--no-plots")
    assert result.exit_code == 0, result.output
    both = make_lexicon([open_scores(folder), open_scores(other)])
    assert pl.read_parquet(out).equals(both.table)
    assert not out.with_suffix(".png").exists()


def test_without_matplotlib_all_but_the_figure_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "matplotlib" else find(name, *rest),
    )
    out = tmp_path / "lexicon.parquet"
    result = run(folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert "longrecipe[plots]" in result.stderr
    assert out.exists()
    assert not out.with_suffix(".png").exists()


@pytest.mark.parametrize("suffix", [".json", ".png"])
def test_a_lexicon_is_not_written_over_by_its_own_tables(
    suffix: str, folder: Path, lexicon: Lexicon, tmp_path: Path
) -> None:
    """Whatever it is called; or the name is refused."""
    out = tmp_path / f"lexicon{suffix}"
    if run(folder, "--out", out).exit_code == 0:
        found = read_significance(out, lexicon.fingerprint)
        np.testing.assert_array_equal(found, lexicon.significance)
    else:
        assert not out.exists()


def test_the_command_names_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "nowhere", "--out", tmp_path / "lexicon.parquet")
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.exit_code, len(errors)) == (1, 1)
    assert str(tmp_path / "nowhere") in errors[0]
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=10)
@given(seed=st.integers(0, 2**16))
def test_any_scores_give_a_whole_lexicon(
    seed: int, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Few tokens of a small vocabulary: types that always, or never, are at the top."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(300, 306, size=(int(draw.integers(1, 4)), 30)).astype(np.int32)
    windows = [
        random_window(str(number), row, seed, method="contrast") for number, row in enumerate(ids)
    ]
    folder = write_scores(tmp_path_factory.mktemp("any"), tokenizer, windows, "contrast")
    lexicon = make_lexicon([open_scores(folder)])
    assert (lexicon.significance >= 0).all()
    assert (lexicon.significance <= 1).all()
    assert (lexicon.expected_gain >= 0).all()
