"""Plans: the sigma, cell side and token count of every step of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest

import numpy as np

from fresco.errors import ScheduleError
from fresco.layout import PositionUnits, TokenLayout
from fresco.lift import Lift
from fresco.promotion import Promotion, budget_tokens
from fresco.recipe import Recipe
from fresco.score import SCORES
from fresco.stages import StageConfig
from fresco.stretch import Stretch, scaled_steps, stretches


@dataclass(frozen=True)
class Step:
    """One solver step of a plan.

    Args:
        stage: Which stage it belongs to, from 0.
        sigma: Noise level of its model calls, in [0, 1].
        next_sigma: Noise level of the next step's calls, after any lift; 0 at the end.
        side: Cell side in fine tokens; of what is not promoted yet, in a mixed layout.
        n_tokens: Image tokens that the transformer sees per picture.
        lift: What follows the step when it is its stage's last.
        promotion: Of the cells of a mixed layout; None on a whole grid.
        units: Positions that the transformer is told.
        is_injected: Whether anchors stand for their cells, instead of averages.
    """

    stage: int
    sigma: float
    next_sigma: float
    side: int
    n_tokens: int
    lift: Lift | None = None
    promotion: Promotion | None = None
    units: PositionUnits = "native"
    is_injected: bool = False


@dataclass(frozen=True)
class Plan:
    """All steps of one run.

    Args:
        steps: In order; the last one ends at sigma 0.
        rows: Fine token rows of the grid.
        columns: Fine token columns of the grid.
        n_requested: Steps that the plain run would have taken.
        keeps_schedule: Whether the scheduler's own sigmas are used as they are.
        frames: Latent frames, each of rows x columns tokens.
    """

    steps: tuple[Step, ...]
    rows: int
    columns: int
    n_requested: int
    keeps_schedule: bool
    frames: int = 1

    @property
    def n_full_tokens(self) -> int:
        """Image tokens of a step on the full grid."""
        return self.rows * self.columns * self.frames

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise level of every step, and 0 at the end."""
        return (*(step.sigma for step in self.steps), self.steps[-1].next_sigma)

    @property
    def promotes(self) -> bool:
        """Whether a step has a mixed layout."""
        return any(step.promotion for step in self.steps)

    def with_tokens(self, index: int, n_tokens: int) -> Plan:
        """Return the plan with the tokens that one step turned out to have."""
        steps = list(self.steps)
        steps[index] = replace(steps[index], n_tokens=n_tokens)
        return replace(self, steps=tuple(steps))


@dataclass(frozen=True)
class PlanRequest:
    """What one run asks for.

    Args:
        n_steps: Requested steps.
        rows: Fine token rows.
        columns: Fine token columns.
        shift: The scheduler's shift for a token count.
        sigmas: The scheduler's own sigmas from the run's first to the final 0, if it made them.
        frames: Latent frames, each of rows x columns tokens.
        start: Sigma of the run's first latents, in (0, 1]; below 1 they hold a picture.
        n_skipped: Requested steps that such a run leaves out.
    """

    n_steps: int
    rows: int
    columns: int
    shift: Callable[[int], float]
    sigmas: tuple[float, ...] | None = None
    frames: int = 1
    start: float = 1.0
    n_skipped: int = 0


def shifted_sigmas(start: float, end: float, n: int, shift: float) -> tuple[float, ...]:
    """Space sigmas as a flow scheduler with this shift does.

    Args:
        start: First sigma, in (0, 1].
        end: Where the last step leads to, in [0, start).
        n: Number of steps, >= 1.
        shift: Shift of an even spacing, > 0; 1 leaves it even.

    Returns:
        The `n` sigmas from `start` on, without `end`.

    Example:
        >>> [round(sigma, 4) for sigma in shifted_sigmas(1.0, 0.0, 4, 3.0)]
        [1.0, 0.9, 0.75, 0.5]

    Source:
        `shift * u / (1 + (shift - 1) * u)`: Esser et al., arXiv 2403.03206, eq. 23.
    """
    even_start, even_end = (y / (shift - (shift - 1) * y) for y in (start, end))
    even = np.linspace(even_start, even_end, n + 1)[:-1]
    sigmas = shift * even / (1 + (shift - 1) * even)
    return (start, *(float(sigma) for sigma in sigmas[1:]))


def keeps_schedule(recipe: Recipe, n_requested: int) -> bool:
    """Tell whether a recipe leaves the scheduler's own sigmas as they are.

    So it does without stages, and with one all-fine stage of the requested steps.

    Example:
        >>> from fresco.recipe import load_recipe
        >>> keeps_schedule(load_recipe("identity"), 28)
        True
    """
    if len(recipe.stages) != 1:
        return not recipe.stages
    stage = recipe.stages[0]
    n = scaled_steps(stage.steps, n_requested, recipe.baseline_steps)
    return stage.shift is None and stage.sigmas is None and n == n_requested


def planned_steps(recipe: Recipe, n_requested: int, start: float = 1.0) -> int:
    """How many steps a run takes, whatever its grid.

    Args:
        recipe: Of the run.
        n_requested: Steps that a run from noise alone was asked for, >= 1.
        start: Sigma of the run's first latents, in (0, 1].

    Example:
        >>> from fresco.recipe import load_recipe
        >>> planned_steps(load_recipe("identity"), 28)
        28
    """
    if keeps_schedule(recipe, n_requested):
        return n_requested
    return sum(each.n_steps for each in stretches(recipe, n_requested, start))


def make_plan(recipe: Recipe, request: PlanRequest) -> Plan:
    """Lay out every step of a run.

    Args:
        recipe: Its stages are for its baseline steps and scale with the request.
        request: Grid, steps, shift, and the scheduler's own sigmas.

    Returns:
        A plan that starts at the request's sigma (or the scheduler's first sigma, where it keeps
        the scheduler's), ends at 0, and rises only between stages, never above its start.

    Raises:
        ScheduleError: If fewer than one step is asked for.

    Example:
        >>> from fresco.recipe import load_recipe
        >>> recipe = load_recipe({"schema": 1, "model": "any", "stages": [
        ...     {"cell": 2, "steps": 2, "until_sigma": 0.5}, {"cell": 1, "steps": 1}]})
        >>> plan = make_plan(recipe, PlanRequest(3, 8, 8, shift=lambda n_tokens: 1.0))
        >>> [(step.sigma, step.n_tokens) for step in plan.steps]
        [(1.0, 16), (0.75, 16), (0.5, 64)]
    """
    if request.n_steps < 1:
        raise ScheduleError(
            "make_plan(recipe, request)",
            "at least 1 step",
            request.n_steps,
            "Raise num_inference_steps.",
        )
    if keeps_schedule(recipe, request.n_steps):
        return _kept_plan(request)
    taken = stretches(recipe, request.n_steps, request.start)
    steps: list[Step] = []
    for each, following in zip_longest(taken, taken[1:]):
        steps += _stretch_steps(each, following, request)
    return Plan(
        tuple(steps),
        request.rows,
        request.columns,
        request.n_steps - request.n_skipped,
        keeps_schedule=False,
        frames=request.frames,
    )


def _stretch_steps(each: Stretch, following: Stretch | None, request: PlanRequest) -> list[Step]:
    """Steps of one stage; the last leads to where the following one begins."""
    stage = each.stage
    promotions = _promotions(stage, each.n_whole)[-each.n_steps :]
    tokens = [_n_tokens(request, each.side, promotion) for promotion in promotions]
    shift = stage.shift or request.shift(round(sum(tokens) / len(tokens)))
    sigmas = each.sigmas or shifted_sigmas(each.start, each.end, each.n_steps, shift)
    entry, lift = (following.start, following.stage.lift) if following else (0.0, None)
    ends = None
    if lift:
        ends = Lift(lift.form, sigmas[-1], each.end, entry, stage.up or "bilinear")
    return [
        Step(
            stage=each.index,
            sigma=sigma,
            next_sigma=next_sigma,
            side=each.side,
            n_tokens=tokens[k],
            lift=ends if k == each.n_steps - 1 else None,
            promotion=promotions[k],
            units=stage.units,
            is_injected=stage.restrict == "injection",
        )
        for k, (sigma, next_sigma) in enumerate(pairwise((*sigmas, entry)))
    ]


def _kept_plan(request: PlanRequest) -> Plan:
    """Plan of the scheduler's own sigmas on the full grid."""
    n_tokens = request.rows * request.columns * request.frames
    sigmas: Sequence[float] | None = request.sigmas
    if sigmas is None:
        sigmas = (*shifted_sigmas(1.0, 0.0, request.n_steps, request.shift(n_tokens)), 0.0)
    steps = tuple(Step(0, now, following, 1, n_tokens) for now, following in pairwise(sigmas))
    return Plan(
        steps,
        request.rows,
        request.columns,
        request.n_steps - request.n_skipped,
        keeps_schedule=True,
        frames=request.frames,
    )


def _promotions(stage: StageConfig, n: int) -> list[Promotion | None]:
    """Promotion of each of a stage's `n` steps; None on a whole grid."""
    how = stage.promote
    if how is None:
        return [None] * n
    first = how.first or SCORES[how.score][1]
    return [
        Promotion(how.score, first, how.budget_at(k, n), how.tau, how.split, how.multiple)
        for k in range(n)
    ]


def _n_tokens(request: PlanRequest, side: int, promotion: Promotion | None) -> int:
    """Tokens of a step; those of the full grid where only the run can tell."""
    rows, columns = request.rows, request.columns
    if promotion is None:
        return request.frames * TokenLayout.whole(rows, columns, side).n_tokens
    return request.frames * budget_tokens(rows, columns, side, promotion)
