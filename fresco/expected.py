"""What a plan expects of the steps of a stage, before any score is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F

from fresco.errors import ScheduleError
from fresco.layout import TokenLayout
from fresco.promotion import Promotion, cell_areas, promote, seen_again
from fresco.score import COMPARING, SCORES
from fresco.stages import StageConfig


@dataclass(frozen=True)
class Expected:
    """One step of a stage.

    Args:
        promotion: Of its cells; None on a whole grid.
        layout: With as many tokens as the step will have, or may have at most.
        n_seen_again: Tokens that coarse queries of each side attend to once more (`phase`).
    """

    promotion: Promotion | None
    layout: TokenLayout
    n_seen_again: tuple[int, ...] = ()


def expected_steps(
    stage: StageConfig, n: int, n_before: int, whole: TokenLayout, layout: TokenLayout
) -> list[Expected]:
    """Expect the steps of a stage.

    Args:
        stage: Of a recipe.
        n: Its steps, as many as the request makes of them.
        n_before: Steps of all stages before it.
        whole: Of the whole-grid stage itself, or of the last one before a mixed stage.
        layout: Of the step before; of a whole-grid stage, its own.

    Returns:
        One per step.

    Raises:
        ScheduleError: If the stage's score compares estimates and there is but one.

    Example:
        >>> how = {"score": "edges", "budget": (0.25, 0.5)}
        >>> stage = StageConfig(cell="mixed", steps=2, until_sigma=0.5, promote=how)
        >>> whole = TokenLayout.whole(8, 8, 2)
        >>> [step.layout.n_tokens for step in expected_steps(stage, 2, 1, whole, whole)]
        [28, 40]
    """
    if stage.promote is None:
        return [Expected(None, layout)] * n
    score, how = stage.promote.score, stage.promote
    if score in COMPARING and n_before < 2:
        raise ScheduleError(
            "make_plan(recipe, request)",
            f"at least 2 steps before a mixed stage that promotes by {score}",
            n_before,
            "Raise num_inference_steps or the steps of the stage before, or take another score.",
        )
    first, steps = how.first or SCORES[score][1], []
    for k in range(n):
        budget = how.budget_at(k, n)
        promotion = Promotion(score, first, budget, how.tau, how.split, how.multiple)
        layout = expected_layout(layout, promotion)
        seen = _seen_again(whole, layout, promotion) if stage.units == "phase" else ()
        steps.append(Expected(promotion, layout, seen))
    return steps


def expected_layout(layout: TokenLayout, how: Promotion) -> TokenLayout:
    """Layout with as many tokens as a budget asks for: its largest cells promoted.

    On grids that cells do not divide this is an estimate: a run that promotes cells at the
    border has fewer tokens, and a few more where `split` or `multiple` round up.

    Args:
        layout: Of the step before.
        how: Promotion with a budget; a threshold counts as everything promoted.

    Returns:
        A layout in which every cell is as before or smaller.

    Example:
        >>> quarter = Promotion("edges", "high", budget=0.25)
        >>> expected_layout(TokenLayout.whole(8, 8, 2), quarter).n_tokens
        28
    """
    rows, columns = layout.sides.shape
    if how.budget is None:
        return TokenLayout.whole(rows, columns, 1, layout.patch_px)
    areas = cell_areas(rows, columns)
    in_large = F.avg_pool2d(areas[None].float(), 2, ceil_mode=True, divisor_override=1)[0]
    in_large = in_large.repeat_interleave(2, 0).repeat_interleave(2, 1)
    split = replace(how, first="high", budget=0.0, multiple=1)
    layout = promote(layout, in_large[: areas.shape[0], : areas.shape[1]], split)
    return promote(layout, areas.float(), replace(how, first="high"))


def _seen_again(whole: TokenLayout, layout: TokenLayout, promotion: Promotion) -> tuple[int, ...]:
    """What coarse queries attend to once more; at most, where only the run can tell."""
    if promotion.budget is None:
        layout = expected_layout(whole, replace(promotion, tau=None, budget=0.0))
    return seen_again([layout])
