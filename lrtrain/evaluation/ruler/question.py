"""What a task asks: the text around a filler, how to fill, and what should be answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lrdata.tokenizer import Tokenizer
from lrtrain.evaluation.needle import Haystack
from lrtrain.evaluation.ruler.texts import Frame, Texts


@dataclass(frozen=True)
class Question:
    """One prompt but for its length."""

    frame: Frame
    references: tuple[str, ...]
    """What an answer should contain."""
    fill: Callable[[int], np.ndarray]
    """int32 [room] for a room in tokens; raises NoRoom."""


class Source:
    """What all tasks are made of: a tokenizer, a text in one line, and our words."""

    def __init__(
        self, haystack: Haystack, tokenizer: Tokenizer, texts: Texts | None = None
    ) -> None:
        self.haystack, self.tokenizer, self.texts = haystack, tokenizer, texts or Texts()

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32 [n]."""
        return np.asarray(self.tokenizer.encode([text])[0])

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, int32 [n] each."""
        ids, offsets = self.tokenizer.encode(texts)
        return np.split(ids, offsets[1:-1]) if len(texts) else []
