"""RoPE for a longer window: the paper's numbers, transformers' own frequencies, tampering."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lrdata.errors import LongRecipeError
from lrtrain.model import load_model
from lrtrain.rope import (
    Rope,
    check_inv_freq,
    expected_inv_freq,
    extended_theta,
    head_dim_of,
    parse_rope,
    set_rope,
)
from tests.lrtrain.tiny_models import FAMILIES, save_family


@pytest.mark.parametrize(
    ("theta", "factor", "published"),
    [(500_000, 10, 48.9e6), (500_000, 16, 131.5e6), (1_000_000, 4, 13.5e6)],
)
def test_theta_is_the_papers(theta: float, factor: int, published: float) -> None:
    assert extended_theta(theta, 8192, 8192 * factor, 128) == pytest.approx(published, rel=4e-3)


@given(
    theta=st.floats(1e3, 1e7),
    window=st.sampled_from([256, 8192, 32768]),
    factor=st.floats(1.0, 64.0),
    dim=st.sampled_from([16, 64, 128]),
)
def test_theta_grows_with_the_window_and_stays_at_factor_one(
    theta: float, window: int, factor: float, dim: int
) -> None:
    target = round(window * factor)
    longer = extended_theta(theta, window, target, dim)
    assert longer >= theta
    assert extended_theta(theta, window, window, dim) == pytest.approx(theta)
    assert extended_theta(theta, window, 2 * target, dim) > longer


def test_every_way_to_write_it() -> None:
    assert parse_rope("auto") == Rope("auto")
    assert parse_rope("none") == Rope("none")
    assert parse_rope(" yarn ") == Rope("yarn")
    assert parse_rope("theta=8e6") == Rope("theta", 8e6)


@pytest.mark.parametrize(
    "text",
    ["", "theta", "theta=", "theta=x", "theta=-1", "theta=inf", "auto=3", "ntk", "theta=0.5"],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(LongRecipeError, match="choose auto, theta=8e6, yarn or none"):
        parse_rope(text)


@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("written", ["auto", "theta=3e6", "yarn", "none"])
def test_our_frequencies_are_those_of_transformers(written: str, dim: int) -> None:
    config = LlamaConfig(
        hidden_size=4 * dim,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )
    set_rope(config, parse_rope(written), 32_768)
    theirs = LlamaRotaryEmbedding(config)
    frequencies, scaling = expected_inv_freq(config)
    assert head_dim_of(config) == dim
    assert torch.allclose(theirs.inv_freq, frequencies, rtol=1e-5, atol=0)
    assert theirs.attention_scaling == pytest.approx(scaling)
    assert config.max_position_embeddings == 32_768


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_model_whose_frequencies_are_not_its_configs_is_refused(
    family: str, tmp_path: Path
) -> None:
    folder = save_family(family, tmp_path / "model")
    model = load_model(str(folder), dtype=torch.float32, rope=Rope("auto"), target_len=512)
    check_inv_freq(model)
    model.model.rotary_emb.inv_freq[3] *= 1.001
    with pytest.raises(LongRecipeError, match="rotary frequencies are not those"):
        check_inv_freq(model)


def test_a_model_that_lost_its_theta_is_refused(tmp_path: Path) -> None:
    """The trap: the config changed after the model was made, and nothing happened."""
    model = load_model(str(save_family("llama", tmp_path / "model")), dtype=torch.float32)
    set_rope(model.config, Rope("auto"), 512)
    with pytest.raises(LongRecipeError, match="rotary frequencies"):
        check_inv_freq(model)


def test_a_model_without_rotary_embedding_is_refused(tmp_path: Path) -> None:
    model = load_model(str(save_family("llama", tmp_path / "model")), dtype=torch.float32)
    head = model.lm_head
    head.config = model.config
    with pytest.raises(LongRecipeError, match="no rotary embedding"):
        check_inv_freq(head)
