"""Stacks on a tiny pipeline, for tests of what they do to it."""

from __future__ import annotations

import pytest

import fresco
from fresco import errors
from tests import matrix
from tests.conftest import draw_latents
from tests.matrix import RESOLUTIONS

LITE = {"method": "taylorseer", "interval": 2, "warmup": 1, "lite": True}
NEVER = {name: settings for name, settings in matrix.NEVER.items() if name != "cache_dit"}
FORCED = {name: matrix.FORCED[name] for name in NEVER} | {"taylorseer_lite": LITE}


def cache(name, settings):
    return {"kind": "cache", "method": name, **settings}


def with_stack(resolution, *stack):
    return {**RESOLUTIONS[resolution], "stack": list(stack)}


def counts(accelerated, kind):
    (row,) = [row for row in accelerated.summary().rows if row.kind == kind]
    return row.counts


def check_idle(pipe, resolution, entry):
    """An entry that reuses nothing says so and leaves the picture to the bit."""
    expected, _, _ = run(pipe, with_stack(resolution))
    with pytest.warns(
        errors.FrescoWarning, match=f"{entry['kind']} is on, but did nothing: no hit in"
    ):
        got, rows, _ = run(pipe, with_stack(resolution, entry))
    assert got.equal(expected)
    assert rows[entry["kind"]]["hits"] == 0


def check_reused(pipe, resolution, entry, least):
    """An entry that reuses changes the picture a little, never across layouts; its counts."""
    expected, _, _ = run(pipe, with_stack(resolution))
    got, rows, report = run(pipe, with_stack(resolution, entry))
    assert got.isfinite().all()
    assert 0 < (got - expected).norm() / expected.norm() < 0.2
    found = rows[entry["kind"]]
    assert found["calls"] == 12
    assert found["hits"] == sum(step.cached for step in report.steps) >= least
    side = None
    for step in report.steps:  # features of another layout are never reused
        assert not (step.cached and step.side != side)
        side = step.side
    return found


def run(pipe, raw, **asked):
    """Picture, summary rows by kind, report."""
    asked.setdefault("num_inference_steps", 12)
    with fresco.accelerate(pipe, raw) as accelerated:
        picture = draw_latents(pipe, **asked)
        rows = {row.kind: row.counts for row in accelerated.summary().rows}
        return picture, rows, accelerated.report
