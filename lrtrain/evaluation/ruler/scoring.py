"""How much of what was asked for is in an answer."""

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def tidied(answer: str) -> str:
    """The answer without white space around it, its control characters as line ends."""
    return _CONTROL.sub("\n", answer.strip()).strip()


def score(answer: str, references: Sequence[str]) -> float:
    """The share of the references that the answer contains, in whatever case.

    RULER's string_match_all, for one answer.
    """
    text = tidied(answer).lower()
    return sum(reference.lower() in text for reference in references) / len(references)
