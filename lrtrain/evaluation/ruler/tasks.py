"""The tasks by name, and their prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrtrain.evaluation.prompts import Wrapping
from lrtrain.evaluation.ruler.counting import Common, Frequent
from lrtrain.evaluation.ruler.filling import NoRoom
from lrtrain.evaluation.ruler.niah import Niah
from lrtrain.evaluation.ruler.question import Question, Source
from lrtrain.evaluation.ruler.tracking import Tracking


class Maker(Protocol):
    """Makes the questions of a task."""

    def ask(self, draws: Draws, source: Source, length: int) -> Question:
        """The question of some draws, for a prompt and answer of `length` tokens."""


@dataclass(frozen=True)
class Task:
    """One of RULER's tasks. `answer_tokens` are left free at the end of each length."""

    name: str
    answer_tokens: int
    maker: Maker


TASKS = {
    task.name: task
    for task in (
        Task("niah_single_1", 128, Niah("noise")),
        Task("niah_single_2", 128, Niah("text")),
        Task("niah_single_3", 128, Niah("text", value="uuid")),
        Task("niah_multikey_1", 128, Niah("text", keys=4)),
        Task("niah_multikey_2", 128, Niah("needles")),
        Task("niah_multikey_3", 128, Niah("needles", key="uuid", value="uuid")),
        Task("niah_multivalue", 128, Niah("text", values=4)),
        Task("niah_multiquery", 128, Niah("text", keys=4, queries=4)),
        Task("vt", 30, Tracking(hops=4)),
        Task("cwe", 120, Common(count=10)),
        Task("fwe", 50, Frequent(count=3)),
    )
}


def parse_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of these names, or of `all`, in RULER's order.

    Raises LongRecipeError for a name that is none.
    """
    unknown = [name for name in names if name not in (*TASKS, "all")]
    if unknown or not names:
        raise LongRecipeError(
            f"unknown task {unknown[0] if any(unknown) else '(none)'}; choose all, or from "
            f"{', '.join(TASKS)}"
        )
    return [task for name, task in TASKS.items() if name in names or "all" in names]


@dataclass(frozen=True)
class Prompt:
    """One prompt: ids int32 [length - answer tokens], and what its answer should contain."""

    ids: np.ndarray
    references: tuple[str, ...]


class PromptMaker:
    """Makes the prompts of all tasks for one tokenizer.

    wrapping: what is around a question. In a chat the prefix of the answer begins the model's turn.
    """

    def __init__(self, source: Source, wrapping: Wrapping) -> None:
        self.source, self.wrapping = source, wrapping

    def make(self, task: Task, seed: int, length: int, sample: int) -> Prompt:
        """The prompt of these four, the same in whatever order they come.

        It has `length` - `task.answer_tokens` tokens exactly. Raises LongRecipeError when they are
        too few.
        """
        draws = Draws(seed, "ruler", task.name, length, sample)
        question = task.maker.ask(draws, self.source, length)
        head = [self.wrapping.before, self.source.encode(question.frame.head)]
        tail = self._tail(question)
        room = length - task.answer_tokens - sum(map(len, (*head, *tail)))
        try:
            if room < 0:
                raise NoRoom(-room)
            filler = question.fill(room)
        except NoRoom as problem:
            raise LongRecipeError(
                f"a length of {length} tokens has no room for {task.name}, which takes "
                f"{length + problem.missing} at least; ask for longer ones, or leave it out"
            ) from None
        return Prompt(np.concatenate([*head, filler, *tail]), question.references)

    def _tail(self, question: Question) -> Sequence[np.ndarray]:
        frame, encode = question.frame, self.source.encode
        if self.wrapping.turns:
            return encode(frame.question), self.wrapping.after, encode(frame.prefix)
        return (encode(f"{frame.question} {frame.prefix}"),)
