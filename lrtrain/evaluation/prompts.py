"""What is put around a question: nothing but the start of text, or the model's own chat template.

    wrapping = WRAPPINGS["chat"](tokenizer)
    ids = [*wrapping.before, *question, *wrapping.after, *answer]

With a chat template the question is a user's message, and the answer the beginning of the
assistant's turn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from lrdata.chat import template_prompt
from lrdata.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Wrapping:
    """Token ids around a question, int32 [n] each. The answer comes right behind `after`."""

    before: np.ndarray
    after: np.ndarray

    @classmethod
    def plain(cls, tokenizer: Tokenizer) -> Self:
        """The start of text before it, where the tokenizer adds one; nothing behind it."""
        start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        return cls(np.array(start, np.int32), np.array([], np.int32))

    @classmethod
    def chat(cls, tokenizer: Tokenizer) -> Self:
        """What the tokenizer's chat template puts around a user's message, with the beginning of
        the assistant's turn.

        Raises LongRecipeError where there is no template, or one that fails.
        """
        return cls(*template_prompt(tokenizer, "leave --prompt chat out"))

    @property
    def turns(self) -> bool:
        """Whether the answer begins a turn of its own; else it goes on with the question's text."""
        return len(self.after) > 0

    @property
    def size(self) -> int:
        """Tokens before and behind the question."""
        return len(self.before) + len(self.after)


WRAPPINGS: dict[str, Callable[[Tokenizer], Wrapping]] = {
    "base": Wrapping.plain,
    "chat": Wrapping.chat,
}
"""What --prompt may say."""
