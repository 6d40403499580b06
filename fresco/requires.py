"""Version windows of a recipe: what must be installed for it to work as measured."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import Field, field_validator

from fresco.stages import Config

_WINDOW = Field(None, description="version window, such as '>=2.9,<3'; checked when loaded")


class RequiresConfig(Config):
    """Packages that a recipe depends on, each with a window of versions.

    Example:
        >>> RequiresConfig(torch=">=2.9,<3").torch
        '>=2.9,<3'
    """

    torch: str | None = _WINDOW
    diffusers: str | None = _WINDOW
    torchao: str | None = _WINDOW
    peft: str | None = _WINDOW

    @field_validator("*")
    @classmethod
    def _is_window(cls, value: str | None) -> str | None:
        try:
            SpecifierSet(value or "")
        except InvalidSpecifier:
            raise ValueError(f"{value!r} is no version window; write it as '>=2.9,<3'") from None
        return value


def requirement_problems(requires: RequiresConfig) -> Iterable[str]:
    """Say which installed versions are outside their windows.

    Args:
        requires: Of a recipe.

    Returns:
        One `description @ $.path` per package.

    Example:
        >>> list(requirement_problems(RequiresConfig(torch=">=999")))  # doctest: +ELLIPSIS
        ["needs torch >=999, got ...; try: pip install 'torch>=999' @ $.requires.torch"]
    """
    for name, window in requires:
        if window is None:
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not SpecifierSet(window).contains(version, prereleases=True):
            fix = f"try: pip install '{name}{window}'"
            yield f"needs {name} {window}, got {version or 'none'}; {fix} @ $.requires.{name}"
