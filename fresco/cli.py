"""The commands. Nothing heavy is imported before a command runs, so that --help is quick."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from fresco.errors import FrescoError

app = typer.Typer(
    help="Diffusion Transformers many times faster, without retraining.", no_args_is_help=True
)
reference = typer.Typer(
    help="The reference model: training, judge, evaluation.", no_args_is_help=True
)
app.add_typer(reference, name="reference")
console = Console()

Out = Annotated[Path, typer.Option("--out", help="Directory of comparison.png and report.json.")]
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
    ] = "reference_5x",
    prompt: Prompts = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first picture's noise.")] = 0,
    out: Out = Path("fresco-demo"),
    steps: Annotated[int, typer.Option(min=1, help="Solver steps of the full row.")] = 50,
) -> None:
    """Sample full, accelerated, and with fewer steps at the same cost, and compare."""
    with _clear_errors():
        from fresco.reference.captions import parse

        for text in prompt or []:
            parse(text)  # before anything slow
        with console.status("Loading"):
            from fresco.demo import PROMPTS, DemoRequest, run_demo

        request = DemoRequest(tuple(prompt or PROMPTS), recipe, seed, out, steps)
        with _bar() as bar:
            tasks: dict[str, TaskID] = {}

            def advance(name: str, done: int, total: int) -> None:
                if name not in tasks:
                    tasks[name] = bar.add_task(name, total=total)
                bar.update(tasks[name], completed=done)

            report = run_demo(request, advance)
    console.print(_demo_table(report))
    speedup = f"{report['speedup']:.2f}x faster in the denoising loop"
    console.print(f"{speedup}, {report['call_speedup']:.2f}x in the whole call.", highlight=False)
    console.print(f"Wrote {out / 'comparison.png'} and {out / 'report.json'}.", soft_wrap=True)


@app.command()
def recipes() -> None:
    """List the recipes that ship with the package."""
    from fresco.recipe import known_recipes, load_recipe

    table = Table("recipe", "model", "stages (cell x steps)", "expects")
    for name in known_recipes():
        recipe = load_recipe(name)
        stages = ", ".join(f"{stage.cell} x {stage.steps}" for stage in recipe.stages) or "-"
        speedup = recipe.expects.speedup
        table.add_row(name, recipe.model, stages, f"{speedup:g}x" if speedup else "-")
    console.print(table)


@reference.command()
def train(
    folder: Annotated[Path, typer.Option(help="The run's folder; a run in it goes on.")] = Path(
        "runs/reference"
    ),
    hours: Annotated[
        float, typer.Option(min=0.001, help="Training time of the transformer.")
    ] = 3.0,
    device: Annotated[
        str | None, typer.Option(help="Where to train; default: a GPU if there is one.")
    ] = None,
    from_shipped: Annotated[
        bool, typer.Option("--from-shipped", help="Go on from the weights that ship.")
    ] = False,
) -> None:
    """Train the reference model; an interrupted training goes on where it stopped."""
    with _clear_errors():
        with console.status("Loading"):
            import torch

            from fresco.reference import PIPELINE
            from fresco.reference.run import train_reference

        with _bar() as bar:
            task = bar.add_task("autoencoder, text, latents", total=None)

            def log(figures: Mapping[str, float]) -> None:
                text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
                if "elapsed_s" in figures:
                    bar.update(
                        task, total=round(hours * 3600), completed=round(figures["elapsed_s"])
                    )
                bar.update(task, description=text)

            where = device or ("cuda" if torch.cuda.is_available() else "cpu")
            out = train_reference(
                folder, hours, log, torch.device(where), PIPELINE if from_shipped else None
            )
    console.print(f"Wrote {out}.", soft_wrap=True)


@reference.command()
def evaluate(
    prompts: Annotated[int, typer.Option(min=1, help="Held-out captions.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Solver steps.")] = 50,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per call.")] = 8,
    folder: Annotated[Path | None, typer.Option(help="Another pipeline directory.")] = None,
) -> None:
    """Sample held-out captions and let the judge say what came of them."""
    with _clear_errors():
        with console.status("Loading"):
            from fresco.reference import GUIDANCE_SCALE, load
            from fresco.reference.evaluate import BAR, Sampling
            from fresco.reference.evaluate import evaluate as run

            pipe = load(folder)
        how = Sampling(steps, GUIDANCE_SCALE if guidance is None else guidance, seed, batch)
        with _bar() as bar:
            task = bar.add_task("pictures", total=prompts)
            fractions = run(pipe, prompts, how, lambda done: bar.update(task, completed=done))
    title = f"{prompts} held-out captions, {how.steps} steps, guidance {how.guidance:g}"
    console.print(_fraction_table(title, fractions, BAR))


@reference.command()
def judge(
    pictures: Annotated[int, typer.Option(min=1, help="Held-out rendered pictures.")] = 512,
    train: Annotated[
        bool, typer.Option("--train", help="Train it anew and replace its weights.")
    ] = False,
    folder: Annotated[
        Path, typer.Option(help="Run whose autoencoder spoils the training pictures.")
    ] = Path("runs/reference"),
) -> None:
    """Measure the judge on held-out rendered pictures."""
    with _clear_errors():
        with console.status("Loading"):
            from fresco.reference import judge_training
        if train:
            with _bar() as bar:
                task = bar.add_task("judge", total=judge_training.STEPS)

                def log(figures: Mapping[str, float]) -> None:
                    bar.update(
                        task, completed=figures["step"], description=f"loss {figures['loss']:.3f}"
                    )

                judge_training.train_and_save(folder, log)
        with console.status(f"Drawing and reading {pictures} pictures"):
            fractions = judge_training.measure_shipped(pictures)
    title = f"The judge on {pictures} held-out rendered pictures"
    console.print(_fraction_table(title, fractions, judge_training.BAR))


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Show an error that fresco raised on purpose without a traceback; exit code 2."""
    try:
        yield
    except FrescoError as error:
        message = Text.assemble(("error ", "bold red"), str(error))  # not markup: it has brackets
        Console(stderr=True).print(message, soft_wrap=True)
        raise typer.Exit(2) from error


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


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
    closeness = {"baseline": ("", None, None), "accelerated": ("", "psnr_db", "ssim"),
                 "fewer_steps": ("", "fewer_steps_psnr_db", "fewer_steps_ssim")}  # fmt: skip
    labels = {
        "baseline": "full",
        "accelerated": "accelerated",
        "fewer_steps": "fewer steps",
    }
    for key, (_, psnr, ssim) in closeness.items():
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


def _fraction_table(title: str, fractions: Mapping[str, float], bar: Mapping[str, float]) -> Table:
    table = Table("attribute", "right", "bar", "", title=title)
    for name, fraction in fractions.items():
        wanted = bar.get(name)
        verdict = "" if wanted is None else "[green]yes[/]" if fraction >= wanted else "[red]no[/]"
        table.add_row(name, f"{fraction:.2%}", "" if wanted is None else f"{wanted:.0%}", verdict)
    return table
