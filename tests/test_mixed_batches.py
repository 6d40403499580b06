"""In a batch every image has a mixed layout of its own; equal ones go together."""

from __future__ import annotations

import pytest
import torch

import fresco
from tests.conftest import draw_latents
from tests.mixed import RUNS


@pytest.mark.parametrize("raw", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("size", [(64, 64), (72, 40)], ids=str)
def test_an_image_does_not_depend_on_its_batch(tiny_flux_pipe, raw, size):
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    asked = {"height": size[0], "width": size[1], "num_inference_steps": 6}
    prompts = ["a red circle", "blue", "a large square"]
    with fresco.accelerate(tiny_flux_pipe, raw) as accelerated:
        together = draw_latents(tiny_flux_pipe, prompt=prompts, generator=generators, **asked)
        layouts = accelerated._middleware.last.mixed
        alone = draw_latents(tiny_flux_pipe, prompt="blue", seed=1, **asked)
        assert accelerated._middleware.last.mixed[0].sides.equal(layouts[1].sides)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)


def test_images_of_one_batch_have_layouts_of_their_own(tiny_flux_pipe):
    with fresco.accelerate(tiny_flux_pipe, RUNS["random"]) as accelerated:
        draw_latents(tiny_flux_pipe, prompt=["a red circle", "blue"])
        one, other = accelerated._middleware.last.mixed
        assert not one.sides.equal(other.sides)
    with fresco.accelerate(tiny_flux_pipe, RUNS["evenly_spaced"]) as accelerated:
        draw_latents(tiny_flux_pipe, prompt=["a red circle", "blue"])
        run = accelerated._middleware.last
        assert len(run.groups(run.plan.steps[4])) == 1  # equal layouts go together


def test_groups_that_interleave_come_back_in_the_batch_s_order(tiny_flux_pipe):
    seeds, prompts = (0, 1, 0), ["a red circle", "blue", "a red circle"]
    with fresco.accelerate(tiny_flux_pipe, RUNS["random"]) as accelerated:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        together = draw_latents(tiny_flux_pipe, prompt=prompts, generator=generators)
        run = accelerated._middleware.last
        assert [group.images for group in run.groups(run.plan.steps[4])] == [(0, 2), (1,)]
        for image, (seed, prompt) in enumerate(zip(seeds, prompts, strict=True)):
            alone = draw_latents(tiny_flux_pipe, prompt=prompt, seed=seed)
            torch.testing.assert_close(together[image : image + 1], alone, rtol=0, atol=1e-4)


def test_batches_with_ip_adapter_images_are_refused_in_mixed_stages(tiny_flux_pipe):
    embeds = {"ip_adapter_image_embeds": [torch.zeros(2, 1, 4, 16)]}
    adapter_error = fresco.errors.AdapterError
    from fresco.registry import find_adapter

    adapter = find_adapter(tiny_flux_pipe.transformer)
    call = {"hidden_states": torch.zeros(2, 4, 16), "joint_attention_kwargs": embeds}
    with pytest.raises(adapter_error, match="got 2 pictures with them"):
        adapter.select(call, [0])
