"""Hypothesis strategies; tensors are drawn from a seed, in float64."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from fresco.layout import TokenLayout
from fresco.noise import NoiseField
from fresco.score import COMPARING, SCORES

SEEDS = st.integers(0, 2**31)


def normal(seed, *shape):
    """Gaussian draws in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def layouts(draw, divisible=False, mixed=True):
    """Partitions of grids up to 12 x 12 tokens: whole, or each 4-cell split at random."""
    unit = 4 if divisible else 1
    rows = unit * draw(st.integers(1, 12 // unit))
    columns = unit * draw(st.integers(1, 12 // unit))
    patch_px = draw(st.integers(1, 2))
    if not mixed or draw(st.booleans()):
        return TokenLayout.whole(rows, columns, draw(st.sampled_from((4, 2, 1))), patch_px)
    choice = torch.Generator().manual_seed(draw(SEEDS))
    sides = torch.full((rows + 4, columns + 4), 4)
    for side in (2, 1):  # split cells of twice this side
        cells = (
            torch.rand(-(-rows // (2 * side)), -(-columns // (2 * side)), generator=choice) < 0.5
        )
        split = cells.repeat_interleave(2 * side, 0).repeat_interleave(2 * side, 1)
        area = sides[: split.shape[0], : split.shape[1]]
        area[split & (area == 2 * side)] = side
    return TokenLayout(sides[:rows, :columns].clone(), patch_px)


def field_for(layout, seed, b=2, c=3):
    """A noise field on a layout's grid."""
    return NoiseField(normal(seed, b, c, *layout.grid_px), layout.patch_px)


@st.composite
def promotes(draw, n_steps, before=()):
    """What a mixed stage of `n_steps` says of its promotion, after other mixed stages."""
    promote = {"score": draw(st.sampled_from(sorted(SCORES.keys() - COMPARING)))}
    least = max((share for one in before for share in one.get("budget", ())), default=0)
    if draw(st.booleans()):
        shares = st.lists(st.floats(least, 1), min_size=n_steps, max_size=n_steps)
        promote["budget"] = sorted(draw(shares))
    else:
        promote["tau"] = draw(st.floats(-2, 2))
    split = max((one.get("split", 1) for one in before), default=0)
    for key, values in (
        ("first", st.sampled_from(("high", "low"))),
        ("split", st.floats(max(split, *promote.get("budget", [0])), 1)),
        ("multiple", st.integers(1, 16)),
    ):
        if draw(st.booleans()):
            promote[key] = draw(values)
    return promote


@st.composite
def recipes(draw, mixed=True):
    """Recipes of one to four stages that are valid."""
    cells = sorted(draw(st.lists(st.sampled_from((4, 2, 1)), max_size=2)), reverse=True)
    if mixed and cells and cells[-1] > 1 and draw(st.booleans()):
        cells += ["mixed"] * draw(st.integers(1, 2))
    stages, start = [], 1.0
    for i, cell in enumerate([*cells, 1]):
        stage = {"cell": cell, "steps": draw(st.integers(1, 9))}
        if cell == "mixed":
            before = [stage["promote"] for stage in stages if "promote" in stage]
            stage["promote"] = draw(promotes(stage["steps"], before))
        if i and draw(st.booleans()):
            start = min(start + draw(st.floats(0.05, 0.3)), 0.95)
            forms = ["trajectory", "clean", "latent", "fresh", "spectral"]
            if cells[i - 1] == "mixed":
                forms.remove("spectral")
            stage["lift"] = {"form": draw(st.sampled_from(forms)), "to_sigma": start}
        if draw(st.booleans()):
            stage["shift"] = draw(st.floats(0.3, 8))
        if cell != 1 and draw(st.booleans()):
            stage["restrict"] = "injection"
        if i < len(cells):
            start *= draw(st.floats(0.2, 0.95))
            stage["until_sigma"] = start
        stages.append(stage)
    return {"schema": 1, "model": "any", "baseline": {"steps": 20}, "stages": stages}
