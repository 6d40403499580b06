"""What single families of pictures have that others have not."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid
from fresco.adapters.models.cogview4 import _scaled
from fresco.adapters.models.sd3 import _waves_between
from fresco.adapters.models.strip import between

import fresco
from fresco import errors
from fresco.layout import TokenLayout
from fresco.ports import find_adapter
from fresco.transfer import cut_patches
from fresco.wraps import call_by_name
from tests.conftest import traces
from tests.families import FAMILIES, _noise
from tests.test_families import MIXED, MIXING, STAGED


def record_call(family, pipe):
    """The first call of a plain run, by name."""
    calls = []

    def record(module, args, kwargs):
        calls.append(call_by_name(module, args, kwargs))

    with pipe.transformer.register_forward_pre_hook(record, with_kwargs=True):
        family.draw(pipe)
    return calls[0]


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")  # Mochi's positions
@pytest.mark.parametrize("name", MIXING)
@torch.no_grad()
def test_recomputed_positions_of_the_full_grid_are_the_model_s_own(name):
    family = FAMILIES[name]
    pipe = family.make()
    call, transformer = record_call(family, pipe), pipe.transformer
    adapter = find_adapter(transformer)
    undo = adapter.attach(transformer, {"fine"})
    layout = TokenLayout.whole(4, 6, 1, adapter.patch_px)
    tokens = cut_patches(adapter.read(call, layout), adapter.patch_px)

    def predict(moved_by):  # a hair off the grid, so that all of them are recomputed
        positions = layout.positions("fine") + moved_by
        output = transformer(**adapter.embed(call, tokens, layout, positions))
        adapter.aim({}, None)
        return adapter.unembed(output, layout)

    own = adapter.unembed(transformer(**call), layout)
    torch.testing.assert_close(predict(1e-6), own, rtol=0, atol=1e-4)  # LTX's angles are large
    # rotations know distances only, so halve those
    assert (predict(-layout.positions("fine") / 2) - own).abs().max() > 1e-3
    undo()
    assert adapter.unembed(transformer(**call), layout).equal(own)


def test_a_place_between_entries_of_a_table_has_their_mean():
    table = torch.tensor([[[0.0], [4.0]], [[8.0], [20.0]]])
    places = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.0, 0.25], [1.5, 0.0]])
    assert between(table, places).flatten().tolist() == [0.0, 20.0, 8.0, 1.0, 8.0]


def test_sd3_s_positions_halfway_are_the_sines_of_the_middle():
    module = FAMILIES["sd3"].make().transformer.pos_embed
    most, d = module.pos_embed_max_size, module.pos_embed.shape[-1]
    places = torch.tensor([[3.0, 5.0], [3.5, 5.5], [7.5, 4.0]])
    got = _waves_between(module.pos_embed.view(most, most, -1), places)
    unit = most / module.base_size
    parts = [
        get_1d_sincos_pos_embed_from_grid(d // 2, places[:, axis] / unit, output_type="pt")
        for axis in (1, 0)  # columns first
    ]
    torch.testing.assert_close(got, torch.cat(parts, dim=1).float(), rtol=0, atol=1e-5)


def test_cogview4_s_positions_between_whole_ones_are_in_proportion():
    places = torch.tensor([0.0, 0.5, 1.0, 1.5, 5.0])
    # 16 positions over 6 tokens: 0, 2, 5, ..., 13
    assert _scaled(places, 6, 16).tolist() == [0.0, 1.0, 2.0, 3.5, 13.0]


@pytest.mark.parametrize("name", ["sd3", "aura_flow", "cogview4", "mochi"])
def test_coarse_units_are_refused_where_positions_depend_on_the_size(name):
    pipe = FAMILIES[name].make()
    before = traces(pipe)
    stage = {**MIXED["stages"][1], "positions": "coarse"}
    raw = {**MIXED, "stages": [MIXED["stages"][0], stage, MIXED["stages"][2]]}
    with pytest.raises(errors.AdapterError, match=r"got positions: coarse. Use positions: fine"):
        fresco.accelerate(pipe, raw)
    assert traces(pipe) == before


def test_hunyuan_image_distilled_by_mean_flow_is_refused():
    pipe = FAMILIES["hunyuan_image"].make()
    pipe.transformer.register_to_config(use_meanflow=True)
    with pytest.raises(errors.AdapterError, match="use_meanflow=True"):
        fresco.accelerate(pipe, STAGED)


def test_z_image_omni_is_refused():
    pipe = FAMILIES["z_image"].make()
    pipe.transformer.register_to_config(siglip_feat_dim=8)
    with pytest.raises(errors.AdapterError, match="siglip_feat_dim"):
        fresco.accelerate(pipe, STAGED)


SCHEDULERS = ("DPMSolverMultistepScheduler", "DDIMScheduler", "FlowMatchEulerDiscreteScheduler")


def make_pixart(scheduler):
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        caption_channels=32,
    ).eval()
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    scheduler = getattr(diffusers, scheduler)()
    pipe = diffusers.PixArtSigmaPipeline(transformer=transformer, scheduler=scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_pixart(pipe):
    return pipe(
        negative_prompt=None,
        prompt_embeds=_noise(1, 5, 32),
        prompt_attention_mask=torch.ones(1, 5),
        negative_prompt_embeds=_noise(1, 5, 32, seed=2),
        negative_prompt_attention_mask=torch.ones(1, 5),
        height=64,
        width=96,
        num_inference_steps=6,
        use_resolution_binning=False,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        return_dict=False,
    )[0]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_pixart_is_refused_with_stages_whatever_its_scheduler(scheduler):
    pipe = make_pixart(scheduler)
    before = traces(pipe)
    with pytest.raises(errors.AdapterError, match=r"a model of flow matching.*predicts noise"):
        fresco.accelerate(pipe, STAGED)
    assert traces(pipe) == before


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
@pytest.mark.parametrize("scheduler", SCHEDULERS[:2])
def test_pixart_runs_its_own_schedule_to_the_bit(scheduler):
    pipe = make_pixart(scheduler)
    plain, before = draw_pixart(pipe), traces(pipe)
    with fresco.accelerate(pipe, "identity") as accelerated:
        assert draw_pixart(pipe).equal(plain)
        assert [step.passes for step in accelerated.report.steps] == [1] * 6
        assert all(math.isfinite(step.sigma) for step in accelerated.report.steps)
    assert traces(pipe) == before
    stack = [{"kind": "quantize", "form": "int8_weight_only"}]
    with fresco.accelerate(pipe, {"schema": 1, "model": "any", "stack": stack}):
        assert 0 < (draw_pixart(pipe) - plain).norm() / plain.norm() < 0.1
    assert draw_pixart(pipe).equal(plain)
