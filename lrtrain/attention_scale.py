"""The softmax scale that short rows are trained with, so that attention is sharp enough for T keys.

A row of L tokens spans the positions of a window of T but holds only L keys: to single one out, its
logit must stand above the others' by about log L, and so training on such rows teaches; at the
whole window it would take log T. So the extend rows are trained with the softmax scale times

    log L / log T

under which the same weights must give logits log T / log L times as large; without the factor, as
the model is used, they are sharp enough. Inference is unchanged, and rows of the whole window
(L = T) are trained as ever. It is the inverse of what others do at inference: YaRN's attention
factor (arXiv 2309.00071), Scalable-Softmax (2501.19399). The study is in bench/proof/RESULTS.md.
"""

import math
from typing import Literal

from lrdata.errors import LongRecipeError

AttentionScale = float | Literal["auto"]


def parse_attention_scale(text: str) -> AttentionScale:
    """`auto` or a number above 0. Raises LongRecipeError for anything else."""
    if text.strip() == "auto":
        return "auto"
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 < scale < math.inf:
        raise LongRecipeError(
            f"--attention-scale {text} is unknown; choose auto or a number above 0"
        )
    return scale


def scale_in_training(choice: AttentionScale, train_len: int, target_len: int) -> float:
    """The factor on the softmax scale for rows of `train_len` tokens of windows of `target_len`."""
    if choice != "auto":
        return choice
    return math.log(train_len) / math.log(target_len)
