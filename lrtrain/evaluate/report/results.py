"""Everything an evaluation found, and how it is written in eval.json."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from lrtrain.evaluate.longppl import LongPplCell
from lrtrain.evaluate.needle import NeedleCell
from lrtrain.evaluate.perplexity import PerplexityCell
from lrtrain.evaluate.report.statistics import Mean, mean, measured_mean

FORMAT = "longrecipe-eval"
FORMAT_VERSION = "1.0"


@dataclass(frozen=True)
class ModelEntry:
    """A model that was evaluated. `window`: its max_position_embeddings, in tokens."""

    name: str
    path: str
    rope: str | None
    target_len: int | None
    window: int
    rope_type: str
    theta: float | None
    parameters: int
    tokenizer: str
    dtype: str
    device: str
    seconds: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class LongPplFound:
    """What one model says of the key tokens, in nats per token; their number is that of all."""

    keys: Mean
    all_tokens: Mean
    key_tokens: int
    by_position: dict[tuple[int, int], tuple[Mean, int]]
    """Bin -> nats per key token, key tokens; bins without any are not there."""
    longest: int
    """Tokens read of the longest window."""
    left_out: int


@dataclass
class Report:
    """Everything an evaluation found. `settings` and `versions` are what it takes to repeat it."""

    settings: dict[str, Any]
    versions: dict[str, str]
    models: list[ModelEntry] = field(default_factory=list)
    needle: list[NeedleCell] = field(default_factory=list)
    perplexity: list[PerplexityCell] = field(default_factory=list)
    longppl: list[LongPplCell] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def lengths(self) -> list[int]:
        needle = {cell.length for cell in self.needle}
        return sorted(needle | {cell.length for cell in self.perplexity})

    @property
    def depths(self) -> list[float]:
        return sorted({cell.depth for cell in self.needle})

    @property
    def position_bins(self) -> list[tuple[int, int]]:
        """Those in which some model has key tokens."""
        return sorted({bin_ for cell in self.longppl for bin_ in cell.bins})

    def needle_at(
        self, model: str, length: int, depth: float | None = None
    ) -> tuple[Mean, Mean] | None:
        """Exact and share at one depth, or over all depths; None where nothing was measured."""
        cells = [
            cell
            for cell in self.needle
            if (cell.model, cell.length) == (model, length) and depth in (None, cell.depth)
        ]
        if not cells:
            return None
        exact = [float(value) for cell in cells for value in cell.exact]
        return mean(exact), mean([value for cell in cells for value in cell.share])

    def perplexity_at(self, model: str, length: int) -> tuple[Mean, Mean] | None:
        """Nats per token and nats per byte; None where nothing was measured."""
        for cell in self.perplexity:
            if (cell.model, cell.length) == (model, length):
                return mean(cell.nats, cell.tokens), mean(cell.nats, cell.bytes)
        return None

    def longppl_of(self, model: str) -> LongPplFound | None:
        """None where nothing was measured. Windows without key tokens do not widen intervals."""
        cell = next((cell for cell in self.longppl if cell.model == model), None)
        if cell is None:
            return None
        counts = list(map(sum, cell.key_tokens))
        keys = measured_mean(list(map(sum, cell.key_nats)), counts)
        assert keys is not None, "a model without key tokens has no cell"
        bins = {}
        for at, bin_ in enumerate(cell.bins):
            tokens = [row[at] for row in cell.key_tokens]
            found = measured_mean([row[at] for row in cell.key_nats], tokens)
            if found:
                bins[bin_] = (found, sum(tokens))
        return LongPplFound(
            keys=keys,
            all_tokens=mean(cell.nats, cell.tokens),
            key_tokens=sum(counts),
            by_position=bins,
            longest=max(cell.context),
            left_out=cell.left_out,
        )

    def as_dict(self) -> dict[str, Any]:
        """The content of eval.json."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "settings": self.settings,
            "versions": self.versions,
            "seconds": round(self.seconds, 3),
            "models": [asdict(model) for model in self.models],
            "needle": {
                "by_length": [
                    {"model": model.name, "length": length} | _needle_values(found)
                    for model in self.models
                    for length in self.lengths
                    if (found := self.needle_at(model.name, length))
                ],
                "cells": [
                    {"model": cell.model, "length": cell.length, "depth": cell.depth}
                    | _needle_values(self.needle_at(cell.model, cell.length, cell.depth))
                    | {
                        "exact_samples": [int(value) for value in cell.exact],
                        "share_samples": [round(value, 6) for value in cell.share],
                    }
                    for cell in self.needle
                ],
            },
            "perplexity": {"cells": [_perplexity_values(cell) for cell in self.perplexity]},
            "longppl": {
                "cells": [
                    _longppl_values(cell, pooled)
                    for cell in self.longppl
                    if (pooled := self.longppl_of(cell.model))
                ]
            },
        }


def _needle_values(found: tuple[Mean, Mean] | None) -> dict[str, Any]:
    if found is None:
        return {}
    exact, share = found
    return {"exact": exact.as_list(), "share": share.as_list(), "samples": exact.count}


def _perplexity_values(cell: PerplexityCell) -> dict[str, Any]:
    per_token, per_byte = mean(cell.nats, cell.tokens), mean(cell.nats, cell.bytes)
    return {
        "model": cell.model,
        "length": cell.length,
        "nats_per_token": per_token.as_list(),
        "nats_per_byte": per_byte.as_list(),
        "perplexity": _perplexity(per_token),
        "span_nats": [round(value, 6) for value in cell.nats],
        "span_tokens": list(cell.tokens),
        "span_bytes": list(cell.bytes),
    }


def _longppl_values(cell: LongPplCell, found: LongPplFound) -> dict[str, Any]:
    return {
        "model": cell.model,
        "longppl": _perplexity(found.keys),
        "perplexity": _perplexity(found.all_tokens),
        "nats_per_byte": mean(cell.nats, cell.bytes).as_list(),
        "key_tokens": found.key_tokens,
        "tokens": sum(cell.tokens),
        "left_out": cell.left_out,
        "by_position": [
            {"above": above, "to": to, "longppl": _perplexity(nats), "key_tokens": count}
            for (above, to), (nats, count) in found.by_position.items()
        ],
        "windows": list(cell.windows),
        "window_context": list(cell.context),
        "window_key_nats": [round(sum(row), 6) for row in cell.key_nats],
        "window_key_tokens": [sum(row) for row in cell.key_tokens],
        "window_nats": [round(value, 6) for value in cell.nats],
        "window_tokens": list(cell.tokens),
        "window_bytes": list(cell.bytes),
    }


def _perplexity(nats: Mean) -> list[float]:
    return [round(math.exp(value), 6) for value in nats.as_list()]
