"""Windows -> rows: select, group, position. A pure function of a window, a recipe and a seed."""

from dataclasses import dataclass

import numpy as np

from lrdata import positions, select
from lrdata.draws import Draws
from lrdata.impact import Scorer, open_scorer
from lrdata.recipe import BuildRecipe
from lrdata.sentences import lengths_between
from lrdata.shards import Row
from lrdata.tokenizer import Tokenizer
from lrdata.windows import Window


@dataclass(frozen=True)
class Compressor:
    """Turns windows into rows: the recipe with what it needs to know of the tokenizer."""

    recipe: BuildRecipe
    scorer: Scorer

    @classmethod
    def open(cls, recipe: BuildRecipe, tokenizer: Tokenizer) -> "Compressor":
        return cls(recipe, open_scorer(recipe.impact, tokenizer))

    def row(self, window: Window) -> Row:
        """The window compressed to train_len tokens whose positions span its range."""
        recipe = self.recipe
        draws = Draws(recipe.seed, *window.key)
        scores = self.scorer.score(window, draws)
        mask = select.impactful(scores, draws.stream("ties"))
        if recipe.positions == "full":
            kept, segments = np.arange(len(window.ids), dtype=np.int32), _whole(window)
        else:
            kept, segments = self._select(window, scores, mask, draws)
        scheme = positions.SCHEMES[recipe.positions]
        position_ids = scheme(kept, segments, recipe.target_len, draws.stream("positions"))
        return _row(window, "extend", kept, segments, position_ids, mask, recipe)

    def _select(
        self, window: Window, scores: np.ndarray, mask: np.ndarray, draws: Draws
    ) -> tuple[np.ndarray, np.ndarray]:
        """Window offsets of the kept tokens, int32 [train_len], and the segments' lengths."""
        recipe, lead = self.recipe, window.lead
        # Longer sentences are cut, so that text without sentence ends gives segments of this size.
        content = len(window.ids) - lead
        lengths = lengths_between(window.sentence_ends, content, recipe.segment_tokens)
        rule = select.RULES["first" if recipe.impact == "none" else recipe.select]
        keys = rule(lengths, scores[lead:], mask[lead:], draws.stream("select"))
        counts = select.keep(lengths, keys, recipe.train_len - lead)
        kept = np.arange(recipe.train_len, dtype=np.int32)
        kept[lead:] = select.kept_tokens(lengths, counts) + np.int32(lead)
        segments = select.group(counts, recipe.segment_tokens)
        segments[0] += lead  # the start-of-text token is always kept, with the first segment
        return kept, segments

    def holdout_row(self, window: Window) -> Row:
        """The whole window at its own positions."""
        kept = np.arange(len(window.ids), dtype=np.int32)
        draws = Draws(self.recipe.seed, *window.key)
        mask = select.impactful(self.scorer.score(window, draws), draws.stream("ties"))
        return _row(window, "holdout", kept, _whole(window), kept, mask, self.recipe)


def _whole(window: Window) -> np.ndarray:
    return np.array([len(window.ids)], np.int64)


def _row(
    window: Window,
    kind: str,
    kept: np.ndarray,
    segments: np.ndarray,
    position_ids: np.ndarray,
    mask: np.ndarray,
    recipe: BuildRecipe,
) -> Row:
    starts, lengths = select.pieces(kept, segments)
    seq_lengths = np.array([len(kept)], np.int32)
    if recipe.join == "mask":
        ends = np.searchsorted(kept, np.cumsum(window.document_lengths))
        seq_lengths = np.diff(ends, prepend=0)
        seq_lengths = seq_lengths[seq_lengths > 0].astype(np.int32)
    first = window.spans[0]
    return Row(
        input_ids=window.ids.take(kept),
        position_ids=position_ids,
        seq_lengths=seq_lengths,
        impact_mask=mask.take(kept),
        loss_mask=np.ones(len(kept), bool),
        segment_starts=starts,
        segment_lengths=lengths,
        doc_ids=[span.document.doc_id for span in window.spans],
        doc_offsets=np.array([span.start for span in window.spans], np.int64),
        doc_lengths=np.array([span.length for span in window.spans], np.int32),
        sample_id=window.name,
        source=first.document.source,
        kind=kind,
        window_tokens=len(window.ids),
        target_len=recipe.target_len,
    )
