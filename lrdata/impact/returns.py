"""Tokens that return: their type came last so many tokens before, or more.

A model that reads only the last K tokens cannot know such a token from the text, and one that reads
all of the window can: what long context is for, told from the tokens alone. Of the key tokens that
`lrtrain score` finds, far more are returning tokens than of all others (bench/README.md).
"""

from typing import Self

import numpy as np

from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.impact.scorer import Scorer
from lrdata.recipe import FAR_SHARE
from lrdata.sizes import parse_count
from lrdata.vocabulary import Vocabulary
from lrdata.windows import Window

_BLOCK = 4096


class Returns(Scorer):
    """1 for tokens whose type came last `distance` tokens before or more, else 0.

    distance: None means a 32nd of the window. join: with `mask` a type came before only where it
    came in the token's own document, for nothing else is seen. Special tokens score 0. For one
    thread: its tables are used again for each window.
    """

    def __init__(
        self, vocabulary: Vocabulary, distance: int | None = None, join: str = "attend"
    ) -> None:
        self._distance, self._join = distance, join
        self._plain = ~vocabulary.special
        self._last = np.empty(len(vocabulary.special), np.int32)
        self._first = np.empty(len(vocabulary.special), np.int32)

    @classmethod
    def open(cls, distance: str, vocabulary: Vocabulary, join: str = "attend") -> Self:
        """distance: as written after `returns:`, or empty."""
        found = parse_count(distance) if distance else None
        if found == 0:
            raise LongRecipeError("--impact returns:0: the distance must be at least 1 token")
        return cls(vocabulary, found, join)

    def score(self, window: Window, draws: Draws) -> np.ndarray:
        ids = window.ids
        distance = self._distance or max(1, int(len(ids) * FAR_SHARE))
        scores = np.empty(len(ids), bool)
        last, first = self._last, self._first
        begins = self._begins(window)
        last.fill(-1)
        # Block by block, none longer than the distance: a token that came before in its own block
        # came too lately, and of all others the last place is in a table.
        block = min(_BLOCK, distance)
        for start in range(0, len(ids), block):
            part = ids[start : start + block]
            places = np.arange(start, start + len(part), dtype=np.int32)
            first[part[::-1]] = places[::-1]  # of equal ones the last that is written stays
            before = last.take(part)
            returning = before >= begins[start : start + len(part)]
            returning &= places - before >= distance
            returning &= first.take(part) == places
            scores[start : start + len(part)] = returning
            last[part] = places
        scores &= self._plain.take(ids)
        return scores

    def _begins(self, window: Window) -> np.ndarray:
        """Where what each token sees begins: int32 [n]."""
        if self._join != "mask":
            return np.zeros(len(window.ids), np.int32)
        lengths = np.array(window.document_lengths, np.int32)
        return np.repeat(np.cumsum(lengths, dtype=np.int32) - lengths, lengths)
