"""Errors of fresco; every message says the call, what was expected, what came, and the fix."""

from __future__ import annotations

from collections.abc import Sequence


class FrescoError(Exception):
    """Base of all errors that fresco raises on purpose."""

    def __init__(self, where: str, expected: str, got: object, fix: str) -> None:
        super().__init__(where, expected, got, fix)  # positional, so it pickles
        self.where, self.expected, self.got, self.fix = where, expected, got, fix

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, got {self.got}. {self.fix}"


class FrescoWarning(UserWarning):
    """Something that works, but not as the recipe hoped, and that the user can change."""


class LayoutError(FrescoError, ValueError):
    """A tensor and a `TokenLayout` disagree about the latent grid."""


class SizeError(FrescoError, ValueError):
    """A picture size that the pipeline itself does not take."""


class ScheduleError(FrescoError, ValueError):
    """Stages, sigmas or a scheduler that cannot make a plan."""


class AdapterError(FrescoError, TypeError):
    """A model that no adapter knows, or a call that its adapter cannot read."""


class AttachError(FrescoError, RuntimeError):
    """Middleware that cannot be attached to this pipeline as it is now."""


class RunError(FrescoError, RuntimeError):
    """A pipeline call that does not go the way the middleware relies on."""


class RecipeError(FrescoError, ValueError):
    """A recipe with problems, all of them listed, each with its path.

    Args:
        where: File or name of the recipe.
        problems: One `description @ $.path` each.

    Example:
        >>> print(RecipeError("bad.yaml", ["unknown key 'stagse' @ $.stagse"]))
        bad.yaml: 1 problem(s)
          - unknown key 'stagse' @ $.stagse
    """

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        super().__init__(where, "a valid recipe", f"{len(problems)} problem(s)", "Correct them.")
        self.args = (where, tuple(problems))  # what unpickling calls `__init__` with
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n  - ".join([f"{self.where}: {len(self.problems)} problem(s)", *self.problems])
