"""The rows of `fresco ablate` and `fresco pareto`: what is varied, one thing at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fresco.recipe import Recipe, known_recipes, load_recipe
from fresco.reference.bench import Way
from fresco.stages import least_of_order_2

Stage = Mapping[str, Any]

STEPS = 50
BASELINE = Way(f"{STEPS} steps", None, STEPS)
LIFTED = 0.99  # noise level that the mixed stage starts at
BUDGET = 0.4  # share of the grid's cells that are fine in a mixed stage
SPEEDUPS = (2, 3, 5, 7, 10)
FEWER = "fewer steps"  # the group that `fresco pareto` compares others with
SHIFT = 5  # of fewer steps whose noise levels lie nearer to 1, as those of fresco's rows
# recipe `reference_<name>` and requested steps, by about how many times fewer FLOPs they take
FRESCO = {
    2: ("quality", 80),
    3: ("quality", 53),
    5: ("5x", 54),
    7: ("balanced", 58),
    10: ("balanced", 42),
}
ABLATED_STEPS = 2, 6, 1  # of the coarse, the mixed and the fine stage
LIFTS = ("clean", "trajectory", "fresh")  # besides `latent`, that of the base
SCORES = {
    "temporal_variance": ("high", "low"),
    "channel_variance": ("low",),  # high is the base
    "decided_detail": ("high", "low"),
    "edges": ("high", "low"),
    "velocity_variance": ("high", "low"),
    "evenly_spaced": ("high",),  # no order to turn round
    "random": ("high",),
}
BUDGETS = (0.2, 0.6)  # besides that of the base
THRESHOLDS = (1.25, 0.75, 0.5)  # which 20, 40 and 60% of the cells of rendered scenes reach
MULTIPLE = 16  # tokens, with a threshold
POSITIONS = ("coarse", "phase")  # fine is that of the base


@dataclass(frozen=True)
class Group:
    """Rows that answer one question.

    Args:
        name: What `--only` calls it; in a Pareto plot, the method.
        question: What the rows differ in.
        ways: Rows; the first is what the others are compared with.
    """

    name: str
    question: str
    ways: tuple[Way, ...]


def recipe_of(stages: Sequence[Stage]) -> dict[str, Any]:
    """A complete recipe of the reference model with these stages."""
    return {
        "schema": 1,
        "model": "FluxTransformer2DModel",
        "baseline": {"steps": STEPS, "height": 256, "width": 256},
        "stages": [dict(stage) for stage in stages],
    }


def content_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as it is written, but for its records: they change nothing of its pictures.

    Example:
        >>> list(content_of(load_recipe("identity")))
        ['schema', 'model']
    """
    content = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    content.pop("validated", None)
    return content


def base_stages() -> tuple[Stage, Stage, Stage]:
    """Stages of the stack that is varied: coarse, mixed, fine.

    Returns:
        Three stages of a recipe.

    Example:
        >>> [stage["cell"] for stage in base_stages()]
        [2, 'mixed', 1]
    """
    coarse, mixed, fine = ABLATED_STEPS
    return (
        {"cell": 2, "steps": coarse, "until_sigma": 0.8},
        {
            "cell": "mixed",
            "steps": mixed,
            "until_sigma": 0.2,
            "lift": {"form": "latent", "to_sigma": LIFTED},
            "promote": _promote(),
        },
        {"cell": 1, "steps": fine},
    )


def ablation_groups() -> dict[str, Group]:
    """All groups of the ablation by name; a row may be in several.

    Example:
        >>> list(ablation_groups())
        ['steps', 'field', 'lift', 'score', 'promotion', 'positions', 'restrict', 'levels']
    """
    base = Way("base", recipe_of(base_stages()))
    lifts = {
        form: _varied(f"lift {form}", lift={"form": form, "to_sigma": LIFTED}) for form in LIFTS
    }
    positions = [_varied(f"positions {name}", positions=name) for name in POSITIONS]
    groups = (
        Group("steps", "fewer full steps", (BASELINE, *(plain(n) for n in (10, 7, 5)))),
        Group("field", "noise of a lift: the field or fresh", (base, lifts["fresh"])),
        Group("lift", "form of the lift", (base, *lifts.values())),
        Group("score", "which cells are fine, equally many", (base, *_score_ways())),
        Group("promotion", "how many cells are fine: a budget or a threshold",
              (base, *_promotion_ways())),
        Group("positions", "positions of the mixed stage's cells", (base, *positions)),
        Group("restrict", "average or one of the cell", (base, _injected())),
        Group("levels", "one or two coarse levels, about equal FLOPs", (base, _two_levels())),
    )  # fmt: skip
    return {group.name: group for group in groups}


def pareto_groups() -> dict[str, Group]:
    """One group per method, a row per speedup: fresco, fewer steps in three ways, and rivals.

    Rivals are shipped recipes, one that names its paper each; fresco's rows are of three. More or
    fewer requested steps make them slower or faster, since their stages scale with them.

    Example:
        >>> [way.name for way in pareto_groups()["fewer steps"].ways]
        ['25 steps', '17 steps', '10 steps', '7 steps', '5 steps']
    """
    fresco = tuple(
        Way(f"fresco {x}x", content_of(load_recipe(f"reference_{name}")), steps)
        for x, (name, steps) in FRESCO.items()
    )
    fewer = [int(STEPS / x + 0.5) for x in SPEEDUPS]
    rivals: dict[str, tuple[Way, ...]] = {}
    for name in known_recipes():
        recipe, rival = load_recipe(name), name.removeprefix("rival_")
        if recipe.rival and recipe.expects.flops_speedup:
            content, steps = content_of(recipe), STEPS * recipe.expects.flops_speedup
            rivals[rival] = tuple(
                Way(f"{rival} {x}x", content, int(steps / x + 0.5)) for x in SPEEDUPS
            )
    groups = {
        "fresco": fresco,
        FEWER: tuple(map(plain, fewer)),
        "fewer, order 2": tuple(map(second_order, fewer)),
        "fewer, shifted": tuple(map(shifted, fewer)),
        **rivals,
    }
    return {name: Group(name, "speedup", ways) for name, ways in groups.items()}


def plain(steps: int) -> Way:
    """The plain pipeline in so many steps."""
    return Way(f"{steps} steps", None, steps)


def second_order(steps: int) -> Way:
    """So many full steps at the pipeline's own noise levels, by a solver of second order.

    Example:
        >>> second_order(5).name
        '5 steps, order 2'
    """
    recipe = recipe_of([{"cell": 1, "steps": steps, "order": 2}])
    baseline = recipe["baseline"] | {"steps": steps}
    return Way(f"{steps} steps, order 2", recipe | {"baseline": baseline}, steps)


def shifted(steps: int) -> Way:
    """So many full steps nearer to noise and of second order.

    Noise levels are those of a flow scheduler of shift 5. Too few steps for one of second order
    are of first.

    Example:
        >>> [shifted(n).recipe["stages"] for n in (3, 4)]
        [[{'cell': 1, 'steps': 3, 'shift': 5}], [{'cell': 1, 'steps': 4, 'shift': 5, 'order': 2}]]
    """
    order = {"order": 2} if steps >= least_of_order_2(1.0, 0.0) else {}
    stage = {"cell": 1, "steps": steps, "shift": SHIFT, **order}
    return Way(f"{steps} steps, shifted", recipe_of([stage]))


def _promote(
    score: str = "channel_variance", first: str = "high", budget: float = BUDGET
) -> dict[str, Any]:
    return {"score": score, "first": first, "budget": budget}


def _varied(name: str, **changes: Any) -> Way:
    """The base with other entries of its mixed stage."""
    coarse, mixed, fine = base_stages()
    return Way(name, recipe_of((coarse, {**mixed, **changes}, fine)))


def _score_ways() -> list[Way]:
    return [
        _varied(f"score {score} {first}", promote=_promote(score, first))
        for score, orders in SCORES.items()
        for first in orders
    ]


def _promotion_ways() -> list[Way]:
    rule = {"score": "channel_variance", "first": "high", "multiple": MULTIPLE}
    return [
        *(_varied(f"budget {share:g}", promote=_promote(budget=share)) for share in BUDGETS),
        *(_varied(f"threshold {tau:g}", promote={**rule, "tau": tau}) for tau in THRESHOLDS),
    ]


def _injected() -> Way:
    coarse, mixed, fine = base_stages()
    stages = ({**coarse, "restrict": "injection"}, {**mixed, "restrict": "injection"}, fine)
    return Way("restrict injection", recipe_of(stages))


def _two_levels() -> Way:
    """A step of 256 tokens costs as much as three of 64."""
    _, mixed, fine = base_stages()
    coarsest = {"cell": 4, "steps": 3, "until_sigma": 0.9}
    coarse = {"cell": 2, "steps": 1, "until_sigma": 0.8, "lift": {"form": "latent"}}
    return Way("levels 4, 2", recipe_of((coarsest, coarse, mixed, fine)))
