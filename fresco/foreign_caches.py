"""Feature caches that a recipe does not have, on a transformer whose tokens it changes.

Nobody tells them of layouts: most fail at the first change, MagCache goes on with the features
of other tokens and gives a wrong picture without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from fresco.errors import AttachError
from fresco.recipe import Recipe
from fresco.wraps import wrap_method

_FIX = "Call disable_cache(), and name the cache in the recipe's stack: there it is flushed."


def minds_caches(recipe: Recipe) -> bool:
    """Whether a cache that others enable would go wrong: it has stages, or one of its own."""
    return bool(recipe.stages) or any(config.keeps_state for config in recipe.techniques)


def check_uncached(transformer: Any, recipe: Recipe) -> None:
    """Refuse a transformer that is cached already, if the recipe has stages.

    Args:
        transformer: One of the pipeline's.
        recipe: Checked recipe.

    Raises:
        AttachError: If diffusers, or a library that marks what it caches as it does, has
            enabled a cache.
    """
    marks = [getattr(transformer, name, False) for name in ("is_cache_enabled", "_is_cached")]
    if recipe.stages and any(marks):
        config = getattr(transformer, "_cache_config", None)
        raise AttachError(
            "accelerate(pipe, recipe)",
            "a transformer without a cache, since stages change its tokens",
            f"one with {type(config).__name__}" if marks[0] else "one with a cache",
            _FIX,
        )


def guard_caches(transformer: Any) -> Callable[[], None]:
    """Refuse to enable or disable diffusers' cache by hand from now on.

    Args:
        transformer: With a recipe that minds.

    Returns:
        What ends this.
    """
    undo = ExitStack()
    for name in ("enable_cache", "disable_cache"):
        if hasattr(transformer, name):
            undo.callback(wrap_method(transformer, name, _refuse))
    return undo.close


def _refuse(original: Callable[..., Any], args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """Say what to do instead."""
    raise AttachError(
        f"transformer.{original.__name__}()",
        "the caches of the accelerated pipeline's recipe, as they are",
        type(args[0]).__name__ if args else "a call by hand",
        "Call restore(), change the recipe's stack, and accelerate again.",
    )
