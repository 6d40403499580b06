"""`python -m tests.write_records`: fresh `validated` records in the files of recipes.

    python -m tests.write_records mechanics               every model whose weights are not here
    python -m tests.write_records reference --prompts 16  the reference recipes, by paired runs

Each is a loop over `fresco validate`. What falls short of a bound is said, left as it was, and
makes the exit code 1. `--only NAME` (repeatable) takes some of them, `--into DIR` validates copies,
`--floor compile` is for processors that are slow in bfloat16.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from fresco.cli_validate import validate
from fresco.errors import FrescoError
from fresco.planner import model_of
from fresco.recipe import known_recipes
from fresco.reference.dataset import held_out_captions

Only = Annotated[list[str] | None, typer.Option(help="Name of a recipe; repeatable.")]
Floor = Annotated[str, typer.Option(help="Noise floor by another `precision`, or by `compile`.")]
Into = Annotated[Path | None, typer.Option(help="Copy the recipes there, and write the copies.")]

app = typer.Typer(add_completion=False)


def recipes_of(kind):
    """Names of the recipes whose model is the reference, or another known one."""
    found = []
    for name in known_recipes():
        try:
            is_reference = model_of(name) == "reference"
        except FrescoError:  # of no model: identity, rivals
            continue
        found += [name] if is_reference == (kind == "reference") else []
    return found


@app.command()
def mechanics(only: Only = None, into: Into = None) -> None:
    """Mechanics and FLOPs of every recipe for a model whose weights are not here."""
    _loop("mechanics", only, into)


@app.command()
def reference(
    prompts: Annotated[int, typer.Option(min=1, help="Held-out captions, a pair each.")] = 16,
    only: Only = None,
    into: Into = None,
    floor: Floor = "precision",
) -> None:
    """Pictures, time, closeness and judge of every reference recipe."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.txt"
        file.write_text("\n".join(caption.text for caption in held_out_captions(prompts)) + "\n")
        _loop("reference", only, into, model="reference", prompts=file, floor=floor)


def _loop(kind, only, into, **asked):
    """Validate each; go on after one that falls short."""
    known, short = known_recipes(), []
    for name in only or recipes_of(kind):
        target = name
        if into is not None:
            into.mkdir(parents=True, exist_ok=True)
            target = str(shutil.copy(known[name], into))
        try:
            validate(target, **asked)
        except typer.Exit:
            short.append(name)
    if short:
        typer.echo(f"not written: {', '.join(short)}")
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
