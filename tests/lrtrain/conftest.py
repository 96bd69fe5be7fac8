"""Settings for all tests that use torch."""

from collections.abc import Iterator

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
