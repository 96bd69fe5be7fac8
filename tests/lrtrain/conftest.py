"""Settings for all tests that use torch."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lrtrain.attention import choose_backend


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other, and pytest workers share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _default_backend() -> Iterator[None]:
    """A test that chooses an attention backend does not choose it for the others."""
    yield
    choose_backend("auto")


@pytest.fixture
def positions_in_tf32(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if a GPU gave Llama's rotary embedding 11 bits for a position; undo() ends it."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    real = LlamaRotaryEmbedding.forward

    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        mantissa, exponent = torch.frexp(position_ids.float())
        return real(self, x, torch.ldexp((mantissa * 2**11).round(), exponent - 11))

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", forward)
    return monkeypatch


@pytest.fixture
def no_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes as it is imported where its own library cannot be loaded: all calls raise."""
    from bitsandbytes.backends.cpu import ops
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary

    monkeypatch.setattr(ops, "lib", ErrorHandlerMockBNBNativeLibrary("CUDA binary not found"))
