"""`fresco bench`: suites that reproduce published tables. Nothing heavy is imported before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from fresco.cli_parts import (
    clear_errors,
    console,
    figures_table,
    given_options,
    named_tasks,
    progress_bar,
    with_interval,
)
from fresco.errors import FrescoError


class Suite(StrEnum):
    """What is measured."""

    headline = "headline"
    gpu = "gpu"


HEADLINE, GPU = "Suite headline", "Suite gpu"


def bench(
    context: typer.Context,
    suite: Annotated[Suite, typer.Option(help="headline: pictures; gpu: seconds only.")],
    json: Annotated[Path | None, typer.Option(help="Default: runs/bench/SUITE.json.")] = None,
    prompts: Annotated[
        int, typer.Option(help="Held-out captions.", rich_help_panel=HEADLINE)
    ] = 256,
    png: Annotated[
        Path | None, typer.Option(help="File to draw pictures to.", rich_help_panel=HEADLINE)
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="Where sampled rows are kept.", rich_help_panel=HEADLINE)
    ] = Path("runs/bench"),
    batch: Annotated[int, typer.Option(help="Pictures per call.", rich_help_panel=HEADLINE)] = 1,
    dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16.", rich_help_panel=HEADLINE)
    ] = "float32",
    lora: Annotated[
        Path | None, typer.Option(help="Default: the one that ships.", rich_help_panel=HEADLINE)
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, cpu, ...", rich_help_panel=GPU)] = "cuda",
    config: Annotated[
        list[str] | None,
        typer.Option(help="Known model or JSON file; may be repeated.", rich_help_panel=GPU),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="eager, compiled, ...; may be repeated.", rich_help_panel=GPU),
    ] = None,
    runs: Annotated[int, typer.Option(help="Measured runs per row.", rich_help_panel=GPU)] = 3,
    steps: Annotated[
        int | None, typer.Option(help="Default: the model's own.", rich_help_panel=GPU)
    ] = None,
) -> None:
    """Measure a whole table in one run: `headline` on the reference model, `gpu` on a GPU."""
    file = json or Path("runs/bench") / f"{suite}.json"
    with clear_errors():
        _check_options(context, suite)
        if suite is Suite.headline:
            _headline(file, prompts, png, folder, batch, dtype, lora)
        else:
            _gpu(file, config, mode, device, runs, steps)
    console.print(f"Wrote {file}{f' and {png}' if png else ''}.", soft_wrap=True)


def _check_options(context: typer.Context, suite: Suite) -> None:
    """Refuse options of the other suite, which would change nothing."""
    panel = GPU if suite is Suite.headline else HEADLINE
    given = given_options(context)
    others = [
        parameter.opts[0]
        for parameter in context.command.params
        if getattr(parameter, "rich_help_panel", None) == panel and parameter.name in given
    ]
    if others:
        where, fix = f"fresco bench --suite {suite}", "Leave them out; --help has them by suite."
        raise FrescoError(where, "options of this suite", ", ".join(others), fix)


def _headline(
    file: Path, prompts: int, png: Path | None, folder: Path, batch: int, dtype: str,
    lora: Path | None,
) -> None:  # fmt: skip
    with console.status("Loading"):
        from fresco.reference.bench import How
        from fresco.reference.headline import Headline, run_headline
    asked = Headline(prompts, file, png, folder, How(batch=batch), dtype, lora)
    with progress_bar() as bar:
        report = run_headline(asked, named_tasks(bar))
    _print_headline(report["rows"], f"{prompts} held-out captions, {batch} per call, {dtype}")
    for reason in dict.fromkeys(row["missing"] for row in report["rows"] if "missing" in row):
        console.print(f"missing: {reason}", markup=False, highlight=False, soft_wrap=True)


def _print_headline(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Speed, scenes and closeness in a table each: together they do not fit into 80 columns."""
    speed = figures_table(("steps", "loop s", "loop", "call", "FLOPs"), title)
    caption = (
        "asked: share of the asked attributes shown; difference: of whole scenes, to the first "
        "row; lead: of the recipe above, in whole scenes"
    )
    scenes = figures_table(("asked", "scenes", "difference", "lead"), None, caption)
    closeness = figures_table(("PSNR dB", "SSIM"), None, "to the pictures of the first row")
    for row in rows:
        if "missing" in row:
            speed.add_row(row["name"], "missing")
            continue
        flops = row["flops_speedup"]
        speed.add_row(
            row["name"],
            str(row["steps"]),
            f"{row['loop_s']:.3f}",
            f"{row['speedup']:.2f}x",
            f"{row['call_speedup']:.2f}x",
            "" if flops is None else f"{flops:.2f}x",
        )
        scenes.add_row(
            row["name"],
            with_interval(row, "judge", ".1%"),
            with_interval(row, "scene", ".1%"),
            with_interval(row, "scene_difference", "+.1%"),
            with_interval(row, "scene_lead", "+.1%"),
        )
        closeness.add_row(
            row["name"], with_interval(row, "psnr_db", ".1f"), with_interval(row, "ssim", ".3f")
        )
    console.print(speed, scenes, closeness)


def _gpu(
    file: Path, config: list[str] | None, mode: list[str] | None, device: str, runs: int,
    steps: int | None,
) -> None:  # fmt: skip
    with console.status("Loading"):
        from fresco.latency import MODELS, MODES, Latency, run_latency
    models, modes = tuple(config or MODELS), tuple(mode or MODES)
    with progress_bar() as bar:
        report = run_latency(Latency(file, models, modes, device, runs, steps), named_tasks(bar))
    for name, model in report["models"].items():
        _print_model(name, model, report["device"]["name"])


def _print_model(name: str, model: Mapping[str, Any], device: str) -> None:
    size = f"{model['width']} x {model['height']}, {model['frames']} frame(s)"
    columns = ("mode", "row", "loop s", "speedup", "in mode", "by FLOPs", "by steps", "GiB")
    table = Table(*columns, title=f"{name}, {size}, {model['steps']} steps, {device}",
                  caption="in mode: over the plain run of that mode; by: predicted",
                  box=box.SIMPLE_HEAD)  # fmt: skip
    notes = []
    for mode, measured in model["modes"].items():
        for row in measured["rows"]:
            if "refused" in row:
                table.add_row(mode, row["name"], "cannot run")
                notes.append(f"{mode}, {row['name']}: {row['refused']}")
                continue
            ratios = ("speedup", "speedup_in_mode", "predicted_by_flops", "predicted_by_steps")
            peak = row["peak_bytes"]
            table.add_row(
                mode,
                row["name"],
                f"{row['loop_s']:.3f}",
                *("" if row[each] is None else f"{row[each]:.2f}x" for each in ratios),
                "" if peak is None else f"{peak / 2**30:.1f}",
            )
        steps = ", ".join(f"{n}: {1000 * s:.1f}" for n, s in measured["step_s"].items())
        notes.append(f"{mode}: milliseconds of a bare step, by tokens: {steps or 'none'}")
    console.print(table)
    overhead = model["overhead"]
    if overhead and "of_a_step" in overhead:
        notes.append(f"fresco adds {overhead['of_a_step']:.2%} to a full step")
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)
