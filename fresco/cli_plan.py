"""`fresco plan`. Nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from fresco.cli_parts import clear_errors, console, progress_bar, write_json

if TYPE_CHECKING:
    from fresco.planner import Forecast

Count = Annotated[int | None, typer.Option(min=1)]


def plan(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or path of a YAML file.")],
    model: Annotated[
        str | None, typer.Option(help="Known model; default: that of the recipe's name.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A transformer/config.json in place of the model's own.")
    ] = None,
    height: Count = None,
    width: Count = None,
    steps: Count = None,
    frames: Count = None,
    text_tokens: Count = None,
    reference_tokens: Annotated[
        int | None, typer.Option(min=0, help="Of pictures beside the one that is made.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="For an estimate of the time: a100, h100, h200, or a file.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File to write everything to.")] = None,
    png: Annotated[Path | None, typer.Option(help="PNG file to draw the plan to.")] = None,
) -> None:
    """Say what a recipe does at every step, and what it costs. No weights are needed."""
    with clear_errors():
        with console.status("Loading"):
            from fresco.output import make_place
            from fresco.plan_plot import save_plan
            from fresco.planner import model_of
            from fresco.planner import plan as make
            from fresco.sketch import model_like, sketch_model

            for file, option in ((json, "--json"), (png, "--png")):
                if file:
                    make_place("fresco plan", file, option)
            name = model or (model_like(config) if config else model_of(recipe))
            pipe = sketch_model(name, config)
        size = {"height": height, "width": width, "frames": frames}
        tokens = {"text_tokens": text_tokens, "reference_tokens": reference_tokens}
        asked = {**size, **tokens, "steps": steps}
        with progress_bar() as bar:
            task = bar.add_task("counting", total=None, visible=False)  # unless it is refused

            def advance(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total, visible=True)

            found = make(pipe, recipe, **asked, device=device, on_count=advance)
        if json:
            write_json(json, {"recipe": recipe, "model": name} | found.as_dict())
        if png:
            save_plan(found, f"{recipe} on {name}", png)
    console.print(_table(found, f"{recipe} on {name}", device))
    for line in _totals(found, device):
        console.print(line, highlight=False)
    if png:
        console.print(f"Wrote {png}.", soft_wrap=True)


def _table(found: Forecast, title: str, device: str | None) -> Table:
    columns = ["step", "stage", "sigma", "tokens", "TFLOPs", *(["ms at least"] if device else [])]
    table = Table(*columns, title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for i, (step, flops) in enumerate(zip(found.plan.steps, found.flops, strict=True)):
        at_most = "<= " if step.promotion and step.promotion.tau is not None else ""
        row = [str(i), str(step.stage), f"{step.sigma:.4f}", f"{at_most}{step.n_tokens}"]
        times = [f"{1000 * found.seconds[i]:.2f}"] if found.seconds else []
        table.add_row(*row, f"{flops / 1e12:.4g}", *times)
    return table


def _totals(found: Forecast, device: str | None) -> list[str]:
    """What the table adds up to."""
    plan = found.plan
    lines = [
        f"{found.total_flops / 1e12:.5g} TFLOPs in {len(plan.steps)} steps; "
        f"{found.baseline_flops / 1e12:.5g} in {plan.n_requested} full ones: "
        f"{found.flops_speedup:.2f}x fewer. One picture, one pass per step, without the stack.",
        f"Memory at the peak step, estimated: {found.peak_bytes / 2**30:.3g} GiB of activations, "
        f"besides {found.weight_bytes / 2**30:.3g} GiB of weights in bfloat16.",
    ]
    if found.n_given_tokens:
        lines.append(
            f"Every call has {found.n_given_tokens} more tokens, of what is given (a reference "
            "picture, a first frame), at full resolution; they are in the FLOPs."
        )
    if found.seconds and found.baseline_s:
        seconds = sum(found.seconds)
        lines.append(
            f"Time on {device}, an estimate from its rates alone that no run goes below: "
            f"{seconds:.3g} s of {found.baseline_s:.3g} s."
        )
    return lines
