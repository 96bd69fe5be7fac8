"""The suite ruler: models write their answers, and these are scored."""

from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lrdata.chat import template_conversation
from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrdata.tokenizer import Tokenizer
from lrtrain.evaluation.generate import generate
from lrtrain.evaluation.models import LoadedModel, OpenModel
from lrtrain.evaluation.needle import Haystack
from lrtrain.evaluation.prompts import WRAPPINGS
from lrtrain.evaluation.ruler.question import Source
from lrtrain.evaluation.ruler.scoring import score
from lrtrain.evaluation.ruler.tasks import Prompt, PromptMaker, Task
from lrtrain.evaluation.text import Text, encode_line

if TYPE_CHECKING:
    import torch

_ANSWERED_TOKENS = 32_768
"""Of prompts that are answered together: each token of all their answers reads the weights once."""


@dataclass(frozen=True)
class RulerCell:
    """What one model did in one task at one length: an entry for each sample."""

    model: str
    task: str
    length: int
    """Tokens of a prompt and of the room for its answer."""
    answer_tokens: int
    score: tuple[float, ...]
    """Shares of the references that are in the answers."""
    answers: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...] = (0,)
    """Whose samples they are: see `seed_of_each`."""

    @property
    def tokens_read(self) -> int:
        return (self.length - self.answer_tokens) * len(self.score)

    @property
    def longest_read(self) -> int:
        return self.length


def haystack_of(text: Text, tokenizer: Tokenizer) -> Haystack:
    """All documents as one line, so that a needle between two sentences looks like one of them."""
    return Haystack(encode_line(text, tokenizer), tokenizer)


def stop_tokens(model: Any, tokenizer: Tokenizer, chat: bool) -> set[int]:
    """What ends an answer: the end of text, what the model's own settings name, and in a chat what
    the template puts behind an answer."""
    found = {tokenizer.eot_id}
    for settings in (model.config, model.generation_config):
        ends = getattr(settings, "eos_token_id", None)
        found |= set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    if chat:
        with suppress(LongRecipeError):  # a template that writes questions alone
            behind = template_conversation(tokenizer).after.tolist()
            found |= {id_ for id_ in behind[:1] if tokenizer.special[id_]}
    return found


def measure(
    model: Any,
    device: "torch.device | str",
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    most: int,
    stop: Set[int],
) -> Iterator[list[str]]:
    """The answers of up to `most` tokens, a batch at a time. Prompts are of one length."""
    import torch

    size = max(1, _ANSWERED_TOKENS // (len(prompts[0].ids) + most))
    for first in range(0, len(prompts), size):
        batch = np.stack([prompt.ids for prompt in prompts[first : first + size]])
        ids = torch.from_numpy(batch.astype(np.int64)).to(device)
        yield [tokenizer.decode(answer) for answer in generate(model, ids, most, stop)]


@dataclass(frozen=True)
class RulerSuite:
    """Tasks at every length: `samples` prompts for each of them and each seed."""

    haystack: Text
    lengths: Sequence[int]
    samples: int
    tasks: Sequence[Task]
    seeds: Sequence[int]
    prompt: str = "base"
    """What is around a question: a key of `WRAPPINGS`."""
    name: ClassVar[str] = "ruler"
    kind: ClassVar[type[RulerCell]] = RulerCell
    compares: ClassVar[bool] = False
    joins: ClassVar[bool] = False

    def settings(self) -> dict[str, object]:
        return {
            "tasks": [task.name for task in self.tasks],
            "samples": self.samples,
            "seeds": list(self.seeds),
            "prompt": self.prompt,
            "haystack": self.haystack.describe(),
        }

    @property
    def size(self) -> int:
        return len(self.lengths) * len(self.tasks)

    def check(self, opened: OpenModel) -> None:
        """Raises LongRecipeError where a prompt has no room, or the model no chat template."""
        maker = self._maker(opened.tokenizer)
        for task, seed, sample in product(self.tasks, self.seeds, range(self.samples)):
            maker.make(task, seed, min(self.lengths), sample)

    def cells(self, loaded: LoadedModel, done: int = 0) -> Iterator[RulerCell]:
        """A cell for each length and task."""
        tokenizer, name = loaded.tokenizer, loaded.spec.name
        maker = self._maker(tokenizer)
        stop = stop_tokens(loaded.model, tokenizer, maker.wrapping.turns)
        drawn = [(seed, sample) for seed in self.seeds for sample in range(self.samples)]
        due = list(product(self.lengths, self.tasks))[done:]
        with progress(
            f"{name}: ruler",
            self.size * len(drawn),
            done * len(drawn),
            work=sum(len(drawn) * loaded.operations(length) for length, _ in due),
        ) as bar:
            for length, task in due:
                prompts = [maker.make(task, seed, length, sample) for seed, sample in drawn]
                answers = list[str]()
                for written in measure(
                    loaded.model, loaded.device, tokenizer, prompts, task.answer_tokens, stop
                ):
                    answers += written
                    bar.advance(
                        len(written),
                        note=f"{task.name} at {length:,}",
                        work=len(written) * loaded.operations(length),
                    )
                yield self._cell(name, task, length, prompts, answers)

    def _maker(self, tokenizer: Tokenizer) -> PromptMaker:
        source = Source(haystack_of(self.haystack, tokenizer), tokenizer)
        return PromptMaker(source, WRAPPINGS[self.prompt](tokenizer))

    def _cell(
        self, model: str, task: Task, length: int, prompts: list[Prompt], answers: list[str]
    ) -> RulerCell:
        references = tuple(prompt.references for prompt in prompts)
        return RulerCell(
            model=model,
            task=task.name,
            length=length,
            answer_tokens=task.answer_tokens,
            score=tuple(map(score, answers, references)),
            answers=tuple(answers),
            references=references,
            seeds=tuple(self.seeds),
        )
