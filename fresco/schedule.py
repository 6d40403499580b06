"""Plans: the sigma, cell side and token count of every step of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest

from fresco.ddim import Levels
from fresco.errors import ScheduleError
from fresco.expected import Expected, expected_steps
from fresco.layout import PositionUnits, TokenLayout
from fresco.lift import Lift
from fresco.promotion import Promotion, seen_again
from fresco.recipe import Recipe
from fresco.request import PlanRequest
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
        n_seen_again: Tokens that coarse queries of each side attend to once more (`phase`).
        order: Of the solver.
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
    n_seen_again: tuple[int, ...] = ()
    order: int = 1

    @property
    def end_sigma(self) -> float:
        """Where the solver's step leads to, before any lift."""
        return self.lift.end_sigma if self.lift else self.next_sigma


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
        levels: Of a scheduler with whole timesteps, which the sigmas are taken from; else None.
    """

    steps: tuple[Step, ...]
    rows: int
    columns: int
    n_requested: int
    keeps_schedule: bool
    frames: int = 1
    levels: Levels | None = None

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

    @property
    def looks_back(self) -> bool:
        """Whether a step needs clean estimates of earlier ones."""
        return self.promotes or any(step.order > 1 for step in self.steps)

    def with_layouts(self, index: int, layouts: Sequence[TokenLayout]) -> Plan:
        """Return the plan with the tokens that the images of one mixed step turned out to have."""
        steps = list(self.steps)
        mean = sum(layout.n_tokens for layout in layouts) / len(layouts)
        seen = seen_again(layouts) if steps[index].units == "phase" else ()
        steps[index] = replace(steps[index], n_tokens=round(self.frames * mean), n_seen_again=seen)
        return replace(self, steps=tuple(steps))


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
        the scheduler's; the highest that it has), ends at 0, and rises only between stages,
        never above its start.

    Raises:
        ScheduleError: If fewer than one step is asked for, or more than there are timesteps, or
            a score compares estimates and there is but one.

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
        return _kept_plan(request, recipe.stages[0].order if recipe.stages else 1)
    taken = _taken(recipe, request)
    whole = layout = TokenLayout.whole(request.rows, request.columns, 1)
    steps: list[Step] = []
    for each, following in zip_longest(taken, taken[1:]):
        if each.stage.cell != "mixed" or not steps:
            layout = whole = TokenLayout.whole(request.rows, request.columns, each.side)
        n_before = len(steps) + (request.start < 1)  # a picture is an estimate too
        expected = expected_steps(each.stage, each.n_whole, n_before, whole, layout)
        layout = expected[-1].layout
        steps += _stretch_steps(each, following, expected[-each.n_steps :], request)
    return Plan(
        tuple(steps),
        request.rows,
        request.columns,
        request.n_steps - request.n_skipped,
        keeps_schedule=False,
        frames=request.frames,
        levels=request.levels,
    )


def _stretch_steps(
    each: Stretch, following: Stretch | None, expected: Sequence[Expected], request: PlanRequest
) -> list[Step]:
    """Steps of one stage; the last leads to where the following one begins."""
    stage = each.stage
    tokens = [request.frames * step.layout.n_tokens for step in expected]
    sigmas = _sigmas(each, request, round(sum(tokens) / len(tokens)))
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
            promotion=expected[k].promotion,
            units=stage.units,
            is_injected=stage.restrict == "injection",
            n_seen_again=expected[k].n_seen_again,
            order=stage.order,
        )
        for k, (sigma, next_sigma) in enumerate(pairwise((*sigmas, entry)))
    ]


def _kept_plan(request: PlanRequest, order: int) -> Plan:
    """Plan of the scheduler's own sigmas on the full grid."""
    n_tokens = request.rows * request.columns * request.frames
    sigmas: Sequence[float] | None = request.sigmas
    if sigmas is None and request.plain:
        sigmas = request.plain()
    elif sigmas is None:
        sigmas = (*request.spaced(request.nearest(1.0), 0.0, request.n_steps, n_tokens), 0.0)
    steps = tuple(
        Step(0, now, following, 1, n_tokens, order=order) for now, following in pairwise(sigmas)
    )
    return Plan(
        steps,
        request.rows,
        request.columns,
        request.n_steps - request.n_skipped,
        keeps_schedule=True,
        frames=request.frames,
        levels=request.levels,
    )


def _sigmas(each: Stretch, request: PlanRequest, n_tokens: int) -> tuple[float, ...]:
    """Sigmas of a stage's calls: its own, its shift's or the scheduler's."""
    shift = each.stage.shift
    sigmas = each.sigmas or request.spaced(each.start, each.end, each.n_steps, n_tokens, shift)
    is_own = each.sigmas is None and shift is None
    return request.levels.distinct(sigmas, each.end) if request.levels and not is_own else sigmas


def _taken(recipe: Recipe, request: PlanRequest) -> list[Stretch]:
    """What a run takes of the stages, between noise levels that the scheduler has."""
    return [
        replace(each, start=request.nearest(each.start), end=request.nearest(each.end))
        for each in stretches(recipe, request.n_steps, request.start)
    ]
