"""Needles in a haystack, in eight ways: RULER's niah tasks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Literal

import numpy as np

from lrdata.draws import Draws
from lrtrain.evaluation.needle import Haystack
from lrtrain.evaluation.ruler.filling import fill_with_lines, fill_with_text
from lrtrain.evaluation.ruler.question import Question, Source
from lrtrain.evaluation.ruler.texts import Kind, Texts
from lrtrain.evaluation.ruler.words import numbers, pairs, shuffled, uuids

_DEPTHS = np.round(np.linspace(0, 100, 40)) / 100
_DRAW = {"word": pairs, "number": numbers, "uuid": uuids}
_BLOCK = 256


@dataclass(frozen=True)
class NiahDraw:
    """What one prompt hides, and where."""

    keys: Sequence[str]
    values: Sequence[Sequence[str]]
    """Of each key."""
    order: Sequence[int]
    """In which the needles stand: an index each, counted along the values of all keys."""
    asked: Sequence[int]
    """The keys that are asked for."""
    end: int
    """Before which token of the haystack its text ends."""
    depths: Sequence[float]
    """Where in a text each needle stands, ascending."""
    places: Callable[[int], Sequence[int]]
    """Before which of n lines each needle stands, ascending."""
    others: Iterable[tuple[str, str]]
    """Keys and values of needles that are not asked for, without end."""


@dataclass(frozen=True)
class Niah:
    """A niah task: `keys` keys with `values` values each; `queries` of the keys are asked for.

    They are hidden between the sentences of a text, between lines of noise, or between lines that
    are needles too. In a text each stands at another one of 40 depths.
    """

    haystack: Literal["noise", "text", "needles"]
    key: Literal["word", "uuid"] = "word"
    value: Literal["number", "uuid"] = "number"
    keys: int = 1
    values: int = 1
    queries: int = 1

    def ask(self, draws: Draws, source: Source, length: int) -> Question:
        """The question of some draws. Its fill raises NoRoom."""
        return self.question(self.draw(draws, source.haystack), source)

    def draw(self, draws: Draws, haystack: Haystack) -> NiahDraw:
        count = self.keys * self.values
        keys = self._keys(draws)
        values = _DRAW[self.value](draws.stream("values"), count)
        ends = haystack.starts
        return NiahDraw(
            keys=keys,
            values=[values[at : at + self.values] for at in range(0, count, self.values)],
            order=shuffled(draws.stream("order"), count).tolist(),
            asked=shuffled(draws.stream("asked"), self.keys)[: self.queries].tolist(),
            end=int(ends[draws.stream("end").below(len(ends), 1)[0]]),
            depths=_DEPTHS[draws.stream("depths").subset(len(_DEPTHS), count)].tolist(),
            places=lambda lines: draws.stream("places").subset(lines, count).tolist(),
            others=self._others(draws, set(keys)),
        )

    def _keys(self, draws: Draws) -> list[str]:
        stream, found = draws.stream("keys"), dict[str, None]()
        while len(found) < self.keys:  # they are never the same twice, but for a wonder
            found |= dict.fromkeys(_DRAW[self.key](stream, 1))
        return list(found)

    def _others(self, draws: Draws, keys: set[str]) -> Iterator[tuple[str, str]]:
        names, values = draws.stream("other keys"), draws.stream("other values")
        while True:
            drawn = _DRAW[self.key](names, _BLOCK), _DRAW[self.value](values, _BLOCK)
            yield from (pair for pair in zip(*drawn, strict=True) if pair[0] not in keys)

    def question(self, drawn: NiahDraw, source: Source) -> Question:
        """The question about what was drawn, in the words of the source."""
        texts, kind = source.texts, self._kind(source.texts)
        frame = texts.one_needle if self.queries * self.values == 1 else texts.needles
        query = _listed([drawn.keys[at] for at in drawn.asked])
        return Question(
            frame=frame.format(kind=kind.one, kinds=kind.many, query=query),
            references=tuple(value for at in drawn.asked for value in drawn.values[at]),
            fill=lambda room: self._fill(drawn, source, room),
        )

    def _kind(self, texts: Texts) -> Kind:
        return texts.number if self.value == "number" else texts.uuid

    def _said(self, pairs: Iterable[tuple[str, str]], texts: Texts) -> list[str]:
        """A needle for each key and value."""
        kind = self._kind(texts)
        return [
            texts.needle.format(kind=kind.one, kinds=kind.many, key=key, value=value)
            for key, value in pairs
        ]

    def _fill(self, drawn: NiahDraw, source: Source, room: int) -> np.ndarray:
        named = zip(drawn.keys, drawn.values, strict=True)
        pairs = [(key, value) for key, values in named for value in values]
        needles = self._said((pairs[at] for at in drawn.order), source.texts)
        if self.haystack != "text":
            inserts = source.encode_all([f"{needle}\n" for needle in needles])
            return fill_with_lines(self._lines(drawn, source), inserts, drawn.places, room)
        inserts, ending = (
            source.encode_all([f" {needle}" for needle in needles]),
            source.encode("\n"),
        )
        room -= len(ending)
        filler = fill_with_text(source.haystack, drawn.end, inserts, drawn.depths, room)
        return np.concatenate([filler, ending])

    def _lines(self, drawn: NiahDraw, source: Source) -> Iterator[np.ndarray]:
        """The lines between which needles are hidden, int32 [n] each, without end."""
        if self.haystack == "noise":
            yield from repeat(source.encode(source.texts.noise))
        others = iter(drawn.others)
        while block := list(islice(others, _BLOCK)):
            yield from source.encode_all([f"{line}\n" for line in self._said(block, source.texts)])


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)}, and {last}" if first else last
