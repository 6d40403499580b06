"""The commands about recipes. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Column, Table

from fresco.cli_parts import clear_errors, console, write_json

if TYPE_CHECKING:
    from fresco.recipe import Recipe

recipes = typer.Typer(help="List, show and check recipes.", invoke_without_command=True)

Json = Annotated[Path | None, typer.Option("--json", help="File to write everything to.")]


@recipes.callback()
def _list_without_command(context: typer.Context, json: Json = None) -> None:
    if context.invoked_subcommand is None:
        list_(json)


@recipes.command("list")
def list_(json: Json = None) -> None:
    """List the recipes that are installed; bare `fresco recipes` does the same."""
    with clear_errors():
        from fresco.recipe import known_recipes

        rows = [_row_of(name) for name in known_recipes()]
        if json:
            write_json(json, rows)
    name, expects, validated = (
        Column(key, no_wrap=True) for key in ("recipe", "expects", "validated")
    )
    model, stages, stack = (
        Column(key, overflow="fold") for key in ("model", "stages (cell x steps)", "stack")
    )
    columns = (name, model, stages, stack, expects, validated)
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        bounds = str(row.get("expects", "-")).replace(", ", "\n")
        told = row | {"expects": bounds}
        table.add_row(*(str(told.get(key, "-")) for key in _COLUMNS))
    console.print(table)
    for row in rows:
        for problem in row.get("problems", ()):
            console.print(f"{row['recipe']}: {problem}", markup=False, soft_wrap=True)


@recipes.command()
def show(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or path of a YAML file.")],
    json: Json = None,
) -> None:
    """Print a recipe, once it is checked."""
    with clear_errors():
        from fresco.recipe import known_recipes, load_recipe

        checked = load_recipe(recipe)
        if json:
            write_json(json, checked.model_dump(mode="json", by_alias=True, exclude_unset=True))
        text = known_recipes().get(recipe, Path(recipe).expanduser()).read_text(encoding="utf-8")
    console.print(text, markup=False, soft_wrap=True, end="")


@recipes.command()
def check(
    files: Annotated[list[str], typer.Argument(help="Paths of YAML files, or names.")],
    json: Json = None,
) -> None:
    """Check recipes, and report all problems of all of them; exit code 2 if there is one."""
    from fresco.errors import RecipeError
    from fresco.recipe import load_recipe

    found: dict[str, list[str]] = {}
    for file in files:
        try:
            recipe = load_recipe(file)
            found[file] = []
            console.print(f"{file}: valid", markup=False, soft_wrap=True)
            for record in recipe.stale:
                told = f"its record of {record.date} on {record.model} is of other stages or stack"
                fix = f"run `fresco validate {file}`"
                console.print(f"{file}: {told}; {fix}", markup=False, soft_wrap=True)
        except RecipeError as error:
            found[file] = list(error.problems)
            console.print(str(error), markup=False, soft_wrap=True)
    if json:
        with clear_errors():
            write_json(json, found)
    if any(found.values()):
        raise typer.Exit(2)


@recipes.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="File; default: printed.")] = None,
) -> None:
    """Print the JSON schema of recipes, for editors."""
    from fresco.recipe import recipe_schema

    if out:
        with clear_errors():
            write_json(out, recipe_schema())
        console.print(f"Wrote {out}.", soft_wrap=True)
    else:
        console.print_json(data=recipe_schema())


_COLUMNS = ("recipe", "model", "stages", "stack", "expects", "validated")


def _row_of(name: str) -> dict[str, Any]:
    """A recipe's row; one that does not load here, for a version or a package, says why."""
    from fresco.errors import RecipeError
    from fresco.recipe import load_recipe

    try:
        return _row(name, load_recipe(name))
    except RecipeError as error:
        return {"recipe": name, "problems": list(error.problems)}


def _row(name: str, recipe: Recipe) -> dict[str, Any]:
    """What the list says of one recipe."""
    bounds = recipe.expects.model_dump(exclude_none=True)
    fresh = [record for record in recipe.validated if record not in recipe.stale]
    covered = dict.fromkeys(what for record in fresh for what in record.covers)
    return {
        "recipe": name,
        "model": recipe.model,
        "stages": ", ".join(f"{stage.cell} x {stage.steps}" for stage in recipe.stages) or "-",
        "stack": ", ".join(str(entry["kind"]) for entry in recipe.stack) or "-",
        "expects": ", ".join(f"{key} {value:g}" for key, value in bounds.items()) or "-",
        "validated": ", ".join(covered) or ("stale" if recipe.stale else "-"),
    }
