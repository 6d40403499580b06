"""`fresco tune`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from fresco.cli_parts import MAX_SEED, clear_errors, console, named_tasks, progress_bar, write_json
from fresco.cli_validate import read_prompts
from fresco.output import write_text

if TYPE_CHECKING:
    from fresco.tuning import Found


def tune(
    model: Annotated[str, typer.Option(help="reference, or a pipeline's directory.")],
    prompts: Annotated[Path, typer.Option(help="A text file, one prompt per line.")],
    speedup: Annotated[float | None, typer.Option(min=1, help="At least so fast.")] = None,
    min_judge: Annotated[float | None, typer.Option(help="At least so good.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.001, help="At most, in the loop.")] = None,
    out: Annotated[Path, typer.Option(help="Recipe to write.")] = Path("tuned.yaml"),
    folder: Annotated[Path, typer.Option(help="Where results are kept, and taken from.")] = Path(
        "runs/tune"
    ),
    tries: Annotated[int, typer.Option(min=1, help="Candidates to measure.")] = 24,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of the first prompt's noise.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Of the plain run.")] = 50,
    guidance: Annotated[float | None, typer.Option()] = None,
    height: Annotated[int | None, typer.Option(min=1)] = None,
    width: Annotated[int | None, typer.Option(min=1)] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of a video.")] = None,
    dtype: Annotated[str, typer.Option(help="Of all weights: float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    metric: Annotated[
        str | None, typer.Option(help="Your own, module:function of (images, prompts) -> mean.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File to write everything to.")] = None,
) -> None:
    """Search for a recipe, print the Pareto set and write the best; a broken search goes on.

    Exit code 1 if no candidate meets the goal; nothing is written then.
    """
    with clear_errors():
        with console.status("Loading"):
            from fresco.candidates import check_searchable, pick_candidates
            from fresco.output import make_directory, make_place
            from fresco.pictures import PictureRequest, load_pipe
            from fresco.tuning import (
                Goal,
                baseline_of,
                best_of,
                check_goal,
                measure,
                open_study,
                pareto,
                sample_plain,
            )
            from fresco.validation import find_judge

            goal = Goal(speedup, min_judge, seconds)
            asked = read_prompts(prompts, "fresco tune --prompts")
            picture = PictureRequest(
                model, None, "", seed, steps, guidance, height, width, dtype, device, frames
            )
            judge = find_judge(metric, picture, asked, "fresco tune --metric")
            check_goal(goal, judge is not None)
            make_directory("fresco tune", folder, "--folder")
            for file, option in ((out, "--out"), (json, "--json")):
                if file:
                    make_place("fresco tune", file, option)
            named = judge.name if judge else "PSNR dB"
            open_study(folder, picture, asked, named)
            pipe = load_pipe(model, dtype, device)
            check_searchable(pipe)
        found: list[Found] = []
        with progress_bar() as bar:
            advance = named_tasks(bar)
            plain = sample_plain(pipe, picture, asked, folder, advance)
            baseline = baseline_of(picture, plain, len(asked))
            near = goal.speed(plain.seconds)
            chosen = pick_candidates(pipe, baseline, plain.n_text_tokens, near, tries)
            for i, content in enumerate(chosen):
                each = measure(pipe, picture, asked, content, plain, judge, folder)
                found += [each] if each else []
                advance("candidates", i + 1, len(chosen))
        best, front = best_of(found, goal), pareto(found)
        if json:
            content_of = {"pareto": [asdict(each) for each in front]}
            write_json(json, content_of | {"best": asdict(best) if best else None})
        console.print(_table(front, best, named))
        if best is None:
            console.print("[bold red]falls short[/] no candidate meets the goal.")
            raise typer.Exit(1)
        words = ["fresco", "validate", out, "--model", model, "--prompts", prompts]
        given = {"device": (device, "cpu"), "dtype": (dtype, "float32"), "metric": (metric, None)}
        for name, (value, default) in given.items():
            words += [] if value == default else [f"--{name}", value]
        hint = shlex.join(map(str, words))
        write_recipe(best, out, hint)
        told = f"Wrote {out}; measure it, best on other prompts, with `{hint}`."
        console.print(told, soft_wrap=True, markup=False)


def write_recipe(best: Found, path: Path, hint: str) -> None:
    """Write a recipe's file with how it was found, and what measures it, above it."""
    import yaml

    text = yaml.safe_dump(dict(best.recipe), sort_keys=False, width=100, default_flow_style=None)
    head = f"# Found by `fresco tune`: {best.speedup:.2f}x at quality {best.quality:.4g}.\n"
    write_text(path, f"{head}#   {hint}\n{text}")


def _table(front: Sequence[Found], best: Found | None, quality: str) -> Table:
    columns = ("", "speedup", "loop s", quality, "stages (cell x steps to sigma)", "cache")
    table = Table(*columns, title="Pareto set", box=box.SIMPLE_HEAD, pad_edge=False)
    for each in front:
        stages = " + ".join(map(_stage, each.recipe["stages"]))
        cache = ", ".join(f"{entry['threshold']:g}" for entry in each.recipe["stack"])
        mark = "best" if each is best else ""
        figures = (f"{each.speedup:.2f}x", f"{each.seconds:.3g}", f"{each.quality:.4g}")
        table.add_row(mark, *figures, stages, cache or "-")
    return table


def _stage(stage: Mapping[str, Any]) -> str:
    """What candidates differ in."""
    budget = f" at {stage['promote']['budget']:.0%}" if "promote" in stage else ""
    until = f" to {stage['until_sigma']:g}" if "until_sigma" in stage else ""
    shift = f", shift {stage['shift']:g}" if "shift" in stage else ""
    return f"{stage['cell']} x {stage['steps']}{budget}{until}{shift}"
