"""Techniques that a recipe can stack; this version knows none yet."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

_TECHNIQUES: dict[str, type] = {}  # kind -> config class


def techniques() -> Mapping[str, type]:
    """View the known techniques by `kind`, read-only.

    Example:
        >>> sorted(techniques())
        []
    """
    return MappingProxyType(_TECHNIQUES)


def technique_problems(stack: object) -> list[str]:
    """Check the kinds of a recipe's stack.

    Args:
        stack: What the recipe has under `stack`, checked or not.

    Returns:
        One `description @ $.path` per unknown kind.

    Example:
        >>> technique_problems([{"kind": "cahce"}])
        ["unknown technique 'cahce'; known: none @ $.stack[0].kind"]
    """
    problems = []
    for i, entry in enumerate(stack if isinstance(stack, list | tuple) else ()):
        kind = entry.get("kind") if isinstance(entry, Mapping) else None
        if kind not in _TECHNIQUES:
            nearest = difflib.get_close_matches(str(kind), _TECHNIQUES, n=1)
            hint = f". Did you mean {nearest[0]!r}?" if nearest else ""
            known = ", ".join(sorted(_TECHNIQUES)) or "none"
            problems.append(f"unknown technique {kind!r}; known: {known}{hint} @ $.stack[{i}].kind")
    return problems
