"""Rotary position embeddings for a longer window: choose, write into the config, check.

transformers 5 keeps theta in `config.rope_parameters`; setting `config.rope_theta` afterwards does
nothing, and replacing the dict can lose theta. So the parameters are set before the model is made,
and the frequencies that the model really uses are compared with our own computation. So are the
angles that a device makes of them.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lrdata.errors import LongRecipeError

_BETA_FAST, _BETA_SLOW = 32.0, 1.0  # YaRN's defaults (arXiv 2309.00071, section 3.2)
_ANGLE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Rope:
    """`auto`: the paper's theta; `theta`: the one given; `yarn`; `none`: as the model has it."""

    kind: Literal["auto", "theta", "yarn", "none"]
    theta: float | None = None


def parse_rope(text: str) -> Rope:
    """`auto`, `theta=8e6`, `yarn` or `none`. Raises LongRecipeError for anything else."""
    name, _, value = text.strip().partition("=")
    if name == "theta" and value:
        try:
            theta = float(value)
        except ValueError:
            theta = 0.0
        if theta > 1 and math.isfinite(theta):
            return Rope("theta", theta)
    elif not value and name in ("auto", "yarn", "none"):
        return Rope(name)  # type: ignore[arg-type]
    raise LongRecipeError(f"--rope {text} is unknown; choose auto, theta=8e6, yarn or none")


def extended_theta(theta: float, original_len: int, target_len: int, head_dim: int) -> float:
    """theta' = theta (f s - (f - 1))^(d / (d - 2)), s = f = T / L0 (LongRecipe's fixed base).

    The NTK formula at the target's own length, so that nothing changes at inference: 500k for 8k
    to 80k gives 48.9M, to 128k 131.5M.
    """
    factor = target_len / original_len
    return theta * (factor * factor - (factor - 1)) ** (head_dim / (head_dim - 2))


def head_dim_of(config: Any) -> int:
    """The width of an attention head."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def set_rope(config: Any, rope: Rope, target_len: int) -> None:
    """Write the choice and the new window into a config, before the model is made from it."""
    parameters = dict(config.rope_parameters)
    original = int(config.max_position_embeddings)
    if rope.kind == "auto":
        parameters["rope_theta"] = extended_theta(
            parameters["rope_theta"], original, target_len, head_dim_of(config)
        )
    elif rope.kind == "theta":
        parameters["rope_theta"] = rope.theta
    elif rope.kind == "yarn":
        parameters["rope_type"] = "yarn"
        parameters["factor"] = target_len / original
        parameters["original_max_position_embeddings"] = original
        if hasattr(config, "original_max_position_embeddings"):  # transformers believes it first
            config.original_max_position_embeddings = original
    config.rope_parameters = parameters
    config.max_position_embeddings = target_len


def rope_between(before: Any, after: Any) -> str:
    """The `--rope` that leads from one model's config to that of the same model, extended."""
    if "rope_theta" not in (getattr(before, "rope_parameters", None) or {}):
        return "auto"  # of a family that is merged here, but not trained
    for name in ("auto", "none", "yarn"):
        config = copy.deepcopy(before)
        set_rope(config, parse_rope(name), int(after.max_position_embeddings))
        if config.rope_parameters == after.rope_parameters:
            return name
    return f"theta={float(after.rope_parameters['rope_theta'])!r}"


def rope_of_transformers_4(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` as configs had it before transformers 5, which reads the same from it."""
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    old = {"rope_theta": parameters["rope_theta"]}
    return old if scaling["rope_type"] == "default" else {**old, "rope_scaling": scaling}


def expected_inv_freq(config: Any) -> tuple[torch.Tensor, float]:
    """Inverse frequencies float32 [head_dim / 2] and the factor on cos and sin, from the config.

    Our own computation, for comparison: theta^(-2i/d), and for yarn the blend of it with the same
    divided by the factor, by how often a dimension turns within the original window.
    """
    parameters, dim = config.rope_parameters, head_dim_of(config)
    theta = float(parameters["rope_theta"])
    plain = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if parameters["rope_type"] == "default":
        return plain.float(), 1.0
    if parameters["rope_type"] != "yarn":
        raise LongRecipeError(f"RoPE of type {parameters['rope_type']} is not supported here")
    factor = float(parameters["factor"])
    original = float(parameters["original_max_position_embeddings"])

    def turns_at(turns: float) -> float:
        """The dimension that turns so often within the original window."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = (
        max(math.floor(turns_at(_BETA_FAST)), 0),
        min(math.ceil(turns_at(_BETA_SLOW)), dim - 1),
    )
    steps = (torch.arange(dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)
    interpolated = steps.clamp(0, 1)
    blended = plain / factor * interpolated + plain * (1 - interpolated)
    return blended.float(), 0.1 * math.log(factor) + 1.0


def check_inv_freq(model: nn.Module) -> None:
    """Compare the frequencies that the model uses with `expected_inv_freq` of its config.

    Raises LongRecipeError when any differs by more than one part in 10,000.
    """
    config: Any = model.config
    expected, scaling = expected_inv_freq(config)
    found = [module for module in model.modules() if hasattr(module, "inv_freq")]
    if not found:
        raise LongRecipeError(f"{config.model_type}: the model has no rotary embedding to check")
    for module in found:
        actual: Any = module.inv_freq
        same = actual.shape == expected.shape and torch.allclose(
            actual.detach().float().cpu(), expected, rtol=1e-4, atol=0
        )
        if not same or abs(float(getattr(module, "attention_scaling", 1.0)) - scaling) > 1e-6:
            raise LongRecipeError(
                f"{config.model_type}: the model's rotary frequencies are not those of theta "
                f"{config.rope_parameters['rope_theta']:g} "
                f"({config.rope_parameters['rope_type']}); this transformers reads the config "
                "differently: report it with its version"
            )


@torch.no_grad()
def check_angles(model: nn.Module) -> None:
    """Compare cos and sin of positions, as the model makes them where it is now, with float64.

    Right frequencies are not enough: up to 5.18 transformers multiplies them with the positions in
    a matmul, and in TF32 that rounds positions to 11 bits, beyond 2,048 to others.
    Raises LongRecipeError when any differs by more than 0.05, and what fp32 leaves of an angle.
    """
    config: Any = model.config
    window = int(config.max_position_embeddings)
    positions = torch.tensor([0, 1, 2049, window // 2 + 1, window - 1])
    tolerance = _ANGLE_TOLERANCE + window * 2.0**-24
    embeddings: list[Any] = [each for each in model.modules() if hasattr(each, "inv_freq")]
    for embedding in embeddings:
        inv_freq = embedding.inv_freq
        found = embedding(inv_freq.new_zeros(1), positions[None].to(inv_freq.device))
        angles = (positions[:, None] * inv_freq.double().cpu()).repeat(1, 2)
        exact = torch.cat([angles.cos(), angles.sin()], -1) * embedding.attention_scaling
        errors = (torch.cat(found, -1)[0].double().cpu() - exact).abs().amax(1)
        if not errors.max() <= tolerance:
            raise LongRecipeError(
                f"{config.model_type}: cos and sin of position {int(positions[errors.argmax()]):,} "
                f"are off by {float(errors.max()):.2g} on {inv_freq.device}: TF32, or the like; "
                "unset NVIDIA_TF32_OVERRIDE, update transformers to 5.19 or newer, or use "
                "--device cpu"
            )
