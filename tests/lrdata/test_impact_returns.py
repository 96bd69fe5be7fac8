"""Tokens that return: against a loop, and as what people type."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lrdata.building import build
from lrdata.cli import main
from lrdata.dataset import open_dataset
from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.impact import Scorer, open_scorer
from lrdata.impact.returns import Returns
from lrdata.recipe import BuildRecipe
from lrdata.tokenizer import Tokenizer
from lrdata.unit import _open_compressor
from lrdata.vocabulary import StoredVocabulary
from lrdata.windows import Document, Span, Window
from tests.conftest import generated_text

SPECIAL = 3


def vocabulary(size: int) -> StoredVocabulary:
    special = np.arange(size) == SPECIAL
    return StoredVocabulary((np.zeros(0, np.uint8), np.zeros(size + 1, np.int64)), special, SPECIAL)


def scored(scorer: Returns, ids: list[int]) -> list[bool]:
    window = Window(np.array(ids, np.int32), np.zeros(0, np.int64), (), 0)
    return scorer.score(window, Draws(0)).tolist()


def returning(ids: list[int], distance: int) -> list[bool]:
    """By the definition, a token after the other."""
    last: dict[int, int] = {}
    found = []
    for place, id_ in enumerate(ids):
        far = id_ in last and place - last[id_] >= distance
        found.append(far and id_ != SPECIAL)
        last[id_] = place
    return found


@given(st.lists(st.integers(0, 9), max_size=300), st.integers(1, 320))
def test_a_token_returns_when_it_was_last_seen_so_far_back(ids: list[int], distance: int) -> None:
    assert scored(Returns(vocabulary(10), distance), ids) == returning(ids, distance)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=80), min_size=1, max_size=6),
    st.integers(1, 100),
    st.integers(0, 1),
)
def test_masked_documents_are_as_if_each_were_alone(
    documents: list[list[int]], distance: int, lead: int
) -> None:
    spans = tuple(
        Span(Document(f"{at}", "", "", at), 0, len(ids)) for at, ids in enumerate(documents)
    )
    documents[0] = [SPECIAL] * lead + documents[0]  # a start of text belongs to the first
    ids = [id_ for document in documents for id_ in document]
    window = Window(np.array(ids, np.int32), np.zeros(0, np.int64), spans, lead)
    alone = [far for document in documents for far in returning(document, distance)]
    masked = Returns(vocabulary(10), distance, "mask")
    assert masked.score(window, Draws(0)).tolist() == alone
    assert scored(Returns(vocabulary(10), distance), ids) == returning(ids, distance)


def test_a_build_takes_the_join_for_the_scorer_too(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """One after the other in a process, which keeps scorers: documents that are all the same
    return in each other, and masked never."""
    text = " the of and to in is that it was for"
    (tmp_path / "books.jsonl").write_text((json.dumps({"text": text}) + "\n") * 200)
    marked = []
    for join in ("attend", "mask"):
        recipe = BuildRecipe(
            (str(tmp_path / "books.jsonl"),),
            str(tiny_tokenizer),
            512,
            impact="returns:8",
            join=join,
        )
        build(recipe, tmp_path / join, workers=1)
        marked.append(open_dataset(tmp_path / join).read_row("extend", 0).impact_mask.any())
    assert marked == [True, False]


def test_windows_longer_than_a_block() -> None:
    draw = np.random.default_rng(0)
    for distance in (1, 4000, 4096, 4097, 9000):
        ids = draw.zipf(1.3, 20_000).clip(0, 4999).tolist()
        assert scored(Returns(vocabulary(5000), distance), ids) == returning(ids, distance)


def test_a_window_knows_nothing_of_the_one_before_it() -> None:
    scorer = Returns(vocabulary(10), 2)
    assert scored(scorer, [1, 2, 4, 1]) == [False, False, False, True]
    assert scored(scorer, [1, 2, 4, 5]) == [False] * 4


def test_the_distance_is_a_share_of_the_window_unless_it_is_given() -> None:
    ids = [1, *[0] * 63, 1, 0]  # 66 tokens: 2 back by default
    assert scored(Returns(vocabulary(10)), ids) == returning(ids, 2)
    assert scored(Returns.open("1k", vocabulary(10)), ids) == [False] * 66


def test_two_threads_of_a_process_share_no_table(tiny_tokenizer: Path) -> None:
    """Two builds with one worker each, in a program of somebody's own."""
    tokenizer = Tokenizer.load(str(tiny_tokenizer))
    recipe = BuildRecipe(("a",), str(tiny_tokenizer), 1024, impact="returns")
    with ThreadPoolExecutor(2) as pool:
        together = threading.Barrier(2)

        def opened(_: int) -> Scorer:
            together.wait()
            return _open_compressor(recipe, tokenizer, None).scorer

        one, other = pool.map(opened, range(2))
    assert one is not other
    assert _open_compressor(recipe, tokenizer, None).scorer is (
        _open_compressor(recipe, tokenizer, None).scorer
    )


@pytest.mark.parametrize("spec", ["returns:0", "returns:far", "returns:-1", "return"])
def test_a_distance_that_is_none_is_one_line(spec: str, tiny_tokenizer: Path) -> None:
    with pytest.raises(LongRecipeError) as problem:
        open_scorer(spec, Tokenizer.load(str(tiny_tokenizer)))
    assert len(str(problem.value).splitlines()) == 1


def test_by_itself_evidence_is_as_far_back_as_returns_looks() -> None:
    def found(**options: Any) -> int:
        return BuildRecipe(("a",), "b", 4096, **options).evidence

    assert found() == found(impact="returns") == 4096 // 32
    assert found(impact="returns:1k") == 1024
    assert found(impact="digits") == found(impact="none") == found(positions="full") == 0
    assert found(evidence=0) == 0
    assert found(impact="digits", evidence=7) == 7
    with pytest.raises(LongRecipeError, match="--evidence -2 must be at least 0"):
        found(evidence=-2)
    ids = Draws(0).stream("ids").below(128, 4096).tolist()
    looks = [scored(Returns(vocabulary(128), distance), ids) for distance in (None, found(), 127)]
    assert looks[0] == looks[1] != looks[2]


def test_scores_that_rank_choose_by_rank_unless_told_otherwise() -> None:
    def chosen(impact: str, **options: str) -> str:
        return BuildRecipe(("a",), "b", 4096, impact=impact, **options).select

    assert chosen("digits") == chosen("random") == "draw"
    assert chosen("returns") == chosen("returns:1k") == "top"
    assert chosen("lexicon:a.parquet") == chosen("scores:a") == "top"
    assert chosen("returns", select="draw") == "draw"


def recipe_refused(**options: Any) -> str:
    with pytest.raises(LongRecipeError) as problem:
        BuildRecipe(("a",), "b", 1024, **options)
    message = str(problem.value)
    assert len(message.splitlines()) == 1
    return message


def test_a_distance_that_no_window_has_is_refused() -> None:
    for distance in ("1024", "1k", "2k", "1000000"):
        message = recipe_refused(impact=f"returns:{distance}")
        assert "--impact" in message
        assert "window of 1,024" in message
    for evidence in (1024, 1025, 10**6):
        message = recipe_refused(impact="returns", evidence=evidence)
        assert "--evidence" in message
        assert f"{evidence:,} tokens" in message
    assert "--impact" in recipe_refused(impact="returns:1k", positions="full")
    BuildRecipe(("a",), "b", 1024, impact="returns:1023", evidence=1023)
    BuildRecipe(("a",), "b", 1025, impact="returns:1k", evidence=1024)


def test_evidence_that_could_choose_nothing_is_refused() -> None:
    choices: list[dict[str, Any]] = [
        {"impact": "none"},
        {"impact": "returns", "positions": "full"},
        {"impact": "none", "positions": "full"},
    ]
    for options in choices:
        for evidence in (1, 500, 5000):
            assert "--evidence" in recipe_refused(**options, evidence=evidence)
        BuildRecipe(("a",), "b", 1024, **options)  # without it all is well


def test_the_command_refuses_them_in_a_line(tiny_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "books.jsonl").write_text(json.dumps({"text": "A text."}) + "\n")
    out = tmp_path / "out"
    common = ["build", str(tmp_path / "books.jsonl"), "--tokenizer", str(tiny_tokenizer)]
    common += ["--target-len", "512", "--out", str(out)]
    for options, named in (
        (["--impact", "returns:512"], "--impact"),
        (["--impact", "returns", "--evidence", "512"], "--evidence"),
        (["--impact", "none", "--evidence", "100"], "--evidence"),
        (["--positions", "full", "--evidence", "100"], "--evidence"),
    ):
        result = CliRunner().invoke(main, [*common, *options])
        assert result.exit_code == 1, result.output
        (line,) = (text for text in result.stderr.splitlines() if text.startswith("error: "))
        assert named in line
        assert not out.exists()


def test_a_build_marks_the_tokens_that_return(tiny_tokenizer: Path, tmp_path: Path) -> None:
    texts = ["".join(generated_text(40, seed)) for seed in range(6)]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "books.jsonl").write_text("".join(lines), encoding="utf-8")
    options = ["--tokenizer", str(tiny_tokenizer), "--target-len", "512", "--positions", "full"]
    for impact in ("returns", "returns:100"):
        out = tmp_path / impact.replace(":", "-")
        command = ["build", str(tmp_path / "books.jsonl"), *options, "--impact", impact]
        result = CliRunner().invoke(main, [*command, "--out", str(out), "--workers", "1"])
        assert result.exit_code == 0, result.output
        shards = open_dataset(out)
        distance = 100 if impact.endswith("100") else 16
        marks = []
        for index in range(shards.rows("extend")):
            row = shards.read_row("extend", index)
            ids = np.where(row.input_ids == shards.eot_id, SPECIAL, row.input_ids + 10).tolist()
            expected = np.array(returning(ids, distance))
            marks.append(row.impact_mask.mean())
            assert not (row.impact_mask & ~expected).any()
            if expected.sum() <= 0.2 * len(ids):
                assert row.impact_mask.tolist() == expected.tolist()
        assert max(marks) > 0
