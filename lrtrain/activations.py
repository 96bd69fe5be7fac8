"""What is kept between forward and backward: recomputed, moved to host memory, or made in chunks.

With checkpointing only the input of each layer is kept, and with offloading that waits in host
memory: it is copied there while the layer computes, and back while the layer above it is
differentiated. Of a layer the MLP takes the most; in chunks of tokens it never exists as a whole.

Shape legend: S tokens, D hidden width.
"""

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from lrtrain.host_memory import host_zeros

_LEAVING = 2
"""Layer inputs that may be on their way to the host at once."""


@dataclass(frozen=True)
class Activations:
    """What to do about the activations of a model's layers."""

    checkpointing: bool = False
    """Recompute a layer's activations from its input in the backward pass."""
    offload: bool = False
    """Keep the inputs in host memory; needs checkpointing."""
    mlp_tokens: int = 0
    """Tokens of an MLP at once; 0: all. It is computed once more then, with checkpointing twice."""
    compile: bool = False
    """Fuse the kernels of MLPs and norms with torch.compile."""


def prepare(model: Any, how: Activations) -> None:
    """Change how a causal model computes its layers, never what. Once for a model."""
    for layer in model.model.layers:
        mlp = layer.mlp
        if how.compile:
            for module in (mlp, layer.input_layernorm, layer.post_attention_layernorm):
                module.forward = torch.compile(module.forward)
        if how.mlp_tokens:
            mlp.forward = partial(_in_chunks, mlp, mlp.forward, how.mlp_tokens)
    if how.checkpointing:
        # transformers 5.23 renamed it; machines in the field carry older ones.
        new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
        getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})
    if how.offload:
        weight = model.model.embed_tokens.weight
        inputs = LayerInputs(weight.device, weight.dtype, weight.shape[1])
        model.model.forward = partial(_offloading, model.model.forward, inputs)


def _offloading(forward: Callable[..., Any], inputs: "LayerInputs", *args: Any, **kw: Any) -> Any:
    with saved_tensors_hooks(inputs.pack, inputs.unpack):
        return forward(*args, **kw)


class _Waiting:
    """A layer's input in host memory, or on its way. Its buffer is used again when it goes.

    Autograd alone owns it, so that it goes with a graph that nobody differentiates. before: gives
    the one that was kept before it, if that is still there.
    """

    def __init__(
        self,
        buffer: torch.Tensor,
        shape: torch.Size,
        free: list[torch.Tensor],
        before: "Callable[[], _Waiting | None]",
    ) -> None:
        self._buffer, self._free, self.before = buffer, free, before
        self.host = buffer[: shape.numel()].view(shape)
        self.fetched: torch.Tensor | None = None
        self.arrived: Any = None

    def __del__(self) -> None:
        self._free.append(self._buffer)


class LayerInputs:
    """Saved-tensor hooks that keep layer inputs [1, S, D] in host memory, for one model.

    Around a model with checkpointing torch saves little else at this level; all that has another
    shape or dtype stays where it is. Copies go through a stream of their own. What is copied stays
    on the device until the layer after the next is begun, and the device waits for the copy then:
    the allocator knows of one stream only, and gives nothing away too early.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, width: int) -> None:
        self._device, self._dtype, self._width = device, dtype, width
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._leaving: deque[tuple[torch.Tensor, Any]] = deque()
        self._last: Callable[[], _Waiting | None] = lambda: None
        self._free: list[torch.Tensor] = []

    def pack(self, tensor: torch.Tensor) -> Any:
        """What autograd keeps instead of a tensor."""
        is_input = tensor.dim() == 3 and tensor.shape[-1] == self._width
        if not is_input or tensor.dtype != self._dtype or tensor.is_leaf:
            return tensor.detach()  # an output that knew its graph would keep it alive for good
        buffer = self._buffer(tensor.numel())
        waiting = _Waiting(buffer, tensor.shape, self._free, self._last)
        if self._stream is None:
            waiting.host.copy_(tensor)
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                waiting.host.copy_(tensor, non_blocking=True)
                self._leaving.append((tensor.detach(), self._stream.record_event()))
            self._let_go(but=_LEAVING)
        self._last = weakref.ref(waiting)
        return waiting

    def unpack(self, packed: Any) -> torch.Tensor:
        """The tensor, on the device again; the one that is needed next is sent for."""
        if not isinstance(packed, _Waiting):
            tensor: torch.Tensor = packed
            return tensor
        self._let_go(but=0)
        self._fetch(packed)
        assert packed.fetched is not None
        before = packed.before()
        if before is not None:
            self._fetch(before)
        if packed.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(packed.arrived)
        return packed.fetched

    def _let_go(self, but: int) -> None:
        """Of tensors that were copied, all but the last ones."""
        while len(self._leaving) > but:
            _, copied = self._leaving.popleft()
            torch.cuda.current_stream(self._device).wait_event(copied)

    def _fetch(self, waiting: _Waiting) -> None:
        if waiting.fetched is not None:
            return
        waiting.fetched = torch.empty_like(waiting.host, device=self._device)
        if self._stream is None:
            waiting.fetched.copy_(waiting.host)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            waiting.fetched.copy_(waiting.host, non_blocking=True)
            waiting.arrived = self._stream.record_event()

    def _buffer(self, size: int) -> torch.Tensor:
        """Room for `size` numbers: the smallest that is free, or a new one."""
        fitting = [place for place, free in enumerate(self._free) if len(free) >= size]
        if fitting:
            return self._free.pop(min(fitting, key=lambda place: len(self._free[place])))
        if self._free:  # too small for rows of now: one goes for each that comes
            if self._stream is not None:
                self._stream.synchronize()  # it may be on its way still
            self._free.pop()
        return host_zeros(size, self._dtype, self._device)


class _Chunks(torch.autograd.Function):
    """A function of single tokens, a chunk at a time, and once more in the backward pass.

    The gradients of its parameters are added up in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        forward: Callable[[torch.Tensor], torch.Tensor],
        chunk_tokens: int,
        x: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        ctx.forward, ctx.chunk_tokens, ctx.parameters = forward, chunk_tokens, parameters
        ctx.save_for_backward(x)
        return torch.cat([forward(part) for part in x.split(chunk_tokens, 1)], 1)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        into = torch.empty_like(x)
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in ctx.parameters]
        chunks = (tensor.split(ctx.chunk_tokens, 1) for tensor in (x, into, outer[0]))
        for part, place, grad in zip(*chunks, strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                out = ctx.forward(part)
            grads = torch.autograd.grad(out, (part, *ctx.parameters), grad)
            place.copy_(grads[0])
            for total, one in zip(sums, grads[1:], strict=True):
                total += one
            del out, grads  # before the next chunk is made
        total_grads = [s.to(p.dtype) for s, p in zip(sums, ctx.parameters, strict=True)]
        return None, None, into, *total_grads


def _in_chunks(
    mlp: nn.Module,
    forward: Callable[[torch.Tensor], torch.Tensor],
    chunk_tokens: int,
    x: torch.Tensor,
) -> torch.Tensor:
    if x.shape[1] <= chunk_tokens:
        return forward(x)
    parameters = [p for p in mlp.parameters() if p.requires_grad]  # sharded ones: whole by now
    out = _Chunks.apply(forward, chunk_tokens, x, *parameters)
    assert isinstance(out, torch.Tensor)
    return out
