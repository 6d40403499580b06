"""In a batch every image has a mixed layout of its own; equal ones go together."""

from __future__ import annotations

import threading

import pytest
import torch

import fresco
from fresco.layout import TokenLayout
from fresco.noise import NoiseField
from fresco.promotion import Promotion, promote
from fresco.registry import find_adapter
from fresco.run import Run
from fresco.score import SCORES
from tests.conftest import draw_latents
from tests.families import FAMILIES
from tests.mixed import RUNS, varied


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


def test_a_budget_that_is_met_is_not_scored_again(tiny_flux_pipe, monkeypatch):
    score, end = SCORES["edges"]
    scored = []

    def count(evidence):
        scored.append(None)
        return score(evidence)

    monkeypatch.setattr("fresco.run.SCORES", {"edges": (count, end)})
    budgets = {"score": "edges", "budget": [0, 0.1, 0.2, 0.2, 0.5, 0.5]}
    with fresco.accelerate(tiny_flux_pipe, varied(promote=budgets)):
        draw_latents(tiny_flux_pipe, prompt=["a red circle", "blue"], num_inference_steps=12)
    assert len(scored) == 4  # the fourth and the sixth step have what they ask for


def test_pictures_that_have_not_met_a_budget_are_promoted_beside_those_that_have():
    noise = NoiseField(torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), 2)
    coarse = TokenLayout.whole(8, 8, 2, 2)
    half = promote(coarse, torch.rand(4, 4), Promotion("edges", "high", budget=0.5))
    run = Run(threading.current_thread(), TokenLayout.whole(8, 8, 1, 2), noise)
    run.clean.append(noise.eps)
    run.mixed = half, coarse
    run._promote(Promotion("edges", "high", budget=0.5), 2, goes_on=True)
    assert run.mixed[0].sides.equal(half.sides)
    assert run.mixed[1].n_tokens == half.n_tokens
    run._promote(Promotion("edges", "high", budget=0.5), 2, goes_on=False)  # a stage begins
    assert not run.mixed[0].sides.equal(half.sides)


@pytest.mark.parametrize("name", ["flux", "chroma"])
def test_batches_with_ip_adapter_images_are_refused_in_mixed_stages(name):
    embeds = {"ip_adapter_image_embeds": [torch.zeros(2, 1, 4, 16)]}
    adapter_error = fresco.errors.AdapterError
    adapter = find_adapter(FAMILIES[name].make().transformer)
    call = {"hidden_states": torch.zeros(2, 4, 16), "joint_attention_kwargs": embeds}
    with pytest.raises(adapter_error, match="got 2 pictures with them"):
        adapter.select(call, [0])
