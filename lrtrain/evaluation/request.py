"""Everything that an evaluation can be asked for, checked before anything is read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lrdata.errors import LongRecipeError
from lrtrain.evaluation.needle import NeedleTemplate
from lrtrain.evaluation.prompts import WRAPPINGS
from lrtrain.evaluation.short import LEAST_TOKENS, MOST_TOKENS


@dataclass(frozen=True)
class Request:
    """What is measured, and on what. Raises LongRecipeError for what cannot be.

    The fields are those of `lrtrain.evaluation.evaluate`; each suite takes from them what it needs.
    """

    suites: Sequence[str]
    lengths: Sequence[int]
    """Tokens, ascending."""
    depths: Sequence[float]
    """0 beginning, 1 end; ascending."""
    samples: int
    windows: int
    haystack: Path | None
    text: Path | None
    shards: Path | None
    keys: Path | None
    needle: NeedleTemplate
    tasks: Sequence[str]
    """RULER's, or `all`."""
    prompt: str
    short_tokens: int
    base: str
    """The model that is measured first, and that the others are compared with."""
    eot: str | None
    """The end-of-text token of all models; None: that of the shards, else each tokenizer's."""
    seed: int
    seeds: int
    """How many seeds prompts are drawn with: `seed` and those that follow it."""
    dtype: str
    device: str

    def __post_init__(self) -> None:
        if not self.lengths or self.lengths[0] < 2:
            raise LongRecipeError("the context lengths must be at least 2 tokens; write 1k,8k,32k")
        if "needle" in self.suites and not (
            self.depths and all(0 <= depth <= 1 for depth in self.depths)
        ):
            raise LongRecipeError(
                f"needle depths {list(self.depths)} must lie between 0 (beginning) and 1 (end); "
                "write 0,0.5,1"
            )
        if self.prompt not in WRAPPINGS:
            raise LongRecipeError(
                f"unknown prompt {self.prompt}; choose from {', '.join(WRAPPINGS)}"
            )
        if "short" in self.suites and not LEAST_TOKENS <= self.short_tokens <= MOST_TOKENS:
            raise LongRecipeError(
                f"short windows of {self.short_tokens} tokens are not measured; ask for "
                f"{LEAST_TOKENS} to {MOST_TOKENS} with --short-tokens"
            )
        least = min(self.samples, self.windows, self.seeds)
        if least < 1:
            raise LongRecipeError(
                f"{least} samples, windows or seeds measure nothing; ask for 1 or more"
            )
        if self.text is not None and self.shards is not None:
            raise LongRecipeError(
                "perplexity and short skills are measured on a text or on shards; name one of them"
            )
        if ("longppl" in self.suites) != (self.keys is not None):
            raise LongRecipeError(
                "the suite longppl and --keys go together: --suite longppl --keys SCORES, with the "
                "folder that `lrtrain score` wrote"
            )

    @property
    def prompt_seeds(self) -> list[int]:
        """The seeds that prompts are drawn with."""
        return list(range(self.seed, self.seed + self.seeds))

    def settings(self) -> dict[str, object]:
        """What was asked for, ready for JSON. The suites that read a file say more about it."""
        return {
            "suites": list(self.suites),
            "lengths": list(self.lengths),
            "depths": list(self.depths),
            "samples": self.samples,
            "windows": self.windows,
            "seed": self.seed,
            "seeds": self.prompt_seeds,
            "dtype": self.dtype,
            "device": self.device,
            "template": asdict(self.needle),
            "prompt": self.prompt,
            "short_tokens": self.short_tokens,
            "base": self.base,
            "eot": self.eot,
            "tasks": None,
            "haystack": None,
            "text": None,
            "shards": self.shards.name if self.shards else None,
            "keys": None,
        }
