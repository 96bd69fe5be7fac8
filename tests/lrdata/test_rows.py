"""Rows: what is kept of a window is its own, its evidence with it, and what models say of it."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrdata.draws import Draws
from lrdata.impact import Scorer
from lrdata.impact.none import NoImpact
from lrdata.positions import OF_THE_WINDOW
from lrdata.recipe import BuildRecipe
from lrdata.rows import Compressor
from lrdata.shards import LSD_FIELD, SCHEMA, Row
from lrdata.tokenizer import Tokenizer
from lrdata.windows import Document, Span, Tokens, Window, WindowJoiner


@pytest.mark.parametrize("positions", ["longrecipe", "source", "full"])
def test_a_row_does_not_keep_the_memory_of_its_window(tiny_tokenizer: Path, positions: str) -> None:
    """A window may be a view of a whole batch, and rows wait for their page."""
    recipe = BuildRecipe(("c",), str(tiny_tokenizer), 64, positions=positions)
    compressor = Compressor.open(recipe, Tokenizer.load(str(tiny_tokenizer)))
    batch = np.arange(100, dtype=np.int32)
    run = Tokens(batch, np.arange(4, 100, 5))
    (window,) = WindowJoiner(64, None).add(Document("d", "s", "f", 0), run, 0, 70)
    for row in (compressor.row(window), compressor.holdout_row(window)):
        held = [getattr(row, field.name) for field in fields(Row)]
        arrays = [value for value in held if isinstance(value, np.ndarray)]
        assert len(arrays) == 9
        assert not any(np.shares_memory(array, batch) for array in arrays)


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("scheme", OF_THE_WINDOW)
def test_schemes_of_the_window_take_the_tokens_at_their_positions(scheme: str, lead: int) -> None:
    window = window_of(np.arange(100, 1100 - lead), lead=lead)
    recipe = BuildRecipe(("c",), "t", 1000, positions=scheme, impact="none")
    compressor = Compressor(recipe, NoImpact())
    rows = [
        compressor.row(replace(window, spans=(Span(Document("d", "s", "f", n), 0, 1000 - lead),)))
        for n in range(20)
    ]
    for row in rows:
        assert len(row.input_ids) == recipe.train_len
        np.testing.assert_array_equal(row.input_ids, window.ids[row.position_ids])
        assert row.position_ids[0] == 0
        assert row.position_ids[-1] == 999, "the real end of the window"
        pieces = zip(row.segment_starts, row.segment_lengths, strict=True)
        places = [np.arange(start, start + length) for start, length in pieces]
        np.testing.assert_array_equal(np.concatenate(places), row.position_ids)
        assert len(places) == 1 + np.count_nonzero(np.diff(row.position_ids) > 1)
    drawn = {tuple(row.position_ids.tolist()) for row in rows}
    assert len(drawn) == 1 if scheme == "endprompt" else len(drawn) > 10


@pytest.mark.parametrize("lead", [0, 1])
def test_pose_takes_two_chunks_of_the_window(lead: int) -> None:
    """The first from its beginning, the second from anywhere behind, as PoSE's authors do."""
    window = window_of(np.arange(100, 1100 - lead), lead=lead)
    recipe = BuildRecipe(("c",), "t", 1000, positions="pose", impact="none")
    rows = [
        Compressor(recipe, NoImpact()).row(
            replace(window, spans=(Span(Document("d", "s", "f", n), 0, 1000 - lead),))
        )
        for n in range(40)
    ]
    seconds = []
    for row in rows:
        pieces = zip(row.segment_starts, row.segment_lengths, strict=True)
        places = np.concatenate([np.arange(start, start + length) for start, length in pieces])
        np.testing.assert_array_equal(row.input_ids, window.ids[places])
        assert len(places) == recipe.train_len
        assert places[0] == 0
        (cut,) = np.flatnonzero(np.diff(places) > 1).tolist() or [None]
        jumps = np.flatnonzero(np.diff(row.position_ids) > 1).tolist()
        assert jumps in ([], [cut]), "positions jump where the text does"
        seconds.append(int(row.segment_starts[-1]))
    assert min(seconds) < 300
    assert max(seconds) > 700, "mentions further apart than a row"


@pytest.mark.parametrize("scheme", OF_THE_WINDOW)
def test_with_selected_sentences_they_are_positions_alone(scheme: str) -> None:
    window = window_of(np.arange(100, 1100))
    recipe = BuildRecipe(("c",), "t", 1000, positions=scheme, impact="random")
    row = Compressor(recipe, Marks(range(0, 1000, 7))).row(window)
    assert not np.array_equal(row.input_ids, window.ids[row.position_ids])
    assert np.count_nonzero(np.diff(row.position_ids) > 1) <= 2


# Evidence

WINDOW, SENTENCE, FAR = 1000, 10, 400


class Marks(Scorer):
    """1 for the tokens of the document at some offsets, else 0; the gains are what it is told."""

    def __init__(self, offsets: Sequence[int], gains: np.ndarray | None = None) -> None:
        self.offsets, self.gains = list(offsets), gains
        self.gives_lsd = gains is not None

    def score(self, window: Window, draws: Draws) -> np.ndarray:
        scores = np.zeros(len(window.ids), np.float32)
        scores[np.array(self.offsets, np.int64) + window.lead] = 1
        return scores

    def lsd(self, window: Window) -> np.ndarray:
        return super().lsd(window) if self.gains is None else self.gains


def window_of(ids: np.ndarray, ends: np.ndarray | None = None, lead: int = 0) -> Window:
    """A window of one document whose sentences have ten tokens, or end as they are told."""
    if ends is None:
        ends = np.arange(SENTENCE - 1, len(ids), SENTENCE)
    span = Span(Document("d", "s", "f", 0), 0, len(ids))
    return Window(np.append([7] * lead, ids).astype(np.int32), ends, (span,), lead)


def kept_offsets(window: Window, scorer: Scorer, seed: int, **options: Any) -> set[int]:
    """Which tokens of the document a row of 300 keeps."""
    options = {"train_len": 300, "positions": "source", "impact": "marks", **options}
    recipe = BuildRecipe(("c",), "t", len(window.ids), seed=seed, **options)
    row = Compressor(recipe, scorer).row(window)
    assert len(row.input_ids) == recipe.train_len
    np.testing.assert_array_equal(row.input_ids, window.ids[row.position_ids])
    return {offset - window.lead for offset in row.position_ids.tolist()} - {-1}


def copied(*places: int, length: int = 3) -> np.ndarray:
    """Tokens of which none comes twice, but for a run of `length` that stands at all the places."""
    ids = np.arange(10_000, 10_000 + WINDOW)
    for place in places:
        ids[place : place + length] = np.arange(length)
    return ids


OTHERS = list(range(215, 800, 20))
"""Impactful tokens without evidence, in thirty sentences."""


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("select", ["draw", "top"])
def test_an_impactful_token_is_kept_with_what_it_may_be_copied_from(select: str, lead: int) -> None:
    window, scorer = window_of(copied(105, 905), lead=lead), Marks([907, *OTHERS])
    far, near = {105, 106, 107}, set(range(900, 908))
    with_evidence, without = (
        [kept_offsets(window, scorer, seed, select=select, evidence=evidence) for seed in range(10)]
        for evidence in (FAR, 0)
    )
    assert all(kept >= far | near for kept in with_evidence)
    assert not all(kept >= far | near for kept in without)
    assert len({frozenset(kept) for kept in with_evidence}) > 1, "the others are drawn"


@pytest.mark.parametrize("place", [98, 99])
def test_evidence_over_the_end_of_a_sentence_is_kept_whole(place: int) -> None:
    window = window_of(copied(place, 905))
    for seed in range(5):
        kept = kept_offsets(window, Marks([907, *OTHERS]), seed, evidence=FAR)
        assert kept >= {place, place + 1, place + 2}


def test_evidence_over_several_short_sentences_is_kept_whole() -> None:
    """Lines of a token each, as in source code and tables."""
    ends = np.sort([*range(9, WINDOW, SENTENCE), *range(104, 109)])
    window = window_of(copied(104, 904, length=4), ends)
    for seed in range(5):
        kept = kept_offsets(window, Marks([907, *OTHERS]), seed, evidence=FAR)
        assert kept >= {104, 105, 106, 107}


def test_what_is_near_or_not_impactful_brings_nothing_in() -> None:
    """Its row is the one that is made without evidence."""
    for window, marks, evidence in (
        (window_of(copied(105, 905)), [905, *OTHERS], FAR),  # the first token was nowhere as a pair
        (window_of(copied(105, 905)), OTHERS, FAR),
        (window_of(copied(105, 905)), [907, *OTHERS], 801),
        (window_of(copied(105, 805, 905)), [907, *OTHERS], FAR),  # copied from nearby
    ):
        for seed in range(5):
            kept = kept_offsets(window, Marks(marks), seed, evidence=evidence)
            assert kept == kept_offsets(window, Marks(marks), seed)


def test_the_nearest_source_beyond_the_distance_is_kept() -> None:
    """And no other, but by chance."""
    window = window_of(copied(105, 305, 905))
    farthest = []
    for seed in range(5):
        kept = kept_offsets(window, Marks([907, *OTHERS]), seed, evidence=FAR)
        assert kept >= {305, 306, 307, 905, 906, 907}
        farthest.append(kept >= {105, 106, 107})
    assert not all(farthest)


@pytest.mark.parametrize("lead", [0, 1])
def test_evidence_crosses_documents_only_where_they_attend_to_each_other(lead: int) -> None:
    """A run that stands at 105 and at 905, in one document or on both sides of an end."""
    whole, scorer = window_of(copied(105, 905), lead=lead), Marks([907, *OTHERS])
    for end, same in (
        (100, True),
        (105, True),
        (108, False),
        (500, False),
        (905, False),
        (907, False),
        (908, True),
    ):
        first, second = Document("d", "s", "f", 0), Document("e", "s", "f", 1)
        window = replace(whole, spans=(Span(first, 0, end), Span(second, 0, WINDOW - end)))
        told = False
        for seed in range(5):
            masked, attending, without = (
                kept_offsets(window, scorer, seed, join=join, evidence=evidence)
                for join, evidence in (("mask", FAR), ("attend", FAR), ("mask", 0))
            )
            assert attending >= {105, 106, 107, 905, 906, 907}
            assert masked == (attending if same else without)
            told |= attending != without
        assert told, "evidence makes no difference that could show"


def test_the_budget_is_exact_where_pairs_do_not_fit() -> None:
    """Fifty pairs of sentences of ten tokens, for rows of 300 and less."""
    ids = np.concatenate([np.arange(500), np.arange(500)])
    for train_len in (16, 160, 305):
        kept = kept_offsets(
            window_of(ids), Marks(range(509, 1000, 10)), 0, evidence=FAR, train_len=train_len
        )
        assert len(kept) == train_len
        pairs = [
            (kept >= set(range(at, at + 10)), kept >= set(range(500 + at, 510 + at)))
            for at in range(0, 500, 10)
        ]
        assert sum(one != other for one, other in pairs) <= 1
        assert sum(one and other for one, other in pairs) == train_len // 20


# The gains of models


def test_a_row_holds_the_gains_of_its_own_tokens() -> None:
    gains = np.linspace(-3, 8, WINDOW).astype(np.float16)
    gains[::7] = np.nan
    scorer, window = Marks(OTHERS, gains), window_of(copied(105, 905))
    recipe = BuildRecipe(("c",), "t", WINDOW, positions="source", impact="marks")
    compressor = Compressor(recipe, scorer)
    assert compressor.schema == SCHEMA.append(LSD_FIELD)
    for row in (compressor.row(window), compressor.holdout_row(window)):
        assert row.lsd is not None
        assert row.lsd.dtype == np.float16
        np.testing.assert_array_equal(row.lsd, gains[row.position_ids])


def test_a_row_of_a_scorer_without_gains_has_no_column_for_them() -> None:
    recipe = BuildRecipe(("c",), "t", WINDOW, impact="marks")
    compressor, window = Compressor(recipe, Marks(OTHERS)), window_of(copied(105, 905))
    assert compressor.schema == SCHEMA
    assert compressor.row(window).lsd is compressor.holdout_row(window).lsd is None
    assert np.isnan(Marks(OTHERS).lsd(window)).all()
    assert Marks(OTHERS).lsd(window).dtype == np.float16
