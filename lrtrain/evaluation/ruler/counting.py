"""Words that come more often than others: RULER's cwe and fwe."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrtrain.evaluation.ruler.filling import NoRoom, most_that_fit
from lrtrain.evaluation.ruler.question import Question, Source
from lrtrain.evaluation.ruler.texts import Frame, Texts
from lrtrain.evaluation.ruler.words import WORDS, distinct, letters, shuffled, word

_SHORT = 4096
_CODE_LETTERS = 6


@dataclass(frozen=True)
class ListDraw:
    """The words of a list, and how they are mixed."""

    words: Callable[[int], list[str]]
    """The first n of them, the common ones first."""
    order: Callable[[int], Sequence[int]]
    """A random order of n things."""


@dataclass(frozen=True)
class Repeats:
    """How often a common word and another one come."""

    common: int
    others: int


@dataclass(frozen=True)
class Common:
    """A numbered list in which `count` words come often and many others seldom: RULER's cwe.

    After a short list with its answer. Common words come 30 times, others 3 times; below 4,096
    tokens, as in lm-evaluation-harness, 6 times and once.
    """

    count: int = 10

    def ask(self, draws: Draws, source: Source, length: int) -> Question:
        """The question of some draws. Its fill raises NoRoom."""
        example, asked = self._draw(draws, "example"), self._draw(draws, "asked")
        return self.question(example, asked, source, length)

    def _draw(self, draws: Draws, what: str) -> ListDraw:
        def words(count: int) -> list[str]:
            return list(map(word, distinct(draws.stream(f"{what} words"), WORDS, count).tolist()))

        return ListDraw(
            words, lambda count: shuffled(draws.stream(f"{what} order"), count).tolist()
        )

    def question(self, example: ListDraw, asked: ListDraw, source: Source, length: int) -> Question:
        """The question about the second list, after the first one with its answer."""
        texts, short = source.texts, length < _SHORT
        frame = texts.common.format(count=self.count)
        size, repeats = (20, Repeats(3, 1)) if short else (40, Repeats(10, 3))
        worked = "".join(
            [
                frame.head,
                numbered(self.entries(example, size, repeats), texts),
                f"{frame.question} {frame.prefix} ",
                numbered(example.words(size)[: self.count], texts),
                "\n",
            ]
        )
        often = Repeats(6, 1) if short else Repeats(30, 3)
        whole = Frame(worked + frame.head, frame.question, frame.prefix)
        references = tuple(asked.words(self.count))
        return Question(whole, references, lambda room: self._fill(asked, often, source, room))

    def entries(self, drawn: ListDraw, size: int, repeats: Repeats) -> list[str]:
        """The words of a list with `size` different ones, mixed."""
        words = drawn.words(size)
        common, others = words[: self.count], words[self.count :]
        listed = [*common * repeats.common, *others * repeats.others]
        return [listed[at] for at in drawn.order(len(listed))]

    def _fill(self, drawn: ListDraw, repeats: Repeats, source: Source, room: int) -> np.ndarray:
        """A list of as many words as fit.

        One more, where there is room for some of its entries, stands first, and the first of them
        has lost its beginning.
        """

        def encoded(size: int, more: int = 0) -> np.ndarray:
            extra = drawn.words(size + 1)[-1:] * more
            listed = self.entries(drawn, size, repeats)
            return source.encode(numbered([*extra, *listed], source.texts))

        def tokens(size: int) -> int:
            return len(encoded(size)) if size < WORDS else room + 1

        size = most_that_fit(tokens, room, least=self.count + 1)
        if size == WORDS - 1:
            raise LongRecipeError(
                f"cwe has {WORDS:,} words, too few for so long a context; leave it out"
            )
        ids, more = encoded(size), 0
        while len(ids) < room:
            more += 1
            ids = encoded(size, more)
        return ids[len(ids) - room :]


def numbered(words: Sequence[str], texts: Texts) -> str:
    """The words as a numbered list in one line."""
    entries = (texts.entry.format(number=at, word=word) for at, word in enumerate(words, 1))
    return " ".join(entries)


@dataclass(frozen=True)
class CodeDraw:
    """The code words by rank, most frequent first (it is the dots'), and how they are mixed."""

    words: Sequence[str]
    order: Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class Frequent:
    """A text of code words with Zipf's frequencies, of which `count` are asked for: RULER's fwe.

    The most frequent one is dots. There is a code word for every 50 tokens of the prompt.
    """

    count: int = 3
    tokens_per_word: int = 50

    def ask(self, draws: Draws, source: Source, length: int) -> Question:
        """The question of some draws. Its fill raises NoRoom."""
        size = max(length // self.tokens_per_word, self.count + 2)
        codes = distinct(draws.stream("words"), 26**_CODE_LETTERS, size - 1).tolist()
        words = [letters(code, _CODE_LETTERS).lower() for code in codes]
        drawn = CodeDraw(
            [source.texts.dots, *words],
            lambda count: shuffled(draws.stream("order"), count).tolist(),
        )
        return self.question(drawn, source)

    def question(self, drawn: CodeDraw, source: Source) -> Question:
        """The question about what was drawn, in the words of the source."""
        references = tuple(drawn.words[1 : self.count + 1])
        return Question(
            source.texts.frequent, references, lambda room: self._fill(drawn, source, room)
        )

    def _fill(self, drawn: CodeDraw, source: Source, room: int) -> np.ndarray:
        """As many words as fit, after as many more dots as there is room for."""

        def counts(total: int) -> np.ndarray:
            return zipf_counts(len(drawn.words), total)

        def text(total: int) -> str:
            listed = np.repeat(np.arange(len(drawn.words)), counts(total)).tolist()
            return "".join(f" {drawn.words[listed[at]]}" for at in drawn.order(len(listed)))

        total = most_that_fit(lambda total: len(source.encode(text(total))), room)
        while (found := counts(total))[self.count] <= found[self.count + 1]:
            if not total:  # so few words that none is the last of the frequent ones
                raise NoRoom(1)
            total -= 1
        ids = source.encode(text(total))
        dots = more = source.encode(f" {source.texts.dots}")
        while len(dots) < room - len(ids):
            dots = np.concatenate([more, dots])
        return np.concatenate([dots[len(dots) - (room - len(ids)) :], ids])


def zipf_counts(words: int, total: int) -> np.ndarray:
    """How often each of so many words comes in a text of `total` words: int64 [words].

    floor(total / (zeta(2) rank ** 2)), by Zipf's law with alpha 2: less than `total` together.
    """
    ranks = np.arange(1, words + 1)
    return np.floor(total * ranks**-2.0 / (math.pi**2 / 6)).astype(np.int64)
