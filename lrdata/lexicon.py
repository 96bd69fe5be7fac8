"""Scores of tokens -> the significance of every token type: what long context matters for.

    lexicon = make_lexicon([open_scores("scores")])
    write_lexicon(Path("lexicon.parquet"), lexicon)

A token is at the top where its gain is among the highest 20 % at its position in the window, across
windows, and above 0 (LongRecipe, section 3.1). The significance of a type is the share of its
tokens that are at the top, shrunk: a type that was seen n times counts with weight n / (n + k)
against its class (`lrdata.token_classes`), and the class in the same way against all tokens. k is
the variance among the tokens of one type over that among types (Buehlmann's credibility), estimated
from the scores. A type that was never seen has the significance of its class.

lexicon.parquet has a row for each id of the vocabulary:

| column | type | meaning |
|---|---|---|
| `token` | int32 | its id |
| `text` | string | what it stands for; bytes that are no text as `\\xe2` |
| `class` | string | see `lrdata.token_classes` |
| `count` | int64 | how often its gain was measured |
| `mean_gain` | float32 | mean gain in nats; null where count is 0, as in the next two |
| `top_share` | float32 | share at the top |
| `key_share` | float32 | share of key tokens, as in `lrdata.scores` |
| `significance` | float32 | the shrunk share at the top: what `--impact lexicon:FILE` reads |
| `expected_gain` | float32 | the mean of max(gain, 0) in nats, shrunk in the same way |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from lrdata.atomic import replacing
from lrdata.errors import LongRecipeError
from lrdata.impact.lexicon import FORMAT, FORMAT_KEY, TOKENIZER_KEY
from lrdata.scores import KEY_GAIN, KEY_LOG_PROB, SCORES, Scores
from lrdata.select import IMPACTFUL_SHARE
from lrdata.token_classes import CLASSES, token_classes
from lrdata.vocabulary import Vocabulary, each_token

_KEPT = ("token", "text", "class", "count", "mean_gain", "top_share", "key_share")
_TOKENS_OF_A_BIN = 512
"""Neighbouring positions are taken together until there are so many tokens to rank."""


@dataclass(frozen=True)
class Lexicon:
    """`table`: the columns above. `fingerprint`: of the tokenizer, see `lrdata.tokenizer`."""

    table: pl.DataFrame
    fingerprint: str

    @property
    def significance(self) -> np.ndarray:
        """float32 [vocab_size], >= 0; 0 for special tokens."""
        return self.table["significance"].to_numpy()

    @property
    def expected_gain(self) -> np.ndarray:
        """float32 [vocab_size], nats; 0 for special tokens."""
        return self.table["expected_gain"].to_numpy()


def measured_tokens(scores: Scores, documents: Sequence[str] | None = None) -> pl.LazyFrame:
    """The measured tokens of some documents, or of all.

    Columns: document, position, token, `gain` (the method's), `top` and `key` (bool).
    """
    frame = pl.scan_parquet(scores.folder / SCORES).rename({scores.measures[0]: "gain"})
    frame = frame.filter(pl.col("gain").is_not_null())
    if documents is not None:
        frame = frame.filter(pl.col("document").is_in(list(documents)))
    chosen = None if documents is None else set(documents)
    windows = sum(chosen is None or document in chosen for document, _, _ in scores.index)
    gain, bin_ = pl.col("gain"), pl.col("position") // -(-_TOKENS_OF_A_BIN // max(windows, 1))
    highest = gain.quantile(1 - IMPACTFUL_SHARE, "higher").over(bin_)
    return frame.select(
        "document",
        "position",
        "token",
        "gain",
        top=(gain >= highest) & (gain > 0),
        key=(gain > KEY_GAIN) & (pl.col("log_prob") > KEY_LOG_PROB),
    )


def make_lexicon(all_scores: Sequence[Scores], documents: Sequence[str] | None = None) -> Lexicon:
    """The lexicon of some score folders with one tokenizer, or of some of their documents.

    Raises LongRecipeError when the tokenizers differ and when nothing was measured.
    """
    first = all_scores[0]
    fingerprint = first.manifest.tokenizer.fingerprint
    for scores in all_scores[1:]:
        if scores.manifest.tokenizer.fingerprint != fingerprint:
            raise LongRecipeError(
                f"{scores.folder} was scored with another tokenizer than {first.folder}; "
                "make a lexicon for each"
            )
        if scores.manifest.method != first.manifest.method:
            raise LongRecipeError(
                f"{scores.folder} holds {scores.manifest.method} scores, {first.folder} "
                f"{first.manifest.method}; make a lexicon for each"
            )
    tokens = pl.concat([measured_tokens(scores, documents) for scores in all_scores])
    types = (
        tokens.group_by("token")
        .agg(
            count=pl.len(),
            mean_gain=pl.col("gain").mean(),
            top_share=pl.col("top").mean(),
            key_share=pl.col("key").mean(),
            top_variance=pl.col("top").var(ddof=0),
            positive=pl.col("gain").clip(0.0).mean(),
            positive_variance=pl.col("gain").clip(0.0).var(ddof=0),
        )
        .collect()
    )
    if not len(types):
        raise LongRecipeError(f"{first.folder} has no measured token of these documents")
    return Lexicon(_table(types, first.vocabulary), fingerprint)


def _table(types: pl.DataFrame, vocabulary: Vocabulary) -> pl.DataFrame:
    """A row for each id, with its significance."""
    classes = token_classes(vocabulary)
    tokens = each_token(vocabulary.token_bytes)
    every = pl.DataFrame(
        {
            "token": np.arange(len(classes), dtype=np.int32),
            "text": [token.decode(errors="backslashreplace") for token in tokens],
            "class": pl.Series(CLASSES).gather(classes),
        }
    )
    table = every.join(types, on="token", how="left", maintain_order="left").with_columns(
        pl.col("count").fill_null(0).cast(pl.Int64),
        pl.col("mean_gain", "top_share", "key_share").cast(pl.Float32),
    )
    count = table["count"].to_numpy()
    shrunk = {}
    for name, mean, variance in (
        ("significance", "top_share", "top_variance"),
        ("expected_gain", "positive", "positive_variance"),
    ):
        means, variances = (table[of].fill_null(0.0).to_numpy() for of in (mean, variance))
        estimate = shrink(count, means, variances, classes)
        estimate[vocabulary.special] = 0.0
        shrunk[name] = estimate.astype(np.float32)
    return table.select(*_KEPT).with_columns(**shrunk)


def shrink(
    count: np.ndarray, mean: np.ndarray, variance: np.ndarray, group: np.ndarray
) -> np.ndarray:
    """Means of types, shrunk to those of their groups, and these to that of all.

    Args:
        count: int64 [t], observations of a type; mean, variance: float [t], of these.
        group: uint8 [t].
    Returns:
        float64 [t].
    """
    groups = int(group.max(initial=0)) + 1
    counts, mean = count.astype(np.float64), mean.astype(np.float64)
    within = (counts * variance).sum() / max(counts.sum() - np.count_nonzero(counts), 1.0)
    of_group = np.bincount(group, counts, groups)
    means = np.bincount(group, counts * mean, groups) / np.maximum(of_group, 1.0)
    overall = np.full(groups, (counts * mean).sum() / max(counts.sum(), 1.0))
    prior = _credible(of_group, means, overall, within, np.zeros(groups, np.int64))[group]
    return _credible(counts, mean, prior, within, group)


def _credible(
    count: np.ndarray, mean: np.ndarray, prior: np.ndarray, within: float, group: np.ndarray
) -> np.ndarray:
    """n / (n + k) of the mean and k / (n + k) of the prior.

    k by the method of moments, from the spread of the means around those of their groups.
    """
    total = np.bincount(group, count)
    divisor = np.maximum(total, 1.0)
    around = (np.bincount(group, count * mean) / divisor)[group]
    free = np.count_nonzero(count) - np.count_nonzero(total)
    size = (total - np.bincount(group, count**2) / divisor).sum()
    spread = (count * (mean - around) ** 2).sum() - free * within
    if free < 1 or size <= 0 or spread <= 0:  # they differ no more than chance has it
        return prior.copy()
    weight = np.zeros(len(count))  # of what was never seen
    np.divide(count, count + within * size / spread, out=weight, where=count > 0)
    return np.asarray(weight * mean + (1 - weight) * prior)


def write_lexicon(path: Path, lexicon: Lexicon) -> None:
    """Write a lexicon as Parquet, atomically."""
    table = lexicon.table.to_arrow().replace_schema_metadata(
        {FORMAT_KEY: FORMAT.encode(), TOKENIZER_KEY: lexicon.fingerprint.encode()}
    )
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd")
