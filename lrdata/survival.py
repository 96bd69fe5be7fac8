"""How good is a selection? What survives of the tokens that need long context, before any training.

    outcomes = survival(open_scores("scores"), contestants(), budgets=(0.1, 0.3, 0.5))

Scored windows are compressed as `lrdata build` would compress them, and three shares are counted:

    keys      of the key tokens (LongPPL: gain > 2 and log P > -2), those that are kept
    pairs     of the key tokens with evidence, those that are kept together with their evidence
    copies    the same of all tokens with evidence, whatever a model says of them

Evidence is an earlier occurrence of the rare n-gram that ends in a token (`lrdata.evidence`),
before its short context; any of them counts if all of its tokens are kept. A row that keeps a key
token and drops what it points to teaches nothing about the distance between them.

A lexicon is made from the scores of other documents than those it is judged on: documents are dealt
into folds, and each fold is judged with the lexicon of the others. Direct scores choose by what
they would be judged on, so their keys are not counted, unless the keys come from other scores.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.evidence import Evidence, find_evidence
from lrdata.impact import Scorer, scorer_of_tokens
from lrdata.impact.lexicon import LexiconImpact, read_significance
from lrdata.impact.scores import DirectScores
from lrdata.lexicon import make_lexicon
from lrdata.progress import progress
from lrdata.recipe import SHORTEST_ROW, SHORTEST_TARGET, BuildRecipe
from lrdata.rows import Compressor
from lrdata.scores import ScoredWindow, Scores
from lrdata.sentences import SentenceTables, sentence_ends, sentence_tables
from lrdata.windows import Document, Span, Window

BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5)
COUNTS = ("keys", "pairs", "copies")
_FOLDS = 5
_ANY_LENGTH = 2**30


@dataclass(frozen=True)
class Contestant:
    """A way to select. impact: as `--impact` takes it, but `lexicon` alone is the lexicon of the
    other folds and `scores` the judged scores themselves. evidence: whether to keep it. file: what
    to call the file of `impact`; without it, by its stem."""

    impact: str
    select: str
    evidence: bool = False
    file: str = ""

    @property
    def name(self) -> str:
        """Without the rule."""
        impact, _, path = self.impact.partition(":")
        return f"{impact} {self.file or Path(path).stem}" if path else impact

    def __str__(self) -> str:
        return f"{self.name}, {self.select}{', evidence' if self.evidence else ''}"


def contestants(lexicons: Sequence[str] = ()) -> list[Contestant]:
    """The ways that are compared; `lexicons`: files of further ones."""
    named = zip(lexicons, _short_names(lexicons), strict=True)
    ways = [
        Contestant("random", "draw"),
        Contestant("digits", "draw"),
        Contestant("digits", "top"),
        Contestant("lexicon", "draw"),
        Contestant("lexicon", "top"),
        *(Contestant(f"lexicon:{path}", "top", file=name) for path, name in named),
        Contestant("returns", "top"),
        Contestant("scores", "top"),
    ]
    return [replace(way, evidence=evidence) for evidence in (False, True) for way in ways]


def _short_names(paths: Sequence[str]) -> list[str]:
    """The stems of files, with as many folders before them as tell them apart; else the paths."""
    parts = [Path(os.path.abspath(path)).with_suffix("").parts[1:] for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


@dataclass(frozen=True)
class Outcome:
    """What survives of one way of selecting at one budget.

    kept (float64, the mean over draws), total (int64): [3, windows], see COUNTS. judged: whether
    each of them counts. documents: int64 [windows], the number of each one's document.
    """

    contestant: Contestant
    budget: float
    kept: np.ndarray
    total: np.ndarray
    judged: tuple[bool, bool, bool]
    documents: np.ndarray

    def counted(self, count: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Kept and total of each document, float64 [d] each; None where it is not judged."""
        at = COUNTS.index(count)
        if not self.judged[at] or not self.total[at].any():
            return None
        kept, total = (np.bincount(self.documents, of[at]) for of in (self.kept, self.total))
        return kept, total


@dataclass(frozen=True)
class _Judged:
    """A scored window with all that it is judged by."""

    window: Window
    fold: int
    keys: np.ndarray  # bool [n]
    evidence: Evidence

    def count(self, kept: np.ndarray) -> np.ndarray:
        """Key tokens, pairs and copies of which everything is kept: int64 [3]. kept: bool [n]."""
        before = np.concatenate([[0], np.cumsum(kept)])
        tokens, sources, lengths = self.evidence
        whole = before[sources + 1] - before[sources + 1 - lengths] == lengths
        pairs = np.zeros(len(kept), bool)
        pairs[tokens[whole & kept[tokens]]] = True
        return np.array([(self.keys & kept).sum(), (self.keys & pairs).sum(), pairs.sum()])


def survival(
    scores: Scores,
    ways: Sequence[Contestant],
    budgets: Sequence[float] = BUDGETS,
    *,
    keys: Scores | None = None,
    segment_tokens: int = 88,
    seed: int = 0,
    draws: int = 5,
) -> list[Outcome]:
    """Judge ways of selecting on the windows of a score folder, at shares of their length.

    keys: scores of the same windows by another model, whose key tokens count. draws: how often what
    is drawn at random is drawn, with the seeds that follow. Raises
    LongRecipeError when there are too few documents for folds, or no key tokens.
    """
    judged = list(_judged_windows(scores, keys, seed))
    total = np.stack([one.count(np.ones(len(one.keys), bool)) for one in judged], 1)
    if not total[0].any():
        raise LongRecipeError(f"{(keys or scores).folder} has no key tokens; score more text")
    far_back = _short_context(scores)
    names = [document for document, _, _ in scores.index]
    documents = np.unique(names, return_inverse=True)[1]
    outcomes = []
    with progress("judging selections", len(ways) * len(budgets)) as task:
        for way in ways:
            scorers = _scorers(way, scores, judged)
            for budget in budgets:
                seeds = range(seed, seed + (draws if way.select == "draw" else 1))
                recipes = [_recipe(way, far_back, segment_tokens, one) for one in seeds]
                kept = [
                    _mean_count(window, recipes, scorers[window.fold], budget) for window in judged
                ]
                own = way.impact == "scores" and keys is None
                outcomes.append(
                    Outcome(
                        way, budget, np.stack(kept, 1), total, (not own, not own, True), documents
                    )
                )
                task.advance(note=str(way))
    return outcomes


def _mean_count(
    judged: _Judged, recipes: Sequence[BuildRecipe], scorer: Scorer, budget: float
) -> np.ndarray:
    """What a window keeps of each count, the mean over recipes: float64 [3]."""
    counts = [judged.count(_kept(judged.window, recipe, scorer, budget)) for recipe in recipes]
    return np.asarray(np.mean(counts, axis=0))


def _judged_windows(scores: Scores, keys: Scores | None, seed: int) -> Iterator[_Judged]:
    documents = sorted({document for document, _, _ in scores.index})
    if len(documents) < _FOLDS:
        raise LongRecipeError(
            f"{scores.folder} has scores of {len(documents)} documents, too few to judge "
            f"selections; score {_FOLDS} or more"
        )
    shuffled = sorted(documents, key=lambda name: Draws(seed, name).share("fold"))
    folds = {name: place % _FOLDS for place, name in enumerate(shuffled)}
    tables = sentence_tables(scores.vocabulary)
    distance = _short_context(scores)
    places = {} if keys is None else {place: index for index, place in enumerate(keys.index)}
    for place, scored in zip(scores.index, scores, strict=True):
        judge = scored
        if keys is not None:
            if place not in places:
                raise LongRecipeError(
                    f"{keys.folder} lacks the window of {place[0]} at {place[1]:,}: score the same "
                    "corpus with the same window, sample and seed"
                )
            judge = keys.read(places[place])
            if not np.array_equal(judge.ids, scored.ids):
                raise LongRecipeError(
                    f"{keys.folder} scored other tokens of {place[0]} than {scores.folder}; score "
                    "the same corpus, with a model of the same tokenizer"
                )
        yield _Judged(
            _window(scored, tables),
            folds[scored.document],
            judge.keys,
            find_evidence(scored.ids, distance),
        )


def _short_context(scores: Scores) -> int:
    """How far back is beyond the short context, with its stride."""
    recipe = scores.manifest.recipe
    return int(recipe["short_context"]) + int(recipe["stride"])


def _window(scored: ScoredWindow, tables: SentenceTables) -> Window:
    document = Document(scored.document, "", scored.document, 0)
    span = Span(document, scored.start, len(scored.ids))
    return Window(scored.ids, sentence_ends(scored.ids, tables), (span,), 0)


def _scorers(way: Contestant, scores: Scores, judged: Sequence[_Judged]) -> list[Scorer]:
    """The scorer for the windows of each fold."""
    impact, _, path = way.impact.partition(":")
    if impact == "lexicon" and not path:
        return [LexiconImpact(_lexicon_without(fold, scores, judged)) for fold in range(_FOLDS)]
    fingerprint = scores.manifest.tokenizer.fingerprint
    one: Scorer
    if impact == "lexicon":
        one = LexiconImpact(read_significance(Path(path), fingerprint))
    elif impact == "scores":
        one = DirectScores(scores, make_lexicon([scores]).expected_gain)
    else:
        one = scorer_of_tokens(way.impact, scores.vocabulary)
    return [one] * _FOLDS


def _lexicon_without(fold: int, scores: Scores, judged: Sequence[_Judged]) -> np.ndarray:
    others = {one.window.spans[0].document.doc_id for one in judged if one.fold != fold}
    return make_lexicon([scores], sorted(others)).significance


def _recipe(way: Contestant, far_back: int, segment_tokens: int, seed: int) -> BuildRecipe:
    """The recipe of a way of selecting; `_kept` sets the lengths."""
    return BuildRecipe(
        corpora=("scores",),
        tokenizer="scores",
        target_len=_ANY_LENGTH,
        positions="source",
        segment_tokens=segment_tokens,
        impact=way.impact,
        select=way.select,
        evidence=far_back if way.evidence else 0,
        seed=seed,
    )


def _kept(window: Window, recipe: BuildRecipe, scorer: Scorer, budget: float) -> np.ndarray:
    """The tokens of a window that its row keeps: bool [n]."""
    tokens = len(window.ids)
    left = int(budget * tokens)
    if left >= tokens:
        return np.ones(tokens, bool)
    if left < SHORTEST_ROW or tokens < SHORTEST_TARGET:
        raise LongRecipeError(
            f"{budget:.1%} of a window of {tokens} tokens is too little to select; {SHORTEST_ROW} "
            f"tokens of {SHORTEST_TARGET} is the least"
        )
    evidence = min(recipe.evidence, tokens - 1)
    fitted = replace(recipe, target_len=tokens, train_len=left, evidence=evidence)
    row = Compressor(fitted, scorer).row(window)
    kept = np.zeros(tokens, bool)
    kept[row.position_ids] = True  # with the scheme `source` these are the tokens' offsets
    return kept
