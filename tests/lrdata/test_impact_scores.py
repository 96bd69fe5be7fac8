"""`--impact scores:DIR`: each token has what models said of it, in windows and in whole builds."""

import json
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from lrdata.cli import main
from lrdata.dataset import open_dataset
from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.impact import open_scorer
from lrdata.impact.scores import DirectScores
from lrdata.lexicon import make_lexicon
from lrdata.manifest import TokenizerEntry, read_manifest
from lrdata.scores import ScoredWindow, open_scores
from lrdata.shards import LSD_FIELD, SCHEMA, Row, file_sha256
from lrdata.tokenizer import Tokenizer
from lrdata.windows import Document, Span, Window
from tests.corpora import content
from tests.lrdata.made_scores import (
    made_texts,
    random_window,
    scored_window,
    tokens_of,
    write_scores,
)

TARGET = 1024
BOS = 3  # of the windows made here


@pytest.fixture(scope="module")
def tokenizer(tiny_bos_tokenizer: Path) -> Tokenizer:
    return Tokenizer.load(str(tiny_bos_tokenizer))


def window_of(parts: Sequence[tuple[str, int, np.ndarray]], lead: int = 0) -> Window:
    """A window of parts of documents: (document, first token, ids) each."""
    spans = tuple(
        Span(Document(name, "s", f"{name}.txt", 0), start, len(ids)) for name, start, ids in parts
    )
    ids = np.concatenate([[BOS] * lead, *(ids for *_, ids in parts)]).astype(np.int32)
    return Window(ids, np.zeros(0, np.int64), spans, lead)


def scorer_of(
    folder: Path,
    tokenizer: Tokenizer,
    windows: Sequence[ScoredWindow],
    expected_gain: np.ndarray | None = None,
    method: str = "lsd",
) -> DirectScores:
    if expected_gain is None:
        expected_gain = np.zeros(tokenizer.vocab_size, np.float32)
    write_scores(folder, tokenizer, windows, method)
    return DirectScores(open_scores(folder), expected_gain)


# Windows of known scores


def test_a_token_has_its_gain_or_else_what_its_type_may_be_expected_to_gain(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    expected = np.arange(tokenizer.vocab_size, dtype=np.float32) / 1000
    gains = [np.nan, 2.5, -1.0, 0.0, np.nan, 0.125]
    scored = scored_window("a", np.arange(400, 406), gains, start=10)
    scorer = scorer_of(tmp_path, tokenizer, [scored], expected)
    ids = np.arange(398, 408)  # two tokens before what was scored, two after
    window = window_of([("a", 8, ids), ("b", 0, np.arange(500, 503))], lead=1)
    scores = scorer.score(window, Draws(0))
    assert scores.dtype == np.float32
    known = [0.4, 2.5, 0, 0, 0.404, 0.125]
    wanted = [0.003, 0.398, 0.399, *known, 0.406, 0.407, 0.5, 0.501, 0.502]
    np.testing.assert_allclose(scores, wanted, rtol=1e-6)
    lsd = scorer.lsd(window)
    assert lsd.dtype == np.float16
    nan = np.nan
    np.testing.assert_array_equal(lsd, [nan, nan, nan, *gains, nan, nan, nan, nan, nan])


@pytest.fixture(scope="module")
def documents() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.integers(300, 999, 200).astype(np.int32) for name in ("a", "b", "c")}


@st.composite
def cuts(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Parts of the documents: (document, start, stop)."""
    parts = []
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, 199))
        stop = draw(st.integers(start + 1, 200))
        parts.append((draw(st.sampled_from(["a", "b", "c"])), start, stop))
    return parts


@settings(max_examples=40)
@given(
    edges=st.dictionaries(
        st.sampled_from(["a", "b", "c"]), st.lists(st.integers(0, 200), min_size=2, max_size=8)
    ),
    windows=st.lists(cuts(), min_size=1, max_size=3),
    lead=st.integers(0, 1),
    seed=st.integers(0, 2**16),
)
def test_gains_are_found_wherever_a_window_is_cut(
    edges: dict[str, list[int]],
    windows: list[list[tuple[str, int, int]]],
    lead: int,
    seed: int,
    documents: dict[str, np.ndarray],
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Every other stretch between the edges was scored."""
    scored: list[ScoredWindow] = []
    known: dict[tuple[str, int], float] = {}
    for name, cut_at in edges.items():
        ordered = sorted(set(cut_at))
        for start, stop in zip(ordered[::2], ordered[1::2], strict=False):
            ids = documents[name][start:stop]
            scored.append(random_window(name, ids, seed, start=start))
            known |= {(name, start + at): gain for at, gain in enumerate(scored[-1].gain)}
    expected = np.random.default_rng(seed).random(tokenizer.vocab_size).astype(np.float32)
    scorer = scorer_of(tmp_path_factory.mktemp("scores"), tokenizer, scored, expected)
    for parts in windows:
        window = window_of([(name, a, documents[name][a:b]) for name, a, b in parts], lead)
        places = [(name, at) for name, start, stop in parts for at in range(start, stop)]
        gains = np.array([np.nan] * lead + [known.get(place, np.nan) for place in places], "f4")
        np.testing.assert_array_equal(scorer.lsd(window), gains.astype(np.float16))
        wanted = np.where(np.isnan(gains), expected[window.ids], np.fmax(gains, 0))
        np.testing.assert_array_equal(scorer.score(window, Draws(0)), wanted)


def test_a_long_document_is_read_in_any_order(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """More scored windows than are kept in memory."""
    ids = np.random.default_rng(0).integers(300, 999, 4000).astype(np.int32)
    gain = np.arange(4000, dtype=np.float32)
    scored = [
        scored_window("a", ids[at : at + 100], gain[at : at + 100], start=at)
        for at in range(0, 4000, 100)
    ]
    scorer = scorer_of(tmp_path, tokenizer, scored)
    for start in (0, 3900, 50, 2000, 0):
        stop = min(start + 2500, 4000)
        window = window_of([("a", start, ids[start:stop])])
        np.testing.assert_array_equal(scorer.score(window, Draws(0)), gain[start:stop])


def test_another_text_under_the_same_id_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = np.arange(400, 420, dtype=np.int32)
    scorer = scorer_of(tmp_path, tokenizer, [scored_window("a", ids, np.ones(20), start=100)])
    other = ids.copy()
    other[7] = 999
    for call in (lambda window: scorer.score(window, Draws(0)), scorer.lsd):
        with pytest.raises(LongRecipeError, match="another text of a than the corpus") as caught:
            call(window_of([("a", 100, other)]))
        assert str(tmp_path) in str(caught.value)
    # Where nothing was scored, nothing is known to differ.
    assert np.isnan(scorer.lsd(window_of([("a", 80, other), ("b", 100, other)]))).all()


def test_only_gains_of_longer_context_are_an_lsd(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = np.arange(400, 420, dtype=np.int32)
    for method in ("lsd", "contrast"):
        scored = scored_window("a", ids, np.ones(20), method=method)
        scorer = scorer_of(tmp_path / method, tokenizer, [scored], method=method)
        assert scorer.gives_lsd == (method == "lsd")
        assert scorer.score(window_of([("a", 0, ids)]), Draws(0)).tolist() == [1] * 20


def test_a_folder_is_opened_with_the_lexicon_of_its_own_scores(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    windows = [
        random_window(name, tokens_of(tokenizer, text)[:300], seed=0)
        for name, text in made_texts(3, paragraphs=10).items()
    ]
    write_scores(tmp_path, tokenizer, windows)
    scorer = open_scorer(f"scores:{tmp_path}", tokenizer)
    expected = make_lexicon([open_scores(tmp_path)]).expected_gain
    ids = np.arange(300, 600, dtype=np.int32)
    found = scorer.score(window_of([("new", 0, ids)]), Draws(0))
    np.testing.assert_array_equal(found, expected[ids])


# The whole build


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return made_texts(24, paragraphs=15, seed=1)


@pytest.fixture(scope="module")
def corpus(texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "books.jsonl", texts)


def write_corpus(path: Path, texts: dict[str, str]) -> Path:
    records = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    path.write_text("\n".join(records) + "\n")
    return path


def scored_parts(
    texts: dict[str, str], tokenizer: Tokenizer, method: str = "lsd"
) -> list[ScoredWindow]:
    """Windows of three of four documents, of other lengths than those of the build; every other
    document lacks its second one."""
    windows = []
    for number, (name, text) in enumerate(texts.items()):
        ids = tokens_of(tokenizer, text)
        for part, start in enumerate(range(0, len(ids), 300)):
            if number % 4 == 3 or (number % 2 and part == 1):
                continue
            piece = ids[start : start + 300]
            windows.append(random_window(name, piece, number, start=start, method=method))
    return windows


@pytest.fixture(scope="module")
def windows(texts: dict[str, str], tokenizer: Tokenizer) -> list[ScoredWindow]:
    return scored_parts(texts, tokenizer)


@pytest.fixture(scope="module")
def folder(
    windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_scores(tmp_path_factory.mktemp("lsd") / "scores", tokenizer, windows)


@pytest.fixture(scope="module")
def common(corpus: Path, tiny_bos_tokenizer: Path) -> list[str]:
    """The options of all builds here."""
    arguments = ["build", str(corpus), "--tokenizer", str(tiny_bos_tokenizer), "--id-field", "id"]
    arguments += ["--target-len", "1k", "--segment-tokens", "40", "--holdout", "20%"]
    return [*arguments, "--replay", str(corpus), "--evidence", "100"]


def build(common: list[str], out: Path, *options: str, workers: int = 1) -> Path:
    result = run(common, out, *options, workers=workers)
    assert result.exit_code == 0, result.output
    return out


def run(common: list[str], out: Path, *options: str, workers: int = 1) -> Any:
    arguments = [*common, "--out", str(out), "--workers", str(workers), *options]
    return CliRunner().invoke(main, arguments)


def refused(common: list[str], out: Path, *options: str) -> str:
    """The one line of a build that fails."""
    result = run(common, out, *options)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.exit_code, len(errors)) == (1, 1), result.output
    return errors[0]


@pytest.fixture(scope="module")
def built(common: list[str], folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(
        common, tmp_path_factory.mktemp("built") / "shards", "--impact", f"scores:{folder}"
    )


def rows_of(folder: Path, kind: str) -> Iterator[Row]:
    shards = open_dataset(folder)
    return (shards.read_row(kind, index) for index in range(shards.rows(kind)))


def places_of(row: Row) -> list[tuple[str, int] | None]:
    """Where each token of a row came from: (document, token of it); None for the start of text."""
    window: list[tuple[str, int] | None] = [None]
    for name, start, length in zip(row.doc_ids, row.doc_offsets, row.doc_lengths, strict=True):
        window += islice(((name, at) for at in count(int(start))), int(length))
    assert len(window) == row.window_tokens
    pieces = zip(row.segment_starts.tolist(), row.segment_lengths.tolist(), strict=True)
    return [place for start, length in pieces for place in window[start : start + length]]


@pytest.mark.parametrize("kind", ["extend", "holdout"])
def test_every_token_of_a_row_has_its_own_gain(
    kind: str, built: Path, windows: list[ScoredWindow]
) -> None:
    known = {
        (window.document, window.start + at): gain
        for window in windows
        for at, gain in enumerate(window.gain.astype(np.float16))
    }
    measured = tokens = 0
    for row in rows_of(built, kind):
        assert row.lsd is not None
        gains = [known.get(place, np.nan) if place else np.nan for place in places_of(row)]
        np.testing.assert_array_equal(row.lsd, np.array(gains, np.float16))
        measured, tokens = measured + np.isfinite(row.lsd).sum(), tokens + len(row.lsd)
        # What is impactful gains, or is a token of which nothing is known but its type.
        assert not (row.lsd[row.impact_mask] <= 0).any()
    assert 0.2 * tokens < measured < 0.9 * tokens
    if kind == "extend":
        assert read_manifest(built).ledger.scored == measured


def test_rows_keep_what_gains(built: Path, common: list[str], tmp_path: Path) -> None:
    """More of it than at random: the mean of the gains that are above 0."""

    def mean(folder: Path, known: dict[tuple[str, int], float]) -> float:
        gains = [
            known[place]
            for row in rows_of(folder, "extend")
            for place in places_of(row)
            if place in known
        ]
        return float(np.mean(gains))

    known: dict[tuple[str, int], float] = {}
    for kind in ("extend", "holdout"):
        for row in rows_of(built, kind):
            assert row.lsd is not None
            known |= {
                place: max(float(gain), 0.0)
                for place, gain in zip(places_of(row), row.lsd, strict=True)
                if place is not None and np.isfinite(gain)
            }
    random = build(common, tmp_path / "random", "--impact", "random")
    assert mean(built, known) > mean(random, known)


def test_workers_do_not_change_a_byte(
    built: Path, common: list[str], folder: Path, tmp_path: Path
) -> None:
    out = build(common, tmp_path / "shards", "--impact", f"scores:{folder}", workers=2)
    assert content(out) == content(built)


def test_the_dataset_is_whole_and_its_column_is_there(built: Path, folder: Path) -> None:
    result = CliRunner().invoke(main, ["verify", str(built), "--deep"])
    assert result.exit_code == 0, result.output
    assert read_manifest(built).impact_sha256 == file_sha256(folder / "manifest.json")
    assert read_manifest(built).recipe["impact"] == "scores:scores"
    for kind in ("extend", "holdout", "replay"):
        for path in (built / kind).iterdir():
            names = SCHEMA.names if kind == "replay" else [*SCHEMA.names, "lsd"]
            assert pq.read_schema(path).names == names
            if kind != "replay":
                assert pq.read_schema(path).field("lsd").equals(LSD_FIELD)


@pytest.mark.parametrize("kind", ["extend", "holdout", "replay"])
def test_datasets_loads_it(kind: str, built: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    split = "test" if kind == "holdout" else "train"
    loaded = load_dataset(str(built), kind, split=split, cache_dir=str(tmp_path))
    assert len(loaded) == open_dataset(built).rows(kind) > 0
    assert ("lsd" in loaded.column_names) == (kind != "replay")
    if kind != "replay":
        first = next(rows_of(built, kind))
        np.testing.assert_array_equal(np.array(loaded[0]["lsd"], np.float16), first.lsd)


def test_the_facts_of_the_dataset_name_its_columns(built: Path) -> None:
    """croissant.json and the card describe the files as they are."""
    facts = json.loads((built / "croissant.json").read_text())
    for record_set in facts["recordSet"]:
        names = [entry["name"] for entry in record_set["field"]]
        (path, *_) = (built / record_set["name"]).iterdir()
        assert names == pq.read_schema(path).names
    assert "`lsd`" in (built / "README.md").read_text()


def test_scores_of_a_contrast_choose_and_give_no_column(
    common: list[str], texts: dict[str, str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    windows = scored_parts(texts, tokenizer, "contrast")
    write_scores(tmp_path / "scores", tokenizer, windows, "contrast")
    out = build(common, tmp_path / "out", "--impact", f"scores:{tmp_path / 'scores'}")
    for path in out.rglob("*.parquet"):
        assert pq.read_schema(path).names == SCHEMA.names
    assert CliRunner().invoke(main, ["verify", str(out)]).exit_code == 0
    assert read_manifest(out).ledger.scored == 0


def test_documents_are_found_by_the_names_that_the_corpus_gives_them(
    corpus: Path,
    tiny_bos_tokenizer: Path,
    texts: dict[str, str],
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    """Without --id-field these are file and record."""
    common = ["build", str(corpus), "--tokenizer", str(tiny_bos_tokenizer), "--target-len", "1k"]
    plain = build(common, tmp_path / "plain")
    names = dict.fromkeys(name for row in rows_of(plain, "extend") for name in row.doc_ids)
    windows = [
        random_window(name, tokens_of(tokenizer, text), seed=0)
        for name, text in zip(names, texts.values(), strict=False)
    ]
    write_scores(tmp_path / "scores", tokenizer, windows)
    out = build(common, tmp_path / "out", "--impact", f"scores:{tmp_path / 'scores'}")
    assert any(np.isfinite(row.lsd).any() for row in rows_of(out, "extend") if row.lsd is not None)


def test_changed_scores_of_the_same_name_are_refused(
    built: Path,
    common: list[str],
    windows: list[ScoredWindow],
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    before = content(built)
    changed = write_scores(tmp_path / "scores", tokenizer, windows[:-1])
    line = refused(common, built, "--impact", f"scores:{changed}")
    assert "impact's sha256" in line
    assert "--overwrite" in line
    assert content(built) == before


def test_another_text_of_the_corpus_is_one_line(
    common: list[str], folder: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    other = write_corpus(
        tmp_path / "books.jsonl",
        {
            name: text.replace("the", "a") if name == "doc 4" else text
            for name, text in texts.items()
        },
    )
    arguments = [common[0], str(other), *common[2:]]
    for workers in (1, 2):
        result = run(arguments, tmp_path / "out", "--impact", f"scores:{folder}", workers=workers)
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert result.exit_code == 1
        assert f"{folder} scored another text of doc 4" in line
        assert not (tmp_path / "out").exists()


def test_what_cannot_be_used_is_one_line_that_names_it(
    common: list[str],
    folder: Path,
    windows: list[ScoredWindow],
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    out = tmp_path / "shards"
    entry = TokenizerEntry("other", "1" * 64, "0" * 64, tokenizer.vocab_size, 0, None)
    other = write_scores(tmp_path / "other", tokenizer, windows[:3], tokenizer=entry)
    damaged = write_scores(tmp_path / "damaged", tokenizer, windows[:3])
    data = bytearray((damaged / "scores.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / "scores.parquet").write_bytes(data)
    (tmp_path / "empty").mkdir()
    for spec, said in (
        (f"scores:{tmp_path / 'nowhere'}", f"there is no {tmp_path / 'nowhere'}"),
        (f"scores:{tmp_path / 'empty'}", f"there is no {tmp_path / 'empty'}"),
        (f"scores:{damaged}", "damaged"),
        (f"scores:{other}", "scores of another tokenizer's tokens"),
        ("scores", "unknown scorer"),
    ):
        line = refused(common, out, "--impact", spec)
        assert said in line
        assert spec.partition(":")[2] in line
        assert not out.exists()


def test_lsd_is_a_list_of_half_floats_to_other_readers(built: Path) -> None:
    table = pq.read_table(next((built / "extend").iterdir()))
    assert table["lsd"].type.value_type == pa.float16()
    assert table["lsd"].null_count == 0
    lengths = [len(gains) for gains in table["lsd"]]
    assert lengths == [len(ids) for ids in table["input_ids"]]
