"""Recipes: a YAML file that says how a pipeline is made faster, checked as a whole at once."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fresco.errors import RecipeError
from fresco.lift import LiftForm, UpMode, expanded_sigma
from fresco.techniques import technique_problems

Sigma = float  # noise level in [0, 1], 1 = pure noise


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BaselineConfig(_Config):
    """The plain run that a recipe's steps and speedups refer to.

    Example:
        >>> BaselineConfig(steps=50).steps
        50
    """

    steps: int = Field(ge=1, description="steps of the plain run")
    height: int | None = Field(None, ge=1, description="image px")
    width: int | None = Field(None, ge=1, description="image px")
    guidance: float | None = Field(None, description="guidance_scale of the plain run")


class LiftConfig(_Config):
    """How the latents rise to a higher sigma when a stage begins.

    Example:
        >>> LiftConfig(form="clean", to_sigma=0.7).to_sigma
        0.7
    """

    form: LiftForm
    to_sigma: Sigma | None = Field(None, gt=0, lt=1, description="default: equal signal-to-noise")


class StageConfig(_Config):
    """A stretch of steps with one cell side.

    Example:
        >>> StageConfig(cell=2, steps=4, until_sigma=0.5).until_sigma
        0.5
    """

    cell: Literal[4, 2, 1] = Field(description="side of a cell in fine tokens")
    steps: int = Field(ge=1, description="of `baseline.steps`; scales with the requested steps")
    until_sigma: Sigma = Field(0.0, ge=0, lt=1, description="where the stage ends")
    lift: LiftConfig | None = Field(None, description="on entering the stage")
    shift: float | None = Field(None, gt=0, description="default: the scheduler's for the tokens")
    sigmas: tuple[Sigma, ...] | None = Field(None, min_length=1, description="of the stage's calls")
    positions: Literal["native"] = "native"
    restrict: Literal["average"] = "average"
    up: UpMode | None = Field(None, description="of the clean estimate when the stage ends")

    @field_validator("cell", mode="before")
    @classmethod
    def _supported(cls, value: object) -> object:
        if value not in (4, 2, 1) or isinstance(value, bool):
            raise ValueError(f"cell {value!r} is not supported yet; supported sides: 4, 2, 1")
        return value


class ExpectsConfig(_Config):
    """What a recipe's author expects of it, over the baseline.

    Example:
        >>> ExpectsConfig(speedup=8).speedup
        8.0
    """

    speedup: float | None = Field(None, gt=0)


class Recipe(_Config):
    """One way to make a pipeline faster, as written in a YAML file.

    Example:
        >>> Recipe.model_validate({"schema": 1, "model": "any"}).stages
        ()
    """

    schema_version: Literal[1] = Field(alias="schema")
    model: str = Field(min_length=1, description="class of pipe.transformer, or `any`")
    baseline: BaselineConfig | None = None
    stages: tuple[StageConfig, ...] = ()
    stack: tuple[Mapping[str, Any], ...] = ()
    expects: ExpectsConfig = ExpectsConfig(speedup=None)
    validated: tuple[Mapping[str, Any], ...] = ()

    @property
    def baseline_steps(self) -> int:
        """Steps of the plain run; without a `baseline`, the stages' own sum."""
        return self.baseline.steps if self.baseline else sum(stage.steps for stage in self.stages)

    def bounds(self) -> tuple[tuple[Sigma, Sigma], ...]:
        """Start and end sigma of every stage; the first starts at 1."""
        bounds: list[tuple[Sigma, Sigma]] = []
        for before, stage in zip((None, *self.stages), self.stages, strict=False):
            start = before.until_sigma if before else 1.0
            if before and stage.lift and stage.lift.to_sigma is not None:
                start = stage.lift.to_sigma
            elif before and stage.lift:
                start = expanded_sigma(start, max(before.cell / stage.cell, 1))
            bounds.append((start, stage.until_sigma))
        return tuple(bounds)


def known_recipes() -> Mapping[str, Path]:
    """List the recipes that ship with the package: file by name.

    Example:
        >>> "identity" in known_recipes()
        True
    """
    folder = Path(str(importlib.resources.files("fresco.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        source: Name of a shipped recipe, path of a YAML file, its content, or a `Recipe`.

    Returns:
        The recipe, frozen.

    Raises:
        RecipeError: With every problem and its path, if there is any.

    Example:
        >>> load_recipe({"schema": 1, "model": "any"}).model
        'any'
    """
    if isinstance(source, Recipe):
        return _raise_problems("recipe", source)
    if isinstance(source, Mapping):
        return _validate("recipe", source)
    path = Path(source)
    if isinstance(source, str) and path.suffix not in {".yaml", ".yml"} and path.name == source:
        known = known_recipes()
        if source not in known:
            raise RecipeError(repr(source), [_unknown("recipe", source, known) + " @ $"])
        path = known[source]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(str(source), [f"cannot be read: {error} @ $"]) from error
    return _validate(str(source) if path.name == source else path.name, content)


def _validate(where: str, content: object) -> Recipe:
    """Parse, and report every problem of parsing."""
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problems = [_describe(dict(problem)) for problem in error.errors()]
        stack = content.get("stack") if isinstance(content, Mapping) else None
        raise RecipeError(where, problems + technique_problems(stack)) from None
    return _raise_problems(where, recipe)


def _raise_problems(where: str, recipe: Recipe) -> Recipe:
    """Report every problem between fields."""
    problems = [*_stage_problems(recipe), *technique_problems(recipe.stack)]
    if problems:
        raise RecipeError(where, problems)
    return recipe


def _stage_problems(recipe: Recipe) -> Iterable[str]:
    """Say what is wrong with the order of stages, sigmas and sides."""
    last = len(recipe.stages) - 1
    for i, (stage, (start, end)) in enumerate(zip(recipe.stages, recipe.bounds(), strict=True)):
        path, before = f"$.stages[{i}]", recipe.stages[i - 1] if i else None
        if i == last and (end != 0 or stage.cell != 1):
            got = f"sigma {end:g} with cell {stage.cell}"
            yield f"the last stage must end at sigma 0 on the full grid, got {got} @ {path}"
        if i != last and "until_sigma" not in stage.model_fields_set:
            yield f"a stage before the last needs until_sigma @ {path}.until_sigma"
        elif i != last and end == 0:
            yield f"only the last stage ends at sigma 0 @ {path}.until_sigma"
        elif not end < start:
            yield f"{end:g} is not below the stage's start {start:g} @ {path}.until_sigma"
        if before is None and stage.lift:
            yield f"the first stage starts at sigma 1; it has nothing to lift @ {path}.lift"
        if before and stage.lift and start < before.until_sigma:
            ends = f"{before.until_sigma:g}, where the stage before it ends"
            yield f"to_sigma {start:g} is below {ends} @ {path}.lift.to_sigma"
        if before and stage.cell > before.cell:
            yield f"{stage.cell} is coarser than the stage before it ({before.cell}) @ {path}.cell"
        following = recipe.stages[i + 1].lift if i != last else None
        if stage.up and not (following and following.form in {"clean", "fresh"}):
            yield f"up needs a next stage that lifts with form clean or fresh @ {path}.up"
        yield from _sigma_problems(stage, start, end, path)


def _sigma_problems(stage: StageConfig, start: Sigma, end: Sigma, path: str) -> Iterable[str]:
    """Say what is wrong with a stage's own list of sigmas."""
    if stage.sigmas is None:
        return
    if stage.shift is not None:
        yield f"give shift or sigmas, not both @ {path}.shift"
    if len(stage.sigmas) != stage.steps:
        yield f"{len(stage.sigmas)} sigmas for {stage.steps} steps @ {path}.sigmas"
    falls = all(a > b for a, b in zip(stage.sigmas, (*stage.sigmas[1:], end), strict=True))
    if stage.sigmas[0] != start or not falls:
        yield f"sigmas must fall from {start:g} and stay above {end:g} @ {path}.sigmas"


_KEYS: Mapping[str, type[_Config]] = {
    "stages": StageConfig,
    "lift": LiftConfig,
    "baseline": BaselineConfig,
    "expects": ExpectsConfig,
}


def _describe(problem: Mapping[str, Any]) -> str:
    """Put one pydantic problem as `description @ $.path`."""
    loc = problem["loc"]
    path = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        names = [part for part in loc[:-1] if isinstance(part, str)]
        fields = _KEYS[names[-1]].model_fields if names else Recipe.model_fields
        text = _unknown("key", loc[-1], [field.alias or name for name, field in fields.items()])
    return f"{text} @ {path}"


def _unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Say what is known and what is nearest."""
    names = list(known)
    nearest = difflib.get_close_matches(str(name), names, n=1)
    hint = f". Did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {what} {name!r}; known: {', '.join(names) or 'none'}{hint}"
