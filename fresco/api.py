"""`accelerate()`: from a pipeline and a recipe to a handle that undoes itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fresco.checks import (
    check_layouts,
    check_model,
    check_parts,
    check_scheduler,
    check_stack,
    check_start,
    check_unattached,
    check_unwrapped,
)
from fresco.combinations import check_combination, warn_combination
from fresco.cost import Cost, plan_cost
from fresco.errors import FrescoWarning, RecipeError, ScheduleError
from fresco.foreign_caches import check_uncached
from fresco.middleware import Middleware
from fresco.ports import AbstractModelAdapter
from fresco.recipe import Recipe, load_recipe
from fresco.registry import adapter_of
from fresco.report import Report, StepRecord
from fresco.request import PlanRequest
from fresco.run_checks import makes_videos
from fresco.schedule import Plan, make_plan
from fresco.stack import Stack, explain_order
from fresco.summary import Summary, SummaryRow


class Accelerated:
    """A pipeline with a recipe attached; leaving the context, or `restore()`, takes it off.

    Args:
        middleware: Attached middleware.
        stack: Attached techniques, the middleware among them.
        plan: Plan of the recipe's baseline, known before any run.
    """

    def __init__(self, middleware: Middleware, stack: Stack, plan: Plan | None) -> None:
        self._middleware, self._stack, self._baseline_plan = middleware, stack, plan

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
        """Plan of the last run; before the first, of the recipe's baseline.

        None where nothing says yet how many steps there are.
        """
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
        given = self.report.n_given_tokens
        if not self.report.steps:  # before a run
            still = self._middleware.adapter.still_frames(self.pipe)
            given = still * self.plan.rows * self.plan.columns
        return plan_cost(self.plan, self._middleware.transformer, text, given)

    def restore(self) -> None:
        """Take the whole stack off, last on first off; the pipeline is as before.

        A second time does nothing. Of what the recipe did not keep (`keep_original: false`)
        it warns before anything is taken off, and leaves it.

        Raises:
            AttachError: If others have built on it since, or a call of the pipeline goes on;
                nothing is taken off then.
        """
        self._stack.restore()

    def summary(self) -> Summary:
        """Say what is on, with the counts of the last run that prove it."""
        report = self.report
        steps = {"stages": len(self.recipe.stages), "steps": len(report.steps)}
        tokens = sum(step.tokens * step.passes for step in report.steps)
        resolution = SummaryRow("resolution", "-", {**steps, "image tokens": tokens})
        rows = self._stack.summary()
        n_weights = sum(row.phase == "weights" for row in rows)
        return Summary((*rows[:n_weights], resolution, *rows[n_weights:]))

    def explain(self) -> str:
        """Say in which order everything was attached, and why."""
        return explain_order(self._stack.configs, len(self.recipe.stages))

    def trace(self) -> tuple[StepRecord, ...]:
        """Rows of the last run: layout, passes, those a cache answered, blocks reused, seconds."""
        return self.report.steps

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.restore(has_failed=error is not None)


def accelerate(pipe: Any, recipe: str | Path | Mapping[str, Any] | Recipe) -> Accelerated:
    """Make a diffusers pipeline faster by a recipe; the pipeline is called as before.

    Nothing is attached unless everything fits. Only this pipeline's instances are touched.

    Args:
        pipe: A diffusers pipeline with `transformer` and `scheduler`.
        recipe: Name of a shipped recipe, path of a YAML file, its content, or a `Recipe`.

    Returns:
        A handle and context manager with `plan`, `report`, `cost()`, `summary()`, `restore()`.

    Raises:
        RecipeError: If the recipe has problems, or is for another model.
        AdapterError: If the transformer has no adapter, or the pipeline is not of its kind.
        ScheduleError: If the scheduler is stochastic or not known to be deterministic.
        AttachError: If the pipeline is accelerated already, a technique does not attach, or
            the stack is known to be bad.

    Warns:
        FrescoWarning: If the stack is not in the matrix of combinations.

    Example:
        >>> accelerate(object(), "reference_5")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fresco.errors.RecipeError: 'reference_5': 1 problem(s)
          - unknown recipe 'reference_5'; known: ...
    """
    checked = load_recipe(recipe)
    check_parts(pipe)
    check_unwrapped(pipe.transformer)
    adapter = adapter_of(pipe)
    check_model(pipe, checked)
    if checked.stages and adapter.model == "any":
        message = f"{type(pipe.transformer).__name__} has no adapter: whole-grid stages only"
        hint = "; one would add mixed layouts, costs and checks (docs/how-to/add-a-model.md)"
        warnings.warn(message + hint, FrescoWarning, stacklevel=2)
    transformers = adapter.transformers(pipe)
    for each in transformers:
        check_unwrapped(each)
    check_stack(pipe, checked, adapter)
    check_unattached(pipe, transformers)
    for each in transformers:
        check_uncached(each, checked)
    doubt = check_combination(transformers, checked)
    stack = Stack(pipe, checked.techniques, transformers)
    plan = None

    def make() -> Middleware:
        nonlocal plan
        if checked.stages:
            check_layouts(adapter, checked)
            adapter.check(pipe)
            check_scheduler(pipe.scheduler, adapter)
            check_start(pipe, checked, adapter)
        plan = _baseline_plan(pipe, checked, adapter)
        warn_combination(doubt)
        return Middleware(pipe, checked, adapter)

    return Accelerated(stack.attach(make), stack, plan)


def _baseline_plan(pipe: Any, recipe: Recipe, adapter: AbstractModelAdapter) -> Plan | None:
    """Plan of the recipe's own baseline."""
    if not recipe.baseline_steps:
        return None
    baseline = recipe.baseline
    height, width = (baseline.height, baseline.width) if baseline else (None, None)
    rows, columns = adapter.grid(pipe, height, width)
    for n, name, given in ((rows, "height", height), (columns, "width", width)):
        if n < 1:
            raise RecipeError("recipe", [f"{given} px is less than a token @ $.baseline.{name}"])
    n_steps, n_frames = recipe.baseline_steps, (baseline and baseline.frames) or 1
    if n_frames > 1 and not makes_videos(pipe):
        problem = f"{n_frames} of {type(pipe).__name__}, which makes pictures @ $.baseline.frames"
        raise RecipeError("recipe", [problem])
    frames = max(1, adapter.latent_frames(pipe, n_frames) - adapter.still_frames(pipe))
    request = PlanRequest.of(adapter, pipe.scheduler, n_steps, rows, columns, frames=frames)
    return make_plan(recipe, request)
