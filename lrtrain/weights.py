"""How much each token counts in the loss: a float32 weight a token, from the columns of its row.

    none     1
    impact   1, and 2 for impactful tokens
    longce   min(exp(lsd), 5)
    ukp      0.75 + 0.25 * |lsd| / mean |lsd|

`lsd` is what long context gains for a token, log P(token | long) - log P(token | the last K tokens)
in nats, as `lrtrain score` measures it. A token that was not measured (NaN: a document's first K
tokens, what was not scored) weighs 1.

`weights[i]` belongs to token i as the target, as do the columns. Weights are constants: nothing
differentiates them. The loss mask and documents' first tokens are left to `lrtrain.loader`.
"""

from collections.abc import Callable

import numpy as np

from lrdata.errors import LongRecipeError
from lrdata.shards import Row

Weighting = Callable[[Row], np.ndarray]
"""A row of n tokens -> float32 [n], finite and >= 0."""

LONGCE_MOST = 5.0
UKP_MOST = 5.0  # nats
UKP_SHARE = 0.75


def none(row: Row) -> np.ndarray:
    """1 for every token: plain cross-entropy."""
    return np.ones(len(row.input_ids), np.float32)


def impact(row: Row) -> np.ndarray:
    """1 + impact_mask: an impactful token counts twice. Ours; LongRecipe only selects by them."""
    return row.impact_mask + np.float32(1)


def longce(row: Row) -> np.ndarray:
    """min(exp(lsd), 5): LongCE, of "What is Wrong with Perplexity for Long-context Language
    Modeling?" (arXiv 2410.23771), with lsd from before training instead of from the model that is
    being trained. Raises LongRecipeError when the row has no `lsd`.
    """
    lsd = _measured(row)
    with np.errstate(over="ignore"):  # infinity becomes 5 like any other large value
        weights = np.minimum(np.exp(lsd), np.float32(LONGCE_MOST))
    weights[np.isnan(lsd)] = 1
    return weights


def ukp(row: Row) -> np.ndarray:
    """0.75 + 0.25 * a / mean(a) with a = min(|lsd|, 5), over the row's measured tokens: their mean
    is 1, and so is each of them when all lsd are 0.

    The dense weights (lambda = 0.75) of "Token Weighting for Long-Range Language Modeling" (UKP,
    arXiv 2503.09202), scored before training. Two things are ours: the clip, so that no odd token
    takes the weight of its row; and that what was not measured weighs 1 and is left out of the
    mean, where theirs has a = 0. Raises LongRecipeError when the row has no `lsd`.
    """
    lsd = _measured(row)
    measured = ~np.isnan(lsd)
    gains = np.minimum(np.abs(lsd[measured]), np.float32(UKP_MOST))
    weights = np.ones(len(lsd), np.float32)
    if gains.any():
        normalised = gains / np.float32(gains.mean(dtype=np.float64))
        weights[measured] = UKP_SHARE + (1 - UKP_SHARE) * normalised
    return weights


def _measured(row: Row) -> np.ndarray:
    """The row's lsd in float32: exp and sums would be coarse in its float16."""
    if row.lsd is None:
        raise LongRecipeError(
            f"row {row.sample_id} has no lsd; build the dataset with --impact scores:DIR, DIR "
            "from `lrtrain score` without --long-model"
        )
    return row.lsd.astype(np.float32)


WEIGHTS: dict[str, Weighting] = {"none": none, "impact": impact, "longce": longce, "ukp": ukp}
"""What `--token-weights` names."""

NEED_LSD = ("longce", "ukp")
"""Those that need the column `lsd`."""
