"""Evaluation of long-context models: needle retrieval, sliding-window perplexity, LongPPL.

    report = evaluate(["base=models/base", "runs/x/merged"], lengths=[1024, 8192], out=Path("eval"))
    print_report(report)

`models` loads them, `text` reads what they are measured on, `needle`, `perplexity` and `longppl`
are the suites, `report` is what comes out. Models are loaded one after another; all of them read
the same prompts and the same windows.
"""

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrtrain.evaluate import longppl as longppl_suite
from lrtrain.evaluate import needle as needle_suite
from lrtrain.evaluate import perplexity as perplexity_suite
from lrtrain.evaluate.longppl import KeyWindows, LongPplCell, open_keys
from lrtrain.evaluate.models import LoadedModel, load_model, parse_dtype
from lrtrain.evaluate.needle import Haystack, NeedleCell, NeedleTemplate, PromptMaker
from lrtrain.evaluate.perplexity import PerplexityCell, stride_for, target_spans
from lrtrain.evaluate.report import ModelEntry, Report, check_plots, print_report, write_report
from lrtrain.evaluate.text import Text, encode_text, holdout_rows, read_text
from lrtrain.model_spec import ModelSpec, parse_models

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DEFAULT_SUITES", "SUITES", "NeedleTemplate", "Report", "evaluate", "print_report"]

SUITES = ("needle", "ppl", "longppl")
DEFAULT_SUITES = ("needle", "ppl")


def evaluate(
    models: Sequence[str],
    *,
    suites: Sequence[str] = DEFAULT_SUITES,
    lengths: Sequence[int] = (1024, 2048, 4096, 8192),
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    samples: int = 5,
    windows: int = 32,
    haystack: Path | None = None,
    text: Path | None = None,
    shards: Path | None = None,
    keys: Path | None = None,
    needle: NeedleTemplate | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    out: Path,
    plots: bool = True,
) -> Report:
    """Run the suites on every model and write eval.json and the figures to `out`.

    models: see `lrtrain.model_spec`. samples: prompts for each length and depth of the needle
    suite; windows: spans of the perplexity suite. haystack, text: a file or folder, else Python's
    own documentation; shards: a dataset whose holdout rows are the perplexity suite's text; keys: a
    folder of `lrtrain score` with the key tokens of the longppl suite, which reads all its windows,
    whatever `lengths` and `windows` are. The report is written anew after each model. Raises
    LongRecipeError for anything that can be known to be wrong, as far as possible before the first
    model is loaded.
    """
    started = time.monotonic()
    plan = _Plan(
        specs=parse_models(list(models)),
        suites=list(suites),
        lengths=sorted(set(lengths)),
        depths=sorted(set(depths)),
        samples=samples,
        windows=windows,
        haystack=haystack,
        text=text,
        shards=shards,
        keys=keys,
        template=needle or NeedleTemplate(),
        seed=seed,
        dtype=parse_dtype(dtype),
        device=device,
    )
    if plots:
        check_plots()
    report = Report(settings=plan.settings(), versions=_versions())
    for spec in plan.specs:
        plan.run(spec, report)
        report.seconds = time.monotonic() - started
        write_report(report, out, plots=plots)
    return report


class _Plan:
    """What is measured, checked, and the texts it is measured on."""

    def __init__(
        self,
        *,
        specs: list[ModelSpec],
        suites: list[str],
        lengths: list[int],
        depths: list[float],
        samples: int,
        windows: int,
        haystack: Path | None,
        text: Path | None,
        shards: Path | None,
        keys: Path | None,
        template: NeedleTemplate,
        seed: int,
        dtype: str,
        device: str,
    ) -> None:
        _check(suites, lengths, depths, samples, windows)
        if text is not None and shards is not None:
            raise LongRecipeError("perplexity is measured on a text or on shards; name one of them")
        if ("longppl" in suites) != (keys is not None):
            raise LongRecipeError(
                "the suite longppl and --keys go together: --suite longppl --keys SCORES, with the "
                "folder that `lrtrain score` wrote"
            )
        self.specs, self.suites, self.lengths, self.depths = specs, suites, lengths, depths
        self.samples, self.windows, self.shards = samples, windows, shards
        self.template, self.seed, self.dtype, self.device = template, seed, dtype, device
        self.keys = open_keys(keys) if keys else None
        self.haystack = read_text(haystack, lengths[-1]) if "needle" in suites else None
        self.text: Text | None = None
        if "ppl" in suites and shards is None:
            same = self.haystack is not None and haystack == text
            self.text = self.haystack if same else read_text(text, lengths[-1])

    def settings(self) -> dict[str, object]:
        def described(text: Text | None) -> dict[str, str] | None:
            return {"origin": text.origin, "sha256": text.sha256} if text else None

        return {
            "suites": self.suites,
            "lengths": self.lengths,
            "depths": self.depths,
            "samples": self.samples,
            "windows": self.windows,
            "stride": stride_for(self.lengths),
            "seed": self.seed,
            "dtype": self.dtype,
            "device": self.device,
            "template": asdict(self.template),
            "haystack": described(self.haystack),
            "text": described(self.text),
            "shards": self.shards.name if self.shards else None,
            "keys": self.keys.settings() if self.keys else None,
        }

    def run(self, spec: ModelSpec, report: Report) -> None:
        """Measure one model and add what was found to the report."""
        started = time.monotonic()
        loaded = load_model(spec, dtype=self.dtype, device=self.device)
        tokens = 0
        with _memory_explained(spec.name):
            if self.haystack is not None:
                for cell in self._needle(loaded, self.haystack):
                    report.needle.append(cell)
                    tokens += cell.length * len(cell.exact)
            if "ppl" in self.suites:
                for span_cell in self._perplexity(loaded):
                    report.perplexity.append(span_cell)
                    tokens += span_cell.length * len(span_cell.nats)
            if self.keys is not None:
                for key_cell in self._longppl(loaded, self.keys):
                    report.longppl.append(key_cell)
                    tokens += sum(key_cell.context)
        entry = _entry(loaded, self.dtype)
        seconds = round(time.monotonic() - started, 3)
        report.models.append(replace(entry, seconds=seconds, tokens=tokens))

    def _needle(self, loaded: LoadedModel, text: Text) -> Iterator[NeedleCell]:
        tokenizer = loaded.tokenizer
        filler = Haystack(encode_text(text, tokenizer), tokenizer)
        maker = PromptMaker(self.template, filler, tokenizer)
        maker.make(self.seed, self.lengths[0], 0.0, 0)  # too short a length: say so at once
        total = len(self.lengths) * len(self.depths) * self.samples
        with progress(f"{loaded.spec.name}: needle", total) as task:
            for length in self.lengths:
                for depth in self.depths:
                    prompts = [
                        maker.make(self.seed, length, depth, sample)
                        for sample in range(self.samples)
                    ]
                    for done, cell in needle_suite.measure(
                        loaded.model, loaded.device, loaded.spec.name, prompts, length, depth
                    ):
                        task.advance(done, note=f"{length:,} tokens, depth {depth:.0%}")
                        if cell:
                            yield cell

    def _perplexity(self, loaded: LoadedModel) -> Iterator[PerplexityCell]:
        tokenizer, stride = loaded.tokenizer, stride_for(self.lengths)
        streams: list[np.ndarray]
        if self.text is not None:
            streams, where = [encode_text(self.text, tokenizer)], self.text.origin
        else:
            assert self.shards is not None
            streams, where = holdout_rows(self.shards, tokenizer), str(self.shards)
        spans = target_spans(
            [len(stream) for stream in streams],
            self.lengths[-1],
            stride,
            self.windows,
            bos=tokenizer.bos_id is not None,
            where=where,
        )
        with progress(f"{loaded.spec.name}: perplexity", len(self.lengths) * len(spans)) as task:
            for length in self.lengths:
                for done, cell in perplexity_suite.measure(
                    loaded.model,
                    loaded.device,
                    loaded.spec.name,
                    streams,
                    spans,
                    length,
                    stride,
                    tokenizer,
                ):
                    task.advance(done, note=f"{length:,} tokens")
                    if cell:
                        yield cell

    def _longppl(self, loaded: LoadedModel, keys: KeyWindows) -> Iterator[LongPplCell]:
        name = loaded.spec.name
        with progress(f"{name}: longppl", len(keys.indices)) as task:
            for cell in longppl_suite.measure(
                loaded.model, loaded.device, name, keys, loaded.tokenizer
            ):
                task.advance()
                if cell:
                    yield cell


@contextmanager
def _memory_explained(model: str) -> Iterator[None]:
    """Device memory that runs out becomes a line that says what to do."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise LongRecipeError(
            f"{model} ran out of device memory; use --dtype bfloat16, shorter --lengths or a "
            "larger device"
        ) from None


def _check(
    suites: list[str], lengths: list[int], depths: list[float], samples: int, windows: int
) -> None:
    unknown = [suite for suite in suites if suite not in SUITES]
    if unknown or not suites:
        raise LongRecipeError(
            f"unknown suite {unknown[0] if unknown else '(none)'}; choose from {', '.join(SUITES)}"
        )
    if not lengths or lengths[0] < 2:
        raise LongRecipeError("the context lengths must be at least 2 tokens; write 1k,8k,32k")
    if "needle" in suites and not (depths and all(0 <= depth <= 1 for depth in depths)):
        raise LongRecipeError(
            f"needle depths {depths} must lie between 0 (beginning) and 1 (end); write 0,0.5,1"
        )
    if samples < 1 or windows < 1:
        raise LongRecipeError(f"{min(samples, windows)} samples measure nothing; ask for 1 or more")


def _entry(loaded: LoadedModel, dtype: str) -> ModelEntry:
    return ModelEntry(
        name=loaded.spec.name,
        path=loaded.spec.path,
        rope=loaded.spec.rope,
        target_len=loaded.spec.target_len,
        window=loaded.window,
        rope_type=loaded.rope_type,
        theta=loaded.theta,
        parameters=loaded.parameters,
        tokenizer=loaded.tokenizer.fingerprint,
        dtype=dtype,
        device=str(loaded.device),
    )


def _versions() -> dict[str, str]:
    packages = ("longrecipe", "torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
