"""Which stacks were run as a whole: the packaged matrix, and what `accelerate()` makes of it.

An axis is a thing of which a stack has one value or `none`. What a recipe sets beyond that
(thresholds, backends) does not matter here.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fresco.errors import AttachError, FrescoWarning
from fresco.offload import offload_of
from fresco.recipe import Recipe
from fresco.techniques import TechniqueConfig

FILE = "combinations.json"
Values = Mapping[str, str]  # value by axis; without the axes where it is `none`


@dataclass(frozen=True)
class Row:
    """One stack that was run, or that is refused.

    Args:
        values: What was on; of a refused row, what is refused whatever else is on.
        status: How it ended; `validated`: its picture is the one that was expected.
        reason: Why it is refused.
        device: Where it is refused; empty: everywhere.
    """

    values: Values
    status: Literal["validated", "refused"]
    reason: str = ""
    device: str = ""


@dataclass(frozen=True)
class Matrix:
    """The rows, and which entries of a stack are which value.

    Args:
        axes: By axis and value, the fields that an entry has; none for what is no technique.
        rows: All rows.
    """

    axes: Mapping[str, Mapping[str, Mapping[str, object]]]
    rows: Sequence[Row]

    @functools.cached_property
    def covered(self) -> frozenset[frozenset[tuple[str, str]]]:
        """Every two and every three values that were on, or off, together."""
        return frozenset(
            frozenset(some)
            for row in self.rows
            if row.status != "refused"
            for some in self._parts(row.values)
        )

    def find(self, config: TechniqueConfig) -> tuple[str, str] | None:
        """Axis and value of an entry; None if the matrix does not know it."""
        for axis, values in self.axes.items():
            for value, fields in values.items():
                if fields and all(getattr(config, k, None) == v for k, v in fields.items()):
                    return axis, value
        return None

    def refusal(self, values: Values) -> Row | None:
        """The row that says why these are refused, wherever they run."""
        return next(
            (
                row
                for row in self.rows
                if row.status == "refused"
                and not row.device
                and row.values.items() <= values.items()
            ),
            None,
        )

    def unknown(self, values: Values) -> tuple[tuple[str, str], ...]:
        """The first values that were never on together; empty if the stack is known."""
        for some in self._parts(values):
            if frozenset(some) not in self.covered:
                return tuple((axis, value) for axis, value in some if value != "none")
        return ()

    def _parts(self, values: Values) -> Iterator[tuple[tuple[str, str], ...]]:
        """Every two, then every three values."""
        whole = [(axis, values.get(axis, "none")) for axis in self.axes]
        for n_values in (2, 3):
            yield from itertools.combinations(whole, n_values)


@functools.cache
def load_matrix() -> Matrix:
    """Read the matrix that ships with the package.

    Example:
        >>> "compile" in load_matrix().axes
        True
    """
    text = importlib.resources.files("fresco").joinpath(FILE).read_text(encoding="utf-8")
    content = json.loads(text)
    return Matrix(content["axes"], tuple(Row(**row) for row in content["rows"]))


def check_combination(transformers: Sequence[Any], recipe: Recipe) -> str | None:
    """Look a recipe up, on transformers as they are offloaded now.

    Args:
        transformers: Of the pipeline.
        recipe: Checked recipe.

    Returns:
        What is to be warned of: that this stack was never run as a whole; None if it was.

    Raises:
        AttachError: If it is known to be bad.
    """
    matrix = load_matrix()
    cells = {stage.cell for stage in recipe.stages}
    values = {
        "resolution": "mixed" if "mixed" in cells else "whole" if cells else "none",
        "offload": offload_of(transformers),
    }
    strangers = []
    for config in recipe.techniques:
        found = matrix.find(config)
        if found is None or found[0] in values:
            strangers.append(config.kind)
        else:
            values[found[0]] = found[1]
    values = {axis: value for axis, value in values.items() if value != "none"}
    bad = matrix.refusal(values)
    if bad:
        raise AttachError(
            "accelerate(pipe, recipe)",
            "a stack that works (docs/reference/combinations.md)",
            " with ".join(f"{axis} {value}" for axis, value in bad.values.items()),
            f"It is refused: {bad.reason}",
        )
    named = strangers or [f"{axis} {value}" for axis, value in matrix.unknown(values)]
    if not named:
        return None
    return (
        f"{' + '.join(named)} was not run in the matrix of combinations "
        "(docs/reference/combinations.md); compare a picture with that of a smaller stack"
    )


def warn_combination(message: str | None) -> None:
    """Warn of a stack that is not in the matrix."""
    if message:
        warnings.warn(message, FrescoWarning, stacklevel=2)
