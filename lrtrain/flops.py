"""Floating-point operations of a training step, and the share of a device's peak that they are.

MFU (model FLOPs utilisation, PaLM, arXiv 2204.02311, appendix B) counts what the model needs, not
what is computed: three forward passes' worth of operations a step (forward once, backward twice),
without the recomputation of checkpointing. Of attention only the causal half is counted:

    forward = 2 S (weights of the linear layers, output embedding included)
              + layers * sum over documents of 4 (n^2 / 2) (heads * head width)

with S tokens, and n tokens in a document. `causal=False` counts all n^2, as papers often do.
"""

import re
from collections.abc import Sequence
from typing import Any

from lrtrain.rope import head_dim_of

PEAK_TFLOPS = {
    "H200": 989.0,
    "H200 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800": 989.0,
    "B200": 2250.0,
    "GB200": 2250.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "A10": 125.0,
    "A10G": 70.0,
    "RTX 4090": 165.2,
    "RTX 5090": 209.5,
}
"""Dense bf16 tensor-core peak by a part of the device's name, from the vendor's data sheets."""


def linear_weights(config: Any) -> int:
    """Weights that each token is multiplied with: all matrices but the input embedding."""
    hidden, width = config.hidden_size, head_dim_of(config)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    attention = hidden * width * (2 * heads + 2 * kv_heads)
    mlp = 3 * hidden * config.intermediate_size
    return int(config.num_hidden_layers * (attention + mlp) + hidden * config.vocab_size)


def training_flops(config: Any, seq_lengths: Sequence[int], causal: bool = True) -> float:
    """Operations of forward and backward over documents of these lengths, see above."""
    linear = 2.0 * sum(seq_lengths) * linear_weights(config)
    pairs = sum(length * length / (2 if causal else 1) for length in seq_lengths)
    width = config.num_attention_heads * head_dim_of(config)
    return 3.0 * (linear + 4.0 * config.num_hidden_layers * pairs * width)


def peak_of(device: Any, dtype: str) -> float | None:
    """Operations a second of a torch device in a recipe's dtype, where they are known: in bf16, of
    GPUs. In fp32 tensor cores are not used, and a GPU does a fifteenth of it."""
    import torch

    if device.type != "cuda" or dtype != "bf16":
        return None
    return peak_flops(torch.cuda.get_device_name(device))


def peak_flops(device_name: str) -> float | None:
    """Operations a second of a device in bf16; None for one that is not known here.

    The longest name that the device's holds, as words: an RTX A1000 is no A100.
    """
    found = [
        name
        for name in PEAK_TFLOPS
        if re.search(rf"(?<![A-Za-z0-9]){name}(?![A-Za-z0-9])", device_name, re.IGNORECASE)
    ]
    return PEAK_TFLOPS[max(found, key=len)] * 1e12 if found else None
