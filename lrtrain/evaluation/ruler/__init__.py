"""RULER's synthetic tasks (arXiv 2404.06654): retrieval, tracing and counting in long prompts.

    source = Source(haystack_of(text, tokenizer), tokenizer)
    maker = PromptMaker(source, Wrapping.plain(tokenizer))
    prompt = maker.make(TASKS["vt"], seed=0, length=8192, sample=3)
    score(answer, prompt.references)

Built from RULER's definitions in our own words, over any text. A prompt is

    [wrapping]  head  filler  question  [wrapping]  prefix  | answer

`texts` has the words around what is drawn, `words` draws it. `niah`, `tracking` and `counting` make
the questions of the tasks, `filling` makes their fillers fit: a prompt of a length has exactly that
many tokens, less those that its answer may take, so that prompts of a task are read in batches
without padding. Fillers lose their beginning for that, in the middle of a line or a word: it is the
noise, a text, a needle that is not asked for, a word that comes too seldom. `tasks` puts it all
together, `scoring` says how much of an answer is there, `suite` asks models.

Scores are for comparing models with each other. Those that are published were measured with other
words; lm-evaluation-harness measures with them (see the README), and the tests build its prompts.
"""

from lrtrain.evaluation.ruler.question import Source
from lrtrain.evaluation.ruler.scoring import score
from lrtrain.evaluation.ruler.suite import RulerCell, RulerSuite, haystack_of
from lrtrain.evaluation.ruler.tasks import TASKS, Prompt, PromptMaker, Task, parse_tasks

__all__ = [
    "TASKS",
    "Prompt",
    "PromptMaker",
    "RulerCell",
    "RulerSuite",
    "Source",
    "Task",
    "haystack_of",
    "parse_tasks",
    "score",
]
