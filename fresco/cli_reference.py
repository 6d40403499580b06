"""The commands of the reference model. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fresco.cli_parts import (
    MAX_SEED,
    Dtype,
    check_json,
    clear_errors,
    console,
    fraction_table,
    progress_bar,
    write_json,
)

if TYPE_CHECKING:
    from fresco.reference.evaluate import Comparison

reference = typer.Typer(
    help="The reference model: training, judge, evaluation.", no_args_is_help=True
)


def _finite(hours: float) -> float:
    """Refuse what is within every range, or is none."""
    if not math.isfinite(hours):
        raise typer.BadParameter(f"expected a number of hours, got {hours}")
    return hours


Json = Annotated[Path | None, typer.Option(help="File to write everything to.")]


@reference.command()
def train(
    folder: Annotated[Path, typer.Option(help="The run's folder; a run in it goes on.")] = Path(
        "runs/reference"
    ),
    hours: Annotated[
        float, typer.Option(min=0.001, callback=_finite, help="Training time of the transformer.")
    ] = 3.0,
    device: Annotated[
        str | None, typer.Option(help="Where to train; default: a GPU if there is one.")
    ] = None,
    from_shipped: Annotated[
        bool, typer.Option("--from-shipped", help="Go on from the weights that ship.")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Series of the training scenes; 2, 3, 7 and 11 are taken.")
    ] = 1,
) -> None:
    """Train the reference model; an interrupted training goes on where it stopped."""
    with clear_errors():
        with console.status("Loading"):
            import torch

            from fresco.errors import RunError
            from fresco.place import find_device
            from fresco.reference import PIPELINE
            from fresco.reference.run import train_reference

        with progress_bar() as bar:
            task = bar.add_task("autoencoder, text, latents", total=None)

            def log(figures: Mapping[str, float]) -> None:
                text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
                if "elapsed_s" in figures:
                    bar.update(
                        task, total=round(hours * 3600), completed=round(figures["elapsed_s"])
                    )
                bar.update(task, description=text)

            where = device or ("cuda" if torch.cuda.is_available() else "cpu")
            start = PIPELINE if from_shipped else None
            at = find_device("fresco reference train", where, RunError)
            out = train_reference(folder, hours, log, at, start, seed)
    console.print(f"Wrote {out}.", soft_wrap=True)


@reference.command()
def distill(
    folder: Annotated[Path, typer.Option(help="The run's folder; a run in it goes on.")] = Path(
        "runs/distill"
    ),
    hours: Annotated[
        float,
        typer.Option(
            min=0.0001, callback=_finite, help="Time in all: the teacher's pictures, training."
        ),
    ] = 0.6,
    device: Annotated[
        str | None, typer.Option(help="Where to train; default: a GPU if there is one.")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="Another pipeline directory.")] = None,
    from_shipped: Annotated[
        bool, typer.Option("--from-shipped", help="Go on from the LoRA that ships.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Series of captions and noise.")] = 31,
    others: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of another run, to learn from its trajectories too."),
    ] = None,
) -> None:
    """Distil many steps into few, as a LoRA; an interrupted run goes on where it stopped."""
    with clear_errors():
        with console.status("Loading"):
            import torch

            from fresco.place import find_device
            from fresco.reference import lora_path
            from fresco.reference.distill_run import DistillError
            from fresco.reference.distill_run import distill as run

        with progress_bar() as bar:
            task = bar.add_task("trajectories", total=round(hours * 3600))
            spent = {"trajectories_s": 0.0, "elapsed_s": 0.0}

            def log(figures: Mapping[str, float]) -> None:
                text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
                spent.update({name: figures[name] for name in spent if name in figures})
                bar.update(task, completed=round(sum(spent.values())), description=text)

            where = device or ("cuda" if torch.cuda.is_available() else "cpu")
            start = lora_path().parent if from_shipped else None
            at = find_device("fresco reference distill", where, DistillError)
            out = run(folder, hours, log, at, teacher, seed, start, others or [])
    console.print(f"Wrote {out}.", soft_wrap=True)


@reference.command()
def evaluate(
    prompts: Annotated[int, typer.Option(min=1, help="Held-out captions.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Solver steps.")] = 50,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of the first picture's noise.")
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per call.")] = 8,
    folder: Annotated[Path | None, typer.Option(help="Another pipeline directory.")] = None,
    rows: Annotated[
        Path, typer.Option(help="Where sampled pictures are kept, and taken from.")
    ] = Path("runs/bench"),
    dtype: Dtype = "float32",
    against: Annotated[
        int | None, typer.Option(help="Sample in so many steps too, and compare.")
    ] = None,
    json: Json = None,
) -> None:
    """Sample held-out captions and let the judge say what came of them; broken runs go on."""
    with clear_errors():
        check_json(json)
        with console.status("Loading"):
            from fresco.pictures import DTYPES
            from fresco.reference import GUIDANCE_SCALE, load
            from fresco.reference.bench import How
            from fresco.reference.evaluate import BAR, Evaluation, check_against, evaluate_against
            from fresco.reference.evaluate import evaluate as run

            if against is not None:
                check_against(against, steps)
            pipe = load(folder, DTYPES[dtype])
        how = How(seed, batch, GUIDANCE_SCALE if guidance is None else guidance)
        asked = Evaluation(rows, prompts, steps, how)
        compared: Comparison | None = None
        with progress_bar() as bar:
            task = bar.add_task("pictures", total=prompts * (1 if against is None else 2))

            def advance(done: int) -> None:
                bar.update(task, completed=done)

            if against is None:
                fractions = run(pipe, asked, advance)
            else:
                compared = evaluate_against(pipe, against, asked, advance)
                fractions = compared.fractions
        if json:
            content: dict[str, Any] = asdict(compared) if compared else {"fractions": fractions}
            if compared and not math.isfinite(compared.psnr_db):
                content["psnr_db"] = None  # equal pictures
            write_json(json, content)
    title = f"{prompts} held-out captions, {steps} steps, guidance {how.guidance:g}, {dtype}"
    console.print(fraction_table(title, fractions, BAR))
    if compared is not None:
        console.print(_difference_table(f"{steps} steps minus {against}", compared))
        console.print(f"PSNR between the two: {compared.psnr_db:.1f} dB.", highlight=False)


@reference.command()
def overhead(
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or path of a YAML file.")] = (
        "reference_10x"
    ),
    runs: Annotated[int, typer.Option(min=1, help="Measured runs.")] = 3,
    json: Json = None,
) -> None:
    """Measure what a step takes beyond the bare transformer."""
    with clear_errors():
        check_json(json)
        with console.status("Loading"):
            from fresco.demo import PROMPTS
            from fresco.recipe import load_staged_recipe
            from fresco.reference import load
            from fresco.reference.overhead import LIMIT, measure_overhead

            checked = load_staged_recipe(recipe)
            pipe = load()
        with progress_bar() as bar:
            task = bar.add_task("runs", total=runs + 1)

            def on_run(done: int) -> None:
                bar.update(task, completed=done)

            rows = measure_overhead(pipe, checked, PROMPTS[0], runs, on_run)
        if json:
            write_json(json, [asdict(row) for row in rows])
    title = f"{recipe}: milliseconds per step, medians of {runs} runs"
    table = Table("stage", "tokens", "transformer", "beyond", "of a full step", "", title=title)
    for row in rows:
        verdict = "[green]yes[/]" if row.share <= LIMIT else "[red]no[/]"
        ms = (f"{1000 * seconds:.2f}" for seconds in (row.bare_s, row.beyond_s))
        table.add_row(str(row.stage), str(row.n_tokens), *ms, f"{row.share:.2%}", verdict)
    console.print(table)


@reference.command()
def judge(
    pictures: Annotated[int, typer.Option(min=1, help="Held-out rendered pictures.")] = 512,
    train: Annotated[
        bool, typer.Option("--train", help="Train it anew and replace its weights.")
    ] = False,
    folder: Annotated[
        Path, typer.Option(help="Run whose autoencoder spoils the training pictures.")
    ] = Path("runs/reference"),
    json: Json = None,
) -> None:
    """Measure the judge on held-out rendered pictures."""
    with clear_errors():
        check_json(json)
        with console.status("Loading"):
            from fresco.reference import judge_training
        if train:
            with progress_bar() as bar:
                task = bar.add_task("judge", total=judge_training.STEPS)

                def log(figures: Mapping[str, float]) -> None:
                    bar.update(
                        task, completed=figures["step"], description=f"loss {figures['loss']:.3f}"
                    )

                judge_training.train_and_save(folder, log)
        with progress_bar() as bar:
            task = bar.add_task("pictures", total=pictures)

            def on_pictures(done: int) -> None:
                bar.update(task, completed=done)

            fractions = judge_training.measure_shipped(pictures, on_pictures)
        if json:
            write_json(json, fractions)
    title = f"The judge on {pictures} held-out rendered pictures"
    console.print(fraction_table(title, fractions, judge_training.BAR))


def _difference_table(title: str, compared: Comparison) -> Table:
    table = Table("attribute", "this", "that", "points", "95% interval", title=title)
    for name, found in compared.differences.items():
        table.add_row(
            name,
            f"{compared.fractions[name]:.2%}",
            f"{compared.other[name]:.2%}",
            f"{100 * found.fraction:+.2f}",
            f"{100 * found.low:+.2f} to {100 * found.high:+.2f}",
        )
    return table
