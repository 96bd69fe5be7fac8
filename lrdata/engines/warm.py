"""What the server of `lrdata.engines.local` imports before it forks: all that a unit needs.

It loads the tokenizer that the environment names, which starts no thread. Where a library has
started one already (OMP_NUM_THREADS may ask for it), or the tokenizer is not to be had, nothing is
loaded: the processes do it themselves, and say what is wrong. Slower, and the same.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

WARM = "LRDATA_WARM_TOKENIZER"


def load() -> None:
    """Load the tokenizer and its tables into this process, with one thread."""
    import lrdata.unit as unit

    if threads() in (1, None):
        with suppress(Exception):
            unit.warm_up(**json.loads(os.environ[WARM]))


def threads() -> int | None:
    """How many threads this process has; None where the system does not say."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else None


if WARM in os.environ:
    load()
