"""Random scores: the paper's ablation of selection."""

import numpy as np

from lrdata.draws import Draws
from lrdata.impact.scorer import Scorer
from lrdata.windows import Window


class Random(Scorer):
    """Uniform in (0, 1]: a random fifth of the window's tokens becomes impactful."""

    def score(self, window: Window, draws: Draws) -> np.ndarray:
        words = draws.stream("impact").words(len(window.ids))
        return ((words >> np.uint64(40)) + np.uint64(1)).astype(np.float32) / np.float32(1 << 24)
