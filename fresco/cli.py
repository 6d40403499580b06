"""The commands. Nothing heavy is imported before a command runs, so that --help is quick."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from fresco.cli_bench import bench
from fresco.cli_doctor import doctor
from fresco.cli_parts import (
    MAX_SEED,
    Dtype,
    check_json,
    clear_errors,
    console,
    figures_table,
    named_tasks,
    progress_bar,
    with_difference,
    with_interval,
    write_json,
)
from fresco.cli_plan import plan
from fresco.cli_recipes import recipes
from fresco.cli_reference import reference
from fresco.cli_run import run
from fresco.cli_tune import tune
from fresco.cli_validate import validate

app = typer.Typer(
    help="Diffusion Transformers many times faster, without retraining.", no_args_is_help=True
)
app.add_typer(reference, name="reference")
app.add_typer(recipes, name="recipes")
app.command()(plan)
app.command()(run)
app.command()(doctor)
app.command()(validate)
app.command()(tune)
app.command()(bench)

Out = Annotated[Path, typer.Option("--out", help="Directory of comparison.png and report.json.")]
Captions = Annotated[int, typer.Option("--prompts", help="Held-out captions.")]
Folder = Annotated[Path, typer.Option(help="Where sampled rows are kept, and taken from.")]
Batch = Annotated[int, typer.Option(help="Pictures per call, in every row.")]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", help="A caption; may be repeated.")]


def main() -> None:
    """Entry point of the `fresco` command."""
    app()


def _show_version(asked: bool) -> None:
    if asked:
        console.print(f"fresco {importlib.metadata.version('fresco')}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    recipe: Annotated[
        str, typer.Option(help="Name of a recipe, or path of a YAML file.")
    ] = "reference_fast",
    prompt: Prompts = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of the first picture's noise.")
    ] = 0,
    out: Out = Path("fresco-demo"),
    steps: Annotated[int, typer.Option(min=1, help="Solver steps of the full row.")] = 50,
    json: Annotated[Path | None, typer.Option(help="File to write the report to, too.")] = None,
) -> None:
    """Sample full, accelerated, and with as few steps as cost no less, and compare."""
    with clear_errors():
        check_json(json)
        from fresco.reference.captions import parse

        for text in prompt or []:
            parse(text)  # before anything slow
        with console.status("Loading"):
            from fresco.demo import PROMPTS, DemoRequest, run_demo

        request = DemoRequest(tuple(prompt or PROMPTS), recipe, seed, out, steps)
        with progress_bar() as bar:
            report = run_demo(request, named_tasks(bar))
        if json:
            write_json(json, report)
    console.print(_demo_table(report))
    speedup = f"{report['speedup']:.2f}x faster in the denoising loop"
    console.print(f"{speedup}, {report['call_speedup']:.2f}x in the whole call.", highlight=False)
    console.print(f"Wrote {out / 'comparison.png'} and {out / 'report.json'}.", soft_wrap=True)


@app.command("stack-table")
def stack_table(
    prompts: Annotated[int, typer.Option(help="Held-out captions, one picture each.")] = 4,
    steps: Annotated[int, typer.Option(help="Solver steps that every row is asked for.")] = 50,
    recipe: Annotated[
        str, typer.Option(help="Name of a recipe, or path of a YAML file.")
    ] = "reference_5x",
    json: Annotated[Path | None, typer.Option(help="File to write too.")] = None,
    dtype: Dtype = "float32",
) -> None:
    """Add one technique per row, measure every row: gains do not multiply."""
    with clear_errors():
        with console.status("Loading"):
            from fresco.reference.waterfall import StackTable, run_stack_table

        table = StackTable(recipe, prompts, steps, json, dtype)
        with progress_bar() as bar:
            report = run_stack_table(table, named_tasks(bar))
    _print_stack_table(report)
    if json is not None:
        console.print(f"Wrote {json}.", soft_wrap=True)


@app.command()
def ablate(
    prompts: Captions = 128,
    json: Annotated[Path | None, typer.Option(help="Default: in the folder.")] = None,
    only: Annotated[str | None, typer.Option(help="Groups of rows, commas between.")] = None,
    folder: Folder = Path("runs/bench"),
    batch: Batch = 8,
    dtype: Dtype = "float32",
) -> None:
    """Vary one thing at a time and measure what comes of it."""
    with clear_errors():
        with console.status("Loading"):
            from fresco.reference.ablation import ablation_groups
            from fresco.reference.bench import How
            from fresco.reference.studies import Study, pick_groups, run_study

        file = json or folder / "ablation.json"
        groups = pick_groups(ablation_groups(), only)
        study = Study("fresco ablate", groups, file, folder, prompts, How(batch=batch), dtype)
        with progress_bar() as bar:
            report = run_study(study, named_tasks(bar))
    _print_study(report)
    console.print(f"Wrote {file}.", soft_wrap=True)


@app.command()
def pareto(
    prompts: Captions = 128,
    out: Annotated[Path, typer.Option(help="Directory of pareto.png and pareto.json.")] = Path(
        "fresco-pareto"
    ),
    folder: Folder = Path("runs/bench"),
    batch: Batch = 8,
    dtype: Dtype = "float32",
    json: Annotated[Path | None, typer.Option(help="File to write the report to, too.")] = None,
) -> None:
    """Measure fresco, fewer steps and rivals at several speedups, and plot them."""
    with clear_errors():
        check_json(json)
        with console.status("Loading"):
            from fresco.reference.bench import How
            from fresco.reference.plot import save_pareto
            from fresco.reference.rows import FEWER, pareto_groups
            from fresco.reference.studies import Study, run_study

        file, groups = out / "pareto.json", tuple(pareto_groups().values())
        study = Study("fresco pareto", groups, file, folder, prompts, How(batch=batch), dtype,
                      against=FEWER, json_option="--out")  # fmt: skip
        with progress_bar() as bar:
            report = run_study(study, named_tasks(bar))
        save_pareto(report, out / "pareto.png")
        if json:
            write_json(json, report)
    _print_study(report)
    console.print(f"Wrote {out / 'pareto.png'} and {file}.", soft_wrap=True)


def _demo_table(report: Mapping[str, Any]) -> Table:
    title = f"{report['n_prompts']} prompts, recipe {report['recipe']}; seconds per picture"
    table = Table(
        "",
        "steps",
        "loop s",
        "speedup",
        "call s",
        "PSNR dB",
        "SSIM",
        "asked",
        "scenes",
        title=title,
        caption="asked: share of the asked attributes that the pictures show; scenes: with all",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    closeness = {"baseline": (None, None), "accelerated": ("psnr_db", "ssim"),
                 "fewer_steps": ("fewer_steps_psnr_db", "fewer_steps_ssim")}  # fmt: skip
    labels = {
        "baseline": "full",
        "accelerated": "accelerated",
        "fewer_steps": "fewer steps",
    }
    for key, (psnr, ssim) in closeness.items():
        table.add_row(
            labels[key],
            str(report[f"{key}_n_steps"]),
            f"{report[f'{key}_s']:.2f}",
            f"{report['baseline_s'] / report[f'{key}_s']:.2f}x",
            f"{report[f'{key}_call_s']:.2f}",
            "" if psnr is None else "equal" if report[psnr] is None else f"{report[psnr]:.1f}",
            "" if ssim is None else f"{report[ssim]:.3f}",
            f"{report[f'judge_{key}']:.1%}",
            f"{report[f'judge_{key}_scene']:.1%}",
        )
    return table


def _print_stack_table(report: Mapping[str, Any]) -> None:
    """A row per technique; what cannot run here says why, what got slower says so."""
    columns = (
        "steps", "loop s", "speed-\nup", "gain", "FLOPs", "PSNR\ndB", "SSIM", "asked", "scenes"
    )  # fmt: skip
    title = f"{report['recipe']}, {report['n_prompts']} captions, {report['dtype']}"
    caption = "gain: over the row above; asked: share of the asked attributes that are shown"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for column in columns:  # of 80 columns, those of the figures are kept
        table.add_column(column, justify="right", no_wrap=True)
    notes = []
    for row in report["rows"]:
        said = [row["refused"]] if "refused" in row else row["notes"]
        notes += [f"{row['name']}: {note}" for note in said]
        if "refused" in row:
            table.add_row(row["name"], "", "refused")
            continue
        flops = row["flops_speedup"]
        is_baseline = row["recipe"] is None
        psnr = "equal" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
        table.add_row(
            row["name"],
            str(row["steps"]),
            f"{row['loop_s']:.2f}",
            f"{row['speedup']:.2f}x",
            f"{row['gain']:.2f}x",
            "" if flops is None else f"{flops:.2f}x",
            "" if is_baseline else psnr,
            "" if is_baseline else f"{row['ssim']:.3f}",
            f"{row['judge']:.1%}",
            f"{row['scene']:.1%}",
        )
    console.print(table)
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)


def _print_study(report: Mapping[str, Any]) -> None:
    """Three tables per group, since one does not fit into 80 columns.

    Differences are to the group's first row, or to another group's in that place.
    """
    caption = "asked: share of the asked attributes shown; difference: of the column before"
    for name, group in report["groups"].items():
        title = f"{name}: {group['question']}; {report['n_prompts']} captions"
        closeness = figures_table(("speedup", "FLOPs", "PSNR dB", "SSIM", "fine"), title)
        judged = figures_table(("asked", "difference", "scenes", "difference"))
        distance = figures_table(("Fréchet", "difference"), None, caption)
        for row in dict.fromkeys((report["baseline"], *group["rows"])):
            found = report["rows"][row] | report["differences"][name].get(row, {})
            closeness.add_row(
                row,
                f"{found['speedup']:.2f}x",
                f"{found['flops_speedup']:.2f}x",
                with_interval(found, "psnr_db", ".1f"),
                with_interval(found, "ssim", ".3f"),
                with_interval(found, "hf", ".2f"),
            )
            scenes = with_difference(found, "scene", ".1%")
            judged.add_row(row, *with_difference(found, "judge", ".1%"), *scenes)
            distance.add_row(row, *with_difference(found, "frechet", ".1f"))
        console.print(closeness, judged, distance)
