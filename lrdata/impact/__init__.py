"""Impact scorers: tokens in, one score >= 0 per token out.

A scorer is built once for a tokenizer and called once per window. To add one: write a file with a
`Scorer`, and name it in `open_scorer`.
"""

from pathlib import Path

from lrdata.errors import LongRecipeError
from lrdata.impact.digits import Digits
from lrdata.impact.lexicon import LexiconImpact
from lrdata.impact.none import NoImpact
from lrdata.impact.random import Random
from lrdata.impact.scorer import Scorer
from lrdata.manifest import MANIFEST
from lrdata.shards import file_sha256
from lrdata.tokenizer import Tokenizer

__all__ = ["Scorer", "impact_sha256", "open_scorer"]


_PLAIN, _FROM_FILES = ("digits", "random", "none"), ("lexicon", "scores")


def open_scorer(spec: str, tokenizer: Tokenizer) -> Scorer:
    """The scorer that `--impact` names."""
    kind, path = _parse(spec)
    if kind == "lexicon":
        return LexiconImpact.open(path, tokenizer)
    if kind == "scores":
        from lrdata.impact.scores import DirectScores  # polars takes a while to import

        return DirectScores.open(path, tokenizer)
    if kind == "digits":
        return Digits(tokenizer)
    return Random() if kind == "random" else NoImpact()


def impact_sha256(spec: str) -> str | None:
    """The sha256 of what `--impact` reads; of a folder that of its manifest, which names the rest.

    None for scorers that read nothing. Raises LongRecipeError where it is missing.
    """
    kind, path = _parse(spec)
    if kind not in _FROM_FILES:
        return None
    file = path if kind == "lexicon" else path / MANIFEST
    if not file.is_file():
        raise LongRecipeError(f"--impact {spec}: there is no {file}")
    return file_sha256(file)


def _parse(spec: str) -> tuple[str, Path]:
    kind, _, path = spec.partition(":")
    if kind in (_FROM_FILES if path else _PLAIN):
        return kind, Path(path)
    raise LongRecipeError(
        f"--impact {spec}: unknown scorer; known: digits, lexicon:FILE, scores:DIR, random, none"
    )
