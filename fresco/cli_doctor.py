"""`fresco doctor`. Nothing heavy is imported before it runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from fresco.cli_parts import clear_errors, console, named_tasks, progress_bar, write_json


def doctor(
    json: Annotated[Path | None, typer.Option(help="File to write everything to.")] = None,
) -> None:
    """Say what is installed, what it can run on, and which techniques attach here."""
    with clear_errors():
        with console.status("Loading"):
            from fresco.doctor import devices, installed, models, try_techniques
            from fresco.reference import load

            found = {"packages": installed(), "devices": devices(), "models": models()}
            pipe = load()
        with progress_bar() as bar:
            advance = named_tasks(bar)
            found["techniques"] = try_techniques(pipe, lambda *at: advance("techniques", *at))
        if json:
            content = {name: [asdict(each) for each in rows] for name, rows in found.items()}
            write_json(json, content)
    for name, rows in found.items():
        table = Table(name, "", "why", box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(row.what, row.state, row.why)
        console.print(table)
