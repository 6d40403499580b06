"""What fresco relies on in diffusers and torch."""

from __future__ import annotations

import inspect

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from fresco.layout import TokenLayout
from fresco.ports import find_adapter
from fresco.schedule import shifted_sigmas


def test_flux_prepares_latents_before_timesteps_and_frees_hooks_last():
    source = inspect.getsource(FluxPipeline.__call__)
    order = ["self.prepare_latents(", "retrieve_timesteps(", "self.transformer(", "scheduler.step("]
    places = [source.index(name) for name in [*order, "self.maybe_free_model_hooks()"]]
    assert places == sorted(places)


def test_methods_take_the_arguments_that_are_read():
    assert {"height", "width", "latents"} <= set(
        inspect.signature(FluxPipeline.prepare_latents).parameters
    )
    step = inspect.signature(FlowMatchEulerDiscreteScheduler.step).parameters
    assert list(step)[1:4] == ["model_output", "timestep", "sample"]
    timesteps = inspect.signature(FlowMatchEulerDiscreteScheduler.set_timesteps).parameters
    assert {"sigmas", "timesteps"} <= set(timesteps)


def test_a_scheduler_steps_along_sigmas_that_rise():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    scheduler.sigmas = torch.tensor([1.0, 0.5, 0.75, 0.0])
    scheduler.timesteps = scheduler.sigmas[:-1] * 1000
    scheduler.set_begin_index(0)
    clean, eps = torch.tensor([3.0]), torch.tensor([-1.0])
    x = eps
    for t, following in zip(scheduler.timesteps, scheduler.sigmas[1:], strict=True):
        x = scheduler.step(eps - clean, t, x, return_dict=False)[0]
        torch.testing.assert_close(x, (1 - following) * clean + following * eps)


def test_adapter_shift_is_the_pipeline_s(tiny_flux_pipe):
    scheduler, adapter = tiny_flux_pipe.scheduler, find_adapter(tiny_flux_pipe.transformer)
    for n_tokens in (16, 256, 1024, 4096):
        scheduler.set_timesteps(
            sigmas=[1 - i / 7 for i in range(7)], mu=calculate_shift(n_tokens), device="cpu"
        )
        own = shifted_sigmas(1.0, 0.0, 7, adapter.shift(scheduler, n_tokens))
        torch.testing.assert_close(scheduler.sigmas[:-1], torch.tensor(own))


def test_adapter_shift_of_linear_and_static_schedulers(tiny_flux_pipe):
    adapter = find_adapter(tiny_flux_pipe.transformer)
    linear = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    linear.set_timesteps(sigmas=[1.0, 0.5], mu=calculate_shift(1024))
    own = shifted_sigmas(1.0, 0.0, 2, adapter.shift(linear, 1024))
    torch.testing.assert_close(linear.sigmas[:-1], torch.tensor(own))
    assert adapter.shift(FlowMatchEulerDiscreteScheduler(shift=3.0), 1024) == 3.0


def test_flux_packs_channels_before_the_pixels_of_a_patch(tiny_flux_pipe):
    adapter, layout = find_adapter(tiny_flux_pipe.transformer), TokenLayout.whole(2, 3, 1, 2)
    latents = torch.arange(2 * 4 * 4 * 6.0).view(2, 4, 4, 6)
    packed = FluxPipeline._pack_latents(latents, 2, 4, 4, 6)
    assert adapter.pack(latents).equal(packed)
    assert adapter.unpack(packed, layout).equal(latents)


def test_positions_of_a_coarse_grid_are_the_pipeline_s_own(tiny_flux_pipe):
    adapter, layout = find_adapter(tiny_flux_pipe.transformer), TokenLayout.whole(5, 8, 2, 2)
    own = FluxPipeline._prepare_latent_image_ids(1, 3, 4, "cpu", torch.float32)
    fine = FluxPipeline._prepare_latent_image_ids(1, 5, 8, "cpu", torch.float32)
    call = {"hidden_states": torch.zeros(1, 40, 16), "img_ids": fine}
    positions = layout.positions("native")
    assert adapter.embed(call, torch.zeros(1, 12, 4, 2, 2), layout, positions)["img_ids"].equal(own)


def test_condition_tokens_are_left_aside(tiny_flux_pipe):
    adapter, layout = find_adapter(tiny_flux_pipe.transformer), TokenLayout.whole(4, 4, 2, 2)
    hidden, ids = torch.randn(1, 21, 16), torch.randn(21, 3)
    call = {"hidden_states": hidden, "img_ids": ids}
    assert adapter.read(call, layout).shape == (1, 4, 8, 8)
    swapped = adapter.embed(call, torch.zeros(1, 4, 4, 2, 2), layout, torch.zeros(4, 2))
    assert swapped["hidden_states"][:, 4:].equal(hidden[:, 16:])
    assert swapped["img_ids"][4:].equal(ids[16:])
    output = (torch.randn(1, 9, 16), "kept")
    replaced = adapter.replace(output, torch.zeros(1, 4, 8, 8), layout)
    assert replaced[0].shape == (1, 21, 16)
    assert replaced[0][:, 16:].equal(output[0][:, 4:])
    assert replaced[1] == "kept"
