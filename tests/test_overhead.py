"""What fresco costs beyond the transformer is measured, and is not made up."""

from __future__ import annotations

import functools
import time

import pytest

from fresco.errors import RecipeError
from fresco.recipe import load_recipe, load_staged_recipe
from fresco.reference.overhead import measure_overhead
from tests.conftest import FRESCO_5, traces


def test_overhead_is_the_time_outside_of_the_forward(tiny_flux_pipe, monkeypatch):
    before = traces(tiny_flux_pipe)
    recipe = load_recipe(FRESCO_5)
    calm = measure_overhead(tiny_flux_pipe, recipe, "a red circle", runs=1)
    assert [row.stage for row in calm] == [0, 1, 2]
    assert [row.n_tokens for row in calm] == [4, 16, 64]
    assert all(row.beyond_s < row.bare_s + 0.02 for row in calm)
    step = type(tiny_flux_pipe.scheduler).step

    @functools.wraps(step)
    def slow_step(*args, **kwargs):
        time.sleep(0.05)
        return step(*args, **kwargs)

    monkeypatch.setattr(type(tiny_flux_pipe.scheduler), "step", slow_step)
    slow = measure_overhead(tiny_flux_pipe, recipe, "a red circle", runs=1)
    for one, other in zip(calm, slow, strict=True):
        assert 0.04 < other.beyond_s - one.beyond_s < 0.2
        assert other.share == pytest.approx(other.beyond_s / slow[-1].bare_s)
    assert traces(tiny_flux_pipe) == before


def test_a_recipe_without_stages_has_nothing_to_measure():
    with pytest.raises(RecipeError, match=r"nothing to measure @ \$.stages"):
        load_staged_recipe("identity")
