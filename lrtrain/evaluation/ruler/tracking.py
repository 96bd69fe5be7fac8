"""Variables that are given each other's values: RULER's vt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from lrdata.draws import Draws
from lrtrain.evaluation.ruler.filling import fill_with_lines, most_that_fit
from lrtrain.evaluation.ruler.question import Question, Source
from lrtrain.evaluation.ruler.texts import Frame, Texts
from lrtrain.evaluation.ruler.words import distinct, letters

_EXAMPLE_SHARE = 4  # an example takes no more than a quarter of a short prompt


@dataclass(frozen=True)
class Chain:
    """A variable with a value, and others that are given it, one from the other."""

    names: Sequence[str]
    value: str
    places: Callable[[int], Sequence[int]]
    """Before which of n lines each is given its value, ascending."""

    def lines(self, texts: Texts) -> list[str]:
        further = [
            texts.further.format(name=name, other=other)
            for other, name in zip(self.names[:-1], self.names[1:], strict=True)
        ]
        return [texts.first.format(name=self.names[0], value=self.value), *further]

    def frame(self, texts: Texts) -> Frame:
        return texts.variables.format(count=len(self.names), value=self.value)


@dataclass(frozen=True)
class Tracking:
    """One chain of `hops` + 1 variables, in lines of noise; after a small one with its answer."""

    hops: int = 4
    answer_tokens: int = 30
    example_tokens: int = 500
    """Of the small one, with what its answer may take."""

    def ask(self, draws: Draws, source: Source, length: int) -> Question:
        """The question of some draws. Its fill raises NoRoom."""
        example, asked = self._draw(draws, "example", 3), self._draw(draws, "asked", 5)
        return self.question(example, asked, source, length)

    def _draw(self, draws: Draws, what: str, size: int) -> Chain:
        count = self.hops + 1
        names = distinct(draws.stream(f"{what} names"), 26**size, count).tolist()
        value = 10_000 + draws.stream(f"{what} value").below(89_999, 1)[0]
        return Chain(
            names=[letters(name, size) for name in names],
            value=str(value),
            places=lambda lines: draws.stream(f"{what} places").subset(lines, count).tolist(),
        )

    def question(self, example: Chain, asked: Chain, source: Source, length: int) -> Question:
        """The question about the second chain, after the first one with its answer."""
        texts = source.texts
        frame = asked.frame(texts)
        before = self.example(example, source, length)

        def fill(room: int) -> np.ndarray:
            noise, inserts = source.encode(texts.noise), source.encode_all(asked.lines(texts))
            return fill_with_lines(repeat(noise), inserts, asked.places, room)

        whole = Frame(before + frame.head, frame.question, frame.prefix)
        return Question(whole, tuple(asked.names), fill)

    def example(self, chain: Chain, source: Source, length: int) -> str:
        """A small prompt and its answer, with as much noise as RULER's has."""
        room = min(self.example_tokens, length // _EXAMPLE_SHARE) - self.answer_tokens

        def tokens(lines: int) -> int:
            return len(source.encode(worked(chain, lines, source.texts)))

        lines = len(chain.names)  # the least
        if tokens(lines) <= room:
            lines = most_that_fit(tokens, room, lines)
        return worked(chain, lines, source.texts)


def worked(chain: Chain, lines: int, texts: Texts) -> str:
    """A prompt with so many lines of noise, its answer, and a blank line."""
    frame, parts = chain.frame(texts), [texts.noise] * lines
    for before, (place, line) in enumerate(
        zip(chain.places(lines), chain.lines(texts), strict=True)
    ):
        parts.insert(place + before, line)
    answer = " ".join(chain.names)
    return f"{frame.head}{''.join(parts)}{frame.question} {frame.prefix} {answer}\n\n"
