"""Tokens that hold a digit: what the paper's released code keeps sentences for."""

import numpy as np

from lrdata.draws import Draws
from lrdata.impact.scorer import Scorer
from lrdata.vocabulary import Vocabulary
from lrdata.windows import Window


class Digits(Scorer):
    """1 for tokens whose bytes hold an ASCII digit, else 0; special tokens score 0."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        values, offsets = vocabulary.token_bytes
        digits_before = np.concatenate([[0], np.cumsum((values >= 0x30) & (values <= 0x39))])
        holds = digits_before[offsets[1:]] > digits_before[offsets[:-1]]
        self._table = holds & ~vocabulary.special  # as bool it fits the cache

    def score(self, window: Window, draws: Draws) -> np.ndarray:
        return self._table.take(window.ids)
