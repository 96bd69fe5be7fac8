"""The significance of a token's type, as `lrdata lexicon` found it out from models."""

from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lrdata.draws import Draws
from lrdata.errors import LongRecipeError, one_line
from lrdata.impact.scorer import Scorer
from lrdata.tokenizer import Tokenizer
from lrdata.windows import Window

FORMAT = "longrecipe-lexicon"
FORMAT_KEY, TOKENIZER_KEY = b"longrecipe", b"tokenizer"
"""What the metadata of lexicon.parquet say: that it is one, and the tokenizer's fingerprint."""

_LEVELS = 255


class LexiconImpact(Scorer):
    """Significance in 256 linear steps of its maximum, as bytes: a gather that fits the caches."""

    def __init__(self, significance: np.ndarray) -> None:
        highest = max(float(significance.max(initial=0.0)), 1e-30)
        steps = np.rint(significance * (_LEVELS / highest))
        self._table = np.where(significance > 0, np.maximum(steps, 1), 0).astype(np.uint8)

    @classmethod
    def open(cls, path: Path, tokenizer: Tokenizer) -> Self:
        """Raises LongRecipeError unless the file is a lexicon for this tokenizer."""
        return cls(read_significance(path, tokenizer.fingerprint))

    def score(self, window: Window, draws: Draws) -> np.ndarray:
        return self._table.take(window.ids)


def read_significance(path: Path, fingerprint: str) -> np.ndarray:
    """The significance of each id, float32 [vocab_size].

    Raises LongRecipeError when it is no lexicon, or one for another tokenizer.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            if metadata.get(FORMAT_KEY) != FORMAT.encode():
                raise LongRecipeError(f"{path} is no lexicon; make one with `lrdata lexicon`")
            significance = file.read(columns=["significance"])["significance"].to_numpy()
    except (OSError, pa.ArrowException, KeyError) as problem:
        raise LongRecipeError(
            f"{path} cannot be read as a lexicon ({one_line(problem)}); make one with "
            "`lrdata lexicon`"
        ) from None
    if metadata.get(TOKENIZER_KEY) != fingerprint.encode():
        raise LongRecipeError(
            f"{path} was made for another tokenizer; score the corpus with a model of this one"
        )
    return np.asarray(significance)
