"""The results as Markdown, as bench/README.md has them."""

from typing import Any

import click
from plans import OPTIONS, ROWS_PER_STEP, TRAINED, Plan


def print_tables(plan: Plan, results: dict[str, Any]) -> None:
    """Markdown, as bench/README.md has it."""
    machine = results["machine"]
    click.echo(
        f"\n{machine['device']}, torch {machine['torch']}, transformers {machine['transformers']}"
    )
    _print_training(plan, results)
    _print_ratio(plan, results)
    _print_options(plan, results)
    _print_backends(results["backends"])


def _print_training(plan: Plan, results: dict[str, Any]) -> None:
    click.echo(f"\n### {plan.shape}, all parameters, {ROWS_PER_STEP} rows a step\n")
    click.echo(
        "| row | tokens/s | MFU | s a row | s an update | device GB | planned | host GB | backend |"
    )
    click.echo("|---|---|---|---|---|---|---|---|---|")
    for name in TRAINED:
        found, label = results[name], _row_label(plan, name)
        if "skipped" in found:
            click.echo(f"| {label} | {found['skipped']} |" + " |" * 7)
            continue
        click.echo(
            f"| {label} | {found['tokens_per_s']:,.0f} | {_percent(found['mfu'])} "
            f"| {found['row_seconds']:.3g} | {found['update_seconds']:.3g} "
            f"| {_gb(found['peak_memory_bytes'])} | {_gb(found['predicted_bytes'])} "
            f"| {_gb(found['peak_host_bytes'])} | {found['backend']} |"
        )


def _row_label(plan: Plan, name: str) -> str:
    tokens = plan.long if name == "long" else plan.short
    return f"{tokens:,}" + (", as the long one" if name == "short-least" else "")


def print_predictions(plan: Plan, results: dict[str, Any]) -> None:
    """What memory the cells will take, before any of them is run."""
    columns = ("parameters", "masters", "moments", "gradients", "working", "device_bytes", "host")
    click.echo(f"\n| GB | {' | '.join(columns).replace('_bytes', '')} |\n|---|" + "---|" * 7)
    for name in (*TRAINED, *(f"option {option}" for option in OPTIONS)):
        found = results[f"predict {name}"]
        if name in TRAINED:
            label = f"{plan.shape}, {_row_label(plan, name)}"
        else:
            label = f"{plan.options_shape}, {plan.options_tokens:,}, {name.removeprefix('option ')}"
        cells = " | ".join(_gb(found[column]) for column in columns)
        click.echo(f"| {label} | {cells} |")


def _print_ratio(plan: Plan, results: dict[str, Any]) -> None:
    """The same options for both lengths."""
    short, long = results["short-least"], results["long"]
    if "skipped" in short or "skipped" in long:
        return
    seconds = short["row_seconds"] / long["row_seconds"]
    causal = short["row_flops"] / long["row_flops"]
    pairs = short["row_flops_all_pairs"] / long["row_flops_all_pairs"]
    click.echo(
        f"\na row of {plan.short:,} takes {seconds:.3f} of the seconds of one of {plan.long:,}; of "
        f"its operations {causal:.3f} with causal attention counted once, {pairs:.3f} with all "
        f"pairs; seconds / operations = {seconds / causal:.2f}"
    )


def _print_options(plan: Plan, results: dict[str, Any]) -> None:
    click.echo(
        f"\n### What an option saves and costs: {plan.options_shape}, rows of "
        f"{plan.options_tokens:,}\n"
    )
    click.echo("| options | device GB | saved | planned | host GB | s a row | time | s an update |")
    click.echo("|---|---|---|---|---|---|---|---|")
    first = results[f"option {next(iter(OPTIONS))}"]
    for option in OPTIONS:
        found = results[f"option {option}"]
        if "skipped" in found:
            click.echo(f"| {option} | {found['skipped']} |" + " |" * 6)
            continue
        saved = time_taken = ""
        if "skipped" not in first:
            saved = _gb(first["peak_memory_bytes"] - found["peak_memory_bytes"])
            time_taken = f"x {found['row_seconds'] / first['row_seconds']:.2f}"
        click.echo(
            f"| {option} | {_gb(found['peak_memory_bytes'])} | {saved} "
            f"| {_gb(found['predicted_bytes'])} | {_gb(found['peak_host_bytes'])} "
            f"| {found['row_seconds']:.3g} | {time_taken} | {found['update_seconds']:.3g} |"
        )


def _print_backends(found: dict[str, Any]) -> None:
    if "skipped" in found:
        click.echo(f"\nbackends: {found['skipped']}")
        return
    heads = found["heads"]
    click.echo(
        f"\n### Attention there and back, {found['tokens']:,} tokens, {heads['query']} heads "
        f"({heads['key_value']} of keys), {heads['width']} wide, bf16\n"
    )
    click.echo(
        "| backend | ms | TFLOP/s | error of the output | of query's gradient | key's | value's |"
    )
    click.echo("|---|---|---|---|---|---|---|")
    for name, one in found["backends"].items():
        if one["seconds"] is None:
            click.echo(f"| {name} | {one['problem']} |" + " |" * 5)
            continue
        errors = " | ".join(f"{one[part]:.1e}" for part in ("output", "query", "key", "value"))
        click.echo(f"| {name} | {1e3 * one['seconds']:.1f} | {one['tflops']:.3g} | {errors} |")
    click.echo("\nErrors: the largest against float64, as a share of the largest value.")


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
