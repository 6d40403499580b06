"""Rows of the batch of a call: some of them taken out, and those of several calls joined."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def select_residuals(
    call: Mapping[str, Any], names: Collection[str], rows: Sequence[int]
) -> dict[str, Any]:
    """Take some rows of the batch of residuals; those that all rows share stay.

    Args:
        call: Arguments of the transformer by name.
        names: Of the arguments that are lists of residuals, each [b or 1, n, d].
        rows: Numbers of rows.

    Returns:
        Those arguments that were given.
    """
    return {
        name: [each if len(each) == 1 else each[list(rows)] for each in call[name]]
        for name in names
        if call.get(name) is not None
    }


def select_rows(
    call: Mapping[str, Any], names: Collection[str], rows: Sequence[int]
) -> dict[str, Any]:
    """Take some rows of the batch of a call; what all rows share (one text for all) stays.

    Args:
        call: Arguments of the transformer by name.
        names: Of the arguments with a batch axis, each [b or 1, ...].
        rows: Numbers of rows.

    Returns:
        All arguments.
    """
    return {
        name: value[list(rows)] if name in names and value is not None and len(value) > 1 else value
        for name, value in call.items()
    }


def join_rows(
    calls: Sequence[Mapping[str, Any]], names: Collection[str], residuals: Collection[str]
) -> dict[str, Any]:
    """Make one call of the rows of several; what is without a batch axis is the first one's.

    Args:
        calls: Arguments of the transformer by name, the same ones in every call.
        names: Of the arguments with a batch axis, each [b or 1, ...].
        residuals: Of those that are lists, each [b or 1, n, d].

    Returns:
        All arguments, every batch axis as long as all batches together.
    """
    sizes = [len(call["hidden_states"]) for call in calls]

    def join(values: Iterable[Tensor]) -> Tensor:
        each = zip(values, sizes, strict=True)
        return torch.cat([value.expand(n, *value.shape[1:]) for value, n in each])

    joined = dict(calls[0])
    for name, value in calls[0].items():
        if name in names and value is not None:
            joined[name] = join(call[name] for call in calls)
        elif name in residuals and value is not None:
            joined[name] = [join(same) for same in zip(*(c[name] for c in calls), strict=True)]
    return joined
