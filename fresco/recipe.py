"""Recipes: a YAML file that says how a pipeline is made faster, checked as a whole at once."""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import json
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from fresco.errors import RecipeError
from fresco.problems import place, unknown
from fresco.recipe_yaml import find_file, read_yaml
from fresco.record import NoiseFloorConfig, RecordConfig
from fresco.registry import ENTRY_POINT_GROUP
from fresco.requires import RequiresConfig, requirement_problems
from fresco.stages import (
    Bounds,
    Config,
    LiftConfig,
    PromoteConfig,
    StageConfig,
    stage_bounds,
    stage_problems,
)
from fresco.techniques import (
    TechniqueConfig,
    in_order,
    parse_stack,
    technique_problems,
    techniques,
)


class BaselineConfig(Config):
    """The plain run that a recipe's steps and speedups refer to.

    Example:
        >>> BaselineConfig(steps=50).steps
        50
    """

    steps: int = Field(ge=1, description="steps of the plain run")
    height: int | None = Field(None, ge=1, description="image px")
    width: int | None = Field(None, ge=1, description="image px")
    frames: int | None = Field(None, ge=1, description="of a video")
    guidance: float | None = Field(None, description="guidance_scale of the plain run")


class ExpectsConfig(Config):
    """What a recipe's author expects of it at least; `fresco validate` enforces it.

    Example:
        >>> ExpectsConfig(speedup=8).speedup
        8.0
    """

    speedup: float | None = Field(None, gt=0, description="of the denoising loop, measured")
    flops_speedup: float | None = Field(None, gt=0, description="of the transformer, counted")
    psnr_db: float | None = Field(None, description="to the plain run, mean over pictures")
    ssim: float | None = Field(None, ge=-1, le=1, description="the same")
    judge: float | None = Field(None, description="of the reference judge: share right")
    judge_kept: float | None = Field(None, gt=0, description="judge over that of the plain run")


class Recipe(Config):
    """One way to make a pipeline faster, as written in a YAML file.

    Example:
        >>> Recipe.model_validate({"schema": 1, "model": "any"}).stages
        ()
    """

    schema_version: Literal[1] = Field(alias="schema")
    model: str = Field(min_length=1, description="class of pipe.transformer, or `any`")
    requires: RequiresConfig = RequiresConfig()
    rival: str | None = Field(
        None, min_length=1, description="paper that it follows; lets cells grow again"
    )
    baseline: BaselineConfig | None = None
    stages: tuple[StageConfig, ...] = ()
    stack: tuple[Mapping[str, Any], ...] = ()
    expects: ExpectsConfig = ExpectsConfig.model_validate({})
    validated: tuple[RecordConfig, ...] = ()

    @property
    def baseline_steps(self) -> int:
        """Steps of the plain run; without a `baseline`, the stages' own sum."""
        return self.baseline.steps if self.baseline else sum(stage.steps for stage in self.stages)

    @property
    def techniques(self) -> tuple[TechniqueConfig, ...]:
        """Techniques of the stack, first attached first."""
        return in_order(parse_stack(self.stack)[0])

    @property
    def digest(self) -> str:
        """Names model, baseline, stages and stack however they are written; not files' content."""
        what = {"model", "baseline", "stages"}
        content = self.model_dump(mode="json", exclude_defaults=True, include=what)
        stack = [
            {"kind": each.kind, **each.model_dump(mode="json", exclude_defaults=True)}
            for each in self.techniques
        ]
        text = json.dumps({**content, "stack": stack}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def stale(self) -> tuple[RecordConfig, ...]:
        """Records of other stages or another stack than the recipe has now."""
        return tuple(each for each in self.validated if each.recipe not in (None, self.digest))

    def bounds(self) -> tuple[Bounds, ...]:
        """Start and end sigma of every stage; the first starts at 1."""
        return stage_bounds(self.stages)


def known_recipes() -> Mapping[str, Path]:
    """List the recipes that are installed: file by name.

    Those of fresco, and every YAML file in a package that an entry point of the group
    `fresco.adapters` names.

    Raises:
        RecipeError: If two packages have a recipe of one name.

    Example:
        >>> "identity" in known_recipes()
        True
    """
    found: dict[str, Path] = {}
    for path in (path for folder in _folders() for path in sorted(folder.glob("*.yaml"))):
        known = found.setdefault(path.stem, path)
        if known != path:
            problem = f"is in {known.parent} and in {path.parent}; uninstall one of the two @ $"
            raise RecipeError(repr(path.stem), [problem])
    return found


def _folders() -> Iterator[Path]:
    """Folders of recipes: fresco's own, then packages of third parties, which are not run."""
    yield Path(str(importlib.resources.files("fresco.recipes")))
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        spec = importlib.util.find_spec(entry_point.module)
        yield from map(Path, (spec and spec.submodule_search_locations) or ())


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        source: Name of a shipped recipe, path of a YAML file, its content, or a `Recipe`. A name
            that ships goes before a file of that name without an extension.

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
    if not isinstance(source, str | Path):
        expected = "the name of a recipe, a path, its content or a Recipe"
        raise RecipeError("recipe", [f"expected {expected}, got {type(source).__name__} @ $"])
    path, file = Path(source), find_file(source)
    if isinstance(source, str) and path.suffix not in {".yaml", ".yml"} and path.name == source:
        known = known_recipes()
        if source not in known and file is None:
            raise RecipeError(repr(source), [unknown("recipe", source, known) + " @ $"])
        file = known.get(source, file)
    if file is None:
        message = "no such file; name a YAML file, or a recipe of `fresco recipes list` @ $"
        raise RecipeError(str(source), [message])
    try:
        content = read_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(str(source), [f"cannot be read: {reason} @ $"]) from error
    return _validate(file.name, content)


def load_staged_recipe(source: str | Path) -> Recipe:
    """Read a recipe that has stages, for what is measured stage by stage.

    Args:
        source: Name of a shipped recipe, or path of a YAML file.

    Returns:
        The recipe, frozen.

    Raises:
        RecipeError: With every problem and its path; a recipe without stages is one.

    Example:
        >>> len(load_staged_recipe("reference_5x").stages)
        2
    """
    recipe = load_recipe(source)
    if not recipe.stages:
        raise RecipeError(
            str(source), ["a recipe without stages has nothing to measure @ $.stages"]
        )
    return recipe


def recipe_schema() -> dict[str, Any]:
    """Describe recipes as JSON schema, for editors; the stack as far as techniques are installed.

    Example:
        >>> recipe_schema()["properties"]["schema"]["const"]
        1
    """
    schema = Recipe.model_json_schema(by_alias=True)
    known = {
        kind: technique.model_json_schema(ref_template=f"#/$defs/{kind}/$defs/{{model}}")
        for kind, technique in techniques().items()
    }
    for kind, technique in known.items():
        technique.setdefault("required", []).append("kind")
        technique["properties"]["kind"]["const"] = kind
    schema["$defs"] |= known
    choices = [{"$ref": f"#/$defs/{kind}"} for kind in known]
    schema["properties"]["stack"]["items"] = {"anyOf": choices}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _validate(where: str, content: object) -> Recipe:
    """Parse, and report every problem of parsing."""
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problems = [_describe(dict(problem)) for problem in error.errors()]
        wrong = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
        more = _problems_of_parts(content, wrong) if isinstance(content, Mapping) else ()
        raise RecipeError(where, [*problems, *more]) from None
    return _raise_problems(where, recipe)


def _problems_of_parts(content: Mapping[str, Any], wrong: Collection[object]) -> Iterator[str]:
    """Report the problems between fields of those parts that parse by themselves."""
    fine = {key: value for key, value in content.items() if key in _PARTS and key not in wrong}
    parts = Recipe.model_validate({"schema": 1, "model": "any", **fine})
    yield from stage_problems(parts.stages, may_grow=parts.rival is not None)
    yield from technique_problems(content.get("stack"))
    yield from requirement_problems(parts.requires)


def _raise_problems(where: str, recipe: Recipe) -> Recipe:
    """Report every problem between fields."""
    order = stage_problems(recipe.stages, may_grow=recipe.rival is not None)
    versions = requirement_problems(recipe.requires)
    problems = [*order, *technique_problems(recipe.stack), *versions]
    if problems:
        raise RecipeError(where, problems)
    return recipe


_PARTS = ("stages", "requires", "rival")
_NOT: Mapping[str, str] = {  # what pydantic calls by names of Python
    "tuple_type": "Input should be a list",
    "dict_type": "Input should be a mapping",
    "mapping_type": "Input should be a mapping",
    "model_type": "Input should be a mapping",
}
_KEYS: Mapping[str, type[Config]] = {
    "stages": StageConfig,
    "lift": LiftConfig,
    "promote": PromoteConfig,
    "baseline": BaselineConfig,
    "expects": ExpectsConfig,
    "requires": RequiresConfig,
    "validated": RecordConfig,
    "noise_floor": NoiseFloorConfig,
}


def _describe(problem: Mapping[str, Any]) -> str:
    """Put one pydantic problem as `description @ $.path`."""
    loc = problem["loc"]
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        names = [part for part in loc[:-1] if isinstance(part, str)]
        fields = _KEYS[names[-1]].model_fields if names else Recipe.model_fields
        text = unknown("key", loc[-1], [field.alias or name for name, field in fields.items()])
    text = _NOT.get(str(problem["type"]), text)
    return f"{text} @ {place(loc)}"
