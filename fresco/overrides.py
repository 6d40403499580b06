"""`--set stages[0].steps=4`: a change of a recipe from the command line."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

import yaml

from fresco.errors import RecipeError
from fresco.problems import unknown
from fresco.recipe import Recipe, load_recipe
from fresco.recipe_yaml import read_yaml

_KEY = re.compile(r"\.?([A-Za-z_]\w*)|\[(\d+)\]")


def override(recipe: Recipe, changes: Iterable[str]) -> Recipe:
    """Change a recipe by paths and values, and check all of it again.

    Args:
        recipe: Stays as it is.
        changes: `path=value` each; the value is read as YAML. Keys that are not there yet are
            made, entries of lists are not.

    Returns:
        The changed recipe.

    Raises:
        RecipeError: With every problem, of the paths or of the changed recipe.

    Example:
        >>> override(load_recipe("reference_5x"), ["stages[0].steps=4"]).stages[0].steps
        4
    """
    dumped = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    content, problems = copy.deepcopy(dumped), []
    for change in changes:
        try:
            path, value = _read(change)
            _put(content, path, value)
        except (TypeError, ValueError, yaml.YAMLError) as error:
            problems.append(f"{' '.join(str(error).split())} @ --set {change}")
    if problems:
        raise RecipeError("--set", problems)
    return load_recipe(content) if content != dumped else recipe


def _read(change: str) -> tuple[list[str | int], Any]:
    """The path as keys, and the value."""
    path, is_there, value = change.partition("=")
    keys: list[str | int] = []
    at = 0
    while match := _KEY.match(path, at):
        name, number = match.groups()
        keys.append(name or int(number))
        at = match.end()
    if not is_there or not keys or at < len(path) or path.startswith((".", "[")):
        raise ValueError("write it as path=value, such as stages[0].steps=4")
    names = [field.alias or name for name, field in Recipe.model_fields.items()]
    if keys[0] not in names:
        raise ValueError(unknown("key", keys[0], names))
    return keys, read_yaml(value)


def _put(content: Any, keys: list[str | int], value: Any) -> None:
    """Put a value where the keys lead."""
    place, said = content, "$"
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        is_list = isinstance(place, list)
        if isinstance(key, int) and not is_list:
            raise TypeError(f"{said} is no list, so it has no [{key}]")
        if isinstance(key, str) and not isinstance(place, dict):
            raise TypeError(f"{said} is no mapping, so it has no {key!r}")
        if is_list and int(key) >= len(place):
            raise ValueError(f"{said} has {len(place)} entries, so the last is [{len(place) - 1}]")
        if following is None:
            place[key] = value
            return
        if not is_list and not isinstance(place.get(key), dict | list):
            place[key] = {}
        place = place[key]
        said += f"[{key}]" if is_list else f".{key}"
