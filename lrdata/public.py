"""What a package gives to those who import it, found when it is first asked for.

The command line must answer at once, and `import lrdata` must not read polars for someone who
wants a constant; so names are looked up late, as numpy's and scipy's packages do.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def late(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package (PEP 562): module -> the names it gives.

    And `__version__`, of the distribution.
    """
    homes = {name: f"{package}.{module}" for module, given in names.items() for name in given}

    def get(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("longrecipe")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return get, lambda: sorted(homes)
