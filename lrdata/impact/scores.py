"""Direct scores: what models said of the very tokens of a window, where its documents were scored.

Other tokens get the expected gain of their type, from a lexicon of the same scores: both are nats.
"""

from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np

from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.impact.scorer import Scorer
from lrdata.lexicon import make_lexicon
from lrdata.scores import ScoredWindow, Scores, open_scores
from lrdata.tokenizer import Tokenizer
from lrdata.windows import Span, Window

_CACHED_WINDOWS = 16  # a document's windows are asked for one after another


class DirectScores(Scorer):
    """max(gain, 0) of each token in nats, see `lrdata.scores`."""

    def __init__(self, scores: Scores, expected_gain: np.ndarray) -> None:
        self._scores, self._expected = scores, expected_gain
        self.gives_lsd = scores.manifest.method == "lsd"
        self._places: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for index, (document, start, tokens) in enumerate(scores.index):
            self._places[document].append((start, start + tokens, index))
        self._read = lru_cache(_CACHED_WINDOWS)(scores.read)
        self._last: tuple[Window, np.ndarray] | None = None

    @classmethod
    def open(cls, folder: Path, tokenizer: Tokenizer) -> Self:
        """Raises LongRecipeError unless the folder holds scores of this tokenizer's tokens."""
        scores = open_scores(folder)
        if scores.manifest.tokenizer.fingerprint != tokenizer.fingerprint:
            raise LongRecipeError(
                f"{folder} holds scores of another tokenizer's tokens; score the corpus with a "
                "model of this one"
            )
        return cls(scores, make_lexicon([scores]).expected_gain)

    def score(self, window: Window, draws: Draws) -> np.ndarray:
        gains = self._gains(window)
        expected = self._expected.take(window.ids)
        return np.where(np.isnan(gains), expected, np.maximum(gains, np.float32(0)))

    def lsd(self, window: Window) -> np.ndarray:
        return self._gains(window).astype(np.float16)

    def _gains(self, window: Window) -> np.ndarray:
        """float32 [n], NaN where nothing was measured."""
        if self._last is None or self._last[0] is not window:
            gains = np.full(len(window.ids), np.nan, np.float32)
            at = window.lead
            for span in window.spans:
                self._fill(gains[at : at + span.length], window.ids[at : at + span.length], span)
                at += span.length
            self._last = window, gains
        return self._last[1]

    def _fill(self, gains: np.ndarray, ids: np.ndarray, span: Span) -> None:
        """Set what was measured of a span of a document."""
        for start, stop, index in self._places.get(span.document.doc_id, ()):
            first, last = max(start, span.start), min(stop, span.start + span.length)
            if first >= last:
                continue
            scored: ScoredWindow = self._read(index)
            there = slice(first - start, last - start)
            here = slice(first - span.start, last - span.start)
            if not np.array_equal(scored.ids[there], ids[here]):
                raise LongRecipeError(
                    f"{self._scores.folder} scored another text of {span.document.doc_id} than "
                    "the corpus has; score the corpus again"
                )
            gains[here] = scored.gain[there]
