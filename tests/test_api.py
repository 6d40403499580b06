"""A user's own arguments keep their meaning; bad ones are refused, and the next call is right."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

import fresco
from fresco import errors
from tests.conftest import FRESCO_5, draw_latents


@pytest.fixture
def fast(tiny_flux_pipe):
    with fresco.accelerate(tiny_flux_pipe, FRESCO_5) as accelerated:
        yield accelerated


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ({"height": 64, "width": 32}, (1, 32, 16)),
        ({"height": 72, "width": 40}, (1, 45, 16)),
        ({"height": 8, "width": 8}, (1, 1, 16)),
        ({"height": 8, "width": 200}, (1, 25, 16)),
        ({"height": 44, "width": 23}, (1, 10, 16)),  # the pipeline rounds down to 40 x 16
        ({"prompt": ["a", "red"], "num_images_per_prompt": 2}, (4, 64, 16)),
        ({"num_inference_steps": 1}, (1, 64, 16)),
        ({"max_sequence_length": 8}, (1, 64, 16)),
    ],
    ids=str,
)
def test_sizes_batches_and_steps_are_taken(fast, asked, shape):
    latents = draw_latents(fast.pipe, **asked)
    assert latents.shape == shape
    assert latents.isfinite().all()


def test_pictures_come_out_in_the_asked_size(fast):
    picture = draw_latents(fast.pipe, height=72, width=40, output_type="pil")[0]
    assert picture.size == (40, 72)


def test_requested_steps_scale_every_stage(fast):
    draw_latents(fast.pipe, num_inference_steps=24)
    assert [step.stage for step in fast.report.steps] == [0] * 8 + [1] * 8 + [2] * 8
    draw_latents(fast.pipe, num_inference_steps=3)
    assert [step.stage for step in fast.report.steps] == [0, 1, 2]


def test_same_generator_same_picture_and_the_users_generator_is_drawn_from_once(fast):
    generator = torch.Generator().manual_seed(3)
    first = draw_latents(fast.pipe, generator=generator, height=72, width=40)
    after = generator.get_state()
    fast.restore()
    generator = torch.Generator().manual_seed(3)
    draw_latents(fast.pipe, generator=generator, height=72, width=40)
    assert generator.get_state().equal(after)
    with fresco.accelerate(fast.pipe, FRESCO_5):
        again = draw_latents(fast.pipe, seed=3, height=72, width=40)
    assert again.equal(first)


def test_callbacks_are_numbered_and_may_change_the_latents(fast):
    seen = []

    def zero_at_the_last(_pipe, step, timestep, tensors):
        seen.append((step, round(timestep.item() / 1000, 6)))
        assert tensors["latents"].shape == (1, 64, 16)
        return {"latents": tensors["latents"] * 0} if step == 5 else {}

    assert draw_latents(fast.pipe, callback_on_step_end=zero_at_the_last).eq(0).all()
    assert seen == [(i, round(s.sigma, 6)) for i, s in enumerate(fast.report.steps)]


def test_true_guidance_makes_two_passes_per_step(fast):
    plain = draw_latents(fast.pipe)
    guided = draw_latents(fast.pipe, negative_prompt="blue square", true_cfg_scale=4.0)
    assert [step.passes for step in fast.report.steps] == [2] * 6
    assert not guided.equal(plain)


def test_latents_of_the_users_are_the_noise_field(fast):
    drawn = draw_latents(fast.pipe)
    eps = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    packed = fast.pipe._pack_latents(eps, 1, 4, 16, 16)
    assert draw_latents(fast.pipe, latents=packed).equal(drawn)


def test_bfloat16_pipelines_stay_bfloat16_and_close(tiny_flux_pipe):
    noise = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    with fresco.accelerate(tiny_flux_pipe, FRESCO_5):
        exact = draw_latents(tiny_flux_pipe, latents=noise)
        rounded = draw_latents(tiny_flux_pipe.to(torch.bfloat16), latents=noise)
    assert rounded.dtype == torch.bfloat16
    assert 0 < (rounded - exact).std() < 0.03 * exact.std()  # 8 bits, six steps


def test_a_run_that_died_leaves_the_next_one_right(fast):
    right = draw_latents(fast.pipe)

    def die(_pipe, step, _timestep, _tensors):
        if step == 2:
            raise KeyError(step)
        return {}

    with pytest.raises(KeyError):
        draw_latents(fast.pipe, callback_on_step_end=die)
    assert len(fast.report.steps) == 3
    assert draw_latents(fast.pipe).equal(right)


def test_an_interrupted_run_ends_early(fast):
    right = draw_latents(fast.pipe)

    def interrupt(pipe, step, _timestep, _tensors):
        pipe._interrupt = step == 1
        return {}

    draw_latents(fast.pipe, callback_on_step_end=interrupt)
    assert len(fast.report.steps) == 2
    assert draw_latents(fast.pipe).equal(right)


def test_reference_pictures_of_kontext_stay_beside_the_tokens(tiny_flux_pipe):
    from diffusers import FluxKontextPipeline

    pipe = FluxKontextPipeline(**tiny_flux_pipe.components)
    pipe.set_progress_bar_config(disable=True)
    asked = {"image": torch.rand(1, 3, 64, 64), "height": 64, "width": 64}
    asked |= {"_auto_resize": False, "max_area": 64 * 64}
    plain, seen = draw_latents(pipe, **asked), []
    with fresco.accelerate(pipe, FRESCO_5):
        hook = pipe.transformer.x_embedder.register_forward_hook(
            lambda _module, args, _output: seen.append(args[0].shape[1] - 64)
        )
        assert draw_latents(pipe, **asked).shape == plain.shape
        hook.remove()
    assert seen == [4, 4, 16, 16, 64, 64]


def test_another_pipeline_on_the_same_parts_is_left_alone(tiny_flux_pipe):
    from diffusers import FluxPipeline

    other = FluxPipeline(**tiny_flux_pipe.components)
    other.set_progress_bar_config(disable=True)
    plain = draw_latents(other, height=64, width=64)
    with fresco.accelerate(tiny_flux_pipe, FRESCO_5) as accelerated:
        assert draw_latents(other, height=64, width=64).equal(plain)

        def die(*_):
            raise KeyError

        with pytest.raises(KeyError):
            draw_latents(tiny_flux_pipe, callback_on_step_end=die)
        assert draw_latents(other, height=64, width=64).equal(plain)
        assert len(accelerated.report.steps) == 1


def test_a_second_thread_is_refused_while_a_run_lives(fast):
    caught = []

    def call_elsewhere(pipe, step, _timestep, _tensors):
        def target():
            try:
                draw_latents(pipe)
            except errors.RunError as error:
                caught.append(str(error))

        if step == 0:
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        return {}

    draw_latents(fast.pipe, callback_on_step_end=call_elsewhere)
    assert caught
    assert "one call at a time" in caught[0]


def test_a_deep_copied_scheduler_runs_on_its_own(fast):
    copied = copy.deepcopy(fast.pipe.scheduler)
    copied.set_timesteps(4, mu=1.0)
    assert len(copied.timesteps) == 4
    assert len(draw_latents(fast.pipe)) == 1


def test_plan_and_cost_are_known_before_any_run(tiny_flux_pipe):
    with fresco.accelerate(tiny_flux_pipe, FRESCO_5) as accelerated:
        assert [step.n_tokens for step in accelerated.plan.steps] == [4] * 4 + [16] * 4 + [64] * 4
        assert accelerated.cost(n_text_tokens=16).flops_speedup > 1
        with pytest.raises(errors.ScheduleError, match="neither"):
            accelerated.cost()
    assert fresco.accelerate(tiny_flux_pipe, "identity").plan is None


@pytest.mark.parametrize(
    ("asked", "kind", "match"),
    [
        ({"height": 7, "width": 64}, errors.SizeError, "got 0 x 8 tokens from height=7, width=64"),
        ({"height": -16, "width": 64}, errors.SizeError, "got -2 x 8 tokens"),
        ({"sigmas": [1.0, 0.9, 0.1]}, errors.ScheduleError, "3 sigmas of the caller's"),
        ({"latents": torch.zeros(1, 9, 16)}, errors.LayoutError, r"\[1, 64, 16\] .*\[1, 9, 16\]"),
    ],
    ids=["no token", "negative", "sigmas", "latents"],
)
def test_a_bad_call_is_refused_and_the_next_is_right(fast, asked, kind, match):
    right = draw_latents(fast.pipe)
    with pytest.raises(kind, match=match):
        draw_latents(fast.pipe, **asked)
    assert draw_latents(fast.pipe).equal(right)


def test_an_exchanged_scheduler_is_noticed(fast):
    fast.pipe.scheduler = type(fast.pipe.scheduler).from_config(fast.pipe.scheduler.config)
    with pytest.raises(errors.RunError, match="the scheduler that was accelerated"):
        draw_latents(fast.pipe)
