"""Laws of whole runs on a real pipeline class with random weights."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fresco
from fresco import errors
from fresco.noise import NoiseField
from fresco.recipe import load_recipe
from fresco.transfer import join_patches, prolong, restrict
from fresco.wraps import wrap_method
from tests.conftest import FRESCO_5, draw_latents, make_flux_pipe, traces
from tests.strategies import SEEDS, recipes

IDENTITIES = {
    "no stages": {"schema": 1, "model": "any"},
    "one all-fine stage": {"schema": 1, "model": "any", "stages": [{"cell": 1, "steps": 6}]},
}


@pytest.mark.parametrize("raw", IDENTITIES.values(), ids=IDENTITIES)
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"height": 72, "width": 40, "num_inference_steps": 3},
        {"negative_prompt": "a square", "true_cfg_scale": 3.0},
        {"prompt": ["a red circle", "blue"], "num_images_per_prompt": 2},
        {"sigmas": [1.0, 0.7, 0.2]},
    ],
    ids=str,
)
def test_identity_recipe_leaves_the_pipeline_bit_identical(tiny_flux_pipe, raw, asked):
    plain = draw_latents(tiny_flux_pipe, **asked)
    with fresco.accelerate(tiny_flux_pipe, raw) as accelerated:
        assert draw_latents(tiny_flux_pipe, **asked).equal(plain)
        assert accelerated.plan.keeps_schedule
        assert len(accelerated.report.steps) == len(accelerated.plan.steps)


@pytest.mark.parametrize("raw", IDENTITIES.values(), ids=IDENTITIES)
def test_identity_recipe_is_bit_identical_in_bfloat16(tiny_flux_pipe, raw):
    pipe = tiny_flux_pipe.to(torch.bfloat16)
    plain = draw_latents(pipe)
    with fresco.accelerate(pipe, raw):
        assert draw_latents(pipe).equal(plain)


@pytest.mark.filterwarnings("ignore:promotion by tau did nothing")
@settings(max_examples=5)
@given(recipes(), SEEDS)
def test_restore_returns_the_pipeline_bit_identical(raw, seed):
    pipe = make_flux_pipe()
    plain, before = draw_latents(pipe, seed=seed), traces(pipe)
    accelerated = fresco.accelerate(pipe, raw)
    draw_latents(pipe, seed=seed + 1)
    accelerated.restore()
    assert traces(pipe) == before
    assert draw_latents(pipe, seed=seed).equal(plain)


def test_wraps_and_hooks_of_others_stay(tiny_flux_pipe):
    pipe = tiny_flux_pipe
    pipe.transformer.register_forward_hook(lambda *_: None)
    wrap_method(pipe, "prepare_latents", lambda original, args, kwargs: original(*args, **kwargs))
    vars(pipe)["prepare_latents"].__func__.__dict__.clear()  # as if of another library
    before, plain = traces(pipe), draw_latents(pipe)
    with fresco.accelerate(pipe, FRESCO_5):
        draw_latents(pipe)
    assert traces(pipe) == before
    assert draw_latents(pipe).equal(plain)


def test_restore_under_another_wrap_is_refused_and_works_after(tiny_flux_pipe):
    pipe = tiny_flux_pipe
    before = traces(pipe)
    accelerated = fresco.accelerate(pipe, FRESCO_5)
    inside = traces(pipe)
    undo = wrap_method(pipe.scheduler, "step", lambda original, args, _: original(*args))
    with pytest.raises(errors.AttachError, match=r"step .*FlowMatchEulerDiscreteScheduler"):
        accelerated.restore()
    undo()
    assert traces(pipe) == inside
    accelerated.restore()
    accelerated.restore()
    assert traces(pipe) == before


@pytest.mark.filterwarnings("ignore:promotion by tau did nothing")
@settings(max_examples=10)
@given(recipes(), st.integers(2, 24))
def test_transformer_is_called_as_planned(raw, n_steps):
    pipe = make_flux_pipe()
    seen = []
    with fresco.accelerate(pipe, raw) as accelerated:
        hook = pipe.transformer.x_embedder.register_forward_hook(
            lambda _module, args, _output: seen.append(args[0].shape[1])
        )
        draw_latents(pipe, num_inference_steps=n_steps, height=72, width=40)
        hook.remove()
    assert seen == [step.n_tokens for step in accelerated.plan.steps]
    assert seen == [step.tokens for step in accelerated.report.steps]
    assert [s.sigma for s in accelerated.report.steps] == list(accelerated.plan.sigmas[:-1])


@pytest.mark.parametrize("form", ["trajectory", "clean", "latent", "fresh", "spectral"])
@pytest.mark.parametrize("size", [(64, 64), (72, 40)], ids=str)
def test_an_image_does_not_depend_on_its_batch(tiny_flux_pipe, form, size):
    raw = copy.deepcopy(FRESCO_5)
    raw["stages"][1]["lift"]["form"] = raw["stages"][2]["lift"]["form"] = form
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    asked = {"height": size[0], "width": size[1]}
    with fresco.accelerate(tiny_flux_pipe, raw):
        together = draw_latents(
            tiny_flux_pipe, prompt=["a red circle", "blue"], generator=generators, **asked
        )
        alone = draw_latents(tiny_flux_pipe, prompt="blue", seed=1, **asked)
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-4)


def test_a_whole_run_is_the_algorithm_written_out(tiny_flux_pipe):
    """Slow and obvious: restrict, call the transformer on its native small grid, prolong, step."""
    pipe, raw = tiny_flux_pipe, copy.deepcopy(FRESCO_5)
    with fresco.accelerate(pipe, raw) as accelerated:
        got = draw_latents(pipe)
        plan = accelerated.plan
    text, pooled, text_ids = pipe.encode_prompt("a red circle", None, max_sequence_length=16)
    eps = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    field, x = NoiseField(eps, 2), eps
    for step in plan.steps:
        from fresco.layout import TokenLayout

        layout = TokenLayout.whole(8, 8, step.side, 2)
        tokens = restrict(x, field, step.sigma, layout)
        small = join_patches(tokens, 8 // step.side)
        b, c, h, w = small.shape
        with torch.no_grad():
            predicted = pipe.transformer(
                hidden_states=pipe._pack_latents(small, b, c, h, w),
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=torch.tensor([step.sigma]),
                img_ids=pipe._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32),
                txt_ids=text_ids,
                return_dict=False,
            )[0]
        scale = pipe.vae_scale_factor
        grid = pipe._unpack_latents(predicted, h * scale, w * scale, scale)
        patches = grid.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        v = prolong(patches.reshape(b, layout.n_tokens, c, 2, 2), field, 1.0, layout)
        lift = step.lift
        if lift is None:
            x = x + (step.next_sigma - step.sigma) * v
        elif lift.form == "clean":
            small_x0 = torch.nn.functional.avg_pool2d(x - step.sigma * v, step.side)
            x0 = torch.nn.functional.interpolate(
                small_x0, scale_factor=step.side, mode="bilinear", align_corners=False
            )
            x = (1 - lift.to_sigma) * x0 + lift.to_sigma * eps
        else:
            end = x + (lift.end_sigma - step.sigma) * v
            beta = (1 - lift.to_sigma) / (1 - lift.end_sigma)
            x = beta * end + (lift.to_sigma - beta * lift.end_sigma) * eps
    expected = pipe._pack_latents(x, 1, 4, 16, 16)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_every_lift_ends_elsewhere(tiny_flux_pipe):
    ends = []
    for form in ("trajectory", "clean", "latent", "fresh", "spectral"):
        raw = copy.deepcopy(FRESCO_5)
        raw["stages"][2]["lift"]["form"] = form
        with fresco.accelerate(tiny_flux_pipe, load_recipe(raw)):
            ends.append(draw_latents(tiny_flux_pipe))
            assert draw_latents(tiny_flux_pipe).equal(ends[-1])
    for i, end in enumerate(ends):
        assert end.isfinite().all()
        assert not any(end.equal(other) for other in ends[:i])
