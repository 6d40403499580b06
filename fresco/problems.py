"""How problems of a recipe are put: what is known, what is nearest, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Say what is known and what is nearest.

    Example:
        >>> unknown("key", "stesp", ["steps", "cell"])
        "unknown key 'stesp'; known: steps, cell. Did you mean 'steps'?"
    """
    names = list(known)
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f". Did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {what} {name!r}; known: {', '.join(names) or 'none'}{hint}"


def place(loc: Sequence[int | str], root: str = "$") -> str:
    """Put a location as a path.

    Example:
        >>> place(("stages", 0, "cell"))
        '$.stages[0].cell'
    """
    return root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
