"""The checks pass where training is right and fail where transformers alone would train wrongly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrdata.errors import LongRecipeError
from lrtrain import attention, checks
from lrtrain.attention_backends import dense
from lrtrain.model import load_model
from tests.lrtrain.tiny_models import FAMILIES, save_tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_the_trainers_attention_passes(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = load_model(save_tiny(family, tmp_path / "m"), dtype=dtype)
    assert "gap of 777" in checks.attention_crosses_gaps(model)
    assert "nothing" in checks.attention_stops_at_documents(model)
    assert "cross-entropy" in checks.chunked_loss_is_plain(model)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_transformers_own_attention_stops_at_a_gap(attention: str, tmp_path: Path) -> None:
    """The very trap: it reads the gap as the start of a packed document."""
    folder = save_tiny("llama", tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
    with pytest.raises(LongRecipeError, match="stops at a gap"):
        checks.attention_crosses_gaps(model)


def test_attention_that_knows_no_documents_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(q: Any, k: Any, v: Any, seq_lengths: Sequence[int], scale: float) -> torch.Tensor:
        return dense(q, k, v, [sum(seq_lengths)], scale)

    monkeypatch.setattr(attention, "_chosen", blind)
    model = load_model(save_tiny("llama", tmp_path / "m"), dtype=torch.float32)
    checks.attention_crosses_gaps(model)
    with pytest.raises(LongRecipeError, match="documents of a row"):
        checks.attention_stops_at_documents(model)


def test_a_wrong_loss_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks.chunked_weighted_cross_entropy
    monkeypatch.setattr(
        checks, "chunked_weighted_cross_entropy", lambda *given: real(*given) * 1.01
    )
    model = load_model(save_tiny("llama", tmp_path / "m"), dtype=torch.float32)
    with pytest.raises(LongRecipeError, match="loss in chunks"):
        checks.chunked_loss_is_plain(model)


def test_weights_that_are_not_finite_are_called_that(tmp_path: Path) -> None:
    """And not attention that stops at gaps: nothing is larger than NaN."""
    model = load_model(save_tiny("llama", tmp_path / "m"), dtype=torch.float32)
    model.model.norm.weight.data[0] = float("nan")
    for check in (checks.attention_crosses_gaps, checks.attention_stops_at_documents):
        with pytest.raises(LongRecipeError, match="not finite"):
            check(model)
