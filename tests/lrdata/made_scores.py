"""Score folders written by hand through `lrdata.scores`' own writers: no model is needed."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lrdata.manifest import TokenizerEntry
from lrdata.scores import (
    SCORES,
    VOCABULARY,
    ScoredWindow,
    ScoresManifest,
    write_scores_manifest,
    write_vocabulary,
    write_windows,
)
from lrdata.shards import file_sha256
from lrdata.tokenizer import Tokenizer
from tests.conftest import generated_text

SHORT, STRIDE = 24, 8
"""The short context of the folders made here, and the stride."""

FAR = SHORT + STRIDE
"""So far back is beyond the short context."""


def made_texts(number: int, paragraphs: int, seed: int = 0) -> dict[str, str]:
    """Generated texts under their documents' ids."""
    return {
        f"doc {index}": "".join(generated_text(paragraphs, seed=1000 * seed + index))
        for index in range(number)
    }


def tokens_of(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a document, its end of text with them: int32 [n]."""
    return np.array(tokenizer.encode_documents([text])[0], np.int32)


def scored_window(
    document: str,
    ids: np.ndarray,
    gain: Sequence[float] | np.ndarray,
    log_prob: Sequence[float] | np.ndarray | float = -1.0,
    *,
    start: int = 0,
    method: str = "lsd",
) -> ScoredWindow:
    """A window with these gains; of the method contrast its logit gain is half of the gain."""
    gains = np.array(gain, np.float32)
    measures = (gains,) if method == "lsd" else (gains, gains / 2)
    likely = np.broadcast_to(np.array(log_prob, np.float32), gains.shape).copy()
    return ScoredWindow(document, start, np.array(ids, np.int32), likely, measures)


def random_window(
    document: str, ids: np.ndarray, seed: int, *, start: int = 0, method: str = "lsd"
) -> ScoredWindow:
    """Gains of which about one in eight is a key token's. Nothing is measured in the first short
    context of the method lsd, and at the first token."""
    draw = np.random.default_rng([seed, start])
    gain = draw.normal(0, 1, len(ids))
    keys = draw.random(len(ids)) < 0.125
    gain[keys] = draw.uniform(2.1, 6, keys.sum())
    log_prob = draw.uniform(-6, 0, len(ids))
    log_prob[keys] = draw.uniform(-1.9, 0, keys.sum())
    gain[: FAR if method == "lsd" else 1] = np.nan
    log_prob[0] = np.nan
    return scored_window(document, ids, gain, log_prob, start=start, method=method)


def random_windows(
    tokenizer: Tokenizer, documents: int, tokens: int, seed: int = 0, method: str = "lsd"
) -> list[ScoredWindow]:
    """The first tokens of generated documents with random scores, a window each."""
    windows = []
    for index in range(documents):
        text = generated_text(tokens, seed=1000 * seed + index)
        joined = ""
        ids = np.zeros(0, np.int32)
        while len(ids) <= tokens:
            joined += "".join(islice(text, 8))
            ids = tokens_of(tokenizer, joined)
        windows.append(random_window(f"doc {index}", ids[:tokens], seed + index, method=method))
    return windows


def write_scores(
    folder: Path,
    tokenizer: Tokenizer,
    windows: Sequence[ScoredWindow],
    method: str = "lsd",
    /,
    **changes: Any,
) -> Path:
    """The whole folder, as `lrtrain score` writes it. changes: of its manifest."""
    write_windows(folder / SCORES, method, windows)
    write_vocabulary(folder / VOCABULARY, tokenizer.token_bytes, tokenizer.special)
    values: dict[str, Any] = {
        "method": method,
        "models": {"long": "made"},
        "fingerprints": {"long": "0" * 64},
        "tokenizer": TokenizerEntry(
            "tiny",
            tokenizer.fingerprint,
            tokenizer.probe_fingerprint,
            tokenizer.vocab_size,
            tokenizer.eot_id,
            tokenizer.bos_id,
        ),
        "sources": [],
        "recipe": {"short_context": SHORT, "stride": STRIDE, "seed": 0},
        "window": max((len(window.ids) for window in windows), default=1),
        "windows": len(windows),
        "documents": len({window.document for window in windows}),
        "tokens": sum(len(window.ids) for window in windows),
        "measured": sum(int(np.isfinite(window.gain).sum()) for window in windows),
        "files": {name: file_sha256(folder / name) for name in (SCORES, VOCABULARY)},
    }
    write_scores_manifest(folder, ScoresManifest(**{**values, **changes}))
    return folder
