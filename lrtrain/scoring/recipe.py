"""Every option of `lrtrain score`, in one frozen dataclass."""

from dataclasses import asdict, dataclass
from typing import Any

from lrdata.errors import LongRecipeError
from lrdata.recipe import last_part, portable_name

DTYPES = ("auto", "fp32", "bf16")
_HOW = ("device", "batch_tokens", "chunk_tokens")
"""Options that say how it is computed, not what."""


@dataclass(frozen=True)
class ScoreRecipe:
    """What is scored, by which models, and how. Sizes are in tokens."""

    corpora: tuple[str, ...]
    model: str
    """The model; with `long_model`, the base that it is compared with."""
    long_model: str | None = None
    window: int = 0
    """The long context; 0 means the (long) model's own window, at most 131,072."""
    short_context: int = 0
    """K of the method lsd; 0 means an eighth of the window, at most 4,096."""
    stride: int = 0
    """So many tokens share the start of their short context; 0 means K, at most 1,024."""
    tokens: int | None = 1024**2
    """About how many tokens to score; None means all."""
    per_document: int | None = 1
    """At most so many windows of a document; None means all."""
    min_doc_tokens: int = 0
    """Shorter documents are left out; 0 means those that do not fill a window."""
    text_field: str = "text"
    id_field: str | None = None
    eot: str | None = None
    """End-of-text token, where the tokenizer names none; as for `lrdata build`."""
    seed: int = 0
    dtype: str = "auto"
    """auto is bf16 on a GPU, fp32 elsewhere."""
    device: str = "auto"
    batch_tokens: int = 8192
    """Short contexts are read together, up to so many tokens."""
    chunk_tokens: int = 512
    """So many tokens' logits are in memory at once."""

    def __post_init__(self) -> None:
        if not self.corpora:
            raise LongRecipeError("no corpus given; name a file, folder or glob")
        if self.dtype not in DTYPES:
            raise LongRecipeError(f"--dtype {self.dtype} is unknown; choose {', '.join(DTYPES)}")
        for name, value, least in (
            ("--window", self.window or 2, 2),
            ("--short-context", self.short_context or 1, 1),
            ("--stride", self.stride or 1, 1),
            ("--tokens", 1 if self.tokens is None else self.tokens, 1),
            ("--per-document", 1 if self.per_document is None else self.per_document, 1),
            ("--min-doc-tokens", self.min_doc_tokens, 0),
            ("--batch-tokens", self.batch_tokens, 1),
            ("--chunk-tokens", self.chunk_tokens, 1),
        ):
            if value < least:
                raise LongRecipeError(f"{name} {value} must be at least {least}")

    @property
    def method(self) -> str:
        return "contrast" if self.long_model else "lsd"

    def portable(self) -> dict[str, Any]:
        """What is scored, as JSON without the folders of this machine."""
        values = {name: value for name, value in asdict(self).items() if name not in _HOW}
        values["corpora"] = [last_part(path) for path in self.corpora]
        values["model"] = portable_name(self.model)
        values["long_model"] = self.long_model and portable_name(self.long_model)
        return values
