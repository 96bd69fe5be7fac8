"""Rows: what is kept of a window is its own."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from lrdata.recipe import BuildRecipe
from lrdata.rows import Compressor
from lrdata.shards import Row
from lrdata.tokenizer import Tokenizer
from lrdata.windows import Document, Tokens, WindowJoiner


@pytest.mark.parametrize("positions", ["longrecipe", "source", "full"])
def test_a_row_does_not_keep_the_memory_of_its_window(tiny_tokenizer: Path, positions: str) -> None:
    """A window may be a view of a whole batch, and rows wait for their page."""
    recipe = BuildRecipe(("c",), str(tiny_tokenizer), 64, positions=positions)
    compressor = Compressor.open(recipe, Tokenizer.load(str(tiny_tokenizer)))
    batch = np.arange(100, dtype=np.int32)
    run = Tokens(batch, np.arange(4, 100, 5))
    (window,) = WindowJoiner(64, None).add(Document("d", "s", "f", 0), run, 0, 70)
    for row in (compressor.row(window), compressor.holdout_row(window)):
        held = [getattr(row, field.name) for field in fields(Row)]
        arrays = [value for value in held if isinstance(value, np.ndarray)]
        assert len(arrays) == 9
        assert not any(np.shares_memory(array, batch) for array in arrays)
