"""What survives of a selection: counted as a loop counts it, and judged on what it did not see."""

import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from rich.console import Console

from lrdata import survival as survival_module
from lrdata.bootstrap import ratio
from lrdata.cli import main
from lrdata.errors import LongRecipeError
from lrdata.lexicon import make_lexicon, write_lexicon
from lrdata.manifest import TokenizerEntry
from lrdata.report import survival as report
from lrdata.scores import ScoredWindow, Scores, open_scores
from lrdata.survival import BUDGETS, COUNTS, Contestant, Outcome, contestants, survival
from lrdata.tokenizer import Tokenizer
from tests.lrdata.made_scores import (
    FAR,
    random_window,
    random_windows,
    scored_window,
    write_scores,
)
from tests.lrdata.test_evidence import found_slowly

DOCUMENTS, TOKENS = 10, 320
PNG = b"\x89PNG\r\n\x1a\n"
RANDOM = Contestant("random", "draw")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return Tokenizer.load(str(tiny_tokenizer))


@pytest.fixture(scope="module")
def windows(tokenizer: Tokenizer) -> list[ScoredWindow]:
    """Of each document a window with a passage that comes again."""
    found = random_windows(tokenizer, DOCUMENTS, TOKENS)
    for window in found:
        window.ids[220:280] = window.ids[40:100]
    return found


@pytest.fixture(scope="module")
def folder(
    windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_scores(tmp_path_factory.mktemp("survival") / "scores", tokenizer, windows)


@pytest.fixture(scope="module")
def scores(folder: Path) -> Scores:
    return open_scores(folder)


@pytest.fixture(scope="module")
def outcomes(scores: Scores) -> list[Outcome]:
    return survival(scores, contestants(), (0.2, 0.5))


def shares(outcome: Outcome) -> dict[str, float]:
    return {
        count: outcome.kept[at].sum() / outcome.total[at].sum() for at, count in enumerate(COUNTS)
    }


def made(folder: Path, tokenizer: Tokenizer, windows: Sequence[ScoredWindow]) -> Scores:
    return open_scores(write_scores(folder, tokenizer, windows))


def with_gain(window: ScoredWindow, gain: np.ndarray) -> ScoredWindow:
    return window._replace(measures=(gain.astype(np.float32),))


# What is counted


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What the selections keep, in the order in which they are judged."""
    kept: list[np.ndarray] = []
    select: Callable[..., np.ndarray] = survival_module._kept

    def spy(*arguments: Any) -> np.ndarray:
        kept.append(select(*arguments))
        return kept[-1]

    monkeypatch.setattr(survival_module, "_kept", spy)
    return kept


def counted_slowly(ids: np.ndarray, keys: np.ndarray, kept: np.ndarray) -> list[int]:
    """Key tokens, those with their evidence, and all tokens with theirs, of which all is kept."""
    whole = {
        token
        for token, source, length in found_slowly(ids.tolist(), FAR)
        if kept[token] and kept[source - length + 1 : source + 1].all()
    }
    return [int((keys & kept).sum()), sum(bool(keys[token]) for token in whole), len(whole)]


@pytest.mark.parametrize("other_keys", [False, True])
def test_what_is_kept_is_counted_as_a_loop_counts_it(
    other_keys: bool,
    scores: Scores,
    windows: list[ScoredWindow],
    masks: list[np.ndarray],
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    """Key tokens may come from scores that another model gave to the same windows."""
    judges, keys = windows, None
    if other_keys:
        judges = [
            random_window(window.document, window.ids, seed=500 + number)
            for number, window in enumerate(windows)
        ]
        keys = made(tmp_path, tokenizer, judges[::-1])  # in any order
    ways, budgets = contestants(), (0.1, 0.4)
    found = survival(scores, ways, budgets, keys=keys, draws=1)
    assert [(outcome.contestant, outcome.budget) for outcome in found] == [
        (way, budget) for way in ways for budget in budgets
    ]
    everything = np.ones(TOKENS, bool)
    totals = [
        counted_slowly(window.ids, judge.keys, everything)
        for window, judge in zip(windows, judges, strict=True)
    ]
    assert np.sum(totals, 0).min() > 20, "there is something of everything to count"
    kept = iter(masks)
    for outcome in found:
        assert outcome.total.T.tolist() == totals
        for number, (window, judge) in enumerate(zip(windows, judges, strict=True)):
            mask = next(kept)
            assert mask.sum() == int(outcome.budget * TOKENS)
            expected = counted_slowly(window.ids, judge.keys, mask)
            assert outcome.kept[:, number].tolist() == expected
    assert next(kept, None) is None


def test_the_same_question_has_the_same_answer(scores: Scores, outcomes: list[Outcome]) -> None:
    again = survival(scores, contestants(), (0.2, 0.5))
    assert [one.kept.tolist() for one in again] == [one.kept.tolist() for one in outcomes]
    other = survival(scores, [RANDOM], (0.2,), seed=1)
    assert other[0].kept.tolist() != outcomes[0].kept.tolist()


def test_what_is_drawn_at_random_is_the_mean_over_draws(scores: Scores) -> None:
    """Of seeds that follow each other. (A seed also deals the folds of lexicons.)"""
    ways = [way for way in contestants() if way.impact != "lexicon"]
    of_seed = [survival(scores, ways, (0.3,), seed=seed, draws=1) for seed in (4, 5, 6)]
    for place, outcome in enumerate(survival(scores, ways, (0.3,), seed=4, draws=3)):
        kept = [one[place].kept for one in of_seed]
        expected = np.mean(kept, 0) if outcome.contestant.select == "draw" else kept[0]
        np.testing.assert_allclose(outcome.kept, expected)


def test_a_larger_budget_keeps_what_a_smaller_one_keeps(
    scores: Scores, masks: list[np.ndarray]
) -> None:
    """But for the last sentence, which is cut."""
    ways = contestants()
    found = survival(scores, ways, BUDGETS, draws=1)
    kept = np.array([outcome.kept for outcome in found]).reshape(len(ways), len(BUDGETS), 3, -1)
    assert (np.diff(kept, axis=1) >= 0).all()
    of_each = np.array(masks).reshape(len(ways), len(BUDGETS), DOCUMENTS, TOKENS)
    assert (of_each[:, :-1] <= of_each[:, 1:]).all()


def test_the_whole_window_keeps_everything(scores: Scores) -> None:
    for outcome in survival(scores, contestants(), (1.0,)):
        np.testing.assert_array_equal(outcome.kept, outcome.total)


@pytest.mark.parametrize("budget", [0.0, 0.001, 0.04])
def test_a_budget_of_next_to_nothing_keeps_no_more_than_that(budget: float, scores: Scores) -> None:
    """Or is refused in the words of this command."""
    said, outcomes = answer(scores, budget)
    assert "--train-len" not in said
    assert all((outcome.kept <= budget * TOKENS).all() for outcome in outcomes)


def test_a_short_rest_of_a_document_is_judged_too(
    windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Or is refused in the words of this command: it has no --target-len."""
    rest = random_window("rest", windows[0].ids[:50], seed=0)
    said, outcomes = answer(made(tmp_path, tokenizer, [*windows, rest]), 0.5)
    assert "--" not in said
    assert all(outcome.kept.shape == (3, DOCUMENTS + 1) for outcome in outcomes)


def answer(scores: Scores, budget: float) -> tuple[str, list[Outcome]]:
    """Why random sentences cannot be judged at a budget; else nothing, and how they do."""
    try:
        return "", survival(scores, [RANDOM], (budget,))
    except LongRecipeError as problem:
        return str(problem), []


def test_random_sentences_keep_about_their_budget(tokenizer: Tokenizer, tmp_path: Path) -> None:
    scores = made(tmp_path, tokenizer, random_windows(tokenizer, 40, TOKENS, seed=3))
    for outcome in survival(scores, [RANDOM], (0.2, 0.5), segment_tokens=20):
        found = shares(outcome)
        assert found["keys"] == pytest.approx(outcome.budget, abs=0.05)
        assert found["pairs"] < found["keys"]  # two places are kept less often than one
        assert found["copies"] < outcome.budget


def test_the_draws_of_a_window_are_its_own(
    windows: list[ScoredWindow], masks: list[np.ndarray], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The same text in several documents: their random sentences are not the same ones."""
    copies = [windows[0]._replace(document=f"copy {number}") for number in range(6)]
    survival(made(tmp_path, tokenizer, copies), [RANDOM], (0.3,), draws=1)
    assert len({mask.tobytes() for mask in masks}) == 6


def test_evidence_is_kept_more_often_where_it_is_asked_for(outcomes: list[Outcome]) -> None:
    found = {(outcome.contestant, outcome.budget): shares(outcome) for outcome in outcomes}
    for impact, select in (("random", "draw"), ("lexicon", "draw"), ("scores", "top")):
        for budget in (0.2, 0.5):
            with_evidence, without = (
                found[Contestant(impact, select, evidence), budget] for evidence in (True, False)
            )
            assert with_evidence["copies"] > without["copies"]


# What a selection that knows the answer keeps


KEYS = 5
"""Key tokens of a window, each in a sentence of at most 16 tokens."""


@pytest.fixture(scope="module")
def few_keys(windows: list[ScoredWindow]) -> list[ScoredWindow]:
    """The windows with five key tokens each, always of the same type, and no other gain."""
    changed = []
    for number, window in enumerate(windows):
        ids, gain = window.ids.copy(), np.full(TOKENS, -1, np.float32)
        places = np.random.default_rng(number).choice(np.arange(FAR, TOKENS), KEYS, replace=False)
        ids[places], gain[places] = 990, 5
        changed.append(scored_window(window.document, ids, gain))
    assert not any((window.ids == 990).any() for window in windows)
    return changed


def test_a_lexicon_of_other_documents_keeps_the_tokens_that_it_learnt(
    few_keys: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    scores = made(tmp_path, tokenizer, few_keys)
    way = Contestant("lexicon", "top")
    (outcome,) = survival(scores, [way], (KEYS * 16 / TOKENS,), segment_tokens=16)
    assert outcome.total[0].tolist() == [KEYS] * DOCUMENTS
    assert outcome.kept[0].tolist() == [KEYS] * DOCUMENTS


def test_direct_scores_keep_the_key_tokens_of_another_model_that_agrees(
    few_keys: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    scores = made(tmp_path / "scores", tokenizer, few_keys)
    keys = made(tmp_path / "keys", tokenizer, [with_gain(w, w.gain - 1) for w in few_keys])
    way = Contestant("scores", "top")
    budget = (KEYS * 16 / TOKENS,)
    (outcome,) = survival(scores, [way], budget, keys=keys, segment_tokens=16)
    assert outcome.kept[0].tolist() == outcome.total[0].tolist() == [KEYS] * DOCUMENTS
    assert outcome.counted("keys") is not None


def test_direct_scores_are_not_judged_by_themselves(
    outcomes: list[Outcome], scores: Scores
) -> None:
    for outcome in outcomes:
        counted = [outcome.counted(count) is not None for count in COUNTS]
        assert counted == [outcome.contestant.impact != "scores"] * 2 + [True]


# Lexicons are judged on what they were not made from


def test_the_scores_of_a_document_do_not_choose_among_its_own_tokens(
    scores: Scores, windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Change them thoroughly: what is kept of it stays, what is kept of others does not."""
    ways = [way for way in contestants() if way.impact == "lexicon"]
    before = survival(scores, ways, (0.3,), keys=scores)
    for number in (0, 4, 9):
        own = windows[number]
        gain = np.where(own.ids % 3 == 0, 9, -9).astype(np.float32)
        changed = [*windows[:number], with_gain(own, gain), *windows[number + 1 :]]
        other = made(tmp_path / f"{number}", tokenizer, changed)
        after = survival(other, ways, (0.3,), keys=scores)
        for one, two in zip(before, after, strict=True):
            np.testing.assert_array_equal(two.total, one.total)
            np.testing.assert_array_equal(two.kept[:, number], one.kept[:, number])
        tops = [(b, a) for b, a in zip(before, after, strict=True) if b.contestant.select == "top"]
        assert all((one.kept != two.kept).any() for one, two in tops)


def test_windows_of_a_document_are_judged_together(
    windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A lexicon made from one half of a document would know the other."""
    halves = []
    for window in windows:
        for start in (0, TOKENS // 2):
            ids = window.ids[start : start + TOKENS // 2]
            halves.append(random_window(window.document, ids, seed=start, start=start))
    judge = made(tmp_path / "judge", tokenizer, halves)
    way = Contestant("lexicon", "top")
    (before,) = survival(judge, [way], (0.3,), keys=judge)
    gain = np.where(halves[0].ids % 3 == 0, 9, -9)
    other = made(tmp_path / "other", tokenizer, [with_gain(halves[0], gain), *halves[1:]])
    (after,) = survival(other, [way], (0.3,), keys=judge)
    np.testing.assert_array_equal(after.kept[:, :2], before.kept[:, :2])
    assert (after.kept[:, 2:] != before.kept[:, 2:]).any()


def test_keys_do_not_choose(
    scores: Scores,
    windows: list[ScoredWindow],
    masks: list[np.ndarray],
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    others = [
        random_window(window.document, window.ids, seed=700 + number)
        for number, window in enumerate(windows)
    ]
    survival(scores, contestants(), (0.3,))
    without = [mask.tobytes() for mask in masks]
    masks.clear()
    survival(scores, contestants(), (0.3,), keys=made(tmp_path, tokenizer, others))
    assert [mask.tobytes() for mask in masks] == without


# What is refused


def refused(scores: Scores, **options: Any) -> str:
    with pytest.raises(LongRecipeError) as caught:
        survival(scores, [RANDOM], (0.3,), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_too_few_documents_are_refused(
    windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    message = refused(made(tmp_path, tokenizer, windows[:4]))
    assert str(tmp_path) in message
    assert "4 documents" in message
    survival(made(tmp_path / "five", tokenizer, windows[:5]), [RANDOM], (0.3,))


def test_scores_without_key_tokens_are_refused(
    scores: Scores, windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    dull = made(tmp_path, tokenizer, [with_gain(w, np.minimum(w.gain, 1)) for w in windows])
    assert f"{tmp_path} has no key tokens" in refused(dull)
    assert f"{tmp_path} has no key tokens" in refused(scores, keys=dull)
    survival(dull, [RANDOM], (0.3,), keys=scores)


def test_keys_of_other_windows_are_refused(
    scores: Scores, windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    fewer = made(tmp_path / "fewer", tokenizer, windows[:-1])
    message = refused(scores, keys=fewer)
    assert str(tmp_path / "fewer") in message
    assert "doc 9 at 0" in message
    moved = made(tmp_path / "moved", tokenizer, [w._replace(start=7) for w in windows])
    assert "lacks the window" in refused(scores, keys=moved)
    # More windows than are judged do no harm.
    survival(made(tmp_path / "part", tokenizer, windows[:6]), [RANDOM], (0.3,), keys=scores)


def test_keys_of_other_tokens_are_refused(
    scores: Scores, windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Windows at the same places, by a model with another tokenizer or of another text."""
    others = [window._replace(ids=window.ids[::-1].copy()) for window in windows]
    assert str(tmp_path / "text") in refused(
        scores, keys=made(tmp_path / "text", tokenizer, others)
    )
    entry = TokenizerEntry("other", "1" * 64, "0" * 64, tokenizer.vocab_size, 0, None)
    write_scores(tmp_path / "tokenizer", tokenizer, others, tokenizer=entry)
    message = refused(scores, keys=open_scores(tmp_path / "tokenizer"))
    assert str(tmp_path / "tokenizer") in message


# What a person looks at


def test_ways_have_names_of_their_own() -> None:
    ways = contestants(["a/books.parquet", "code.parquet"])
    assert len({str(way) for way in ways}) == len(ways) == 18
    assert str(Contestant("lexicon:a/books.parquet", "top", True)) == "lexicon books, top, evidence"
    assert str(RANDOM) == "random, draw"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/books.parquet", "b/books.parquet"], ["a/books", "b/books"]),
        (["books.parquet", "x/a/books.parquet", "y/a/books.parquet"], [None, "x/a/books", None]),
        (["a/books.parquet", "a/books.lexicon"], ["a/books.parquet", "a/books.lexicon"]),
        (["/books.parquet", "/a/../a/books.parquet"], ["books", "a/books"]),
        (["a/books.parquet", "a/code.parquet"], ["books", "code"]),
    ],
)
def test_lexicons_of_one_name_are_told_apart(paths: list[str], names: list[str | None]) -> None:
    ways = contestants(paths)
    assert len({str(way) for way in ways}) == len(ways)
    found = [way.name for way in ways if ":" in way.impact and not way.evidence]
    assert len(found) == len(names)
    for name, expected in zip(found, names, strict=True):
        assert expected in (None, name.removeprefix("lexicon "))


def test_shares_and_times_random_are_ratios_of_sums(outcomes: list[Outcome]) -> None:
    """Over documents; here each has a window."""
    for outcome in outcomes:
        random = report.baseline(outcomes, outcome)
        assert (random.contestant, random.budget) == (RANDOM, outcome.budget)
        for at, count in enumerate(COUNTS):
            found = report.share(outcome, count)
            if outcome.counted(count) is None:
                assert found is report.against(outcome, random, count) is None
                continue
            assert found == ratio(outcome.kept[at], outcome.total[at].astype(float))
            assert found is not None
            assert 0 <= found.low <= found.value <= found.high <= 1
            times, least = report.against(outcome, random, count), random.kept[at].sum()
            assert (times is None) == (least == 0)
            assert times is None or times.value == outcome.kept[at].sum() / least
    assert report.against(outcomes[0], outcomes[0], "keys") == (1, 1, 1)


def test_windows_of_a_document_are_one_unit_of_the_bootstrap(
    windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """In whatever order they come, and however many a document has."""
    parts = []
    for number, window in enumerate(windows):
        for start in range(0, TOKENS, 80 if number % 2 else 160):
            ids = window.ids[start : start + (80 if number % 2 else 160)]
            parts.append(random_window(window.document, ids, seed=start, start=start))
    parts = [parts[place] for place in np.random.default_rng(0).permutation(len(parts))]
    assert len(parts) == 30
    scores = made(tmp_path, tokenizer, parts)
    ways = [RANDOM, Contestant("lexicon", "top")]
    for outcome in survival(scores, ways, (0.3,)):
        assert outcome.kept.shape == outcome.total.shape == (3, 30)
        for at, count in enumerate(COUNTS):
            of_document: dict[str, list[float]] = {}
            for number, part in enumerate(parts):
                sums = of_document.setdefault(part.document, [0, 0])
                sums[0] += outcome.kept[at, number]
                sums[1] += outcome.total[at, number]
            kept, total = np.array([of_document[name] for name in sorted(of_document)]).T
            counted = outcome.counted(count)
            assert counted is not None
            assert len(counted[0]) == len(counted[1]) == DOCUMENTS
            np.testing.assert_allclose(counted[0], kept)
            np.testing.assert_allclose(counted[1], total)
            assert report.share(outcome, count) == pytest.approx(ratio(kept, total))


def test_more_windows_of_the_same_documents_do_not_narrow_an_interval(
    windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Nine copies of each window say nothing new; of other documents they would."""
    once = survival(made(tmp_path / "once", tokenizer, windows), [RANDOM], (0.3,))[0]
    total, kept = np.tile(once.total, 9), np.tile(once.kept, 9)
    copies = np.tile(once.documents, 9)
    same = replace(once, total=total, kept=kept, documents=copies)
    others = replace(same, documents=np.arange(9 * DOCUMENTS))
    for count in COUNTS:
        found = report.share(once, count)
        narrow = report.share(others, count)
        assert found is not None
        assert narrow is not None
        assert report.share(same, count) == pytest.approx(found)
        assert narrow.high - narrow.low < 0.7 * (found.high - found.low)


def test_a_short_context_beyond_a_thousand_tokens_is_judged(
    windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """As of every model with a long window: by default 4,096 tokens and a stride of 1,024."""
    long = [
        random_window(f"doc {number}", np.tile(window.ids, 5), seed=number)
        for number, window in enumerate(windows)
    ]
    recipe = {"short_context": 1100, "stride": 100, "seed": 0}
    folder = write_scores(tmp_path, tokenizer, long, recipe=recipe)
    for outcome in survival(open_scores(folder), contestants(), (0.3,)):
        assert outcome.total[0].all()


def test_the_tables_as_json_hold_what_each_window_kept(outcomes: list[Outcome]) -> None:
    rows = json.loads(json.dumps(report.as_json(outcomes)))
    assert len(rows) == len(outcomes)
    for row, outcome in zip(rows, outcomes, strict=True):
        assert row["kept"] == outcome.kept.tolist()
        assert row["total"] == outcome.total.tolist()
        assert (row["budget"], row["evidence"]) == (outcome.budget, outcome.contestant.evidence)
        assert (row["keys"] is None) == (row["impact"] == "scores")
        assert row["copies"][0] == pytest.approx(shares(outcome)["copies"])


def test_a_way_that_is_none_is_refused_by_name(scores: Scores) -> None:
    """It was judged as random sentences."""
    with pytest.raises(LongRecipeError, match="--impact digit: unknown scorer; known: digits, "):
        survival(scores, [Contestant("digit", "draw")], (0.3,))


def printed(outcomes: Sequence[Outcome]) -> str:
    console = Console(file=io.StringIO(), width=200)
    report.print_survival(outcomes, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_way_is_printed_with_its_shares(outcomes: list[Outcome]) -> None:
    text = printed(outcomes)
    for way in contestants():
        times = text.count(f" {way} ")
        assert times == (1 if way.impact == "scores" else 3), "a row in each table that judges it"
    for title in report.TITLES.values():
        assert title.capitalize() in text
    for outcome in outcomes:
        assert f"{shares(outcome)['copies']:.3f}" in text
    assert "20%" in text
    assert "50%" in text


def test_the_legend_names_every_line_that_any_panel_holds(
    outcomes: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, in the order of the ways: `scores` has no line in the first panels, and one in the
    last."""
    figures: list[Figure] = []
    real = Figure.savefig

    def spy(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        real(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    report.plot_survival(outcomes, tmp_path / "survival.png")
    (figure,) = figures
    drawn = [set(panel.get_legend_handles_labels()[1]) for panel in figure.axes]
    (legend,) = (found for panel in figure.axes if (found := panel.get_legend()) is not None)
    named = [text.get_text() for text in legend.get_texts()]
    assert set(named) == set.union(*drawn) > drawn[0]
    assert named == [str(way) for way in contestants()]
    looks = [(line.get_color(), line.get_linestyle()) for line in legend.get_lines()]
    assert len(looks) == len(named)
    for panel in figure.axes:
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True):
            look = (line.get_color(), line.get_linestyle())  # type: ignore[attr-defined]
            assert look == looks[named.index(label)]


def test_text_in_which_nothing_comes_twice_is_judged_too(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """No copies: their tables and panels are empty, and all the rest is there."""
    windows = [
        random_window(f"doc {number}", np.arange(300, 300 + TOKENS) + number, seed=number)
        for number in range(6)
    ]
    scores = made(tmp_path / "scores", tokenizer, windows)
    outcomes = survival(scores, contestants(), (0.3,))
    assert not any(outcome.total[1:].any() for outcome in outcomes)
    assert "lexicon, top, evidence" in printed(outcomes)
    report.plot_survival(outcomes, tmp_path / "survival.png")
    assert (tmp_path / "survival.png").read_bytes().startswith(PNG)
    assert all(row["copies"] is None for row in report.as_json(outcomes))


# The command


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["survival", *map(str, arguments)])


def refused_line(*arguments: str | Path) -> str:
    result = run(*arguments)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.exit_code, len(errors)) == (1, 1), result.output
    return errors[0]


def test_the_command_writes_its_tables_and_a_figure(
    folder: Path, outcomes: list[Outcome], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "survival"
    result = run(folder, "--out", out, "--budgets", "50%,20%")
    assert result.exit_code == 0, result.output
    rows = json.loads((out / "survival.json").read_text())
    assert rows == json.loads(json.dumps(report.as_json(outcomes)))
    assert (out / "survival.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in out.iterdir()) == ["survival.json", "survival.png"]
    for title in report.TITLES.values():
        assert title.capitalize() in result.stdout
    assert f"{out} holds survival.json and survival.png" in result.stdout.replace("\n", "")


def test_the_command_judges_other_lexicons_by_other_keys(
    folder: Path,
    windows: list[ScoredWindow],
    scores: Scores,
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    others = [random_window(w.document, w.ids, seed=900 + at) for at, w in enumerate(windows)]
    keys = write_scores(tmp_path / "keys", tokenizer, others)
    write_lexicon(tmp_path / "books.parquet", make_lexicon([scores]))
    out = tmp_path / "out"
    options: list[str | Path] = [
        "--lexicon",
        tmp_path / "books.parquet",
        "--keys",
        keys,
        "--budgets",
        "0.3",
    ]
    result = run(folder, "--out", out, *options, "--no-plots", "--seed", "3")
    assert result.exit_code == 0, result.output
    assert [path.name for path in out.iterdir()] == ["survival.json"]
    assert "survival.png" not in result.stdout
    rows = json.loads((out / "survival.json").read_text())
    names = [(row["impact"], row["select"], row["evidence"]) for row in rows]
    assert ("lexicon books", "top", False) in names
    assert ("lexicon books", "top", True) in names
    expected = survival(
        scores,
        contestants([str(tmp_path / "books.parquet")]),
        (0.3,),
        keys=open_scores(keys),
        seed=3,
    )
    assert [row["kept"] for row in rows] == [outcome.kept.tolist() for outcome in expected]
    assert all(row["keys"] is not None for row in rows)


def test_without_matplotlib_all_but_the_figure_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "matplotlib" else find(name, *rest),
    )
    result = run(folder, "--out", tmp_path / "out", "--budgets", "30%")
    assert result.exit_code == 0, result.output
    assert "longrecipe[plots]" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["survival.json"]
    assert "survival.png" not in result.stdout


def test_the_command_names_what_is_wrong(
    folder: Path, windows: list[ScoredWindow], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    few = write_scores(tmp_path / "few", tokenizer, windows[:3])
    out = tmp_path / "out"
    cases: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "nowhere"], f"{tmp_path / 'nowhere'} holds no scores"),
        ([few], "3 documents, too few"),
        ([folder, "--keys", few], f"{few} lacks the window of doc 3"),
        ([folder, "--keys", tmp_path / "nowhere"], f"{tmp_path / 'nowhere'} holds no scores"),
        ([folder, "--lexicon", few / "scores.parquet"], "is no lexicon"),
        ([folder, "--lexicon", tmp_path / "nowhere"], "cannot be read as a lexicon"),
        ([folder, "--budgets", "10%,lots"], "'lots' is not a share"),
        ([folder, "--budgets", "130%"], "'130%' is not between 0 and 100 %"),
    ]
    for arguments, said in cases:
        assert said in refused_line(*arguments, "--out", out)
        assert not out.exists()
