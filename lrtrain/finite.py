"""Logits that are numbers: NaN has a first choice too, and reads as a model that finds nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lrdata.errors import LongRecipeError


def need_finite(found: torch.Tensor) -> None:
    """Raises FloatingPointError where something that was found from logits is not finite."""
    if not found.isfinite().all():
        raise FloatingPointError("logits are not finite")


@contextmanager
def finite_logits(model: str, dtype: torch.dtype) -> Iterator[None]:
    """What `need_finite` finds becomes a line that says what to do."""
    try:
        yield
    except FloatingPointError:
        raise LongRecipeError(
            f"{model}: its logits are not finite in {str(dtype).removeprefix('torch.')}: its "
            "weights hold NaN or infinity, or overflow in this dtype; use another --dtype, such as "
            "fp32, or get the model anew"
        ) from None
