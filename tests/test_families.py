"""Every model family through its real pipeline class, with tiny random weights."""

from __future__ import annotations

import re

import pytest
import torch

import fresco
from fresco import errors
from fresco.layout import TokenLayout
from fresco.lift import draw_clean
from fresco.transfer import cut_patches
from tests.conftest import traces
from tests.families import FAMILIES, MIXING
from tests.family import repeated
from tests.staged import ALL_FINE, MIXED, RANDOM, STAGED
from tests.watch import Watch, coefficients, guided, parts


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def pipe(family):
    return family.make()


def test_identity_recipes_and_restore_leave_no_trace(family, pipe):
    plain, before = family.draw(pipe), traces(pipe)
    for raw in ("identity", ALL_FINE):
        with fresco.accelerate(pipe, raw) as accelerated:
            assert family.draw(pipe).equal(plain)
            assert len(accelerated.report.steps) == 6
        assert traces(pipe) == before
    with fresco.accelerate(pipe, STAGED):
        family.draw(pipe)
    assert traces(pipe) == before
    assert family.draw(pipe).equal(plain)


def test_coarse_steps_are_those_of_the_coarse_model(family, pipe):
    """The model's own picture of a smaller size, solved by Euler, with the coarse field."""
    watch = Watch(pipe, family.is_frames_first)
    with fresco.accelerate(pipe, STAGED) as accelerated:
        family.draw(pipe, width=128)  # cells of 4 tokens divide it
        steps, planned = accelerated.report.steps, accelerated.plan.steps
        run = accelerated._middleware.last
        eps, clean = run.noise.eps, run.clean[-1]
    assert [step.passes for step in steps] == [family.passes] * 7
    assert [step.tokens for step in steps] == [step.n_tokens for step in planned]
    b = len(eps)
    for k, step in enumerate(planned):
        signal, noise = coefficients(family, pipe.scheduler, watch.times[k * family.passes])
        assert noise / (signal + noise) == pytest.approx(step.sigma, abs=1e-3)
        seen = watch.seen[k * family.passes][:b]
        if seen.ndim == 3:  # packed
            assert seen.shape[1] == family.slot * step.n_tokens
            continue
        patch = accelerated._middleware.adapter.patch_px
        assert seen[0, 0].numel() == step.n_tokens * patch**2 * family.patch_frames
    _, noise = coefficients(family, pipe.scheduler, watch.times[0])  # the rest counts as clean
    coarse = (1 + 3 * noise) * torch.nn.functional.avg_pool2d(eps, 4)
    first = watch.seen[0][:b]
    is_packed = first.ndim == 3
    if is_packed and family.frames > 1:  # frame after frame
        frames = coarse.unflatten(1, (-1, family.frames))
        expected = torch.einsum("bcfhw->bfhwc", frames).flatten(1, 3)
    elif family.slot > 1:
        expected = torch.einsum("bchw->bhwc", coarse).flatten(1, 2)
    else:
        expected = cut_patches(coarse, 2).flatten(2) if is_packed else coarse
    n_frames = family.frames * family.patch_frames
    channels = len(coarse[0]) // n_frames  # conditions are behind them
    got = first if is_packed else first[:, :channels].flatten(1, -3)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    for k in (0, 2, 3):  # inside stages
        said = watch.said[k * family.passes : (k + 1) * family.passes]
        before, after = (watch.seen[i * family.passes][:b] for i in (k, k + 1))
        if not is_packed:
            before, after = before[:, :channels], after[:, :channels]
        said, n = guided(family, said), before.shape[1]
        said = said[:, -n:] if family.slot > 1 else said[:, :n]  # behind it may be a variance
        now, then = (
            coefficients(family, pipe.scheduler, watch.times[i * family.passes]) for i in (k, k + 1)
        )
        clean_part, noise_part = parts(family, before, said, *now)
        expected = then[0] * clean_part + then[1] * noise_part
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-4)
    if not is_packed:  # the clean estimate of the last lift
        said = guided(family, watch.said[4 * family.passes : 5 * family.passes])[:, :channels]
        now = coefficients(family, pipe.scheduler, watch.times[4 * family.passes])
        seen = watch.seen[4 * family.passes][:b, :channels]
        expected, _ = parts(family, seen, said, *now)
        got = torch.nn.functional.avg_pool2d(clean, 2)
        torch.testing.assert_close(got, expected.flatten(1, -3), rtol=1e-5, atol=1e-4)
        then = coefficients(family, pipe.scheduler, watch.times[5 * family.passes])
        drawn = draw_clean(clean, run.layout(2), "bilinear")
        seen = watch.seen[5 * family.passes][:b, :channels].flatten(1, -3)
        expected = then[0] * drawn + then[1] * eps
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-4)


EVEN = {  # before the shift; other pipelines leave that to the scheduler, or have their own
    "chroma", "flux", "hunyuan_image", "hunyuan_video", "hunyuan_video_15", "krea2",
    "longcat_image", "ltx", "ltx2", "lumina2", "ovis_image", "qwen_image", "qwen_image_21",
    "z_image",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(EVEN))
def test_fewer_fine_steps_are_spaced_as_the_pipeline_spaces_them(name):
    family = FAMILIES[name]
    pipe = family.make()
    plain = family.draw(pipe, num_inference_steps=4)
    sigmas = pipe.scheduler.sigmas
    with fresco.accelerate(pipe, {**STAGED, "stages": [{"cell": 1, "steps": 4}]}) as accelerated:
        drawn = family.draw(pipe, num_inference_steps=6)
        assert not accelerated.plan.keeps_schedule
        torch.testing.assert_close(pipe.scheduler.sigmas, sigmas)
    torch.testing.assert_close(drawn, plain, rtol=1e-4, atol=1e-4)


def test_runs_of_other_sizes_and_after_a_death_are_right(family, pipe):
    calls = []

    def die(*_):
        calls.append(None)
        if len(calls) > 2 * family.passes:
            raise ValueError("on purpose")

    with fresco.accelerate(pipe, STAGED) as accelerated:
        first = family.draw(pipe)
        family.draw(pipe, height=32, width=48)
        assert accelerated.plan.n_full_tokens == family.frames * 2 * 3
        assert accelerated.report.n_given_tokens == family.still_frames * 2 * 3
        hook = pipe.transformer.register_forward_pre_hook(die)
        with hook, pytest.raises(ValueError, match="on purpose"):
            family.draw(pipe)
        assert family.draw(pipe).equal(first)
        assert not family.draw(pipe, num_inference_steps=12).equal(first)


def test_an_image_does_not_depend_on_its_batch(family, pipe):
    several = repeated(family.asked())
    with fresco.accelerate(pipe, STAGED):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        together = family.draw(pipe, **several, generator=generators)
        for i in range(2):
            alone = family.draw(pipe, seed=i)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-4)


def test_mixed_stages_run_or_are_refused_with_the_reason(family, pipe):
    family.draw(pipe)  # pipelines keep what they are asked
    before = traces(pipe)
    if family.mixes:
        watch = Watch(pipe, family.is_frames_first)
        with fresco.accelerate(pipe, MIXED) as accelerated:
            assert family.draw(pipe).isfinite().all()
            tokens = [step.tokens / family.frames for step in accelerated.report.steps]
            assert tokens == [6, 6, 12, 12, 24, 24]
            patch = accelerated._middleware.adapter.patch_px**2 * family.patch_frames
        seen = watch.seen[:: family.passes]
        counts = [
            x.shape[1] / family.slot if x.ndim == 3 else x[0, 0].numel() // patch for x in seen
        ]
        assert [count / family.frames for count in counts] == [6, 6, 12, 12, 24, 24]
        del pipe.transformer.forward
        assert traces(pipe) == before
        return
    with pytest.raises(errors.RecipeError, match=r"only whole-grid stages with .*Adapter"):
        fresco.accelerate(pipe, MIXED)
    assert traces(pipe) == before


@pytest.mark.parametrize("name", MIXING)
def test_positions_of_a_mixed_stage_that_is_all_fine_are_the_model_s_own(name):
    pipe = FAMILIES[name].make()
    fine = {"cell": 1, "steps": 2, "until_sigma": 0.3}
    mixed = {**fine, "cell": "mixed", "promote": {"score": "edges", "budget": 1.0}}
    pictures = []
    for stage in (fine, mixed):
        raw = {**MIXED, "stages": [MIXED["stages"][0], stage, MIXED["stages"][2]]}
        with fresco.accelerate(pipe, raw):
            pictures.append(FAMILIES[name].draw(pipe))
    torch.testing.assert_close(pictures[1], pictures[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MIXING)
def test_an_image_of_a_mixed_stage_does_not_depend_on_its_batch(name):
    family = FAMILIES[name]
    pipe = family.make()
    several = repeated(family.asked())
    seeds = (0, 2)  # whose fields order the cells differently in every family
    with fresco.accelerate(pipe, RANDOM) as accelerated:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        together = family.draw(pipe, **several, generator=generators)
        run = accelerated._middleware.last
        assert len(run.groups(run.plan.steps[2])) == 2
        for i, seed in enumerate(seeds):
            alone = family.draw(pipe, seed=seed)
            # products of a batch are rounded otherwise: by some eps of values that may be large
            rounding = 16 * torch.finfo(torch.float32).eps * alone.abs().max().item()
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=max(1e-4, rounding))


def test_latents_of_another_shape_are_refused(family, pipe):
    with fresco.accelerate(pipe, STAGED) as accelerated:
        right = family.draw(pipe)
        shape = accelerated._middleware.adapter.latents_shape(TokenLayout.whole(4, 5, 1, 2))
        wrong = torch.zeros(1, *(2 if n == -1 else n for n in shape))
        with pytest.raises(errors.LayoutError, match=r"expected latents \[1, "):
            family.draw(pipe, latents=wrong)
        assert family.draw(pipe).equal(right)


def test_quantization_stacks_and_comes_off(family, pipe):
    plain = family.draw(pipe)
    with fresco.accelerate(pipe, STAGED):
        expected = family.draw(pipe)
    stack = [{"kind": "quantize", "form": "int8_weight_only"}]
    with fresco.accelerate(pipe, {**STAGED, "stack": stack}) as accelerated:
        got = family.draw(pipe)
        layers = {row.kind: row.counts for row in accelerated.summary().rows}["quantize"]["layers"]
        linears = [
            (name, module)
            for name, module in pipe.transformer.named_modules()
            if isinstance(module, torch.nn.Linear)
        ]
        quantized = [n for n, linear in linears if type(linear.weight.data) is not torch.Tensor]
    assert len(quantized) == layers > 0
    assert not [n for n in quantized if re.search("norm|embed|mod|ada|lora|^proj_out", n, re.I)]
    assert 0 < (got - expected).norm() / expected.norm() < 0.1
    assert family.draw(pipe).equal(plain)


def test_the_page_of_models_says_what_runs():
    from tests import write_models

    assert write_models.PAGE.read_text(encoding="utf-8") == write_models.make_page(), (
        "run `python -m tests.write_models` and commit what it writes"
    )


@pytest.mark.parametrize("name", ["sd3", "flux2", "chroma"])
def test_a_transformer_that_sees_more_than_latents_is_refused(name):
    pipe = FAMILIES[name].make()
    pipe.transformer.register_to_config(in_channels=36, out_channels=16)
    match = r"sees latents only \(16 channels\), got 36 input channels"
    with pytest.raises(errors.AdapterError, match=match):
        fresco.accelerate(pipe, STAGED)
    fresco.accelerate(pipe, "identity").restore()
