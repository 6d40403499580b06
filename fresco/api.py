"""`accelerate()`: from a pipeline and a recipe to a handle that undoes itself."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fresco.cost import Cost, plan_cost
from fresco.errors import AdapterError, AttachError, RecipeError, ScheduleError
from fresco.middleware import Middleware, check_unattached
from fresco.ports import AbstractModelAdapter, find_adapter
from fresco.recipe import Recipe, load_recipe
from fresco.report import Report
from fresco.schedule import Plan, PlanRequest, make_plan

_WHERE = "accelerate(pipe, recipe)"
_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
_SPACINGS = (  # config keys of spacings that are no shift of an even one
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "shift_terminal",
)


class Accelerated:
    """A pipeline with a recipe attached; leaving the context, or `restore()`, takes it off.

    Args:
        middleware: Attached middleware.
        plan: Plan of the recipe's baseline, known before any run.
    """

    def __init__(self, middleware: Middleware, plan: Plan | None) -> None:
        self._middleware, self._baseline_plan = middleware, plan

    @property
    def pipe(self) -> Any:
        """The pipeline, the caller's own object."""
        return self._middleware.pipe

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self._middleware.recipe

    @property
    def plan(self) -> Plan | None:
        """Plan of the last run; before the first, of the recipe's baseline (None without one)."""
        run = self._middleware.last
        return run.plan if run and run.plan else self._baseline_plan

    @property
    def report(self) -> Report:
        """Record of the last run, per step."""
        return self._middleware.report

    def cost(self, n_text_tokens: int | None = None) -> Cost:
        """Count the FLOPs of `plan` and of the plain run.

        Args:
            n_text_tokens: Text tokens per call; default: those of the last run.

        Returns:
            Both counts and their ratio.

        Raises:
            ScheduleError: If there is no plan or no number of text tokens yet.
        """
        text = self.report.n_text_tokens if n_text_tokens is None else n_text_tokens
        if self.plan is None or (n_text_tokens is None and not self.report.steps):
            raise ScheduleError(
                "Accelerated.cost(n_text_tokens)",
                "a run, or n_text_tokens and a recipe with a baseline",
                "neither",
                "Call the pipeline first.",
            )
        return plan_cost(self.plan, self._middleware.transformer, text)

    def restore(self) -> None:
        """Take everything off again; the pipeline is as before. A second time does nothing."""
        self._middleware.restore()

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()


def accelerate(pipe: Any, recipe: str | Path | Mapping[str, Any] | Recipe) -> Accelerated:
    """Make a diffusers pipeline faster by a recipe; the pipeline is called as before.

    Nothing is attached unless everything fits. Only this pipeline's instances are touched.

    Args:
        pipe: A diffusers pipeline with `transformer` and `scheduler`.
        recipe: Name of a shipped recipe, path of a YAML file, its content, or a `Recipe`.

    Returns:
        A handle and context manager with `plan`, `report`, `cost()` and `restore()`.

    Raises:
        RecipeError: If the recipe has problems, or is for another model.
        AdapterError: If the transformer has no adapter, or the pipeline is not of its kind.
        ScheduleError: If the scheduler is stochastic or not known to be deterministic.
        AttachError: If the pipeline is accelerated already.

    Example:
        >>> accelerate(object(), "reference_5")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fresco.errors.RecipeError: 'reference_5': 1 problem(s)
          - unknown recipe 'reference_5'; known: ...
    """
    checked = load_recipe(recipe)
    for name in ("transformer", "scheduler"):
        if getattr(pipe, name, None) is None:
            got, fix = type(pipe).__name__, "Use a pipeline of a Diffusion Transformer."
            raise AdapterError(_WHERE, f"a pipeline with a {name}", got, fix)
    adapter = find_adapter(pipe.transformer)
    _check_model(pipe, checked)
    check_unattached(pipe)
    if checked.stages:
        _check_scheduler(pipe.scheduler)
        _check_start(pipe)
        adapter.check(pipe)
    plan = _baseline_plan(pipe, checked, adapter)
    middleware = Middleware(pipe, checked, adapter)
    middleware.attach()
    return Accelerated(middleware, plan)


def _check_model(pipe: Any, recipe: Recipe) -> None:
    """Refuse a recipe for another model."""
    names = [base.__name__ for base in type(pipe.transformer).__mro__]
    if recipe.model != "any" and recipe.model not in names:
        problem = f"the recipe is for {recipe.model}, the pipeline has a {names[0]} @ $.model"
        raise RecipeError(_WHERE, [problem])


def _check_scheduler(scheduler: Any) -> None:
    """Refuse schedulers that draw noise, and spacings that are no shift of an even one."""
    name = type(scheduler).__name__
    if name not in _SCHEDULERS or scheduler.config.stochastic_sampling:
        drawn = " with stochastic_sampling=True" if name in _SCHEDULERS else ""
        raise ScheduleError(
            _WHERE,
            f"a deterministic scheduler ({', '.join(_SCHEDULERS)})",
            f"{name}{drawn}",
            "Exchange it: later stages continue toward one target only without fresh noise.",
        )
    set_ = [key for key in _SPACINGS if scheduler.config.get(key)]
    if set_:
        raise ScheduleError(
            _WHERE,
            "sigmas spaced by a shift alone",
            ", ".join(f"{key}={scheduler.config.get(key)!r}" for key in set_),
            "Make the scheduler from its config without, or use a recipe without stages.",
        )


def _check_start(pipe: Any) -> None:
    """Refuse pipelines that start from a picture: their latents are no noise field."""
    if "strength" in inspect.signature(type(pipe).__call__).parameters:
        raise AttachError(
            _WHERE,
            "a pipeline that starts at sigma 1",
            f"{type(pipe).__name__}, which starts from a picture (strength)",
            "Use its text-to-image pipeline, or a recipe without stages.",
        )


def _baseline_plan(pipe: Any, recipe: Recipe, adapter: AbstractModelAdapter) -> Plan | None:
    """Plan of the recipe's own baseline."""
    if not recipe.baseline_steps:
        return None
    baseline = recipe.baseline
    height, width = (baseline.height, baseline.width) if baseline else (None, None)
    rows, columns = adapter.grid(pipe, height, width)
    shift = functools.partial(adapter.shift, pipe.scheduler)
    return make_plan(recipe, PlanRequest(recipe.baseline_steps, rows, columns, shift))
