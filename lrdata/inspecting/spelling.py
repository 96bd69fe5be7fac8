"""The text of tokens, and the tokenizer that knows it."""

import codecs
from pathlib import Path

import numpy as np

from lrdata.errors import LongRecipeError
from lrdata.manifest import Manifest, read_manifest
from lrdata.tokenizer import Tokenizer
from lrdata.visible import visible


def check_tokenizer(manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Raises LongRecipeError when the dataset was built with another tokenizer."""
    entry = manifest.tokenizer
    if tokenizer.fingerprint != entry.fingerprint:
        raise LongRecipeError(
            f"{tokenizer.name} is not the tokenizer of the dataset: its fingerprint is "
            f"{tokenizer.fingerprint[:12]}, that of {entry.name} was {entry.fingerprint[:12]}; "
            "give the one it was built with"
        )


def open_tokenizer(folder: Path, path_or_id: str | None) -> Tokenizer | None:
    """The tokenizer that is asked for, else the one that the manifest names, if it is at hand.

    At hand is what lies here or in the hub's cache: the hub is not asked for a name that stands in
    somebody's manifest. Raises LongRecipeError when the one asked for cannot be loaded or is
    another.
    """
    manifest = read_manifest(Path(folder))
    if path_or_id is not None:
        return _load(path_or_id, manifest)
    here = _at_hand(manifest.tokenizer.name)
    try:
        return None if here is None else _load(here, manifest)
    except LongRecipeError:
        return None


def _load(path_or_id: str, manifest: Manifest) -> Tokenizer:
    eot = manifest.recipe.get("eot")
    eot = eot if isinstance(eot, str) else None
    tokenizer = Tokenizer.load(path_or_id, eot=eot, encoder="tokenizers")
    check_tokenizer(manifest, tokenizer)
    return tokenizer


def _at_hand(name: str) -> str | None:
    """The path of a tokenizer without asking anybody."""
    import huggingface_hub

    try:
        if Path(name).expanduser().exists():
            return name
        cached = huggingface_hub.try_to_load_from_cache(name, "tokenizer.json")
    except (OSError, ValueError, RuntimeError):  # no name of a file, of a user, of a model
        return None
    return str(Path(cached).parent) if isinstance(cached, str) else None


def token_texts(ids: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """What each token of a stretch without a break adds to its text, made visible: [n].

    A character that is split over tokens belongs to the last of them; the others add nothing.
    """
    values, offsets = tokenizer.token_bytes
    data: memoryview = values.data
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    starts, stops = offsets[ids].tolist(), offsets[ids + 1].tolist()
    texts = [
        decoder.decode(bytes(data[start:stop])) for start, stop in zip(starts, stops, strict=True)
    ]
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return [visible(text, keep="\n\t") for text in texts]
