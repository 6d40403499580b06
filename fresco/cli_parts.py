"""What the commands share: the console, progress bars, clear errors, tables of figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

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
from fresco.output import make_place, write_text

MAX_SEED = 2**62  # of a first picture; the others' follow
console = Console()
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of all weights.")]


@contextmanager
def clear_errors() -> Iterator[None]:
    """Show an error that fresco raised on purpose without a traceback; exit code 2."""
    try:
        yield
    except FrescoError as error:
        message = Text.assemble(("error ", "bold red"), str(error))  # not markup: it has brackets
        Console(stderr=True).print(message, soft_wrap=True)
        raise typer.Exit(2) from error


def given_options(context: typer.Context) -> set[str]:
    """Names of the parameters that the command line gives, rather than a default."""
    return {
        name for name in context.params if "COMMANDLINE" in str(context.get_parameter_source(name))
    }


def progress_bar() -> Progress:
    """A bar with a description, the count and the time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def named_tasks(bar: Progress) -> Callable[[str, int, int], None]:
    """A callback (name, done, total) that gives every name a line of its own."""
    tasks: dict[str, TaskID] = {}

    def advance(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=total)
        bar.update(tasks[name], completed=done)

    return advance


def check_json(file: Path | None) -> None:
    """Refuse a place where `write_json` could not write, before anything slow."""
    if file is not None:
        make_place("--json", file, "--json")


def write_json(file: Path, content: Any) -> None:
    """Write a result where a program can read it, as a whole; its directory is made."""
    make_place("--json", file, "--json")
    write_text(file, json.dumps(content, indent=2, allow_nan=False) + "\n")


def fraction_table(title: str, fractions: Mapping[str, float], bar: Mapping[str, float]) -> Table:
    """Fractions by attribute, and whether each is up to its bar."""
    table = Table("attribute", "right", "bar", "", title=title)
    for name, fraction in fractions.items():
        wanted = bar.get(name)
        verdict = "" if wanted is None else "[green]yes[/]" if fraction >= wanted else "[red]no[/]"
        table.add_row(name, f"{fraction:.2%}", "" if wanted is None else f"{wanted:.0%}", verdict)
    return table


def figures_table(
    columns: Sequence[str], title: str | None = None, caption: str | None = None
) -> Table:
    """A table of figures with intervals; names give way to them, and five fit into 80 columns."""
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", min_width=len("[-12.3%,"))  # ends of intervals
    return table


def with_interval(found: Mapping[str, Any], name: str, form: str) -> str:
    """A figure with its interval; nothing where there is none."""
    if found.get(name) is None:
        return ""
    low, high = found[f"{name}_interval"]
    return f"{found[name]:{form}} \\[{low:{form}}, {high:{form}}]"


def with_difference(found: Mapping[str, Any], name: str, form: str) -> tuple[str, str]:
    """A figure and its difference to another row's, each with its interval."""
    difference = with_interval(found, f"{name}_difference", f"+{form}")
    return with_interval(found, name, form), difference
