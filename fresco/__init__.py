"""fresco: Diffusion Transformers many times faster, without retraining, as one recipe.

Shape letters, for the whole library: `b` batch, `c` channels, `h w` latent pixels,
`H W` coarse cells, `s` cell side, `p` patch side, `n` tokens, `d` model width.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fresco.api import Accelerated, accelerate
    from fresco.cost import Cost
    from fresco.errors import FrescoError, RecipeError
    from fresco.planner import Forecast, plan
    from fresco.recipe import Recipe, known_recipes, load_recipe
    from fresco.report import Report
    from fresco.schedule import Plan

__all__ = [
    "Accelerated",
    "Cost",
    "Forecast",
    "FrescoError",
    "Plan",
    "Recipe",
    "RecipeError",
    "Report",
    "accelerate",
    "known_recipes",
    "load_recipe",
    "plan",
]

_HOMES = {
    "Accelerated": "api",
    "Cost": "cost",
    "Forecast": "planner",
    "FrescoError": "errors",
    "Plan": "schedule",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Report": "report",
    "accelerate": "api",
    "known_recipes": "recipe",
    "load_recipe": "recipe",
    "plan": "planner",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used; `import fresco` alone loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fresco' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fresco.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
