"""Some of the damaged corpora in each run of the tests, and that the harness sees what is wrong."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lrdata.manifest import Manifest
from tests.lrdata import fuzz
from tests.lrdata.damage import Damaged, damaged_corpus, read_lines


@pytest.mark.slow
def test_damaged_corpora_are_built_or_refused_with_a_reason() -> None:
    problems, built = [], 0
    for number, outcome, what, problem in fuzz.fuzz(range(300), workers=2):
        built += outcome == "built"
        if problem:
            problems.append(f"{number} ({what}): {problem}")
    assert problems == []
    assert built > 200  # else there is little that was checked


# The harness itself


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    fuzz.make_tokenizers(folder)
    return folder


def exact_corpus() -> tuple[int, Damaged]:
    """A corpus of which all counts are known, with records of both kinds, that makes rows."""
    for number in range(1000):
        corpus = damaged_corpus(number)
        recipe = fuzz.recipe_of(number, [Path("a")], Path("t"))
        sure = recipe.unit_bytes > 10**6 and not recipe.holdout and len(corpus.texts) > 20
        if sure and corpus.rejected and not corpus.refusable:
            return number, corpus
    raise AssertionError("no such corpus")


def test_a_true_answer_is_accepted(tokenizers: Path, tmp_path: Path) -> None:
    number, _ = exact_corpus()
    assert fuzz.answer(number, tmp_path, tokenizers)[::2] == ("built", "")


@pytest.mark.parametrize("lie", ["one more is readable", "one more is not", "another text"])
def test_a_wrong_count_or_text_is_seen(
    lie: str, tokenizers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expectation is changed, which is the same as a build that is wrong."""
    number, corpus = exact_corpus()
    first = next(name for name in corpus.texts if name.startswith("good"))
    changed = {
        "one more is readable": replace(corpus, texts={**corpus.texts, "bad.jsonl:99": "more"}),
        "one more is not": replace(corpus, rejected=(corpus.rejected or 0) + 1),
        "another text": replace(corpus, texts={**corpus.texts, first: "This was not there."}),
    }[lie]
    monkeypatch.setattr(fuzz, "damaged_corpus", lambda number: changed)
    outcome, _, problem = fuzz.answer(number, tmp_path, tokenizers)
    assert outcome == "failed"
    assert ("rows: " if lie == "another text" else "built, rejected, filtered: ") in problem


def test_an_error_that_is_not_ours_and_a_refusal_without_need_are_seen(
    tokenizers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, _ = exact_corpus()
    for problem in (ValueError("oops"), fuzz.LongRecipeError("no"), MemoryError()):

        def fails(*arguments: object, problem: Exception = problem, **options: object) -> Manifest:
            raise problem

        monkeypatch.setattr(fuzz, "build", fails)
        assert fuzz.answer(number, tmp_path, tokenizers)[0] == "failed"


@pytest.mark.parametrize(
    ("program", "seen"),
    [
        ("import os; input(); os.abort()", "the process died (-6)"),
        ("import time; input(); time.sleep(600)", "it hangs"),
    ],
)
def test_a_crash_and_a_hang_are_seen(
    program: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "SECONDS_A_CORPUS", 2)
    server = fuzz.Server(tmp_path, [sys.executable, "-c", program])
    for _ in range(2):  # a new process for the next corpus
        outcome, _, problem = server.ask(0)
        assert (outcome, problem[: len(seen)]) == ("failed", seen)


def test_the_simple_reader_of_lines() -> None:
    data = b'\xef\xbb\xbf{"text": "a"}\n\n{"text": 5}\r\n{"text": "\\ud800"}\n{"text": "\xc3"}\nx'
    assert read_lines("f", data) == ({"f:0": "a"}, 4, False)
    assert read_lines("f", b'{"body": "a"}') == ({}, 1, True)
