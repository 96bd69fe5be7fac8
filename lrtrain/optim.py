"""AdamW over fp32 master weights, gradients accumulated in fp32, and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from lrdata.errors import LongRecipeError

FLOOR = 0.1
"""Cosine and linear schedules end at this share of the peak."""


def warmup_then(schedule: str, steps: int, warmup: float) -> Callable[[int], float]:
    """Step -> factor on the peak learning rate, for steps 0 .. steps - 1.

    The factor rises linearly over the first `warmup` share of the steps, then follows `schedule`:
    cosine or linear down to a tenth at the last step, or constant.
    """
    rising = math.ceil(warmup * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        done = (step - rising) / max(1, steps - 1 - rising)
        if schedule == "constant":
            return 1.0
        fall = (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1 - done
        return FLOOR + (1 - FLOOR) * fall

    return factor


def linear_to_zero(steps: int) -> Callable[[int], float]:
    """Step -> factor: 1 at step 0, exactly 0 at the last of `steps` (1 when there is only one)."""
    return lambda step: (steps - 1 - step) / (steps - 1) if steps > 1 else 1.0


class MasterAdamW:
    """AdamW for parameters of any float dtype.

    Parameters below fp32 get an fp32 master copy and an fp32 gradient buffer: a hook adds each
    backward's gradient to it and frees it, so that hundreds of small contributions are not lost to
    bf16's eight bits. fp32 parameters are their own master. Vectors (norms, biases) do not decay.
    """

    def __init__(
        self, model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        self.peak = lr
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        self.masters = [
            p if p.dtype == torch.float32 else p.detach().float().requires_grad_()
            for p in self.parameters
        ]
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(_into(master))
            for parameter, master in zip(self.parameters, self.masters, strict=True)
            if parameter is not master
        ]
        groups = [
            {"params": [m for m in self.masters if m.dim() > 1], "weight_decay": weight_decay},
            {"params": [m for m in self.masters if m.dim() <= 1], "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=lr, betas=betas, eps=1e-8
        )

    def gradient_norm(self) -> torch.Tensor:
        """The 2-norm over all gradients."""
        grads = [m.grad for m in self.masters if m.grad is not None]
        return torch.nn.utils.get_total_norm(grads)

    def step(self, factor: float, norm: torch.Tensor, clip: float) -> None:
        """Update with `factor` times the peak rate; gradients above `clip` are scaled down."""
        if clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self.masters, clip, norm)
        for group in self._adam.param_groups:
            group["lr"] = self.peak * factor
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._copy_masters()

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All that the next step depends on, by name: masters, moments, steps done."""
        for name, master in zip(self.names, self.masters, strict=True):
            yield f"master.{name}", master
            for moment, value in self._adam.state[master].items():
                yield f"{moment}.{name}", value

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take over what `state` gave, parameters included. Raises LongRecipeError unless it is
        of this very model."""
        masters = dict(zip(self.names, self.masters, strict=True))
        missing = set(masters)
        for key, value in tensors:
            kind, _, name = key.partition(".")
            master = masters.get(name)
            if master is None or (kind != "step" and value.shape != master.shape):
                raise LongRecipeError(
                    f"the checkpoint is of another model: it has {key} of shape "
                    f"{tuple(value.shape)}; remove the run's folder checkpoints"
                )
            if kind == "master":
                master.data.copy_(value)
                missing.discard(name)
            else:
                place = "cpu" if kind == "step" else master.device  # as torch's AdamW has it
                self._adam.state[master][kind] = value.to(place)
        if missing:
            raise LongRecipeError(
                f"the checkpoint lacks {min(missing)}; remove the run's folder checkpoints"
            )
        self._copy_masters()

    @torch.no_grad()
    def _copy_masters(self) -> None:
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()


def _into(master: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """A hook that moves a parameter's gradient into its master's fp32 buffer."""

    def accumulate(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad += parameter.grad
        parameter.grad = None

    return accumulate
