"""Models under evaluation: transformers' attention, by the kernels that are known to be right."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.integrations import sdpa_attention

from lrtrain.evaluation.models import _settle_kernels
from tests.lrtrain.tiny_models import save_tiny


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is settled for a process goes with the test."""
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)
    allowed = torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(allowed)


def test_grouped_heads_are_repeated_in_fp32_on_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else torch would make the S x S matrix; the numbers are the same."""
    folder = save_tiny("llama", tmp_path / "model", num_key_value_heads=2, num_attention_heads=4)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    grouped, real = list[bool](), F.scaled_dot_product_attention

    def noted(query: torch.Tensor, key: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        grouped.append(key.shape[1] < query.shape[1])
        return real(query, key, *rest, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    ids = torch.arange(1, 33)[None]
    logits = []
    for dtype in (torch.bfloat16, torch.float32):
        _settle_kernels(dtype)
        grouped.clear()
        with torch.inference_mode():
            logits.append(model(ids).logits)
        assert grouped
        assert all(grouped) == any(grouped) == (dtype == torch.bfloat16)
    torch.testing.assert_close(*logits)


def test_cudnn_s_attention_is_not_taken() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    _settle_kernels(torch.bfloat16)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
