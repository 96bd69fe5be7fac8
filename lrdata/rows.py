"""Windows -> rows: select, group, position. A pure function of a window, a recipe and a seed."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lrdata import positions, select
from lrdata.draws import Draws
from lrdata.evidence import LONGEST, find_evidence
from lrdata.impact import Scorer, open_scorer
from lrdata.recipe import BuildRecipe
from lrdata.sentences import lengths_between
from lrdata.shards import LSD_FIELD, SCHEMA, Row
from lrdata.tokenizer import Tokenizer
from lrdata.windows import Window


@dataclass(frozen=True)
class Compressor:
    """Turns windows into rows: the recipe with what it needs to know of the tokenizer."""

    recipe: BuildRecipe
    scorer: Scorer

    @classmethod
    def open(cls, recipe: BuildRecipe, tokenizer: Tokenizer) -> "Compressor":
        return cls(recipe, open_scorer(recipe.impact, tokenizer, recipe.join))

    @property
    def schema(self) -> pa.Schema:
        """The columns of its rows."""
        return SCHEMA.append(LSD_FIELD) if self.scorer.gives_lsd else SCHEMA

    def row(self, window: Window) -> Row:
        """The window compressed to train_len tokens whose positions span its range."""
        recipe = self.recipe
        draws = Draws(recipe.seed, *window.key)
        scores = self.scorer.score(window, draws)
        mask = select.impactful(scores, draws.stream("ties"))
        if recipe.impact == "none" and recipe.positions in positions.OF_THE_WINDOW:
            first = np.arange(recipe.train_len, dtype=np.int32)
            position_ids = self._positions(first, np.array([len(first)]), draws)
            chosen = _at(position_ids)
        elif recipe.impact == "none" and recipe.positions == "pose":
            cut, place = draws.stream("positions"), draws.stream("content")
            chosen = _at(positions.pose_content(recipe.train_len, len(window.ids), cut, place))
            position_ids = self._positions(chosen.tokens, chosen.segments, draws)
        else:
            whole = recipe.positions == "full"
            chosen = _all_of(window) if whole else self._select(window, scores, mask, draws)
            position_ids = self._positions(chosen.tokens, chosen.segments, draws)
        return self._row(window, "extend", chosen, position_ids, mask)

    def _positions(self, kept: np.ndarray, segments: np.ndarray, draws: Draws) -> np.ndarray:
        scheme = positions.SCHEMES[self.recipe.positions]
        return scheme(kept, segments, self.recipe.target_len, draws.stream("positions"))

    def _select(
        self, window: Window, scores: np.ndarray, mask: np.ndarray, draws: Draws
    ) -> "_Chosen":
        recipe, lead = self.recipe, window.lead
        # Longer sentences are cut, so that text without sentence ends gives segments of this size.
        content = len(window.ids) - lead
        lengths = lengths_between(window.sentence_ends, content, recipe.segment_tokens)
        rule = select.RULES["first" if recipe.impact == "none" else recipe.select]
        keys = rule(lengths, scores[lead:], mask[lead:], draws.stream("select"))
        if recipe.evidence:
            keys = self._paired(window, keys, mask[lead:], lengths)
        kept = select.keep(lengths, keys, recipe.train_len - lead)
        segments = select.group(kept, recipe.segment_tokens)
        if lead:  # the start-of-text token is always kept, with the first segment
            segments[0] += lead
            lengths, kept = np.append(lead, lengths), np.append(lead, kept)
        tokens = select.kept_tokens(lengths, kept)
        return _Chosen(tokens, segments, *select.pieces(lengths, kept, segments))

    def _paired(
        self, window: Window, keys: np.ndarray, mask: np.ndarray, lengths: np.ndarray
    ) -> np.ndarray:
        """Keys that keep sentences with impactful tokens together with what these may be copied
        from, far back."""
        ids = window.ids[window.lead :]
        evidence = find_evidence(ids, self.recipe.evidence, among=mask)
        if self.recipe.join == "mask":  # other documents are not seen
            evidence = evidence.within(np.cumsum(window.document_lengths) - window.lead)
        tokens, sources, sizes = evidence.nearest()
        # Of all tokens of the n-gram that would be copied: sentences may be shorter than it.
        back = np.minimum(np.arange(LONGEST)[:, None], sizes - 1)
        sentence = np.repeat(np.arange(len(lengths)), lengths)  # of each token
        needed = sentence.take((sources - back).ravel())
        return select.pair_keys(keys, np.tile(sentence.take(tokens), LONGEST), needed)

    def holdout_row(self, window: Window) -> Row:
        """The whole window at its own positions."""
        chosen = _all_of(window)
        draws = Draws(self.recipe.seed, *window.key)
        mask = select.impactful(self.scorer.score(window, draws), draws.stream("ties"))
        return self._row(window, "holdout", chosen, chosen.tokens, mask)

    def _row(
        self,
        window: Window,
        kind: str,
        chosen: "_Chosen",
        position_ids: np.ndarray,
        mask: np.ndarray,
    ) -> Row:
        kept = chosen.tokens
        seq_lengths = np.array([len(kept)], np.int32)
        if self.recipe.join == "mask":
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
            segment_starts=chosen.piece_starts,
            segment_lengths=chosen.piece_lengths,
            doc_ids=[span.document.doc_id for span in window.spans],
            doc_offsets=np.array([span.start for span in window.spans], np.int64),
            doc_lengths=np.array([span.length for span in window.spans], np.int32),
            sample_id=window.name,
            source=first.document.source,
            kind=kind,
            window_tokens=len(window.ids),
            target_len=self.recipe.target_len,
            lsd=self.scorer.lsd(window).take(kept) if self.scorer.gives_lsd else None,
        )


class _Chosen(NamedTuple):
    """What a row keeps of a window. tokens: int32 [L], their offsets, increasing; segments: int64
    [N], lengths; piece_starts, piece_lengths: int32 [p], what is contiguous in the window."""

    tokens: np.ndarray
    segments: np.ndarray
    piece_starts: np.ndarray
    piece_lengths: np.ndarray


def _at(places: np.ndarray) -> _Chosen:
    """The tokens at places in the window, int32 [L], increasing."""
    begins = np.flatnonzero(np.diff(places, prepend=places[0] - 2) > 1)
    lengths = np.diff(begins, append=len(places))
    return _Chosen(places, lengths, places[begins], lengths.astype(np.int32))


def _all_of(window: Window) -> _Chosen:
    count = len(window.ids)
    one = np.array([count])
    tokens = np.arange(count, dtype=np.int32)
    return _Chosen(tokens, one, np.zeros(1, np.int32), one.astype(np.int32))
