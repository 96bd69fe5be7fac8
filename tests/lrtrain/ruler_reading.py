"""Reads RULER prompts back: what they hold and ask, by the words that they are made of.

It reads ours and, given the words of another benchmark, those of that benchmark.
"""

import re
from collections import Counter
from dataclasses import dataclass

from lrtrain.evaluation.ruler.texts import Frame, Texts

_NAME = r"(\S+)"


def pattern(template: str, **fields: str) -> str:
    """A regular expression for a template: `fields` are expressions, other fields anything."""
    parts = re.split(r"\{(\w+)\}", template)
    return "".join(
        re.escape(part) if at % 2 == 0 else fields.get(part, ".+?") for at, part in enumerate(parts)
    )


def kind_of(word: str) -> str:
    """What kind of key or value it is."""
    if re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", word):
        return "uuid"
    if re.fullmatch(r"[1-9]\d{6}", word):
        return "number"
    return "word" if re.fullmatch(r"[^\W\d_]+-[^\W\d_]+(-[^\W\d_]+)*", word) else "?"


@dataclass(frozen=True)
class NiahFacts:
    """The structure of a niah prompt."""

    haystack: str
    keys: int
    """With which needles are hidden; in a haystack of needles those that are asked for."""
    asked: int
    values: int
    """Of each key that is asked for."""
    answers: int
    kinds: tuple[str, str]
    """Of keys and of values."""
    one: bool
    """Whether it is worded for one answer."""


@dataclass(frozen=True)
class NiahPrompt:
    """A niah prompt, read: needles in order, the keys asked for, and the text without needles."""

    needles: list[tuple[str, str]]
    asked: list[str]
    rest: str
    one: bool

    def facts(self, texts: Texts, references: tuple[str, ...]) -> NiahFacts:
        if texts.noise.strip() in self.rest:
            haystack = "noise"
        else:
            haystack = "text" if len(self.rest) > 200 else "needles"
        of = {key: [value for name, value in self.needles if name == key] for key in self.asked}
        assert sorted(references) == sorted(value for values in of.values() for value in values)
        keys = self.asked if haystack == "needles" else {key for key, _ in self.needles}
        (values,) = {len(found) for found in of.values()}
        kinds = {(kind_of(key), kind_of(value)) for key, value in self.needles}
        (kind,) = kinds
        return NiahFacts(
            haystack, len(keys), len(self.asked), values, len(references), kind, self.one
        )


def read_niah(text: str, texts: Texts) -> NiahPrompt:
    """The parts of a niah prompt; fails where it is none."""
    kinds = {"kind": r"\w+", "kinds": r"\w+"}
    needle = pattern(texts.needle, key=_NAME, value=_NAME, **kinds)
    for one, frame in ((True, texts.one_needle), (False, texts.needles)):
        whole = "(.*)".join(
            [
                pattern(frame.head, **kinds),
                pattern(f"{frame.question} {frame.prefix}", query="(.+?)", **kinds),
            ]
        )
        found = re.fullmatch(whole, text, re.DOTALL)
        if found:
            context, query, again = found.groups()
            assert query == again
            needles = re.findall(needle, context)
            rest = " ".join(re.sub(needle, "", context).split())
            return NiahPrompt(needles, re.split(r", and |, ", query), rest, one)
    raise AssertionError(f"no niah prompt: {text[:200]} ... {text[-300:]}")


@dataclass(frozen=True)
class ChainPrompt:
    """A prompt about variables, read: pairs (name, what it is given) in order, and the noise."""

    given: list[tuple[str, str]]
    value: str
    count: int
    noise: int
    places: list[int]
    """Before which line of noise each variable is given its value."""
    answer: list[str]
    """What follows the prefix."""


def read_chains(text: str, texts: Texts) -> list[ChainPrompt]:
    """The worked example, and what is asked."""
    frame = texts.variables
    parts = [part for part in re.split(f"(?={pattern(frame.head.strip())})", text) if part.strip()]
    return [_read_chain(part, frame, texts) for part in parts]


def _read_chain(text: str, frame: Frame, texts: Texts) -> ChainPrompt:
    tail = pattern(
        f"{frame.question.strip()} {frame.prefix}", value=r"(\d+)", count=r"(\d+)"
    ).replace(r"\ ", r"\s+")
    found = re.fullmatch(rf"{pattern(frame.head.strip())}(.*){tail}(.*)", text.strip(), re.DOTALL)
    assert found, f"no prompt about variables: {text}"
    context, *numbers, answer = found.groups()
    (value,) = {number for number in numbers if len(number) == 5}
    (count,) = {int(number) for number in numbers if len(number) != 5}
    first = pattern(texts.first.strip(), name=r"([A-Z]+)", value=r"(\d+)")
    further = pattern(texts.further.strip(), name=r"([A-Z]+)", other=r"([A-Z]+)")
    noise = re.escape(texts.noise.strip())
    given, places, lines = [], [], 0
    for match in re.finditer(f"{further}|{first}|{noise}", context):
        words = [group for group in match.groups() if group]
        if words:
            given.append((words[0], words[1]))
            places.append(lines)
        else:
            lines += 1
    return ChainPrompt(given, value, count, lines, places, answer.split())


@dataclass(frozen=True)
class ListPrompt:
    """A prompt about a numbered list, read."""

    numbers: list[int]
    words: list[str]
    answer: list[str]
    """What follows the prefix, a word an entry."""

    @property
    def repeats(self) -> list[tuple[int, int]]:
        """(times, different words that come so often), the most frequent first."""
        return sorted(Counter(Counter(self.words).values()).items(), reverse=True)


def read_lists(text: str, texts: Texts) -> list[ListPrompt]:
    """The worked example, and what is asked."""
    frame = texts.common.format(count=10)
    parts = [part for part in re.split(f"(?={pattern(frame.head.strip())})", text) if part.strip()]
    tail = re.escape(f"{frame.question} {frame.prefix}")
    read = []
    for part in parts:
        found = re.fullmatch(
            rf"{re.escape(frame.head.strip())}(.*){tail}(.*)", part.strip(), re.DOTALL
        )
        assert found, f"no prompt about a list: {part}"
        listed, answer = (re.findall(r"(\d+)\. (\S+)", group) for group in found.groups())
        read.append(
            ListPrompt(
                [int(number) for number, _ in listed],
                [word for _, word in listed],
                [word for _, word in answer],
            )
        )
    return read


def read_code(text: str, texts: Texts) -> list[str]:
    """The code words of a text, dots included, in order."""
    frame = texts.frequent
    found = re.fullmatch(
        rf"{re.escape(frame.head)}(.*){re.escape(f'{frame.question} {frame.prefix}')}",
        text.strip(),
        re.DOTALL,
    )
    assert found, f"no prompt about code words: {text}"
    return found[1].split()
