"""Stages as a recipe's YAML says them, and what can be wrong with their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from fresco.layout import SIDES, PositionUnits
from fresco.lift import LiftForm, UpMode, expanded_sigma
from fresco.score import SCORES, First

Sigma = float  # noise level in [0, 1], 1 = pure noise
Bounds = tuple[Sigma, Sigma]  # start and end of a stage
_NUMBERS = (int, float, int | None, float | None, Literal[1], Literal[1, 2])


class Config(BaseModel):
    """An entry of a recipe: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: object, info: ValidationInfo) -> object:
        """Refuse what pydantic would take as 1 or 0."""
        is_number = cls.model_fields[str(info.field_name)].annotation in _NUMBERS
        if is_number and isinstance(value, bool):
            raise ValueError(f"must be a number, got {value}")
        return value


class LiftConfig(Config):
    """How the latents rise to a higher sigma when a stage begins.

    Example:
        >>> LiftConfig(form="clean", to_sigma=0.7).to_sigma
        0.7
    """

    form: LiftForm
    to_sigma: Sigma | None = Field(None, gt=0, lt=1, description="default: equal signal-to-noise")


Share = float  # of a grid's cells, in [0, 1]


def _check_shares(budget: object) -> object:
    """Say once what is wrong with a budget, whichever form was meant."""
    shares = budget if isinstance(budget, list | tuple) else (budget,)
    numbers = [x for x in shares if isinstance(x, int | float) and not isinstance(x, bool)]
    if len(numbers) < max(len(shares), 1) or not all(0 <= x <= 1 for x in numbers):
        raise ValueError(f"shares must be numbers in [0, 1], got {budget!r}")
    return budget


Budget = Annotated[tuple[Share, ...] | Share | None, BeforeValidator(_check_shares)]


class PromoteConfig(Config):
    """Which cells of a mixed stage are fine: by a budget per step, or by a threshold.

    Example:
        >>> PromoteConfig(score="channel_variance", budget=(0.4, 0.5)).budget
        (0.4, 0.5)
    """

    score: str = Field(description="one of fresco.score.SCORES")
    first: First | None = Field(None, description="end of the score; default: the score's own")
    budget: Budget = Field(None, description="share of cells that are fine; of each step's")
    tau: float | None = Field(None, description="promote up to (low) or from (high) this score")
    split: Share = Field(1.0, ge=0, le=1, description="share of side-4 cells that are split")
    multiple: int = Field(1, ge=1, description="round token counts up to a multiple")

    @field_validator("score")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in SCORES:
            raise ValueError(f"unknown score {value!r}; known: {', '.join(SCORES)}")
        return value

    def budget_at(self, step: int, n_steps: int) -> Share | None:
        """Budget of one of `n_steps` steps: of the list's entry at the same share of the stage."""
        if not isinstance(self.budget, tuple):
            return self.budget
        return self.budget[min(step * len(self.budget) // n_steps, len(self.budget) - 1)]


class StageConfig(Config):
    """A stretch of steps with one cell side, or with a mixed layout that gets finer.

    Example:
        >>> StageConfig(cell=2, steps=4, until_sigma=0.5).until_sigma
        0.5
    """

    cell: Literal[4, 2, 1, "mixed"] = Field(description="side of a cell in fine tokens")
    steps: int = Field(ge=1, description="of `baseline.steps`; scales with the requested steps")
    until_sigma: Sigma = Field(0.0, ge=0, lt=1, description="where the stage ends")
    lift: LiftConfig | None = Field(None, description="on entering the stage")
    promote: PromoteConfig | None = Field(None, description="of a mixed stage")
    shift: float | None = Field(None, gt=0, description="default: the scheduler's for the tokens")
    sigmas: tuple[Sigma, ...] | None = Field(None, min_length=1, description="of the stage's calls")
    positions: Literal["native", "fine", "coarse", "phase"] | None = Field(
        None, description="default: native on whole grids, fine in mixed layouts"
    )
    restrict: Literal["average", "injection"] = "average"
    up: UpMode | None = Field(None, description="of the clean estimate when the stage ends")
    order: Literal[1, 2] = Field(1, description="of the solver; 2 looks at the step before too")

    @field_validator("cell", mode="before")
    @classmethod
    def _supported(cls, value: object) -> object:
        if value not in (*SIDES, "mixed") or isinstance(value, bool):
            raise ValueError(f"cell {value!r} is not supported; supported: 4, 2, 1, mixed")
        return value

    @property
    def units(self) -> PositionUnits:
        """Positions that the transformer is told; anchors keep their own."""
        if self.restrict == "injection":
            return "anchor"
        return self.positions or ("fine" if self.cell == "mixed" else "native")


def stage_bounds(stages: Sequence[StageConfig]) -> tuple[Bounds, ...]:
    """Start and end sigma of every stage; the first starts at 1."""
    bounds: list[Bounds] = []
    for before, stage in zip((None, *stages), stages, strict=False):
        start = before.until_sigma if before else 1.0
        if before and stage.lift:
            to = stage.lift.to_sigma
            start = _expanded(before, stage, start) if to is None else to
        bounds.append((start, stage.until_sigma))
    return tuple(bounds)


def _expanded(before: StageConfig, stage: StageConfig, sigma: Sigma) -> Sigma:
    """Equal signal-to-noise after a change of whole-grid side."""
    if before.cell == "mixed" or stage.cell == "mixed":
        return sigma  # a problem of `stage_problems`
    return expanded_sigma(sigma, max(before.cell / stage.cell, 1))


def stage_problems(stages: Sequence[StageConfig], may_grow: bool) -> Iterable[str]:
    """Say what is wrong with the order of stages, sigmas and sides.

    Args:
        stages: Of a recipe.
        may_grow: Whether cells may grow again (recipes of rivals).

    Returns:
        One `description @ $.path` per problem.
    """
    last = len(stages) - 1
    for i, (stage, (start, end)) in enumerate(zip(stages, stage_bounds(stages), strict=True)):
        path, before = f"$.stages[{i}]", stages[i - 1] if i else None
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
        if before and not may_grow and _coarseness(stage) > _coarseness(before):
            yield f"{stage.cell} is coarser than the stage before it ({before.cell}) @ {path}.cell"
        following = stages[i + 1].lift if i != last else None
        if stage.up and not (following and following.form in {"clean", "fresh"}):
            yield f"up needs a next stage that lifts with form clean or fresh @ {path}.up"
        yield from _sigma_problems(stage, start, end, path)
        yield from _order_problems(stage, start, end, path)
        yield from _mixed_problems(stage, before, path)
        yield from _promotion_problems(stage, _promoted_before(stages[:i]), path)


def _coarseness(stage: StageConfig) -> float:
    """Rank of a stage's cells; a mixed stage is between 2 and 1, whatever it grew from."""
    return 1.5 if stage.cell == "mixed" else float(stage.cell)


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


def least_of_order_2(start: Sigma, end: Sigma) -> int:
    """Count the steps that a stage needs for one of second order: three kinds are of first.

    Example:
        >>> least_of_order_2(1.0, 0.0), least_of_order_2(0.99, 0.15)
        (4, 2)
    """
    return 2 + (start == 1) + (end == 0)


def _order_problems(stage: StageConfig, start: Sigma, end: Sigma, path: str) -> Iterable[str]:
    """Say where a stage has no step of the order that it asks for."""
    needed = least_of_order_2(start, end)
    if stage.order == 2 and stage.steps < needed:
        first = "the first step of a stage, the one after pure noise and the last to sigma 0"
        problem = f"order 2 needs {needed} steps here or more, got {stage.steps}"
        yield f"{problem}: {first} are of order 1 @ {path}.order"


def _mixed_problems(stage: StageConfig, before: StageConfig | None, path: str) -> Iterable[str]:
    """Say what is wrong with a mixed stage, or with its keys elsewhere."""
    near_mixed = "mixed" in (stage.cell, before.cell if before else None)
    if near_mixed and stage.lift and stage.lift.to_sigma is None:
        yield f"a lift into or out of a mixed stage needs to_sigma @ {path}.lift.to_sigma"
    if before and before.cell == "mixed" and stage.lift and stage.lift.form == "spectral":
        yield f"spectral redraws the details of whole grids, not of promoted cells @ {path}.lift"
    if stage.restrict == "injection" and stage.positions:
        yield f"anchors keep their own positions; leave positions out @ {path}.positions"
    if stage.cell != "mixed":
        if stage.positions == "phase":
            yield f"a whole grid has one stride; phase is for cell: mixed @ {path}.positions"
        if stage.promote:
            yield f"only a stage with cell: mixed promotes @ {path}.promote"
        return
    if before is None or before.cell == 1:
        yield f"a mixed stage needs a coarser stage before it @ {path}.cell"
    if stage.positions == "native":
        yield f"a mixed layout has no native grid; use fine, coarse or phase @ {path}.positions"
    if stage.promote is None:
        yield f"a mixed stage needs promote @ {path}.promote"


def _promoted_before(stages: Sequence[StageConfig]) -> list[PromoteConfig]:
    """What the mixed stages say that a next one goes on from."""
    run = takewhile(lambda stage: stage.cell == "mixed", reversed(stages))
    return [stage.promote for stage in run if stage.promote]


def _shares(promote: PromoteConfig) -> tuple[Share, ...]:
    """Budgets of a stage's steps; of a threshold, none."""
    return promote.budget if isinstance(promote.budget, tuple) else (promote.budget or 0.0,)


def _promotion_problems(
    stage: StageConfig, earlier: Sequence[PromoteConfig], path: str
) -> Iterable[str]:
    """Say what is wrong with the promotion of a mixed stage, by itself and after others."""
    if stage.cell != "mixed" or stage.promote is None:
        return
    promote = stage.promote
    if (promote.budget is None) == (promote.tau is None):
        yield f"give budget or tau, one of the two @ {path}.promote"
    shares = _shares(promote)
    if max(shares) > promote.split:
        yield f"split must let {max(shares):g} of the cells be fine @ {path}.promote.split"
    if isinstance(promote.budget, tuple) and len(promote.budget) != stage.steps:
        yield f"{len(promote.budget)} shares for {stage.steps} steps @ {path}.promote.budget"
    last = max((max(_shares(one)) for one in earlier), default=0.0)
    if promote.budget is not None and shares[0] < last:
        yield f"a promoted cell stays promoted: {last:g} of them are @ {path}.promote"
    split = max((one.split for one in earlier), default=0.0)
    if promote.split < split:
        yield f"a split cell stays split: {split:g} of them are @ {path}.promote.split"
    if list(shares) != sorted(shares):
        yield f"a promoted cell stays promoted: shares must not fall @ {path}.promote.budget"
