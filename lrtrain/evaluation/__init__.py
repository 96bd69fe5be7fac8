"""Evaluation of long-context models: needles, RULER, perplexity, LongPPL, short skills.

    report = evaluate(["base=models/base", "runs/x/merged"], lengths=[1024, 8192], out=Path("eval"))
    print_report(report)

`request` is what is asked for, `models` loads the models one after another, `text` reads what they
are measured on. `suite` says what a suite is; `needle`, `ruler`, `perplexity`, `short` and
`longppl` are those there are, and `report` is what comes out, with a section for each. All models
with one tokenizer read the same prompts and the same windows. `finished` keeps what is measured.

Another suite is a file here that measures it, a file in `report` that writes and shows it, and an
entry in `_SUITES` here and in `SECTIONS` there.
"""

import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lrdata.errors import LongRecipeError
from lrtrain.evaluation.finished import Finished, finished_cells
from lrtrain.evaluation.longppl import LongPplSuite, open_keys
from lrtrain.evaluation.models import LoadedModel, OpenModel, open_model, parse_dtype
from lrtrain.evaluation.needle import NeedleSuite, NeedleTemplate
from lrtrain.evaluation.perplexity import PerplexitySuite
from lrtrain.evaluation.report import ModelEntry, Report, check_plots, print_report, write_report
from lrtrain.evaluation.request import Request
from lrtrain.evaluation.ruler import RulerSuite, parse_tasks
from lrtrain.evaluation.short import ShortSuite, default_tokens
from lrtrain.evaluation.suite import Cell, Suite
from lrtrain.evaluation.text import Texts, end_of_text
from lrtrain.model_spec import ModelSpec, parse_models

__all__ = ["DEFAULT_SUITES", "SUITES", "NeedleTemplate", "Report", "evaluate", "print_report"]


def _longppl(asked: Request, texts: Texts) -> Suite:
    assert asked.keys is not None, "a request for longppl has keys"
    return LongPplSuite(open_keys(asked.keys), asked.shards)


_SUITES: dict[str, Callable[[Request, Texts], Suite]] = {
    "needle": lambda asked, texts: NeedleSuite(
        texts.read(asked.haystack),
        asked.lengths,
        asked.depths,
        asked.samples,
        asked.needle,
        asked.prompt_seeds,
        asked.prompt,
    ),
    "ruler": lambda asked, texts: RulerSuite(
        texts.read(asked.haystack),
        asked.lengths,
        asked.samples,
        parse_tasks(asked.tasks),
        asked.prompt_seeds,
        asked.prompt,
    ),
    "ppl": lambda asked, texts: PerplexitySuite(
        texts.held_out(asked.text, asked.shards), asked.lengths, asked.windows
    ),
    "short": lambda asked, texts: ShortSuite(
        texts.held_out(asked.text, asked.shards),
        asked.short_tokens,
        asked.windows,
        asked.seed,
        asked.base,
    ),
    "longppl": _longppl,
}
SUITES = tuple(_SUITES)
DEFAULT_SUITES = ("needle", "ppl", "short")


def evaluate(
    models: Sequence[str | Path],
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
    tasks: Sequence[str] = ("all",),
    prompt: str = "base",
    short_tokens: int | None = None,
    base: str | None = None,
    eot: str | None = None,
    seed: int = 0,
    seeds: int = 1,
    dtype: str = "auto",
    device: str = "auto",
    out: Path | str,
    plots: bool = True,
    overwrite: bool = False,
) -> Report:
    """Run the suites on every model and write eval.json and the figures to `out`.

    Args:
        models: see `lrtrain.model_spec`. base: the name of the one that is measured first and that
            the others are compared with; else the first.
        samples: prompts for each length and depth of the needle suite, for each length and task of
            the ruler suite, and for each of so many `seeds`, of which `seed` is the first. prompt:
            base, or chat to ask through each model's own chat template. haystack: a file or
            folder, else Python's own documentation. tasks: of the ruler suite, see `parse_tasks`.
        windows: spans of the perplexity suite, and windows of the short suite. They are
            short_tokens long, else as the shortest of `lengths`, at most 512. text: as haystack;
            shards: a dataset whose holdout rows are the text.
        eot: the end-of-text token of all models; else what each one's tokenizer names, or, where
            rows of shards are read, what these were built with.
        keys: a folder of `lrtrain score` with the key tokens of the longppl suite, which reads all
            its windows, whatever `lengths` and `windows` are. With shards the report says if they
            are of the same files, which a model that was trained on the shards may know.

    The report is written anew after each model. What was measured of the same before is taken from
    `out`, unless it is to `overwrite` that. Raises LongRecipeError for anything that can be known
    to be wrong, as far as possible before the first model is loaded.
    """
    out = Path(out)
    specs = parse_models([str(model) for model in models])
    first = _base(specs, base)
    unknown = [name for name in suites if name not in _SUITES]
    if unknown or not suites:
        raise LongRecipeError(
            f"unknown suite {unknown[0] if unknown else '(none)'}; choose from {', '.join(SUITES)}"
        )
    asked = Request(
        suites=list(suites),
        lengths=sorted(set(lengths)),
        depths=sorted(set(depths)),
        samples=samples,
        windows=windows,
        haystack=haystack,
        text=text,
        shards=shards,
        keys=keys,
        needle=needle or NeedleTemplate(),
        tasks=list(tasks),
        prompt=prompt,
        short_tokens=default_tokens(lengths) if short_tokens is None else short_tokens,
        base=first.name,
        eot=eot,
        seed=seed,
        seeds=seeds,
        dtype=parse_dtype(dtype),
        device=device,
    )
    if plots:
        check_plots()
    texts = Texts(asked.lengths[-1])
    ready = [make(asked, texts) for name, make in _SUITES.items() if name in asked.suites]
    report = Report(settings=asked.settings(), versions=_versions())
    for suite in ready:
        report.settings |= suite.settings()
    ordered = [first, *(spec for spec in specs if spec != first)]
    joined = any(suite.joins for suite in ready)
    ends = end_of_text(asked.shards) if asked.eot is None and joined else asked.eot
    opened = [
        open_model(spec, dtype=asked.dtype, device=asked.device, eot=ends) for spec in ordered
    ]
    for model in opened:
        for suite in ready:
            suite.check(model)
    said = report.settings | {f"version of {name}": one for name, one in report.versions.items()}
    with finished_cells(out, said, opened[0], overwrite=overwrite) as finished:
        again = _read_again(ready, opened[1:], finished)
        for model in opened:
            _run(model, ready, again, finished, report)
            again = []
            report.seconds = sum(entry.seconds for entry in report.models)
            write_report(report, out, plots=plots)
    return report


def _base(specs: list[ModelSpec], name: str | None) -> ModelSpec:
    """The model that the others are compared with."""
    found = specs[0] if name is None else next((spec for spec in specs if spec.name == name), None)
    if found is None:
        names = ", ".join(spec.name for spec in specs)
        raise LongRecipeError(f"--base {name} is none of the models; choose from {names}")
    return found


def _read_again(suites: list[Suite], others: list[OpenModel], finished: Finished) -> list[Suite]:
    """Suites for which the base must be read, finished or not, as another model is not."""
    return [
        suite
        for suite in suites
        if suite.compares
        and any(len(finished.cells(model, suite)) < suite.size for model in others)
    ]


def _run(
    model: OpenModel,
    suites: list[Suite],
    again: list[Suite],
    finished: Finished,
    report: Report,
) -> None:
    """Measure what is not finished of one model, and add all of it to the report."""
    from lrtrain.finite import finite_logits

    loaded: LoadedModel | None = None
    cells, before = list[Cell](), 0
    with _memory_explained(model), finite_logits(model.name, model.dtype):
        for suite in suites:
            there = [] if suite in again else finished.cells(model, suite)
            cells += there
            before += len(there)
            if len(there) == suite.size:
                continue
            began = time.monotonic()
            if loaded is None:
                loaded = model.load()
                finished.add_entry(model, _entry(loaded))
            for index, cell in enumerate(suite.cells(loaded, len(there)), len(there)):
                finished.add(model, suite, index, cell, time.monotonic() - began)
                cells.append(cell)
                began = time.monotonic()
    if before:
        of = sum(suite.size for suite in suites)
        print(f"{model.name}: {before} of {of} cells were there", file=sys.stderr, flush=True)
    report.cells += cells
    tokens = sum(cell.tokens_read for cell in cells)
    report.models.append(replace(finished.entry(model), tokens=tokens))


@contextmanager
def _memory_explained(model: OpenModel) -> Iterator[None]:
    """Device memory that runs out becomes a line that says what to do."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        narrower = " or with --dtype bfloat16" if model.dtype == torch.float32 else ""
        raise LongRecipeError(
            f"{model.name} ran out of device memory; the same command goes on from the cells that "
            f"are measured, on a larger device{narrower}; or name shorter --lengths and another "
            "--out"
        ) from None


def _entry(loaded: LoadedModel) -> ModelEntry:
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
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        device=str(loaded.device),
    )


def _versions() -> dict[str, str]:
    packages = ("longrecipe", "torch", "transformers", "tokenizers", "numpy")
    found = {"python": platform.python_version()}
    for name in packages:
        with suppress(PackageNotFoundError):  # run from its sources, where nothing is installed
            found[name] = version(name)
    return found
