"""Ways of sampling that studies compare, and the rows of `fresco pareto`."""

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
SPEEDUPS = (2, 3, 5, 7, 10)
FEWER = "fewer steps"  # the group that `fresco pareto` compares others with
SHIFT = 5  # of steps whose noise levels lie nearer to 1, as those of fresco's rows
# recipe `reference_<name>` and requested steps, by about how many times fewer FLOPs they take
FRESCO = {
    2: ("quality", 83),
    3: ("quality", 57),
    5: ("balanced", 71),
    7: ("balanced", 50),
    10: ("balanced", 36),
}
MIXED = ("10x", 62)  # likewise; the row of `mixed steps` at ten times


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


def pareto_groups() -> dict[str, Group]:
    """One group per method, a row per speedup: fresco, fewer steps, mixed steps, and rivals.

    Rivals are shipped recipes, one that names its paper each; fresco's rows are of two. More or
    fewer requested steps make them slower or faster, since their stages scale with them. Below
    ten times the rows of mixed steps are fresco's own, under the same names.

    Example:
        >>> [way.name for way in pareto_groups()["fewer steps"].ways]
        ['25 steps', '17 steps', '10 steps', '7 steps', '5 steps']
    """
    fresco = tuple(shipped(f"fresco {x}x", *row) for x, row in FRESCO.items())
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
        "mixed steps": (*fresco[:-1], shipped(f"mixed {SPEEDUPS[-1]}x", *MIXED)),
        **rivals,
    }
    return {name: Group(name, "speedup", ways) for name, ways in groups.items()}


def shipped(name: str, recipe: str, steps: int) -> Way:
    """Recipe `reference_<recipe>` asked for so many steps."""
    return Way(name, content_of(load_recipe(f"reference_{recipe}")), steps)


def plain(steps: int) -> Way:
    """The plain pipeline in so many steps."""
    return Way(f"{steps} steps", None, steps)


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
