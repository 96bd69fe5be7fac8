"""AdamW for parameters of 2 or 4 bytes, with what it keeps as exact and as near as there is room.

| kept, bytes a parameter   | exact              | smaller                                   |
|---------------------------|--------------------|-------------------------------------------|
| parameter in bf16         | 2                  | 2                                         |
| its lower half, `masters` | 2: fp32 in all     | 0: updates are rounded stochastically     |
| gradient, accumulated     | 4: fp32            | 2: bf16, added with stochastic rounding   |
| both `moments`            | 8: fp32            | 2: 8 bits a number                        |

`offload` keeps lower halves and moments in host memory; a step brings them to the device a part at
a time. fp32 parameters are their own masters and have fp32 gradients.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import nn
from torch.optim.adamw import adamw

from lrdata.errors import LongRecipeError
from lrtrain.host_memory import to_device, zeros
from lrtrain.moments import SCALES, block_of, make_moment
from lrtrain.rounding import join, round_stochastically, split
from lrtrain.sharded import Rows, local, rows_of

PART = 1 << 24
"""Numbers that are updated at once: bounds what a step needs beside what is kept."""

EPSILON = 1e-8


@dataclass(frozen=True)
class Storage:
    """How exactly the optimizer keeps what it needs, and where; see the table above."""

    masters: str = "fp32"
    """fp32 or none."""
    gradients: str = "fp32"
    """fp32 or bf16."""
    moments: str = "fp32"
    """fp32 or 8bit."""
    offload: bool = False


EXACT = Storage()


@dataclass(frozen=True)
class StoredBytes:
    """Bytes that AdamW keeps for the parameters of a model."""

    masters: int
    moments: int
    gradients: int


def stored_bytes(parameters: Iterable[torch.Tensor], storage: Storage) -> StoredBytes:
    """What is kept of parameters, whatever their device."""
    masters = moments = gradients = 0
    for parameter in parameters:
        n, exact = local(parameter).numel(), parameter.dtype == torch.float32
        masters += 0 if exact or storage.masters == "none" else 2 * n
        block = block_of(parameter.shape, storage.moments)
        moments += 2 * (n + 4 * (n // block) if block else 4 * n)
        gradients += 4 * n if exact or storage.gradients == "fp32" else 2 * n
    return StoredBytes(masters, moments, gradients)


class AdamW:
    """AdamW over the parameters of a model that want gradients. Vectors (norms, biases) do not
    decay.

    bf16 parameters get a gradient buffer each: a hook adds each backward's gradient to it and frees
    it, so that hundreds of small contributions are not lost to bf16's eight bits.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        storage: Storage = EXACT,
    ) -> None:
        self.peak, self.betas = lr, betas
        self.steps = 0
        self._kept = [
            _Kept(name, parameter, weight_decay if parameter.dim() > 1 else 0.0, storage)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        self._by_name = {kept.name: kept for kept in self._kept}
        self._hooks = [
            kept.parameter.register_post_accumulate_grad_hook(kept.add_gradient)
            for kept in self._kept
            if kept.parameter.dtype != torch.float32
        ]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [kept.parameter for kept in self._kept]

    def gradients(self) -> list[torch.Tensor]:
        """Those accumulated since the last step, in the shapes of their parameters."""
        found = (kept.gradient for kept in self._kept)
        return [gradient for gradient in found if gradient is not None]

    def masters(self) -> list[torch.Tensor]:
        """The parameters as exactly as they are known, in fp32."""
        return [kept.master() for kept in self._kept]

    def gradient_norm(self) -> torch.Tensor:
        """The 2-norm over all gradients, of this rank's parts where they are sharded: fp32."""
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in self.gradients()]
        return torch.linalg.vector_norm(torch.stack(norms))

    @torch.no_grad()
    def step(self, factor: float, norm: torch.Tensor, clip: float) -> None:
        """Update with `factor` times the peak rate; gradients above `clip` are scaled down."""
        self.steps += 1
        share = (clip / (norm + 1e-6)).clamp(max=1.0) if clip > 0 else None
        for kept in self._kept:
            if kept.gradient is not None:
                for part in kept.parts():
                    kept.update(part, self.peak * factor, self.betas, self.steps, share)
                kept.gradient = None

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All that the next step depends on, by name."""
        if self._kept and self._kept[0].parameter.is_cuda:
            torch.cuda.synchronize()  # host memory may be written to still
        for kept in self._kept:
            yield f"{kept.kind}.{kept.name}", kept.known()
            for kind, tensor in kept.moments():
                yield f"{kind}.{kept.name}", tensor
        yield "steps", torch.tensor(self.steps)

    @torch.no_grad()
    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take over what `state` gave, parameters included. Raises LongRecipeError unless it is
        of this very model and storage."""
        known = self._by_name
        missing = {
            "steps",
            *(f"{kind}.{kept.name}" for kept in self._kept for kind in kept.kinds()),
        }
        for key, value in tensors:
            kind, _, name = key.partition(".")
            missing.discard(key)
            if key == "steps":
                self.steps = int(value)
            elif name not in known or not known[name].load(kind, value):
                raise LongRecipeError(
                    f"the checkpoint is of another model, or of other --masters or --moments: it "
                    f"has {key} of shape {tuple(value.shape)}; remove the run's folder checkpoints"
                )
        if missing:
            raise LongRecipeError(
                f"the checkpoint lacks {min(missing)}; remove the run's folder checkpoints"
            )

    def rows(self, key: str) -> Rows | None:
        """Which rows of a tensor `state` gives here, by its name; None: it is no parameter's."""
        kept = self._by_name.get(key.partition(".")[2])
        return None if kept is None else rows_of(kept.parameter)

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()


class _Kept:
    """One parameter and all that is kept of it; of a sharded one, this rank's part."""

    def __init__(self, name: str, parameter: nn.Parameter, decay: float, storage: Storage) -> None:
        self.name, self.parameter, self._decay, self._storage = name, parameter, decay, storage
        self._own = local(parameter.data)
        self._flat = self._own.view(-1)
        n, device = len(self._flat), self._own.device
        self._buffer: torch.Tensor | None = None
        self._lower: torch.Tensor | None = None
        if parameter.dtype != torch.float32 and storage.masters == "fp32":
            self._lower = zeros(n, torch.int16, device, storage.offload)
        self._block = block_of(parameter.shape, storage.moments)
        self._moments = {
            kind: make_moment(n, device, self._block, storage.offload, signed)
            for kind, signed in (("exp_avg", True), ("exp_avg_sq", False))
        }

    def parts(self) -> Iterator[slice]:
        """Of its numbers, so many as are worked on at once."""
        for start in range(0, len(self._flat), PART):
            yield slice(start, min(start + PART, len(self._flat)))

    @property
    def kind(self) -> str:
        """The name under which a checkpoint has the parameter."""
        exact = self._lower is not None or self.parameter.dtype == torch.float32
        return "master" if exact else "parameter"

    @property
    def gradient(self) -> torch.Tensor | None:
        if self.parameter.dtype != torch.float32:
            return self._buffer
        return None if self.parameter.grad is None else local(self.parameter.grad)

    @gradient.setter
    def gradient(self, value: None) -> None:
        self.parameter.grad = self._buffer = value

    @torch.no_grad()
    def add_gradient(self, parameter: torch.Tensor) -> None:
        """The hook after each backward."""
        assert parameter.grad is not None
        new = local(parameter.grad)
        parameter.grad = None
        if self._storage.gradients == "fp32":
            if self._buffer is None:
                self._buffer = new.float()
            else:
                self._buffer += new
        elif self._buffer is None:
            self._buffer = new.contiguous()
        else:
            into, new = self._buffer.view(-1), new.reshape(-1)
            for part in self.parts():
                into[part] = round_stochastically(into[part].float() + new[part])

    def update(
        self,
        part: slice,
        rate: float,
        betas: tuple[float, float],
        steps: int,
        share: torch.Tensor | None,
    ) -> None:
        """A step of AdamW for a part of the parameter, `share` of whose gradient counts."""
        assert self.gradient is not None
        gradient = self.gradient.view(-1)[part].float()
        if share is not None:
            gradient.mul_(share)
        master = self._master(part)
        first, second = (moment.read(part) for moment in self._moments.values())
        adamw(
            [master],
            [gradient],
            [first],
            [second],
            [],
            [torch.full((), steps - 1.0, device=master.device)],  # is counted up in there
            fused=True,
            amsgrad=False,
            beta1=betas[0],
            beta2=betas[1],
            lr=rate,
            weight_decay=self._decay,
            eps=EPSILON,
            maximize=False,
        )
        for moment, values in zip(self._moments.values(), (first, second), strict=True):
            moment.write(part, values)
        self._set_master(part, master)

    def _master(self, part: slice) -> torch.Tensor:
        upper = self._flat[part]
        if upper.dtype == torch.float32:
            return upper
        if self._lower is None:
            return upper.float()
        return join(upper, to_device(self._lower[part], upper.device, self._storage.offload))

    def _set_master(self, part: slice, master: torch.Tensor) -> None:
        if self._flat.dtype == torch.float32:
            return
        if self._lower is None:
            self._flat[part] = round_stochastically(master)
            return
        self._flat[part], lower = split(master)
        self._lower[part].copy_(lower, non_blocking=True)

    def master(self) -> torch.Tensor:
        """In fp32, in the parameter's shape."""
        return self._master(slice(0, len(self._flat))).view(self._own.shape)

    def known(self) -> torch.Tensor:
        """As a checkpoint has it."""
        return self.master() if self.kind == "master" else self._own

    def moments(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As a checkpoint has them: each with its kind, and with as many rows as the parameter."""
        rows, *rest = self._own.shape
        for kind, moment in self._moments.items():
            for suffix, tensor in moment.tensors():
                shape = [prod(rest) // self._block] if suffix == SCALES else rest
                yield kind + suffix, tensor.view(rows, *shape)

    def kinds(self) -> list[str]:
        """What a checkpoint has of it."""
        return [self.kind, *(kind for kind, _ in self.moments())]

    def load(self, kind: str, value: torch.Tensor) -> bool:
        """Take over what a checkpoint has; False when nothing like it is kept."""
        if kind == self.kind:
            if value.shape != self._own.shape:
                return False
            flat = value.to(self._own.device).view(-1)
            if kind == "parameter" or flat.dtype == self._flat.dtype:
                self._flat.copy_(flat)
            else:
                self._set_master(slice(0, len(flat)), flat)
            return True
        place = dict(self.moments()).get(kind)
        if place is None or place.shape != value.shape or place.dtype != value.dtype:
            return False
        place.copy_(value)
        return True
