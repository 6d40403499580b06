"""Residuals that a ControlNet made on the full grid, for the tokens of a layout."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fresco.errors import AdapterError
from fresco.layout import TokenLayout
from fresco.transfer import average_tokens


def pool_residuals(
    call: Mapping[str, Any], names: Collection[str], layout: TokenLayout
) -> dict[str, Any]:
    """Average residuals over cells, as the clean part of what they steer.

    Args:
        call: Arguments of the transformer by name.
        names: Of the arguments that are lists of residuals, each [b, n, d] of the full grid.
        layout: Partition of the full grid.

    Returns:
        Those arguments that were given, each residual [b, m, d] of the layout's m tokens.

    Raises:
        AdapterError: If residuals are of another grid.
    """
    n_fine = layout.sides.numel()
    given = {name: call[name] for name in names if call.get(name) is not None}
    for name, residuals in given.items():
        others = [each.shape[1] for each in residuals if each.shape[1] != n_fine]
        if others:
            raise AdapterError(
                "pipe(control_image=...)",
                f"{name} of the picture's {n_fine} tokens in coarse stages",
                f"{others[0]} tokens",
                "Use a ControlNet of this model, or a recipe without stages.",
            )
    return {
        name: [average_tokens(each, layout) for each in residuals]
        for name, residuals in given.items()
    }
