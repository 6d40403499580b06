"""Writing records into a recipe's file; its comments and its order stay."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from fresco.errors import RecipeError
from fresco.output import make_directory, write_text
from fresco.recipe import Recipe, load_recipe
from fresco.recipe_yaml import read_yaml
from fresco.record import RecordConfig

_VALIDATED = re.compile(r"^validated:.*\Z", re.MULTILINE | re.DOTALL)
_NEXT_KEY = re.compile(r"^[^\s-]", re.MULTILINE)  # entries of the list are at the margin too


def check_place(path: Path) -> None:
    """See, before anything is measured, whether a record can be put in a recipe's file.

    Args:
        path: Of a valid recipe.

    Raises:
        RecipeError: If it has keys after `validated`, or is not written in lines of `key: value`.
        OutputError: If its directory cannot be written to.
    """
    try:
        read_yaml(f"{_split(path).rstrip()}\nvalidated: []\n")
    except yaml.YAMLError as error:
        problem = "put every key in a line of its own, unquoted, for records are written below @ $"
        raise RecipeError(path.name, [problem]) from error
    make_directory("fresco validate RECIPE", path.parent, "RECIPE, or pass --no-write")


def write_record(path: Path, record: RecordConfig) -> Recipe:
    """Put a record in a recipe's file, in place of one of the same model and coverage.

    Args:
        path: Of a valid recipe whose `validated`, if there is one, comes last.
        record: What was measured.

    Returns:
        The recipe as it is now in the file.

    Raises:
        RecipeError: If the file has problems, or keys after `validated`.
        OutputError: If it cannot be written.
    """
    recipe, body = load_recipe(path), _split(path)
    kept = [
        each
        for each in recipe.validated
        if (each.model, each.covers) != (record.model, record.covers)
    ]
    entries = [each.model_dump(mode="json", exclude_defaults=True) for each in (*kept, record)]
    added = yaml.safe_dump(
        {"validated": entries}, sort_keys=False, width=100, default_flow_style=None
    )
    changed = f"{body.rstrip()}\n{added}"
    load_recipe(read_yaml(changed))  # before anything is written
    write_text(path, changed)
    return load_recipe(path)


def _split(path: Path) -> str:
    """Text of a recipe before its records."""
    text = path.read_text(encoding="utf-8")
    found = _VALIDATED.search(text)
    if found and _NEXT_KEY.search(found.group().partition("\n")[2]):
        raise RecipeError(path.name, ["put it last, since its records are rewritten @ $.validated"])
    return text[: found.start()] if found else text
