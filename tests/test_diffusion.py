"""Diffusions that preserve variance: what latents are made of, plans of whole timesteps, DDIM."""

from __future__ import annotations

from itertools import pairwise

import diffusers
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import fresco
from fresco import errors
from fresco.ddim import Levels, following
from fresco.layout import TokenLayout
from fresco.lift import Lift, lift_latents
from fresco.recipe import load_recipe
from fresco.request import PlanRequest
from fresco.schedule import Plan, Step, make_plan
from fresco.sigmas import own_sigmas
from fresco.target import Target
from fresco.transfer import prolong, restrict
from tests.families import FAMILIES
from tests.staged import STAGED
from tests.strategies import SEEDS, field_for, layouts, normal, recipes

KINDS = {
    "epsilon": (diffusers.DDIMScheduler, FAMILIES["pixart"].scheduler),
    "v_prediction": (diffusers.CogVideoXDDIMScheduler, FAMILIES["cogvideox"].scheduler),
}
PREDICTIONS = st.sampled_from(tuple(KINDS))
TIMES = st.lists(st.integers(0, 998), min_size=1, max_size=4, unique=True)


def make_scheduler(prediction):
    """One whose steps are as precise as what they are given."""
    kind, config = KINDS[prediction]
    scheduler = kind(**config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(10)
    return scheduler


def coefficients(scheduler, time):
    """Signal and noise at a timestep; -1 is the end."""
    kept = float(scheduler.alphas_cumprod[time]) if time >= 0 else 1.0
    return kept**0.5, (1 - kept) ** 0.5


def slow_ddim(prediction, x, said, now, then):
    """From one noise level to another, along what is predicted."""
    (signal, noise), (next_signal, next_noise) = now, then
    if prediction == "epsilon":
        clean, eps = (x - noise * said) / signal, said
    else:
        clean, eps = signal * x - noise * said, noise * x + signal * said
    return next_signal * clean + next_noise * eps


def step_of(levels, time, then, lift=None):
    """A plan of one step between two timesteps, and that step."""
    now, end = levels.sigmas[time], levels.sigmas[then] if then >= 0 else 0.0
    step = Step(0, now, end, 1, 1, lift)
    return Plan((step,), 1, 1, 1, keeps_schedule=False, levels=levels), step


@given(layouts(divisible=True), SEEDS, PREDICTIONS, TIMES)
def test_ddim_on_the_carrier_restricts_to_ddim_of_the_coarse_model(layout, seed, prediction, times):
    scheduler = make_scheduler(prediction)
    levels, field = Levels.of(scheduler), field_for(layout, seed)
    p = layout.patch_px
    weights = normal(seed + 2, 3, 3, p, p)

    def said(tokens, time):
        return torch.tanh(torch.einsum("bncij,cdij->bndij", tokens, weights) + time / 1000)

    path = [999, *sorted(times, reverse=True)]
    signal, noise = coefficients(scheduler, path[0])
    carrier = signal * normal(seed + 1, *field.eps.shape) + noise * field.eps
    coarse = restrict(carrier, field, noise, layout)
    for time, then in pairwise(path):
        target = Target(prediction, levels.sigmas[time])
        seen = said(restrict(carrier, field, target.noise, layout), time)
        grid = prolong(seen, field, target.predicted_noise, layout)
        with following(scheduler, *step_of(levels, time, then), eta=0.0):
            carrier = scheduler.step(grid, time, carrier).prev_sample
        between = (coefficients(scheduler, each) for each in (time, then))
        coarse = slow_ddim(prediction, coarse, said(coarse, time), *between)
    noise = Target(prediction, levels.sigmas[path[-1]]).noise
    final = restrict(carrier, field, noise, layout)
    torch.testing.assert_close(final, coarse, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("side", [2, 4])
def test_a_coarse_token_is_exactly_at_the_noise_level_of_its_timestep(prediction, side):
    scheduler = make_scheduler(prediction)
    layout = TokenLayout.whole(8, 8, side)
    field = field_for(layout, 0)
    clean = torch.full_like(field.eps, 3.0)
    signal, noise = coefficients(scheduler, 400)
    level = Levels.of(scheduler).sigmas[400]
    tokens = restrict(
        signal * clean + noise * field.eps, field, Target(prediction, level).noise, layout
    )
    expected = signal * 3.0 + noise * field.coarse(side).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens[..., 0, 0], expected, rtol=0, atol=1e-12)


@given(st.sampled_from(("flow", *KINDS)), st.floats(0, 0.99), SEEDS)
def test_latents_and_prediction_are_those_of_a_flow_at_the_same_ratio(prediction, sigma, seed):
    clean, eps = normal(seed, 2, 3), normal(seed + 1, 2, 3)
    target = Target(prediction, sigma)
    said = {
        "flow": eps - clean,
        "epsilon": eps,
        "v_prediction": target.signal * eps - target.noise * clean,
    }[prediction]
    latents = target.signal * clean + target.noise * eps
    if prediction != "flow":
        assert target.signal**2 + target.noise**2 == pytest.approx(1)
    flow, velocity = target.to_flow(latents, said)
    torch.testing.assert_close(flow, (1 - sigma) * clean + sigma * eps, rtol=0, atol=1e-9)
    torch.testing.assert_close(velocity, eps - clean, rtol=0, atol=1e-9)
    torch.testing.assert_close(target.from_flow(flow), latents, rtol=0, atol=1e-9)


def test_levels_of_pinned_schedules():
    pixart, cogvideox = (Levels.of(make_scheduler(prediction)) for prediction in KINDS)
    assert [round(pixart.sigmas[t], 4) for t in (0, 500, 999)] == [0.0099, 0.7749, 0.9937]
    assert cogvideox.sigmas[999] == 1.0
    assert pixart.timesteps((0.0, 0.5, 1.0)) == (-1, 258, 999)


@pytest.mark.parametrize("n", [1, 7, 20, 50, 1000])
def test_a_whole_run_is_spaced_as_the_scheduler_s_trailing_timesteps(n):
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(n)
    levels = Levels.of(scheduler)
    own = levels.timesteps(levels.spaced(levels.nearest(1.0), 0.0, n))
    assert all(abs(a - b) <= 1 for a, b in zip(own, scheduler.timesteps.tolist(), strict=True))
    assert own[0] == 999


@given(recipes(), st.integers(1, 60), PREDICTIONS)
def test_a_plan_of_timesteps_falls_inside_stages_and_ends_at_0(raw, n, prediction):
    recipe, levels = load_recipe(raw), Levels.of(make_scheduler(prediction))
    try:
        plan = make_plan(recipe, PlanRequest(n, 8, 8, lambda _n: 1.0, levels=levels))
    except errors.ScheduleError as error:
        assert "one per timestep" in str(error)  # noqa: PT017
        assume(False)
    assert plan.sigmas[0] == levels.sigmas[999]
    assert plan.sigmas[-1] == 0.0
    assert set(plan.sigmas[:-1]) <= set(levels.sigmas)
    for step, then in pairwise(plan.steps):
        assert step.next_sigma == then.sigma
        assert then.sigma < step.sigma or then.stage == step.stage + 1
        if step.lift:
            assert step.lift.to_sigma == then.sigma
            assert step.lift.end_sigma < step.sigma


def test_more_steps_than_timesteps_are_refused():
    stages = [{"cell": 2, "steps": 9, "until_sigma": 0.99}, {"cell": 1, "steps": 1}]
    recipe = load_recipe({"schema": 1, "model": "any", "stages": stages})
    levels = Levels((0.1, 0.5, 0.988, 0.99, 0.992, 1.0))
    match = r"at most 2 steps, one per timestep, .* 5 and 3, got 9, at timesteps \[5, 5, 5"
    with pytest.raises(errors.ScheduleError, match=match):
        make_plan(recipe, PlanRequest(10, 8, 8, lambda _n: 1.0, levels=levels))


def test_a_stage_s_shift_and_sigmas_move_to_the_nearest_levels():
    levels = Levels(tuple(i / 100 for i in range(1, 101)))
    for keys, expected in (
        ({"shift": 3.0}, (1.0, 0.9, 0.75, 0.5, 0.0)),
        ({"sigmas": [1.0, 0.704, 0.4, 0.1]}, (1.0, 0.7, 0.4, 0.1, 0.0)),
        ({}, (1.0, 0.75, 0.5, 0.25, 0.0)),  # even in time
    ):
        stages = [{"cell": 1, "steps": 4, **keys}]
        raw = {"schema": 1, "model": "any", "baseline": {"steps": 5}, "stages": stages}
        plan = make_plan(load_recipe(raw), PlanRequest(5, 8, 8, lambda _n: 1.0, levels=levels))
        assert plan.sigmas == pytest.approx(expected)


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("time", [900, 500, 0])
def test_a_followed_step_of_the_scheduler_s_own_width_is_its_own(prediction, time):
    scheduler = make_scheduler(prediction)  # ten steps of a hundred
    x, said = normal(0, 1, 3, 4, 4), normal(1, 1, 3, 4, 4)
    own = scheduler.step(said, time, x).prev_sample
    before = vars(scheduler).copy()
    plan, step = step_of(Levels.of(scheduler), time, time - 100 if time else -1)
    with following(scheduler, plan, step, eta=0.0):
        assert scheduler.step(said, time, x).prev_sample.equal(own)
    assert vars(scheduler) == before


def test_a_step_with_a_lift_leads_to_its_stage_s_end_and_a_death_leaves_nothing():
    scheduler = make_scheduler("epsilon")
    levels, before = Levels.of(scheduler), vars(scheduler).copy()
    lift = Lift("clean", levels.sigmas[500], levels.sigmas[300], levels.sigmas[600])
    led_to = []

    def die():
        led_to.append(scheduler.final_alpha_cumprod)
        raise ValueError("on purpose")

    with (
        pytest.raises(ValueError, match="on purpose"),
        following(scheduler, *step_of(levels, 500, 600, lift), eta=0.0),
    ):
        die()
    assert led_to == [scheduler.alphas_cumprod[300]]
    assert vars(scheduler) == before


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
def test_sigmas_of_schedulers_are_told_as_a_flow_s():
    schedulers = (
        diffusers.DPMSolverMultistepScheduler(),
        diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction"
        ),
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.DDIMScheduler(timestep_spacing="linspace"),
    )
    told = []
    for scheduler in schedulers:
        scheduler.set_timesteps(10)
        told.append(own_sigmas(scheduler))
    assert all(a > b for sigmas in told for a, b in pairwise(sigmas))
    assert all(sigmas[0] <= 1 for sigmas in told)
    assert all(sigmas[-1] == 0 for sigmas in told)
    assert told[1] == tuple(map(float, schedulers[1].sigmas))
    assert told[2] == tuple(map(float, schedulers[2].sigmas))
    times = schedulers[0].timesteps.tolist()
    expected = [Levels.of(schedulers[0]).sigmas[time] for time in times]
    assert told[0][:-1] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["pixart", "cogvideox"])
def test_fresh_noise_in_steps_is_refused_by_stages_only(name):
    family = FAMILIES[name]
    pipe = family.make()
    with (
        fresco.accelerate(pipe, STAGED),
        pytest.raises(errors.RunError, match=r"expected eta=0.*got 0.5. Leave eta out"),
    ):
        family.draw(pipe, eta=0.5)
    plain = family.draw(pipe, eta=0.5)
    with fresco.accelerate(pipe, "identity"):
        assert family.draw(pipe, eta=0.5).equal(plain)


@pytest.mark.parametrize("form", ["trajectory", "clean", "latent"])
@pytest.mark.parametrize("prediction", KINDS)
def test_a_lift_of_exact_latents_leaves_them_exact(prediction, form):
    layout = TokenLayout.whole(4, 4, 2)
    field = field_for(layout, 0)
    clean = torch.full_like(field.eps, 3.0)
    now, then = Target(prediction, 0.5), Target(prediction, 0.8)
    said = field.eps if prediction == "epsilon" else now.signal * field.eps - now.noise * clean
    flow, velocity = now.to_flow(now.signal * clean + now.noise * field.eps, said)
    lifted = lift_latents(flow, velocity, field, Lift(form, 0.5, 0.4, 0.8), layout)
    expected = then.signal * clean + then.noise * field.eps
    torch.testing.assert_close(then.from_flow(lifted), expected, rtol=0, atol=1e-12)
