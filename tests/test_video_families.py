"""Video pipelines that see more than noise, and what recipes with stages refuse of them."""

from __future__ import annotations

import types
import warnings
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from fresco.adapters.models.cogvideox_positions import rotations
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fresco
from fresco import errors
from fresco.cost import pass_bytes
from fresco.layout import TokenLayout
from fresco.registry import find_adapter
from fresco.transfer import cut_patches
from tests.conftest import traces
from tests.families import FAMILIES
from tests.family import noise
from tests.staged import ALL_FINE, MIXED, STAGED
from tests.watch import Watch

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS = {
    "FlowMatchHeunDiscreteScheduler": ({}, "calls the transformer twice"),
    "UniPCMultistepScheduler": (FLOW, "takes back a part of a lift"),
    "DPMSolverMultistepScheduler": (FLOW, "extrapolates from the last step"),
    "DDIMScheduler": ({}, "preserves variance"),
    "CogVideoXDDIMScheduler": ({}, "preserves variance"),
    "CogVideoXDPMScheduler": ({}, "draws fresh noise"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("raw", [STAGED, ALL_FINE])
def test_another_scheduler_is_refused_with_its_reason(name, raw):
    pipe = FAMILIES["wan"].make()
    config, reason = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, name)(**config)
    before = traces(pipe)
    with pytest.raises(errors.ScheduleError, match=f"got {name}, which .*{reason}"):
        fresco.accelerate(pipe, raw)
    assert traces(pipe) == before


@pytest.mark.parametrize(("name", "is_inverted"), [("mochi", False), ("wan", True)])
def test_a_scheduler_that_runs_the_other_way_is_refused(name, is_inverted):
    pipe = FAMILIES[name].make()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=is_inverted)
    match = f"expected invert_sigmas={not is_inverted}.*got invert_sigmas={is_inverted}"
    with pytest.raises(errors.ScheduleError, match=match):
        fresco.accelerate(pipe, STAGED)


def _image_to_video(**config):
    """Wan 2.1 I2V of a tiny VAE: 4 mask channels and the picture's 4 behind the latents."""
    family = FAMILIES["wan"]
    sees = {**family.config, "in_channels": 12, "out_channels": 4}
    torch.manual_seed(0)
    with warnings.catch_warnings():  # of diffusers' own imports
        warnings.simplefilter("ignore", FutureWarning)
        transformer = diffusers.WanTransformer3DModel(**sees).eval()
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    parts = {"transformer": transformer, "vae": vae.eval(), "scheduler": scheduler, **config}
    missing = ("text_encoder", "tokenizer", "image_encoder", "image_processor")
    pipe = diffusers.WanImageToVideoPipeline(**parts, **dict.fromkeys(missing))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _draw(pipe, width=128):
    torch.manual_seed(0)
    asked = FAMILIES["wan"].asked() | {"image": noise(1, 3, 64, width).clamp(0, 1)}
    generator = torch.Generator().manual_seed(0)
    return pipe(
        **asked, height=64, width=width, num_inference_steps=6, generator=generator,
        output_type="latent", return_dict=False,
    )[0]  # fmt: skip


def test_condition_channels_are_pooled_without_the_noise_swap():
    pipe = _image_to_video()
    plain = _draw(pipe)
    with fresco.accelerate(pipe, ALL_FINE):
        assert _draw(pipe).equal(plain)
    watch = Watch(pipe)
    with fresco.accelerate(pipe, STAGED) as accelerated:
        assert _draw(pipe).isfinite().all()
        eps = accelerated._middleware.last.noise.eps
    fine, coarse = watch.seen[-1][:, 4:], watch.seen[0]
    assert coarse.shape == (1, 12, 2, 2, 4)
    expected = torch.nn.functional.avg_pool3d(fine, (1, 4, 4))
    torch.testing.assert_close(coarse[:, 4:], expected, rtol=0, atol=1e-6)
    latents = 4 * torch.nn.functional.avg_pool2d(eps, 4)
    torch.testing.assert_close(coarse[:, :4].flatten(1, 2), latents, rtol=0, atol=1e-5)


def test_conditions_of_a_grid_that_cells_do_not_divide_go_on_over_the_border():
    pipe = _image_to_video()
    watch = Watch(pipe)
    with fresco.accelerate(pipe, STAGED):
        assert _draw(pipe, width=96).isfinite().all()
    fine, coarse = watch.seen[-1][:, 4:], watch.seen[0][:, 4:]  # 12 px wide; 4 patches of 2 px
    assert coarse.shape[-2:] == (2, 4)
    torch.testing.assert_close(
        coarse[..., -1], fine[..., -1].unflatten(-1, (-1, 4)).mean(-1), rtol=0, atol=1e-6
    )


def test_conditions_of_a_mixed_layout_are_averaged_in_coarse_cells_only():
    pipe = _image_to_video()
    watch = Watch(pipe)
    with fresco.accelerate(pipe, MIXED) as accelerated:
        assert _draw(pipe).isfinite().all()
        layout = accelerated._middleware.last.mixed[0]
    assert layout.sides_used == (2, 1)
    fine, mixed = watch.seen[-1][:, 4:], watch.seen[2 * 2][:, 4:]
    assert mixed.shape == (1, 8, 2, 2, 2 * layout.n_tokens)
    coarse = torch.nn.functional.avg_pool3d(fine, (1, 2, 2))
    places = zip(layout.token_starts.tolist(), layout.token_sides.tolist(), strict=True)
    for i, ((row, column), side) in enumerate(places):
        y, x = 2 * row // side, 2 * column // side  # px, two to a token
        expected = (fine if side == 1 else coarse)[..., y : y + 2, x : x + 2]
        got = mixed[..., 2 * i : 2 * i + 2]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_stages_drive_both_transformers_that_see_a_picture():
    pictures = []
    second = _image_to_video().transformer  # of the same weights
    for others in ({}, {"transformer_2": second, "boundary_ratio": 0.79}):
        pipe = _image_to_video(**others)
        with fresco.accelerate(pipe, MIXED):
            pictures.append(_draw(pipe))
    assert pictures[1].equal(pictures[0])


def _refused(pipe, match):
    before = traces(pipe)
    with pytest.raises(errors.AdapterError, match=match):
        fresco.accelerate(pipe, STAGED)
    assert traces(pipe) == before
    fresco.accelerate(pipe, "identity").restore()


@pytest.mark.parametrize("kind", ["latent_concat", "token_replace"])
def test_hunyuan_video_that_was_trained_with_a_picture_is_refused_without(kind):
    pipe = FAMILIES["hunyuan_video"].make()
    pipe.transformer.register_to_config(image_condition_type=kind)
    _refused(pipe, rf"takes a picture \({kind}\), got HunyuanVideoPipeline")


def test_ltx_from_a_picture_is_refused():
    parts = FAMILIES["ltx"].make().components
    pipe = diffusers.LTXImageToVideoPipeline(**parts)
    _refused(pipe, r"LTXImageToVideoPipeline, with one per token \(image\)")


SINES = replace(  # CogVideoX-2B: positions are added inside
    FAMILIES["cogvideox"],
    config={**FAMILIES["cogvideox"].config, "use_rotary_positional_embeddings": False},
)


def test_cogvideox_without_rotations_runs_mixed_stages():
    pipe = SINES.make()
    plain, before = SINES.draw(pipe), traces(pipe)
    with fresco.accelerate(pipe, MIXED) as accelerated:
        assert SINES.draw(pipe).isfinite().all()
        assert [step.tokens for step in accelerated.report.steps] == [12, 12, 24, 24, 48, 48]
    assert traces(pipe) == before
    assert SINES.draw(pipe).equal(plain)


@torch.no_grad()
def test_cogvideox_s_sines_at_the_full_grid_s_places_are_its_own():
    pipe = SINES.make()
    adapter, module = find_adapter(pipe.transformer), pipe.transformer.patch_embed
    undo = adapter.attach(pipe.transformer, {"fine"})
    layout = TokenLayout.whole(4, 6, 1, 2)
    text, latents = noise(1, 5, 32), noise(1, 2, 4, 8, 12)
    call = {"hidden_states": latents}
    tokens = cut_patches(adapter.read(call, layout), 2)
    strips = []
    for moved_by in (1e-7, 0.5):
        positions = layout.positions("fine") + moved_by
        strip = adapter.embed(call, tokens, layout, positions)["hidden_states"]
        strips.append(module(text, strip))
    adapter.aim({}, None)
    undo()
    torch.testing.assert_close(strips[0], module(text, latents), rtol=0, atol=1e-5)
    assert (strips[1] - strips[0])[:, :5].abs().max() == 0
    assert (strips[1] - strips[0])[:, 5:].abs().max() > 1e-2


@pytest.mark.parametrize("patch_size_t", [None, 2])
@pytest.mark.parametrize("height", [64, 48])
def test_cogvideox_s_rotations_of_coarse_cells_are_those_of_the_smaller_video(height, patch_size_t):
    pipe = FAMILIES["cogvideox"].make()
    pipe.transformer.register_to_config(patch_size_t=patch_size_t)
    adapter = find_adapter(pipe.transformer)
    layout = TokenLayout.whole(height // 16, 6, 2, 2)
    full = pipe._prepare_rotary_positional_embeddings(height, 96, 2, "cpu")
    call = {"hidden_states": noise(1, 2, 4, height // 8, 12), "image_rotary_emb": full}
    tokens = torch.zeros(1, layout.n_tokens, 8, 2, 2)
    entered = adapter.embed(call, tokens, layout, layout.positions("native"))
    own = pipe._prepare_rotary_positional_embeddings(-(-height // 32) * 16, 48, 2, "cpu")
    torch.testing.assert_close(entered["image_rotary_emb"], own, rtol=0, atol=1e-6)


def test_cogvideox_that_was_trained_with_a_picture_is_refused_without():
    pipe = FAMILIES["cogvideox"].make()
    pipe.transformer.register_to_config(in_channels=8)
    _refused(pipe, r"takes a picture \(8 channels\), got CogVideoXPipeline")


def test_cogvideox_s_own_schedule_is_told_as_a_flow_s():
    family = FAMILIES["cogvideox"]
    pipe = family.make()
    plain = family.draw(pipe)
    with fresco.accelerate(pipe, "identity") as accelerated:
        assert family.draw(pipe).equal(plain)
        steps = accelerated.report.steps
    assert [step.tokens for step in steps] == [2 * 4 * 6] * 6
    kept = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps]
    expected = (1 - kept).sqrt() / ((1 - kept).sqrt() + kept.sqrt())
    assert [step.sigma for step in steps] == pytest.approx(expected.tolist())


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")  # of its positions
@torch.no_grad()
def test_costs_of_mochi_are_those_of_its_calls():
    """Counted without weights: with positions of its own and a mask that holds for all."""
    family = FAMILIES["mochi"]
    pipe = family.make()
    plain = family.draw(pipe)
    with fresco.accelerate(pipe, STAGED) as accelerated:
        family.draw(pipe)
        cost, plan = accelerated.cost(), accelerated.plan
    flops = {}
    for n_tokens in {step.n_tokens for step in plan.steps}:
        call = find_adapter(pipe.transformer).example_call(pipe.transformer, n_tokens, 5)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            pipe.transformer(**call)
        flops[n_tokens] = counter.get_total_flops()
    assert len(flops) == 3
    assert cost.flops == sum(flops[step.n_tokens] for step in plan.steps)
    assert cost.baseline_flops == plan.n_requested * flops[plan.n_full_tokens]
    assert pass_bytes(pipe.transformer, 12, 5) < pass_bytes(pipe.transformer, 48, 5)
    assert family.draw(pipe).equal(plain)


@pytest.mark.parametrize("sides", [(1, 6), (30, 45), (20, 24)])
def test_rotations_of_cogvideox_are_the_pipeline_s_own_whatever_the_size(sides):
    config = types.SimpleNamespace(
        patch_size_t=None, patch_size=2, sample_width=90, sample_height=60, attention_head_dim=64
    )
    places = TokenLayout.whole(*sides, 1, 2).positions("fine")
    corners = get_resize_crop_region_for_grid(sides, 45, 30)
    own = get_3d_rotary_pos_embed(64, corners, sides, temporal_size=3)
    for got, expected in zip(rotations(config, sides, places, 3), own, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
