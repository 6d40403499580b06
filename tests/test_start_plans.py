"""Plans of runs that start from a picture's noise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fresco.recipe import load_recipe
from fresco.request import PlanRequest
from fresco.schedule import make_plan, planned_steps
from tests.strategies import recipes


@given(recipes(), st.integers(1, 60), st.floats(0.02, 1), st.floats(0.3, 8))
def test_a_plan_from_a_picture_never_rises_above_its_start(raw, n, start, shift):
    recipe = load_recipe(raw)
    request = PlanRequest(n, 8, 8, lambda _n_tokens: shift, start=start)
    plan = make_plan(recipe, request)
    whole = make_plan(recipe, PlanRequest(n, 8, 8, lambda _n_tokens: shift))
    if plan.keeps_schedule:
        return
    assert plan.sigmas[0] == max(plan.sigmas) == start
    assert plan.sigmas[-1] == 0
    for i, step in enumerate(plan.steps[:-1]):
        following = plan.steps[i + 1]
        assert step.next_sigma == following.sigma
        assert following.sigma < step.sigma or following.stage == step.stage + 1
        assert step.lift is None or step.lift.end_sigma <= step.lift.to_sigma <= start
    assert plan.steps[-1].side == 1
    assert len(plan.steps) == planned_steps(recipe, n, start) <= len(whole.steps)
    if start == 1:
        assert plan == whole


def test_a_pinned_plan_from_a_picture():
    stages = [
        {"cell": 4, "steps": 4, "until_sigma": 0.7},
        {"cell": 2, "steps": 4, "until_sigma": 0.4, "sigmas": [0.7, 0.6, 0.5, 0.45]},
        {"cell": 1, "steps": 4, "lift": {"form": "clean", "to_sigma": 0.6}},
    ]
    recipe = load_recipe({"schema": 1, "model": "any", "stages": stages})

    def sigmas(start):
        return make_plan(recipe, PlanRequest(12, 8, 8, lambda _n: 1.0, start=start)).sigmas

    assert sigmas(0.8) == pytest.approx((0.8, 0.75, 0.7, 0.6, 0.5, 0.45, 0.6, 0.45, 0.3, 0.15, 0))
    assert sigmas(0.55) == pytest.approx((0.55, 0.5, 0.45, 0.55, 0.4125, 0.275, 0.1375, 0))
    assert sigmas(0.4) == pytest.approx((0.4, 0.4 * 2 / 3, 0.4 / 3, 0))
    assert sigmas(0.1) == pytest.approx((0.1, 0))


def test_a_stage_that_ends_above_the_picture_s_noise_takes_those_before_it_along():
    stages = [
        {"cell": 4, "steps": 2, "until_sigma": 0.3},
        {"cell": 2, "steps": 2, "until_sigma": 0.5, "lift": {"form": "clean", "to_sigma": 0.9}},
        {"cell": 1, "steps": 2},
    ]
    recipe = load_recipe({"schema": 1, "model": "any", "stages": stages})
    plan = make_plan(recipe, PlanRequest(6, 8, 8, lambda _n: 1.0, start=0.4))
    assert [step.stage for step in plan.steps] == [2, 2]
    assert plan.sigmas == pytest.approx((0.4, 0.2, 0.0))
