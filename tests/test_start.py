"""Runs that start from a noisy picture: strength below 1, inpainting."""

from __future__ import annotations

import functools

import diffusers
import pytest
import torch

import fresco
from fresco import errors
from fresco.transfer import join_patches
from tests.conftest import traces
from tests.families import FAMILIES
from tests.staged import ALL_FINE, MIXED, STAGED
from tests.started import (
    KINDS,
    PICTURE,
    Started,
    pooled,
    seen_grid,
)


@pytest.fixture(params=KINDS)
def started(request):
    return Started(request.param)


@pytest.fixture(params=["flux", "sd3"])
def from_picture(request):
    return Started(request.param)


def test_identity_recipes_leave_runs_from_a_picture_as_they_are(started):
    plain, before = started.draw(), traces(started.pipe)
    for raw in ("identity", ALL_FINE):
        with fresco.accelerate(started.pipe, raw) as accelerated:
            assert started.draw().equal(plain)
            assert len(accelerated.report.steps) == 5  # of 6 at strength 0.7
        assert traces(started.pipe) == before
    assert started.draw().equal(plain)


@pytest.mark.parametrize("raw", [STAGED, MIXED], ids=["whole", "mixed"])
@pytest.mark.parametrize("strength", [1.0, 0.7, 0.2])
def test_the_plan_starts_where_the_picture_s_noise_is(started, raw, strength):
    plain, before = started.draw(strength=strength), traces(started.pipe)
    own = started.pipe.scheduler.sigmas
    first = own[int(6 - 6 * strength)].item()
    with fresco.accelerate(started.pipe, raw) as accelerated:
        got = started.draw(strength=strength)
        plan, rows = accelerated.plan, accelerated.report.steps
    assert got.isfinite().all()
    assert got.shape == plain.shape
    assert not got.equal(plain)
    assert plan.sigmas[0] == first == max(plan.sigmas)
    assert plan.sigmas[-1] == 0
    assert [row.sigma for row in rows] == list(plan.sigmas[:-1])
    assert [row.tokens for row in rows] == [step.n_tokens for step in plan.steps]
    assert rows[-1].tokens == 96
    assert rows[0].tokens < 96 or strength == 0.2
    assert traces(started.pipe) == before
    assert started.draw(strength=strength).equal(plain)


def test_the_first_step_sees_the_picture_with_the_run_s_own_noise(started):
    picture, noise, mixture = started.mixture()
    with fresco.accelerate(started.pipe, STAGED) as accelerated:
        started.draw()
        step = accelerated.plan.steps[0]
        sigma = step.sigma
        assert accelerated._middleware.last.noise.eps.equal(noise)
    assert 0.7 < sigma < 1
    torch.testing.assert_close(mixture - sigma * noise, (1 - sigma) * picture)
    expected = (1 - sigma) * pooled(picture, 4) + sigma * 4 * pooled(noise, 4)
    torch.testing.assert_close(seen_grid(started, 0, step), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["flux inpaint", "sd3 inpaint", "kontext inpaint"])
def test_what_is_not_painted_is_at_every_step_s_sigma_with_the_run_s_noise(kind):
    started = Started(kind)
    picture, noise, _ = started.mixture()
    with fresco.accelerate(started.pipe, STAGED) as accelerated:
        got = started.draw()
        steps = accelerated.plan.steps
    assert [step.side for step in steps] == [4, 4, 2, 2, 2, 1, 1]
    for k, step in enumerate(steps):
        sigma, side = step.sigma, step.side
        expected = (1 - sigma) * pooled(picture, side) + sigma * side * pooled(noise, side)
        kept = expected.shape[-1] // 2
        at_hand = seen_grid(started, k, step)[..., :kept]
        torch.testing.assert_close(at_hand, expected[..., :kept], rtol=0, atol=1e-5)
    end = join_patches(got.unflatten(2, (-1, 2, 2)), 8) if started.is_flux else got
    assert end[..., :12].equal(picture[..., :12])
    assert (end[..., 12:] - picture[..., 12:]).abs().max() > 1e-3


def test_a_mixed_first_step_promotes_by_the_picture(from_picture):
    scores = {"score": "channel_variance", "budget": [0.25, 0.5]}
    mixed = {**MIXED, "stages": [dict(stage) for stage in MIXED["stages"]]}
    mixed["stages"][1]["promote"] = scores
    picture, *_ = from_picture.mixture()
    variance = torch.stack(
        [
            pooled(picture, 2)[0, :, row : row + 2, column : column + 2].var(correction=0)
            for row in range(0, 8, 2)
            for column in range(0, 12, 2)
        ]
    )
    chosen = set(variance.argsort(descending=True)[:12].tolist())
    layouts = []

    with fresco.accelerate(from_picture.pipe, mixed) as accelerated:
        hook = from_picture.pipe.transformer.register_forward_pre_hook(
            lambda *_: layouts.extend(x.sides for x in accelerated._middleware.last.mixed)
        )
        from_picture.draw(strength=0.3)
        hook.remove()
        first = accelerated.plan.steps[0]
        tokens = [step.tokens for step in accelerated.report.steps]
    assert first.stage == 1
    assert first.promotion.budget == 0.5  # of the stage's last step
    assert tokens == [60, 96, 96]
    fine = (layouts[0][::2, ::2] == 1).flatten().nonzero().flatten().tolist()
    assert set(fine) == chosen


def test_runs_from_a_picture_after_a_death_and_of_a_batch_are_right(from_picture):
    def die(*_):
        if len(from_picture.seen) > 2:
            raise ValueError("on purpose")

    with fresco.accelerate(from_picture.pipe, STAGED) as accelerated:
        first, other = from_picture.draw(), from_picture.draw(strength=0.4)
        n_other = len(accelerated.report.steps)
        hook = from_picture.pipe.transformer.register_forward_pre_hook(die)
        with hook, pytest.raises(ValueError, match="on purpose"):
            from_picture.draw()
        assert from_picture.draw(strength=0.4).equal(other)
        assert len(accelerated.report.steps) == n_other
        assert from_picture.draw().equal(first)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 0)]
        together = from_picture.draw(
            image=PICTURE.expand(2, -1, -1, -1), generator=generators, **batched(from_picture)
        )
        torch.testing.assert_close(together[1:], first, rtol=0, atol=1e-4)


def batched(started):
    """The prompt, for two pictures."""
    if started.is_flux:
        return {"prompt": ["a red circle", "a red circle"]}
    asked = FAMILIES["sd3"].asked()
    return {k: torch.cat((v, v)) for k, v in asked.items() if isinstance(v, torch.Tensor)}


def test_the_size_is_that_of_the_picture_and_latents_of_one_are_taken(from_picture):
    picture, *_ = from_picture.mixture()
    with fresco.accelerate(from_picture.pipe, STAGED) as accelerated:
        assert from_picture.draw(image=picture[..., :8], width=32).isfinite().all()
        assert accelerated.plan.n_full_tokens == 32


def test_costs_are_against_the_steps_that_a_plain_run_would_have_taken(from_picture):
    pipe, totals = from_picture.pipe, []
    original = pipe.progress_bar
    pipe.progress_bar = lambda total: totals.append(total) or original(total=total)
    with fresco.accelerate(pipe, STAGED) as accelerated:
        from_picture.draw(strength=0.5)
        assert accelerated.plan.n_requested == 3
        assert totals == [len(accelerated.report.steps)] == [pipe.num_timesteps]
        whole = accelerated.cost().baseline_flops
        from_picture.draw(strength=1.0)
        assert accelerated.cost().baseline_flops == 2 * whole


@pytest.mark.parametrize(
    ("kind", "asked", "error", "match"),
    [
        ("flux", {"latents": torch.zeros(1, 96, 16)}, errors.RunError, "leaves out its first 1 st"),
        ("sd3", {"latents": torch.zeros(1, 16, 16, 24)}, errors.RunError, "without prepare_lat"),
        ("flux", {"strength": 0.0}, errors.ScheduleError, "at least 1 step, got 0 of 6"),
        ("sd3", {"strength": 0.0}, errors.ScheduleError, "at least 1 step, got 0 of 6"),
    ],
)
def test_what_tells_nothing_of_its_noise_is_refused(kind, asked, error, match):
    started = Started(kind)
    with fresco.accelerate(started.pipe, STAGED):
        right = started.draw()
        with pytest.raises(error, match=match):
            started.draw(**asked)
        assert not started.seen or kind == "sd3"
        assert started.draw().equal(right)
    if "latents" in asked:
        plain = started.draw(**asked)
        with fresco.accelerate(started.pipe, ALL_FINE):
            assert started.draw(**asked).equal(plain)


class Louder(diffusers.FluxImg2ImgPipeline):
    """Does something else with the mixture."""

    @functools.wraps(diffusers.FluxImg2ImgPipeline.prepare_latents)
    def prepare_latents(self, *args, **kwargs):
        latents, ids = super().prepare_latents(*args, **kwargs)
        return 2 * latents, ids


def test_a_mixture_that_is_changed_afterwards_is_refused():
    started = Started("flux")
    pipe = Louder(**started.pipe.components)
    pipe.set_progress_bar_config(disable=True)
    started.pipe = pipe
    with (
        fresco.accelerate(pipe, STAGED),
        pytest.raises(errors.RunError, match=r"got others from Louder \(1 such\)"),
    ):
        started.draw()
    assert not started.seen
