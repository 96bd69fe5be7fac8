"""What the prompts say around what is drawn: our own words for RULER's tasks.

Every text is a template, so that the same tasks can be built of other words; the tests build them
of those of lm-evaluation-harness and find its prompts.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """The text around a filler. `head` ends where the filler begins (with a line end, where it is
    lines), `question` begins where it ends, `prefix` begins the answer."""

    head: str
    question: str
    prefix: str

    def format(self, **words: object) -> "Frame":
        return Frame(*(part.format(**words) for part in (self.head, self.question, self.prefix)))


@dataclass(frozen=True)
class Kind:
    """What a kind of key or value is called."""

    one: str
    many: str


@dataclass(frozen=True)
class Texts:
    """The words of all tasks."""

    needle: str = "A secret {kind} of {key} is: {value}."
    """One needle; `{kinds}` is the plural."""
    needles: Frame = Frame(
        head="Some secret {kinds} are hidden in the text below. Keep them in mind: you will be "
        "asked for them after the text.\n",
        question="Which secret {kinds} of {query} does the text above give? Name all of them.",
        prefix="The secret {kinds} of {query} that the text above gives are",
    )
    """Where several values are asked for."""
    one_needle: Frame = Frame(
        head="A secret {kind} is hidden in the text below. Keep it in mind: you will be asked for "
        "it after the text.\n",
        question="Which secret {kind} of {query} does the text above give?",
        prefix="The secret {kind} of {query} that the text above gives is",
    )
    """Where one value is asked for."""
    number: Kind = Kind("number", "numbers")
    uuid: Kind = Kind("UUID", "UUIDs")
    noise: str = (
        "The kettle is warm. A door stands open. Rain taps on the roof. Somebody hums a tune. "
        "The clock goes on.\n"
    )
    """A line of the filler that says nothing."""

    variables: Frame = Frame(
        head="In the text below, variables are given values, or the values of other variables. "
        "Follow them from one to the next.\n\n",
        question="Question: Which variables of the text above have the value {value}?",
        prefix="Answer: As the text above gives them, these {count} variables have the value "
        "{value}:",
    )
    first: str = "VAR {name} = {value}\n"
    """A variable that is given a value."""
    further: str = "VAR {name} = VAR {other}\n"
    """A variable that is given that of another one."""

    common: Frame = Frame(
        head="Here is a numbered list of words. Some of them come far more often than the others. "
        "Remember which.\n",
        question="\nQuestion: Which {count} words come most often in the list above?",
        prefix="Answer: The {count} words that come most often in the list above are:",
    )
    entry: str = "{number}. {word}"
    """A word of a numbered list; a space stands between two of them."""

    frequent: Frame = Frame(
        head="Here is a text in code words, with dots between them that mean nothing. Count how "
        "often each code word comes.",
        question="\nQuestion: Which three code words come most often in the text above? The dots "
        "do not count. Name the words and explain nothing.",
        prefix="Answer: The three code words that come most often in the text above are:",
    )
    dots: str = "..."
