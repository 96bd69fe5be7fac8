"""What every scorer is."""

from abc import ABC, abstractmethod

import numpy as np

from lrdata.draws import Draws
from lrdata.windows import Window


class Scorer(ABC):
    """Scores the tokens of windows. Built once for a tokenizer."""

    gives_lsd = False
    """Whether `lsd` gives something: rows then have the column."""

    @abstractmethod
    def score(self, window: Window, draws: Draws) -> np.ndarray:
        """bool, integers or floats [len(window.ids)], finite and >= 0; 0 means: never impactful.

        `window.ids` are the tokens; `window.spans` say which documents they come from and at which
        offsets, for scorers that look documents up. `draws` are the window's own.
        """

    def lsd(self, window: Window) -> np.ndarray:
        """float16 [len(window.ids)]: the long-context gain in nats, NaN where it is not known."""
        return np.full(len(window.ids), np.nan, np.float16)
