"""Stages of second order, against diffusers' own DPM-Solver++ and by hand."""

from __future__ import annotations

import types

import diffusers
import pytest
import torch

import fresco
from fresco.recipe import load_recipe
from fresco.request import PlanRequest
from fresco.schedule import Plan, Step, make_plan
from fresco.solver import read_flow, solver_velocity, write_velocity
from fresco.target import Target
from tests.conftest import draw_latents
from tests.families import FAMILIES

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning",  # diffusers'
    "ignore:In CPU autocast:UserWarning",  # Mochi's positions
)
SIGMAS = (0.98, 0.9, 0.75, 0.6, 0.3, 0.1)
SECOND = {
    "schema": 1,
    "model": "any",
    "baseline": {"steps": 6},
    "stages": [{"cell": 1, "steps": 6, "order": 2}],
}


def model(x, sigma):
    """A velocity that bends."""
    return torch.tanh(3 * x) - x * sigma**2 + torch.sin(5 * x)


def solved(x, sigmas, order):
    """From the first sigma to 0, in a run of one stage."""
    ends = (*sigmas[1:], 0.0)
    steps = [Step(0, now, then, 1, 1, order=order) for now, then in zip(sigmas, ends, strict=True)]
    plan = Plan(tuple(steps), 1, 1, len(steps), keeps_schedule=False)
    run = types.SimpleNamespace(plan=plan, n_done=0, clean=[])
    for step in steps:
        predicted = model(x, step.sigma)
        v = solver_velocity(run, step, x, predicted)
        run.clean.append(x - step.sigma * predicted)
        run.n_done += 1
        x = x + (step.next_sigma - step.sigma) * v
    return x


def test_a_stage_of_second_order_is_dpm_solver_of_the_same_sigmas():
    x = torch.linspace(-2, 2, 64, dtype=torch.float64)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(len(SIGMAS))
    scheduler.sigmas = torch.tensor((*SIGMAS, 0.0), dtype=torch.float64)
    expected = x
    for sigma, timestep in zip(SIGMAS, scheduler.timesteps, strict=True):
        expected = scheduler.step(model(expected, sigma), timestep, expected)[0]
    torch.testing.assert_close(solved(x, SIGMAS, order=2), expected.double(), rtol=0, atol=1e-5)
    assert (solved(x, SIGMAS, order=1) - expected).abs().max() > 0.01


def test_half_the_step_has_a_quarter_of_the_error():
    x = torch.linspace(-2, 2, 64, dtype=torch.float64)

    def error(order, n):
        """Of what a run passes at sigma .1, where its last step begins."""
        sigmas = torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64).tolist()
        exact = torch.linspace(0.9, 0.1, 4001, dtype=torch.float64).tolist()
        return (solved(x, sigmas, order) - solved(x, exact, 2)).abs().mean()

    assert 1.7 < error(1, 40) / error(1, 80) < 2.3
    assert 3.5 < error(2, 40) / error(2, 80) < 4.5


def test_pixart_by_ddim_of_second_order_is_pixart_by_dpm_solver():
    family = FAMILIES["pixart"]
    pipe = family.make()
    spacing = {"timestep_spacing": "trailing"}  # of 5 steps, as even as DDIM takes them
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(final_sigmas_type="zero", **spacing)
    expected = family.draw(pipe, num_inference_steps=5)
    pipe.scheduler = diffusers.DDIMScheduler(clip_sample=False, **spacing)
    plain = family.draw(pipe, num_inference_steps=5)
    with fresco.accelerate(pipe, SECOND):
        got = family.draw(pipe, num_inference_steps=5)
    assert family.draw(pipe, num_inference_steps=5).equal(plain)
    assert (got - expected).norm() < 0.02 * (plain - expected).norm()


@pytest.mark.parametrize("name", ["flux", "mochi", "pixart", "cogvideox", "wan"])
def test_what_the_scheduler_is_given_reads_as_the_velocity_that_was_written(name):
    family, seen = FAMILIES[name], []
    pipe = family.make()
    first = {**SECOND["stages"][0], "order": 1}
    with fresco.accelerate(pipe, SECOND | {"stages": [first]}) as accelerated:
        wrapped = pipe.scheduler.step

        def look(*args, **kwargs):
            run = accelerated._middleware.last
            asked = {"model_output": args[0], "sample": args[2]}
            x, v = read_flow(accelerated._middleware.adapter, run, run.step, asked)
            back = write_velocity(accelerated._middleware.adapter, run.step, x, v, args[0])
            seen.append((back, args[0]))
            half = write_velocity(
                accelerated._middleware.adapter, run.step, x, v, args[0].bfloat16()
            )
            assert half.dtype == torch.bfloat16
            return wrapped(*args, **kwargs)

        pipe.scheduler.step = look
        family.draw(pipe)
        pipe.scheduler.step = wrapped
    assert len(seen) == 6
    for back, given in seen:
        torch.testing.assert_close(back, given, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v_prediction"])
def test_a_prediction_comes_back_from_its_velocity(prediction):
    target = Target(prediction, 0.7)
    x, predicted = torch.randn(2, 100, generator=torch.Generator().manual_seed(0)).double()
    latents, velocity = target.to_flow(x, predicted)
    torch.testing.assert_close(target.from_velocity(latents, velocity), predicted)


def test_the_clean_estimates_of_another_stage_are_not_looked_at(tiny_flux_pipe):
    """The second stage begins as it would by first order."""
    stages = [
        {"cell": 2, "steps": 3, "until_sigma": 0.5, "order": 2},
        {"cell": 1, "steps": 3, "lift": {"form": "latent", "to_sigma": 0.7}},
    ]
    raw = {**SECOND, "stages": stages}
    given = {}
    for order in (1, 2):
        stages[1]["order"] = order
        with fresco.accelerate(tiny_flux_pipe, raw):
            step, given[order] = tiny_flux_pipe.scheduler.step, []

            def look(*args, own=given[order], step=step, **kwargs):
                result = step(*args, **kwargs)
                own.append(result[0])
                return result

            tiny_flux_pipe.scheduler.step = look
            draw_latents(tiny_flux_pipe)
            tiny_flux_pipe.scheduler.step = step
    is_same = [one.equal(two) for one, two in zip(given[1], given[2], strict=True)]
    assert is_same == [True, True, True, True, False, False]


@pytest.mark.parametrize("form", ["trajectory", "clean", "fresh", "latent", "spectral"])
def test_lifts_from_the_last_call_take_the_model_s_own_estimate(tiny_flux_pipe, form):
    """The others step to the stage's end first, at its order; its third step is of order 2."""
    lift = {"form": form, "to_sigma": 0.7}
    given = []
    for order in (1, 2):
        first = {"cell": 2, "steps": 3, "until_sigma": 0.5, "order": order}
        stages = [first, {"cell": 1, "steps": 1, "lift": lift}]
        raw = {**SECOND, "baseline": {"steps": 4}, "stages": stages}
        with fresco.accelerate(tiny_flux_pipe, raw):
            step = tiny_flux_pipe.scheduler.step

            def look(*args, step=step, **kwargs):
                given.append(step(*args, **kwargs)[0])
                return (given[-1],)

            tiny_flux_pipe.scheduler.step = look
            draw_latents(tiny_flux_pipe, num_inference_steps=4)
            tiny_flux_pipe.scheduler.step = step
    assert len(given) == 8
    assert given[2].equal(given[6]) == (form in {"trajectory", "clean", "fresh"})


def test_full_steps_of_second_order_keep_the_schedule():
    plan = make_plan(load_recipe(SECOND), PlanRequest(6, 8, 8, shift=lambda _: 1.0))
    assert plan.keeps_schedule
    assert {step.order for step in plan.steps} == {2}


def test_a_run_of_first_order_is_not_touched(tiny_flux_pipe):
    plain = draw_latents(tiny_flux_pipe)
    stage = {"cell": 1, "steps": 6, "order": 1}
    with fresco.accelerate(tiny_flux_pipe, {**SECOND, "stages": [stage]}):
        assert draw_latents(tiny_flux_pipe).equal(plain)
    with fresco.accelerate(tiny_flux_pipe, SECOND):
        assert not draw_latents(tiny_flux_pipe).equal(plain)
    assert draw_latents(tiny_flux_pipe).equal(plain)
