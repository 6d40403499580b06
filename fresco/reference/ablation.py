"""The rows of `fresco ablate`: a recipe that ships, and one thing of it changed at a time."""

from __future__ import annotations

from typing import Any

from fresco.recipe import load_recipe
from fresco.reference.bench import Way
from fresco.reference.rows import BASELINE, Group, Stage, content_of, plain, recipe_of, shifted

BASE = "reference_10x"  # a coarse, a mixed and a fine stage
COARSE_STEPS = 2  # one more than in BASE: some scores compare the estimates of two steps
LIFTS = ("clean", "trajectory", "fresh")  # besides `latent`, that of the base
UNTIL_SIGMAS = (0.95, 0.8)  # of the coarse steps; that of the base is 0.9
SCORES = {
    "temporal_variance": ("high", "low"),
    "channel_variance": ("high", "low"),
    "decided_detail": ("high", "low"),
    "edges": ("low",),  # high is the base
    "velocity_variance": ("high", "low"),
    "evenly_spaced": ("high",),  # no order to turn round
    "random": ("high",),
}
BUDGETS = (0.15, 0.5)  # that of the base is 0.3
THRESHOLDS = (0.24, 0.15, 0.085)  # which 20, 30, 50% of rendered scenes' cells reach; runs' more
MULTIPLE = 16  # tokens, with a threshold
POSITIONS = ("coarse", "phase")  # fine is that of the base


def base_stages() -> tuple[Stage, Stage, Stage]:
    """Stages of the recipe that is varied: coarse, mixed, fine.

    Example:
        >>> [(stage["cell"], stage["steps"]) for stage in base_stages()]
        [(2, 2), ('mixed', 7), (1, 1)]
    """
    coarse, mixed, fine = content_of(load_recipe(BASE))["stages"]
    return {**coarse, "steps": COARSE_STEPS}, mixed, fine


def ablation_groups() -> dict[str, Group]:
    """All groups of the ablation by name; a row may be in several.

    Example:
        >>> ", ".join(ablation_groups())
        'steps, solver, field, lift, coarse, score, promotion, positions, restrict, levels'
    """
    stages = base_stages()
    base, lift = Way("base", recipe_of(stages)), stages[1]["lift"]
    lifts = {form: _varied(f"lift {form}", lift={**lift, "form": form}) for form in LIFTS}
    positions = [_varied(f"positions {name}", positions=name) for name in POSITIONS]
    fewer = (*map(plain, (10, 7, 5, 4)), *map(shifted, (5, 4)))
    groups = (
        Group("steps", "fewer full steps", (BASELINE, *fewer)),
        Group("solver", "noise levels and order of the mixed steps", (base, *_solver_ways())),
        Group("field", "noise of a lift: the field or fresh", (base, lifts["fresh"])),
        Group("lift", "form of the lift", (base, *lifts.values())),
        Group("coarse", "coarse steps, and where they end", (base, *_coarse_ways())),
        Group("score", "which cells are fine, equally many", (base, *_score_ways())),
        Group("promotion", "how many cells are fine: a budget or a threshold",
              (base, *_promotion_ways())),
        Group("positions", "positions of the mixed stage's cells", (base, *positions)),
        Group("restrict", "average or one of the cell", (base, _injected())),
        Group("levels", "one or two coarse levels, about equal FLOPs", (base, _two_levels())),
    )  # fmt: skip
    return {group.name: group for group in groups}


def _varied(name: str, **changes: Any) -> Way:
    """The base with other entries of its mixed stage; None takes one away."""
    coarse, mixed, fine = base_stages()
    varied = {key: value for key, value in {**mixed, **changes}.items() if value is not None}
    return Way(name, recipe_of((coarse, varied, fine)))


def _solver_ways() -> list[Way]:
    return [
        _varied("first order", order=None),
        _varied("no shift", shift=None),
        _varied("neither", order=None, shift=None),
    ]


def _coarse_ways() -> list[Way]:
    coarse, mixed, fine = base_stages()
    changes: dict[str, dict[str, Any]] = {
        "one coarse step": {"steps": 1},
        **{f"until {sigma:g}": {"until_sigma": sigma} for sigma in UNTIL_SIGMAS},
    }
    return [
        Way(name, recipe_of(({**coarse, **change}, mixed, fine)))
        for name, change in changes.items()
    ]


def _score_ways() -> list[Way]:
    budget = base_stages()[1]["promote"]["budget"]
    return [
        _varied(
            f"score {score} {first}", promote={"score": score, "first": first, "budget": budget}
        )
        for score, orders in SCORES.items()
        for first in orders
    ]


def _promotion_ways() -> list[Way]:
    rule = {"score": base_stages()[1]["promote"]["score"]}
    thresholds = [{**rule, "multiple": MULTIPLE, "tau": tau} for tau in THRESHOLDS]
    return [
        *(_varied(f"budget {share:g}", promote={**rule, "budget": share}) for share in BUDGETS),
        *(_varied(f"threshold {how['tau']:g}", promote=how) for how in thresholds),
    ]


def _injected() -> Way:
    coarse, mixed, fine = base_stages()
    stages = ({**coarse, "restrict": "injection"}, {**mixed, "restrict": "injection"}, fine)
    return Way("restrict injection", recipe_of(stages))


def _two_levels() -> Way:
    """A step of 256 tokens costs as much as three of 64."""
    coarse, mixed, fine = base_stages()
    coarsest = {"cell": 4, "steps": 3, "until_sigma": 0.95}
    smaller = {**coarse, "steps": 1, "lift": {"form": "latent"}}
    return Way("levels 4, 2", recipe_of((coarsest, smaller, mixed, fine)))
