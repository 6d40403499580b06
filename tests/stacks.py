"""Stacks on a tiny pipeline, for tests of what they do to it."""

from __future__ import annotations

import fresco
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


def run(pipe, raw, **asked):
    """Picture, summary rows by kind, report."""
    asked.setdefault("num_inference_steps", 12)
    with fresco.accelerate(pipe, raw) as accelerated:
        picture = draw_latents(pipe, **asked)
        rows = {row.kind: row.counts for row in accelerated.summary().rows}
        return picture, rows, accelerated.report
