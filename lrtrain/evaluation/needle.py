"""Needle retrieval: is a fact, hidden somewhere in a long text, still found at the end of it?

A prompt of exactly `length` tokens is

    [start of text]  filler  needle  filler  question  answer

with the needle at `depth` (0: before all filler, 1: right before the question), moved to the
nearest sentence end of the filler where one is near. With the model's chat template it is

    [template]  filler  needle  filler  question  [template]  answer

and what stands behind the question mark begins the assistant's turn, before the answer. Documents
of the filler have the end of text between them; in a chat they are one line instead, as that token
would often end the user's turn.

The answer is part of the prompt: one forward pass gives the model's first choice at every token of
the answer, given the right tokens before it. All of them right (`exact`) is the same as greedy
decoding writing the answer; `share` is the share of tokens that are right.

Prompts are drawn by (seed, length, depth, sample), so every model with the same tokenizer reads the
same ones, in whatever order models and lengths come.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from string import Formatter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lrdata.draws import Draws, Stream
from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrdata.sentences import sentence_lengths, sentence_tables
from lrdata.tokenizer import Tokenizer
from lrtrain.evaluation.models import LoadedModel, OpenModel
from lrtrain.evaluation.prompts import WRAPPINGS, Wrapping
from lrtrain.evaluation.text import Text, encode_line, encode_text

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 8192
"""Prompts of one length are read together up to so many tokens."""

_MAX_SENTENCE = 256
_NEAR = 16  # a needle moves to a sentence end by at most 1/16 of the filler


@dataclass(frozen=True)
class NeedleTemplate:
    """What is hidden and how it is asked for. `{value}` and `{name}` are drawn for each prompt.

    `before` stands before the needle and before the question, `after` behind the needle: by
    default each has a line of its own. Alphabets are characters, or a sequence of words.
    """

    needle: str = "The pass key is {value}. Remember it."
    question: str = "What is the pass key? The pass key is"
    answer: str = " {value}"
    value_alphabet: Sequence[str] = "0123456789"
    value_length: int = 5
    name_alphabet: Sequence[str] = "abcdefghijklmnopqrstuvwxyz"
    name_length: int = 6
    before: str = "\n"
    after: str = "\n"

    def __post_init__(self) -> None:
        for what, text, needed in (
            ("needle", self.needle, {"value"}),
            ("question", self.question, set[str]()),
            ("answer", self.answer, {"value"}),
        ):
            fields = _fields(what, text)
            if not needed <= fields:
                raise LongRecipeError(f"the {what} {text!r} has no {{value}}; put it in")
            if fields - {"value", "name"}:
                raise LongRecipeError(f"the {what} {text!r} may have {{value}} and {{name}} only")
        if "value" in _fields("question", self.question):
            raise LongRecipeError(
                f"the question {self.question!r} tells the {{value}}; take it out"
            )
        for what, alphabet, count in (
            ("value", self.value_alphabet, self.value_length),
            ("name", self.name_alphabet, self.name_length),
        ):
            if len(set(alphabet)) < 2 or not all(alphabet) or count < 1:
                raise LongRecipeError(
                    f"a needle's {what} needs 1 symbol at least, of an alphabet of 2 different ones"
                )

    @property
    def lead(self) -> str:
        """The beginning of the answer that is given: what stands behind the question mark."""
        return self.question.rpartition("?")[2] if "?" in self.question else ""


def _fields(what: str, text: str) -> set[str]:
    try:
        return {field for _, field, _, _ in Formatter().parse(text) if field is not None}
    except ValueError as problem:
        raise LongRecipeError(
            f"the {what} {text!r} is no template ({problem}); write {{value}} and {{name}}"
        ) from None


@dataclass(frozen=True)
class Prompt:
    """One question, answer included: ids int32 [length]; the answer is its last tokens."""

    ids: np.ndarray
    answer_tokens: int
    needle_start: int
    needle_stop: int
    value: str
    name: str


@dataclass(frozen=True)
class NeedleCell:
    """What one model did at one length and depth: an entry for each sample."""

    model: str
    length: int
    depth: float
    exact: tuple[bool, ...]
    share: tuple[float, ...]
    seeds: tuple[int, ...] = (0,)
    """Whose samples they are: see `seed_of_each`."""

    @property
    def tokens_read(self) -> int:
        return self.length * len(self.exact)

    @property
    def longest_read(self) -> int:
        return self.length


class Haystack:
    """Filler text as tokens, read in a circle: int32 [n], and where its sentences start, int64."""

    def __init__(self, ids: np.ndarray, tokenizer: Tokenizer) -> None:
        if not len(ids):
            raise LongRecipeError("the haystack holds no text; name a longer one")
        self.ids = np.asarray(ids)
        lengths = sentence_lengths(self.ids, sentence_tables(tokenizer), _MAX_SENTENCE)
        self.starts = np.cumsum(lengths) - lengths

    def read(self, offset: int, count: int) -> np.ndarray:
        """`count` tokens from `offset` on, int32 [count]."""
        return np.take(self.ids, np.arange(offset, offset + count), mode="wrap")

    def split(self, offset: int, count: int, depth: float) -> int:
        """How many of `count` tokens from `offset` on go before a needle at `depth`."""
        place = round(depth * count)
        if place in (0, count):
            return place
        size = len(self.ids)
        moves = (self.starts - (offset + place) + size // 2) % size - size // 2
        near = moves[(place + moves > 0) & (place + moves < count) & (abs(moves) <= count // _NEAR)]
        return place + int(near[np.argmin(abs(near))]) if len(near) else place


class PromptMaker:
    """Makes the prompts of a template over a haystack for one tokenizer.

    wrapping: what is around the question; without it the start of text alone.
    """

    def __init__(
        self,
        template: NeedleTemplate,
        haystack: Haystack,
        tokenizer: Tokenizer,
        wrapping: Wrapping | None = None,
    ) -> None:
        self.template, self.haystack, self.tokenizer = template, haystack, tokenizer
        self.wrapping = wrapping or Wrapping.plain(tokenizer)

    def make(self, seed: int, length: int, depth: float, sample: int) -> Prompt:
        """The prompt of these four. Raises LongRecipeError when `length` has no room for it."""
        draws = Draws(seed, "needle", length, f"{depth:.6f}", sample)
        template, before = self.template, self.wrapping.before
        words = {
            "value": _word(draws.stream("value"), template.value_alphabet, template.value_length),
            "name": _word(draws.stream("name"), template.name_alphabet, template.name_length),
        }
        needle = self._encode(template.before + template.needle.format_map(words) + template.after)
        ending, answer_tokens = self._ending(words)
        fill = length - len(before) - len(needle) - len(ending)
        if fill < 0:
            raise LongRecipeError(
                f"a length of {length} tokens has no room for the needle and the question, "
                f"which take {length - fill}; ask for longer ones"
            )
        starts = self.haystack.starts
        offset = int(starts[draws.stream("offset").below(len(starts), 1)[0]])
        place = self.haystack.split(offset, fill, depth)
        filler = self.haystack.read(offset, fill)
        ids = np.concatenate([before, filler[:place], needle, filler[place:], ending])
        start = len(before) + place
        return Prompt(ids, answer_tokens, start, start + len(needle), **words)

    def _ending(self, words: dict[str, str]) -> tuple[np.ndarray, int]:
        """Question and answer, int32 [n], and how many tokens the answer has.

        Where the answer begins a turn, no blanks are before it or before what leads to it.
        """
        template = self.template
        question = template.before + template.question
        answer = template.answer.format_map(words)
        if not self.wrapping.turns:
            asked = question.format_map(words)
            both = self._encode(asked + answer)
            return both, len(both) - self._answer_start(both, self._encode(asked))
        lead = template.lead.lstrip()
        asked = question.removesuffix(template.lead).format_map(words)
        lead = lead.format_map(words)
        both = self._encode((lead + answer).lstrip())
        tail = np.concatenate([self._encode(asked), self.wrapping.after, both])
        return tail, len(both) - self._answer_start(both, self._encode(lead))

    def _answer_start(self, whole: np.ndarray, before: np.ndarray) -> int:
        """Where the answer starts in the tokens of a text and the answer behind it.

        Where they differ from those of the text alone: at its end, or before it if the
        tokenizer joins the two. Tokens of white space only are not part of an answer: there is
        nothing to retrieve in them.
        """
        size = min(len(whole), len(before))
        start = int(np.argmin(np.append(whole[:size] == before[:size], False)))
        values, offsets = self.tokenizer.token_bytes
        pieces = [values[offsets[id_] : offsets[id_ + 1]].tobytes() for id_ in whole[start:-1]]
        blank = [piece.isspace() for piece in pieces]
        return start + [*blank, False].index(False)

    def _encode(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer.encode([text])[0])


def _word(stream: Stream, alphabet: Sequence[str], length: int) -> str:
    return "".join(alphabet[index] for index in stream.below(len(alphabet), length).tolist())


def answers_right(
    model: Any, ids: "torch.Tensor", answer_tokens: Sequence[int]
) -> list[np.ndarray]:
    """Which tokens of each answer are the model's first choice: a bool [answer_tokens] per prompt.

    ids: int64 [B, S], the answers at the end. Logits are computed for the answers alone. Raises
    FloatingPointError where they are not finite.
    """
    import torch

    from lrtrain.finite import need_finite

    longest = max(answer_tokens)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=longest + 1).logits
        logits = logits[:, -longest - 1 : -1]
        need_finite(logits.amax(-1))
    first_choice = logits.argmax(-1)
    right = (first_choice == ids[:, -longest:]).cpu().numpy()
    return [row[longest - count :] for row, count in zip(right, answer_tokens, strict=True)]


def measure(
    model: Any,
    device: "torch.device | str",
    name: str,
    prompts: list[Prompt],
    length: int,
    depth: float,
    seeds: tuple[int, ...] = (0,),
) -> Iterator[tuple[int, NeedleCell | None]]:
    """Ask all prompts of one cell, a batch at a time; they are sorted by their seed.

    Yields how many were asked, with the cell beside the last of them.
    """
    import torch

    exact, share = list[bool](), list[float]()
    size = max(1, BATCH_TOKENS // length)
    for first in range(0, len(prompts), size):
        batch = prompts[first : first + size]
        ids = torch.from_numpy(np.stack([prompt.ids for prompt in batch]).astype(np.int64))
        rights = answers_right(model, ids.to(device), [prompt.answer_tokens for prompt in batch])
        exact += [bool(right.all()) for right in rights]
        share += [float(right.mean()) for right in rights]
        done = len(exact) == len(prompts)
        cell = NeedleCell(name, length, depth, tuple(exact), tuple(share), seeds)
        yield len(batch), cell if done else None


@dataclass(frozen=True)
class NeedleSuite:
    """Needles at every length and depth: `samples` prompts for each of them and each seed."""

    haystack: Text
    lengths: Sequence[int]
    depths: Sequence[float]
    samples: int
    template: NeedleTemplate
    seeds: Sequence[int]
    prompt: str = "base"
    """What is around a question: a key of `WRAPPINGS`."""
    name: ClassVar[str] = "needle"
    kind: ClassVar[type[NeedleCell]] = NeedleCell
    compares: ClassVar[bool] = False
    joins: ClassVar[bool] = False

    def settings(self) -> dict[str, object]:
        return {
            "depths": list(self.depths),
            "samples": self.samples,
            "seeds": list(self.seeds),
            "template": asdict(self.template),
            "prompt": self.prompt,
            "haystack": self.haystack.describe(),
        }

    @property
    def size(self) -> int:
        return len(self.lengths) * len(self.depths)

    def check(self, opened: OpenModel) -> None:
        """Raises LongRecipeError where a prompt has no room, or the model no chat template."""
        maker = self._maker(opened.tokenizer)
        for seed, depth, sample in product(self.seeds, self.depths, range(self.samples)):
            maker.make(seed, min(self.lengths), depth, sample)

    def cells(self, loaded: LoadedModel, done: int = 0) -> Iterator[NeedleCell]:
        """A cell for each length and depth."""
        maker = self._maker(loaded.tokenizer)
        model, device, name = loaded.model, loaded.device, loaded.spec.name
        seeds = tuple(self.seeds)
        each = len(seeds) * self.samples
        due = list(product(self.lengths, self.depths))[done:]
        with progress(
            f"{name}: needle",
            self.size * each,
            done * each,
            work=sum(each * loaded.operations(length) for length, _ in due),
        ) as task:
            for length, depth in due:
                prompts = [
                    maker.make(seed, length, depth, sample)
                    for seed in seeds
                    for sample in range(self.samples)
                ]
                for asked, cell in measure(model, device, name, prompts, length, depth, seeds):
                    task.advance(
                        asked,
                        note=f"{length:,} tokens, depth {depth:.0%}",
                        work=asked * loaded.operations(length),
                    )
                    if cell:
                        yield cell

    def _maker(self, tokenizer: Tokenizer) -> PromptMaker:
        wrapping = WRAPPINGS[self.prompt](tokenizer)
        encode = encode_line if wrapping.turns else encode_text
        filler = Haystack(encode(self.haystack, tokenizer), tokenizer)
        return PromptMaker(self.template, filler, tokenizer, wrapping)
