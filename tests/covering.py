"""Covering arrays: few rows in which every legal choice of a few values occurs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

Values = dict[str, str]  # value by axis


def covering_rows(
    axes: Mapping[str, Sequence[str]], strength: int, is_legal: Callable[[Values], bool]
) -> list[Values]:
    """Choose rows greedily, always the same ones.

    Args:
        axes: Values by axis; the first must go with everything.
        strength: How many values must occur together, any so many of different axes.
        is_legal: Whether these values may be together; true of all parts of a legal choice.

    Returns:
        Rows with a value for every axis, each legal.

    Source:
        One row at a time from an uncovered tuple, every other axis by most newly covered:
        after AETG, Cohen, Dalal, Fredman and Patton, IEEE TSE 23(7), 1997. Deviates:
        nothing is drawn; ties go to the axis' first value.
    """
    open_: dict[frozenset[tuple[str, str]], None] = {}
    for names in itertools.combinations(axes, strength):
        for values in itertools.product(*(axes[name] for name in names)):
            some = dict(zip(names, values, strict=True))
            if is_legal(some):
                open_[frozenset(some.items())] = None
    rows = []
    while open_:
        starts = list(itertools.islice(open_, 8))
        filled = [_fill(dict(sorted(start)), axes, strength, is_legal, open_) for start in starts]
        best = max(filled, key=lambda row: len(_parts(row, strength) & open_.keys()))
        rows.append({axis: best[axis] for axis in axes})
        for part in _parts(best, strength):
            open_.pop(part, None)
    return rows


def _fill(
    row: Values,
    axes: Mapping[str, Sequence[str]],
    strength: int,
    is_legal: Callable[[Values], bool],
    open_: Mapping[frozenset[tuple[str, str]], None],
) -> Values:
    """Give every other axis the legal value that covers most with those before."""
    for axis in sorted(axes.keys() - row.keys(), key=list(axes).index):
        legal = [row | {axis: value} for value in axes[axis] if is_legal(row | {axis: value})]
        row = max(legal, key=lambda each: len(_parts(each, strength) & open_.keys()))
    return row


def _parts(row: Values, strength: int) -> set[frozenset[tuple[str, str]]]:
    """Every choice of so many values of a row."""
    return set(map(frozenset, itertools.combinations(row.items(), strength)))
