"""Conditions that are pictures: beside the tokens at full resolution, or averaged with them."""

from __future__ import annotations

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

import fresco
from fresco import errors
from fresco.cost import pass_flops
from fresco.registry import find_adapter
from tests.conftest import draw_latents, traces
from tests.families import FAMILIES
from tests.family import noise
from tests.staged import ALL_FINE, MIXED, STAGED

HALF = torch.zeros(1, 1, 64, 96)
HALF[..., 48:] = 1  # the right half is painted
PHASE = {**MIXED, "stages": [dict(stage) for stage in MIXED["stages"]]}
PHASE["stages"][1]["positions"] = "phase"


def make_flux(base, pipeline, in_channels):
    """Another pipeline of FLUX on the parts of the tiny one, with a transformer of its own."""
    torch.manual_seed(0)
    config = {k: v for k, v in base.transformer.config.items() if not k.startswith("_")}
    config |= {"in_channels": in_channels, "out_channels": 16}
    transformer = diffusers.FluxTransformer2DModel(**config).eval()
    names = "scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"
    parts = {name: base.components[name] for name in names}
    pipe = getattr(diffusers, pipeline)(transformer=transformer, **parts)
    pipe.default_sample_size = 16
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(seed=0, height=64, width=96):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def fill(tiny_flux_pipe):
    return make_flux(tiny_flux_pipe, "FluxFillPipeline", 16 + 16 + 64)


@pytest.fixture
def control(tiny_flux_pipe):
    return make_flux(tiny_flux_pipe, "FluxControlPipeline", 32)


ASKED = {
    "fill": {"image": picture(), "mask_image": HALF, "height": 64, "width": 96},
    "control": {"control_image": picture(), "height": 64, "width": 96},
}


def calls_of(pipe, **asked):
    """What the transformer sees in every pass, and the picture."""
    seen = []

    def record(_module, _args, kwargs):
        seen.append(kwargs["hidden_states"].clone())

    with pipe.transformer.register_forward_pre_hook(record, with_kwargs=True):
        return seen, draw_latents(pipe, **asked)


@pytest.mark.parametrize("name", ["fill", "control"])
def test_identity_recipes_leave_conditioned_pipelines_as_they_are(name, request):
    pipe = request.getfixturevalue(name)
    plain, before = draw_latents(pipe, **ASKED[name]), traces(pipe)
    for raw in ("identity", ALL_FINE):
        with fresco.accelerate(pipe, raw):
            assert draw_latents(pipe, **ASKED[name]).equal(plain)
        assert traces(pipe) == before


@pytest.mark.parametrize("name", ["fill", "control"])
def test_channels_of_conditions_are_averaged_without_noise(name, request):
    pipe = request.getfixturevalue(name)
    (plain, *_), _ = calls_of(pipe, **ASKED[name])
    for raw, n_tokens in ((STAGED, [6, 6, 24, 24, 24, 96, 96]), (MIXED, [24, 24, 54, 54, 96, 96])):
        with fresco.accelerate(pipe, raw) as accelerated:
            seen, result = calls_of(pipe, **ASKED[name])
            assert result.isfinite().all()
            assert [x.shape[1] for x in seen] == n_tokens
            assert [step.tokens for step in accelerated.report.steps] == n_tokens
        assert seen[-1][..., 16:].equal(plain[..., 16:])  # the full grid's, untouched
        side = 4 if raw is STAGED else 2
        grid = plain[..., 16:].view(1, 8, 12, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).flatten(4)
        grid = torch.nn.functional.avg_pool2d(grid.flatten(2, 3), side)
        rows, columns = 8 // side, 12 // side
        cells = grid.view(1, -1, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        torch.testing.assert_close(seen[0][..., 16:], cells.reshape(1, rows * columns, -1))


@pytest.mark.parametrize("raw", [STAGED, MIXED])
def test_fill_at_less_than_full_strength_starts_from_the_picture(fill, raw):
    asked = ASKED["fill"] | {"strength": 0.7}
    (plain, *_), before = calls_of(fill, **asked)
    with fresco.accelerate(fill, raw) as accelerated:
        seen, result = calls_of(fill, **asked)
        steps, plan = accelerated.report.steps, accelerated.plan
    assert result.isfinite().all()
    assert len(seen) == len(steps)
    assert plan.sigmas[0] == max(plan.sigmas) < 1
    assert seen[-1][..., 16:].equal(plain[..., 16:])
    with fresco.accelerate(fill, "identity"):
        assert draw_latents(fill, **asked).equal(before)


def test_less_than_full_strength_is_refused_where_the_family_does_not_know_it(fill, monkeypatch):
    """By the pipelines that start from noise alone unless asked."""
    monkeypatch.setattr(type(find_adapter(fill.transformer)), "from_pictures", ())
    with fresco.accelerate(fill, STAGED):
        right, worked = draw_latents(fill, **ASKED["fill"]), []
        with (
            fill.transformer.register_forward_pre_hook(lambda *_: worked.append(1)),
            pytest.raises(errors.RunError, match=r"leaves out its first 3 steps"),
        ):
            draw_latents(fill, **ASKED["fill"], strength=0.5)
        assert not worked
        assert draw_latents(fill, **ASKED["fill"]).equal(right)
    plain = draw_latents(fill, **ASKED["fill"], strength=0.5)
    for raw in ("identity", ALL_FINE):
        with fresco.accelerate(fill, raw) as accelerated:
            assert draw_latents(fill, **ASKED["fill"], strength=0.5).equal(plain)
            assert len(accelerated.report.steps) == 3


def test_costs_count_the_tokens_of_a_reference_picture(tiny_flux_pipe):
    pipe = diffusers.FluxKontextPipeline(**tiny_flux_pipe.components)
    pipe.set_progress_bar_config(disable=True)
    asked = {"image": picture(), "height": 64, "width": 96}
    with fresco.accelerate(pipe, STAGED) as accelerated:
        draw_latents(pipe, **asked, _auto_resize=False, max_area=64 * 96)
        report, cost = accelerated.report, accelerated.cost()
    assert report.n_given_tokens == 96
    counts = [
        pass_flops(pipe.transformer, 96 + s.tokens, report.n_text_tokens) for s in report.steps
    ]
    assert cost.flops == sum(counts)
    size = {"height": 64, "width": 96, "steps": 6, "text_tokens": report.n_text_tokens}
    forecast = fresco.plan(pipe, STAGED, **size, reference_tokens=96)
    assert (forecast.total_flops, forecast.n_given_tokens) == (cost.flops, 96)
    assert fresco.plan(pipe, STAGED, **size).total_flops < cost.flops


@pytest.mark.parametrize("raw", [STAGED, MIXED])
def test_inpainting_keeps_what_is_not_painted(tiny_flux_pipe, raw):
    pipe = diffusers.FluxKontextInpaintPipeline(**tiny_flux_pipe.components)
    pipe.set_progress_bar_config(disable=True)
    asked = {"image": picture(), "mask_image": HALF, "height": 64, "width": 96}
    asked |= {"_auto_resize": False, "max_area": 64 * 96}
    plain = draw_latents(pipe, **asked)
    with fresco.accelerate(pipe, raw):
        got = draw_latents(pipe, **asked)
    kept = (torch.arange(96) % 12) < 6  # tokens of the left half
    assert got[:, kept].equal(plain[:, kept])
    assert (got[:, ~kept] - plain[:, ~kept]).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["fresh", "spectral"])
def test_inpainting_refuses_lifts_that_draw_another_field(tiny_flux_pipe, form):
    pipe = diffusers.FluxKontextInpaintPipeline(**tiny_flux_pipe.components)
    lift = {"form": form} if form == "spectral" else {"form": form, "to_sigma": 0.6}
    stages = [STAGED["stages"][0], STAGED["stages"][1], {"cell": 1, "steps": 2, "lift": lift}]
    with pytest.raises(errors.AttachError, match=f"got {form} for FluxKontextInpaintPipeline"):
        fresco.accelerate(pipe, {**STAGED, "stages": stages})


def test_phase_aligned_attention_refuses_reference_pictures(tiny_flux_pipe):
    pipe = diffusers.FluxKontextPipeline(**tiny_flux_pipe.components)
    pipe.set_progress_bar_config(disable=True)
    asked = {"height": 64, "width": 96, "_auto_resize": False, "max_area": 64 * 96}
    with fresco.accelerate(pipe, PHASE):
        right = draw_latents(pipe, **asked)
        with pytest.raises(errors.AdapterError, match=r"got 96 tokens of other pictures"):
            draw_latents(pipe, image=picture(), **asked)
        assert draw_latents(pipe, **asked).equal(right)


def make_edit(name):
    """A tiny pipeline of Qwen-Image that edits a picture."""
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    plain = FAMILIES["qwen_image"].make()
    parts = dict.fromkeys(("text_encoder", "tokenizer", "processor"))
    shared = {"transformer": plain.transformer, "scheduler": plain.scheduler}
    pipe = getattr(diffusers, name)(vae=vae.eval(), **shared, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def small(area, ratio):
    """`calculate_dimensions` of the pipelines, for pictures of 64 x 48 px."""
    del area, ratio
    return 64, 48, None


@pytest.mark.parametrize("name", ["QwenImageEditPipeline", "QwenImageEditPlusPipeline"])
@pytest.mark.parametrize("raw", [STAGED, MIXED])
def test_pictures_to_edit_keep_their_resolution(name, raw, monkeypatch):
    pipe = make_edit(name)
    module = __import__(type(pipe).__module__, fromlist=["x"])
    n_sizes = 3 if name == "QwenImageEditPipeline" else 2
    monkeypatch.setattr(module, "calculate_dimensions", lambda *a: small(*a)[:n_sizes])
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    asked = {
        "image": PIL.Image.fromarray(pixels),
        "prompt_embeds": noise(1, 5, 32),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 0]]),
        "negative_prompt_embeds": noise(1, 4, 32, seed=2),
        "negative_prompt_embeds_mask": torch.tensor([[1, 1, 1, 0]]),
        "true_cfg_scale": 2.0,
        "height": 64,
        "width": 96,
    }
    family = FAMILIES["qwen_image"]
    plain, before = family.draw(pipe, **asked), traces(pipe)
    seen = []

    def record(_module, args, _output):
        seen.append(args[0].clone())

    with pipe.transformer.img_in.register_forward_hook(record):
        family.draw(pipe, **asked)
        references = seen[0][:, 24:]
        assert references.shape[1] == 12
        seen.clear()
        with fresco.accelerate(pipe, raw) as accelerated:
            got = family.draw(pipe, **asked)
            steps = accelerated.report.steps
    assert got.shape == plain.shape
    assert got.isfinite().all()
    assert [step.passes for step in steps] == [2] * len(steps)
    assert [x.shape[1] - 12 for x in seen[::2]] == [step.tokens for step in steps]
    assert all(x[:, -12:].equal(references) for x in seen)
    assert traces(pipe) == before
    assert family.draw(pipe, **asked).equal(plain)
    with fresco.accelerate(pipe, ALL_FINE):
        assert family.draw(pipe, **asked).equal(plain)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("chroma", "controlnet_single_block_samples"),
        ("sana", "controlnet_block_samples"),
        ("z_image", "controlnet_block_samples"),
    ],
)
def test_residuals_of_a_controlnet_are_refused_where_no_cells_average_them(name, argument):
    family = FAMILIES[name]
    pipe = family.make()

    def add_residuals(_module, args, kwargs):
        return args, {**kwargs, argument: [torch.zeros(1)]}

    with fresco.accelerate(pipe, STAGED):
        right = family.draw(pipe)
        hook = pipe.transformer.register_forward_pre_hook(
            add_residuals, with_kwargs=True, prepend=True
        )
        with pytest.raises(errors.AdapterError, match=f"got {argument}"):
            family.draw(pipe)
        hook.remove()
        assert family.draw(pipe).equal(right)
