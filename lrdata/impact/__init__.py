"""Impact scorers: tokens in, one score >= 0 per token out.

A scorer is built once for a tokenizer and called once per window. To add one: write a file with a
`Scorer`, and name it in `_OF_TOKENS`.
"""

from collections.abc import Callable
from pathlib import Path

from lrdata.errors import LongRecipeError
from lrdata.impact.digits import Digits
from lrdata.impact.lexicon import LexiconImpact
from lrdata.impact.none import NoImpact
from lrdata.impact.random import Random
from lrdata.impact.returns import Returns
from lrdata.impact.scorer import Scorer
from lrdata.manifest import MANIFEST
from lrdata.shards import file_sha256
from lrdata.tokenizer import Tokenizer
from lrdata.vocabulary import Vocabulary

__all__ = ["Scorer", "impact_sha256", "open_scorer", "scorer_of_tokens"]

_OF_TOKENS: dict[str, Callable[[Vocabulary], Scorer]] = {
    "digits": Digits,
    "returns": Returns,
    "random": lambda _: Random(),
    "none": lambda _: NoImpact(),
}
"""Scorers that need nothing but the tokens."""
_WITH_VALUE = {"returns": "TOKENS", "lexicon": "FILE", "scores": "DIR"}
_FROM_FILES = ("lexicon", "scores")


def open_scorer(spec: str, tokenizer: Tokenizer, join: str = "attend") -> Scorer:
    """The scorer that `--impact` names. join: whether documents of a window see each other."""
    kind, value = _parse(spec)
    if kind == "lexicon":
        return LexiconImpact.open(Path(value), tokenizer)
    if kind == "scores":
        from lrdata.impact.scores import DirectScores  # polars takes a while to import

        return DirectScores.open(Path(value), tokenizer)
    return scorer_of_tokens(spec, tokenizer, join)


def scorer_of_tokens(spec: str, vocabulary: Vocabulary, join: str = "attend") -> Scorer:
    """The same for scorers that read no file."""
    kind, value = _parse(spec)
    if kind == "returns":
        return Returns.open(value, vocabulary, join)
    return _OF_TOKENS[kind](vocabulary)


def impact_sha256(spec: str) -> str | None:
    """The sha256 of what `--impact` reads; of a folder that of its manifest, which names the rest.

    None for scorers that read nothing. Raises LongRecipeError where it is missing.
    """
    kind, value = _parse(spec)
    if kind not in _FROM_FILES:
        return None
    file = Path(value) if kind == "lexicon" else Path(value) / MANIFEST
    if not file.is_file():
        raise LongRecipeError(f"--impact {spec}: there is no {file}")
    return file_sha256(file)


def _parse(spec: str) -> tuple[str, str]:
    """`lexicon:FILE` -> ("lexicon", "FILE"). Raises LongRecipeError for what is no scorer."""
    kind, _, value = spec.partition(":")
    if kind in (_WITH_VALUE if value else _OF_TOKENS):
        return kind, value
    known = [*_OF_TOKENS, *(f"{name}:{what}" for name, what in _WITH_VALUE.items())]
    raise LongRecipeError(f"--impact {spec}: unknown scorer; known: {', '.join(known)}")
