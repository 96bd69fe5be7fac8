"""Where a tokenizer's files are, and what those beside tokenizer.json say."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lrdata.errors import LongRecipeError, one_line

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class TokenizerSettings:
    """What the files beside tokenizer.json say."""

    config: dict[str, Any]
    special_tokens: dict[str, Any]
    chat_template: str | None

    @classmethod
    def read(cls, folder: Path) -> Self:
        config = _read_json(folder / "tokenizer_config.json")
        template = config.get("chat_template")
        if isinstance(template, list):  # several named ones
            named = {entry.get("name"): entry.get("template") for entry in template}
            template = named.get("default")
        jinja = folder / "chat_template.jinja"
        if jinja.is_file():
            template = jinja.read_text(encoding="utf-8")
        return cls(config, _read_json(folder / "special_tokens_map.json"), template)

    def token(self, role: str) -> str | None:
        """The text of `eos_token` or `bos_token`, or None."""
        for source in (self.config, self.special_tokens):
            value = source.get(role)
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str) and content:
                return content
        return None


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise LongRecipeError(f"{file} is not JSON ({problem}); get it anew") from None
    if not isinstance(value, dict):
        raise LongRecipeError(f"{file} does not hold a JSON object; get it anew")
    return value


def find_tokenizer(path_or_id: str) -> Path:
    """tokenizer.json, with its neighbours beside it."""
    path = Path(path_or_id).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        folder = path
    elif _HUB_ID.fullmatch(path_or_id):
        folder = _download(path_or_id)
    else:
        raise LongRecipeError(
            f"no tokenizer at {path_or_id}; name a folder with tokenizer.json, or a hub id"
        )
    if not (folder / "tokenizer.json").is_file():
        raise LongRecipeError(
            f"{path_or_id} has no tokenizer.json; make one with transformers: "
            f"AutoTokenizer.from_pretrained({path_or_id!r}).save_pretrained(FOLDER)"
        )
    return folder / "tokenizer.json"


def _download(hub_id: str) -> Path:
    """The tokenizer's files of a hub model, in the hub's own cache; nothing else is fetched."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(_FILES)))
    except GatedRepoError:
        reason = "its owner must grant you access; ask there, then run `hf auth login`"
    except RepositoryNotFoundError:
        reason = "the hub has no such model, or it is private (then run `hf auth login`)"
    except (OSError, ValueError, RuntimeError) as problem:
        reason = f"it is not in the cache and the hub cannot be reached ({one_line(problem)})"
    raise LongRecipeError(
        f"no folder and no hub tokenizer {hub_id}: {reason}; or name a folder with tokenizer.json"
    )
