"""No impact: the row keeps the start of its window."""

import numpy as np

from lrdata.draws import Draws
from lrdata.impact.scorer import Scorer
from lrdata.windows import Window


class NoImpact(Scorer):
    """0 for every token."""

    def score(self, window: Window, draws: Draws) -> np.ndarray:
        return np.zeros(len(window.ids), np.float32)
