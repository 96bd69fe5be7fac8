"""Impact scorers: tokens in, one score >= 0 per token out.

A scorer is built once for a tokenizer and called once per window. To add one: write a file with a
class that has `score`, and name it in `open_scorer`.
"""

from typing import Protocol

import numpy as np

from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.impact.digits import Digits
from lrdata.impact.none import NoImpact
from lrdata.impact.random import Random
from lrdata.tokenizer import Tokenizer
from lrdata.windows import Window


class Scorer(Protocol):
    """What every scorer is."""

    def score(self, window: Window, draws: Draws) -> np.ndarray:
        """float32 or bool [len(window.ids)], >= 0, a score per token; 0 means: never impactful.

        `window.ids` are the tokens; `window.spans` say which documents they come from and at which
        offsets, for scorers that look documents up. `draws` are the window's own.
        """
        ...


def open_scorer(spec: str, tokenizer: Tokenizer) -> Scorer:
    """The scorer that `--impact` names."""
    if spec == "digits":
        return Digits(tokenizer)
    if spec == "random":
        return Random()
    if spec == "none":
        return NoImpact()
    raise LongRecipeError(f"--impact {spec}: unknown scorer; known: digits, random, none")
