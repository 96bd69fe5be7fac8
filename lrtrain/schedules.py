"""Learning-rate schedules: functions of the step that give a share of the peak rate."""

import math
from collections.abc import Callable

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
    """Step -> factor: 1 at step 0, and less by 1 / `steps` at each next one.

    0 is where a step after the last would be: at 0 the last would learn nothing, of which there
    may be two.
    """
    return lambda step: (steps - step) / steps
