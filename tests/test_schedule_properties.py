"""Laws of plans."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fresco.errors import ScheduleError
from fresco.recipe import load_recipe
from fresco.request import PlanRequest
from fresco.schedule import make_plan, scaled_steps
from fresco.sigmas import shifted_sigmas
from tests.strategies import recipes


def request(n_steps=20, rows=8, columns=8, shift=3.0, sigmas=None):
    return PlanRequest(n_steps, rows, columns, lambda _n_tokens: shift, sigmas)


@given(recipes(), st.integers(1, 60), st.integers(1, 9), st.integers(1, 9), st.floats(0.3, 8))
def test_a_plan_starts_at_1_ends_at_0_and_rises_only_between_stages(raw, n, rows, columns, shift):
    recipe = load_recipe(raw)
    plan = make_plan(recipe, request(n, rows, columns, shift))
    assert plan.sigmas[0] == 1.0
    assert plan.sigmas[-1] == 0.0
    for step, following in pairwise(plan.steps):
        assert step.next_sigma == following.sigma
        assert following.sigma < step.sigma or following.stage == step.stage + 1
        assert following.n_tokens >= step.n_tokens
        assert (step.lift is None) or following.stage == step.stage + 1
    assert plan.steps[-1].side == 1
    assert plan.steps[-1].n_tokens == rows * columns


def mixed(*promotes):
    """A recipe of 2 coarse steps, 2 mixed ones per promotion, and a fine one."""
    stages = [{"cell": 2, "steps": 2, "until_sigma": 0.9}]
    for i, promote in enumerate(promotes):
        stages.append(
            {"cell": "mixed", "steps": 2, "until_sigma": 0.8 - i / 10, "promote": promote}
        )
    return {"schema": 1, "model": "any", "stages": [*stages, {"cell": 1, "steps": 1}]}


def test_after_a_threshold_a_plan_expects_everything_it_may_have_promoted():
    raw = mixed({"score": "edges", "tau": 1.0}, {"score": "edges", "budget": 0.2})
    assert [step.n_tokens for step in make_plan(load_recipe(raw), request(7)).steps] == [
        *(16, 16), *(64, 64), *(64, 64), 64,
    ]  # fmt: skip


@pytest.mark.parametrize("score", ["temporal_variance", "decided_detail"])
def test_a_score_of_change_needs_two_steps_to_look_at(score):
    recipe = load_recipe(mixed({"score": score, "budget": 0.5}))
    assert len(make_plan(recipe, request(5)).steps) == 5
    expected = f"at least 2 steps before a mixed stage that promotes by {score}, got 1"
    with pytest.raises(ScheduleError, match=expected):
        make_plan(recipe, request(3))


@given(recipes(), st.integers(1, 60))
def test_a_plan_has_the_promised_number_of_calls(raw, n):
    recipe = load_recipe(raw)
    plan = make_plan(recipe, request(n))
    for i, stage in enumerate(recipe.stages):
        taken = sum(step.stage == i for step in plan.steps)
        assert taken == max(1, math.floor(stage.steps * n / 20 + 0.5))


@given(st.floats(0.05, 1), st.floats(0, 0.9), st.integers(1, 40), st.floats(0.2, 10))
def test_spacing_falls_from_start_and_stays_above_end(start, ratio, n, shift):
    end = start * ratio
    sigmas = (*shifted_sigmas(start, end, n, shift), end)
    assert sigmas[0] == start
    assert all(a > b for a, b in pairwise(sigmas))


def test_spacing_of_a_whole_run_is_the_shifted_even_one():
    even = [1 - i / 5 for i in range(5)]
    assert shifted_sigmas(1.0, 0.0, 5, 1.0) == pytest.approx(even, abs=1e-15)
    shifted = [3 * u / (1 + 2 * u) for u in even]
    assert shifted_sigmas(1.0, 0.0, 5, 3.0) == pytest.approx(shifted, abs=1e-15)


def test_a_pinned_plan():
    raw = {
        "schema": 1,
        "model": "any",
        "baseline": {"steps": 8},
        "stages": [
            {"cell": 4, "steps": 2, "until_sigma": 0.5},
            {"cell": 1, "steps": 2, "lift": {"form": "latent"}},
        ],
    }
    plan = make_plan(load_recipe(raw), request(n_steps=8, rows=9, columns=4, shift=1.0))
    assert plan.sigmas == pytest.approx((1.0, 0.75, 0.8, 0.4, 0.0))  # 4 * .5 / (1 + 3 * .5)
    assert [step.n_tokens for step in plan.steps] == [3, 3, 36, 36]
    assert [step.lift is not None for step in plan.steps] == [False, True, False, False]
    lift = plan.steps[1].lift
    assert (lift.sigma, lift.end_sigma, lift.to_sigma) == (0.75, 0.5, 0.8)


def test_a_stage_s_own_sigmas_are_used_and_resampled():
    stages = [{"cell": 1, "steps": 2, "sigmas": [1.0, 0.4]}]
    recipe = load_recipe({"schema": 1, "model": "any", "stages": stages})
    assert make_plan(recipe, request(2)).sigmas == (1.0, 0.4, 0.0)
    assert make_plan(recipe, request(4)).sigmas == pytest.approx((1.0, 0.7, 0.4, 0.2, 0.0))


def test_the_last_stage_alone_is_stretched_to_a_terminal_sigma():
    raw = {
        "schema": 1,
        "model": "any",
        "baseline": {"steps": 8},
        "stages": [{"cell": 2, "steps": 2, "until_sigma": 0.6}, {"cell": 1, "steps": 3}],
    }
    asked = request(n_steps=8, shift=1.0)
    plain, stretched = (
        make_plan(load_recipe(raw), replace(asked, terminal=terminal)).sigmas
        for terminal in (None, 0.1)
    )
    assert plain == pytest.approx((1.0, 0.8, 0.6, 0.4, 0.2, 0.0))
    assert stretched == pytest.approx((1.0, 0.8, 0.6, 0.35, 0.1, 0.0))


@pytest.mark.parametrize(("n", "taken"), [(50, 5), (100, 10), (25, 3), (5, 1), (1, 1)])
def test_steps_scale_with_the_request(n, taken):
    assert scaled_steps(5, n, 50) == taken


def test_the_scheduler_s_own_sigmas_are_kept_bit_for_bit():
    own = (1.0, 0.9, 0.123456789, 0.0)
    for raw in ({}, {"stages": [{"cell": 1, "steps": 3}]}):
        plan = make_plan(load_recipe({"schema": 1, "model": "any", **raw}), request(3, sigmas=own))
        assert plan.keeps_schedule
        assert plan.sigmas == own


def test_no_steps_are_refused():
    with pytest.raises(ScheduleError, match="at least 1 step, got 0"):
        make_plan(load_recipe("reference_5x"), request(0))
