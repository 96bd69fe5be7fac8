"""`--impact lexicon:FILE`: significance as a few steps, and the whole build with it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata import building
from lrdata.cli import main
from lrdata.corpus import Unit
from lrdata.dataset import open_dataset
from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.impact import impact_sha256, open_scorer
from lrdata.impact.lexicon import LexiconImpact
from lrdata.lexicon import Lexicon, make_lexicon, write_lexicon
from lrdata.manifest import TokenizerEntry, read_manifest
from lrdata.recipe import BuildRecipe
from lrdata.scores import open_scores
from lrdata.shards import SCHEMA, Row, file_sha256
from lrdata.tokenizer import Tokenizer
from lrdata.unit import Job, Means, build_unit
from lrdata.windows import Document, Span, Window
from tests.corpora import content
from tests.lrdata.made_scores import made_texts, random_window, tokens_of, write_scores

TARGET = 1024


def score(significance: list[float], ids: list[int]) -> np.ndarray:
    tokens = np.array(ids, np.int32)
    span = Span(Document("d", "s", "f", 0), 0, len(ids))
    window = Window(tokens, np.zeros(0, np.int64), (span,), 0)
    return LexiconImpact(np.array(significance, np.float32)).score(window, Draws(0))


_significance = st.sampled_from([0.0, 0.0, 0.25, 1.0]) | st.floats(0, 2.0**64, width=32)


@given(st.lists(_significance | st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_scores_are_in_the_order_of_significance(significance: list[float]) -> None:
    scores = score(significance, list(range(len(significance))))
    assert scores.dtype == np.uint8
    order = np.argsort(significance, kind="stable")
    assert (np.diff(scores[order].astype(int)) >= 0).all()
    assert ((scores == 0) == (np.array(significance) == 0)).all(), "0 alone is never impactful"
    if max(significance) > 1e-20:
        assert scores.max() == 255


@given(st.data())
def test_a_token_has_the_score_of_its_type(data: st.DataObject) -> None:
    significance = data.draw(st.lists(_significance, min_size=1, max_size=20))
    ids = data.draw(st.lists(st.integers(0, len(significance) - 1)))
    table = score(significance, list(range(len(significance))))
    assert score(significance, ids).tolist() == [table[id_] for id_ in ids]


def test_steps_are_even() -> None:
    significance = np.linspace(0, 0.6, 1000)
    scores = score(significance.tolist(), list(range(1000)))
    np.testing.assert_allclose(scores, significance / 0.6 * 255, atol=1)


# The whole build


@pytest.fixture(scope="module")
def tokenizer(tiny_bos_tokenizer: Path) -> Tokenizer:
    return Tokenizer.load(str(tiny_bos_tokenizer))


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return made_texts(24, paragraphs=15)


@pytest.fixture(scope="module")
def corpus(texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "books.jsonl"
    records = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    path.write_text("\n".join(records) + "\n")
    return path


def lexicon_of(folder: Path, texts: dict[str, str], tokenizer: Tokenizer, seed: int) -> Lexicon:
    """Made of scores in which a seventh of the types, other ones for each seed, gains."""
    favoured = np.random.default_rng(seed).random(tokenizer.vocab_size) < 1 / 7
    windows = []
    for number, (name, text) in enumerate(texts.items()):
        window = random_window(name, tokens_of(tokenizer, text)[:400], number)
        gain = window.gain + 3 * favoured[window.ids].astype(np.float32)
        windows.append(window._replace(measures=(gain,)))
    return make_lexicon([open_scores(write_scores(folder, tokenizer, windows))])


@pytest.fixture(scope="module")
def lexicons(
    texts: dict[str, str], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Two files of the same name that differ."""
    folder = tmp_path_factory.mktemp("lexicons")
    paths = []
    for seed in (0, 100):
        paths.append(folder / f"{seed}" / "lexicon.parquet")
        write_lexicon(paths[-1], lexicon_of(folder / f"scores {seed}", texts, tokenizer, seed))
    return paths


class Builds:
    """`lrdata build` of the corpus with the tiny tokenizer."""

    def __init__(self, corpus: Path, tokenizer: Path) -> None:
        self.arguments = ["build", str(corpus), "--tokenizer", str(tokenizer)]
        self.arguments += ["--target-len", "1k", "--segment-tokens", "40", "--id-field", "id"]

    def run(self, out: Path, *options: str | Path, workers: int = 1) -> Any:
        arguments = [*self.arguments, "--out", str(out), "--workers", str(workers)]
        return click.testing.CliRunner().invoke(main, [*arguments, *map(str, options)])

    def make(self, out: Path, *options: str | Path, workers: int = 1) -> Path:
        result = self.run(out, *options, workers=workers)
        assert result.exit_code == 0, result.output
        return out

    def refused(self, out: Path, *options: str | Path) -> str:
        """The one line of a build that fails."""
        result = self.run(out, *options)
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert (result.exit_code, len(errors)) == (1, 1), result.output
        return errors[0]


@pytest.fixture(scope="module")
def builds(corpus: Path, tiny_bos_tokenizer: Path) -> Builds:
    return Builds(corpus, tiny_bos_tokenizer)


HOW = ("--select", "top", "--evidence", "200", "--holdout", "20%")


@pytest.fixture(scope="module")
def built(builds: Builds, lexicons: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "shards"
    return builds.make(out, "--impact", f"lexicon:{lexicons[0]}", *HOW)


def rows_of(folder: Path, *kinds: str) -> Iterator[Row]:
    shards = open_dataset(folder)
    for kind in kinds:
        for index in range(shards.rows(kind)):
            yield shards.read_row(kind, index)


def test_workers_do_not_change_a_byte(
    built: Path, builds: Builds, lexicons: list[Path], tmp_path: Path
) -> None:
    out = builds.make(tmp_path / "shards", "--impact", f"lexicon:{lexicons[0]}", *HOW, workers=2)
    assert content(out) == content(built)


def test_the_dataset_is_whole_and_has_no_gains(built: Path, lexicons: list[Path]) -> None:
    result = click.testing.CliRunner().invoke(main, ["verify", str(built), "--deep"])
    assert result.exit_code == 0, result.output
    for path in built.rglob("*.parquet"):
        assert pq.read_schema(path).names == SCHEMA.names
    manifest = read_manifest(built)
    assert manifest.impact_sha256 == file_sha256(lexicons[0])
    assert manifest.recipe["impact"] == "lexicon:lexicon.parquet"
    assert manifest.recipe["evidence"] == 200


@pytest.mark.parametrize("kind", ["extend", "holdout"])
def test_datasets_loads_it(kind: str, built: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    split = "test" if kind == "holdout" else "train"
    loaded = load_dataset(str(built), kind, split=split, cache_dir=str(tmp_path))
    assert loaded.column_names == SCHEMA.names
    assert len(loaded) == open_dataset(built).rows(kind) > 0


def test_the_most_significant_tokens_of_a_window_are_impactful(
    built: Path, tokenizer: Tokenizer, lexicons: list[Path]
) -> None:
    """Whole windows show it: a fifth, of which none is less significant than any other."""
    significance = pq.read_table(lexicons[0])["significance"].to_numpy()
    for row in rows_of(built, "holdout"):
        found = score(significance.tolist(), row.input_ids.tolist())
        mask = row.impact_mask
        assert mask.sum() == int(0.2 * TARGET)
        assert found[mask].min() >= found[~mask].max()
        assert not tokenizer.special[row.input_ids[mask]].any()


def test_rows_keep_what_is_significant(
    built: Path, builds: Builds, lexicons: list[Path], tmp_path: Path
) -> None:
    significance = pq.read_table(lexicons[0])["significance"].to_numpy()
    random = builds.make(tmp_path / "random", "--impact", "random", "--holdout", "20%")
    means = [
        np.mean([significance[row.input_ids].mean() for row in rows_of(folder, "extend")])
        for folder in (built, random)
    ]
    assert means[0] > means[1]
    for row in rows_of(built, "extend"):
        assert len(row.input_ids) == 304
        assert row.impact_mask.any()


def test_the_same_lexicon_in_another_folder_is_the_same_build(
    built: Path, builds: Builds, lexicons: list[Path], tmp_path: Path
) -> None:
    before = content(built)
    moved = shutil.copy(lexicons[0], tmp_path / "lexicon.parquet")
    builds.make(built, "--impact", f"lexicon:{moved}", *HOW)
    assert content(built) == before


def test_a_changed_lexicon_of_the_same_name_is_refused(
    built: Path, builds: Builds, lexicons: list[Path]
) -> None:
    before = content(built)
    line = builds.refused(built, "--impact", f"lexicon:{lexicons[1]}", *HOW)
    assert "impact's sha256" in line
    for path in lexicons:
        assert file_sha256(path)[:16] in line
    assert "--overwrite" in line
    assert content(built) == before


def test_a_lexicon_that_changes_between_two_builds_of_a_process_is_read_again(
    builds: Builds, lexicons: list[Path], tmp_path: Path
) -> None:
    changing = tmp_path / "lexicon.parquet"
    made = []
    for number, path in enumerate(lexicons):
        shutil.copy(path, changing)
        out = builds.make(tmp_path / f"{number}", "--impact", f"lexicon:{changing}", *HOW)
        assert read_manifest(out).impact_sha256 == file_sha256(path)
        made.append(out)
    direct = builds.make(tmp_path / "direct", "--impact", f"lexicon:{lexicons[1]}", *HOW)
    assert content(made[1] / "extend") == content(direct / "extend")
    assert content(made[0] / "extend") != content(direct / "extend")


def test_a_lexicon_that_changes_during_a_build_ends_it(
    builds: Builds, lexicons: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest names the one that the build began with. With that one back it goes on."""
    changing = tmp_path / "lexicon.parquet"
    shutil.copy(lexicons[0], changing)
    how = ("--impact", f"lexicon:{changing}", *HOW)
    planned = building.units_of

    def units_of(*found: Any) -> Any:
        shutil.copy(lexicons[1], changing)
        return planned(*found)

    with monkeypatch.context() as patched:
        patched.setattr("lrdata.building.units_of", units_of)
        assert "is not what it was when the build began" in builds.refused(tmp_path / "out", *how)
    shutil.copy(lexicons[0], changing)
    made = builds.make(tmp_path / "out", *how)
    direct = builds.make(tmp_path / "direct", "--impact", f"lexicon:{lexicons[0]}", *HOW)
    assert content(made / "extend") == content(direct / "extend")


def test_a_worker_with_another_tokenizer_builds_nothing(
    tiny_tokenizer: Path, tiny_bos_tokenizer: Path, tmp_path: Path
) -> None:
    """As on a machine of a cluster whose files are older."""
    recipe = BuildRecipe(("x.jsonl",), str(tiny_tokenizer), target_len=TARGET)
    began = Means(TokenizerEntry.of(Tokenizer.load(str(tiny_bos_tokenizer))), None)
    with pytest.raises(LongRecipeError, match="is another tokenizer here"):
        build_unit(Job(Unit(0, ()), recipe, tmp_path, began))
    assert not list(tmp_path.iterdir())


def test_a_plan_reads_the_lexicon(builds: Builds, lexicons: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "shards"
    builds.make(out, "--impact", f"lexicon:{lexicons[0]}", "--dry-run")
    assert not out.exists()
    missing = f"lexicon:{tmp_path / 'nowhere.parquet'}"
    assert "nowhere.parquet" in builds.refused(out, "--impact", missing, "--dry-run")


def test_what_cannot_be_used_is_one_line_that_names_it(
    builds: Builds, lexicons: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    (tmp_path / "notes.txt").write_text("significance")
    (tmp_path / "folder").mkdir()
    for spec, said in (
        (f"lexicon:{tmp_path / 'nowhere.parquet'}", f"there is no {tmp_path / 'nowhere.parquet'}"),
        (f"lexicon:{tmp_path / 'folder'}", f"there is no {tmp_path / 'folder'}"),
        (f"lexicon:{tmp_path / 'notes.txt'}", "cannot be read as a lexicon"),
        ("lexicon", "unknown scorer; known: digits, returns, random, none, returns:TOKENS, "),
        ("lexicon:", "unknown scorer"),
        (f"lexikon:{lexicons[0]}", "unknown scorer"),
        (f"digits:{lexicons[0]}", "unknown scorer"),
    ):
        line = builds.refused(out, "--impact", spec)
        assert said in line
        assert spec.partition(":")[2] in line
        assert not out.exists()


def test_a_lexicon_of_another_tokenizer_is_refused(
    corpus: Path, tiny_tokenizer: Path, lexicons: list[Path], tmp_path: Path
) -> None:
    """The tiny tokenizer without a start-of-text token has other ids."""
    out = tmp_path / "shards"
    line = Builds(corpus, tiny_tokenizer).refused(out, "--impact", f"lexicon:{lexicons[0]}")
    assert f"{lexicons[0]} was made for another tokenizer" in line
    assert not out.exists()


def test_the_sha256_is_of_what_is_read(lexicons: list[Path], tmp_path: Path) -> None:
    assert impact_sha256(f"lexicon:{lexicons[0]}") == file_sha256(lexicons[0])
    (tmp_path / "manifest.json").write_text("{}")
    assert impact_sha256(f"scores:{tmp_path}") == file_sha256(tmp_path / "manifest.json")
    for spec in ("digits", "random", "none"):
        assert impact_sha256(spec) is None
    with pytest.raises(LongRecipeError, match="unknown scorer"):
        impact_sha256("vibes")


def test_a_scorer_is_opened_by_its_name(tokenizer: Tokenizer, lexicons: list[Path]) -> None:
    scorer = open_scorer(f"lexicon:{lexicons[0]}", tokenizer)
    assert isinstance(scorer, LexiconImpact)
    assert not scorer.gives_lsd
