"""What single families of pictures have that others have not."""

from __future__ import annotations

from dataclasses import replace

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
from fresco.registry import find_adapter
from fresco.transfer import cut_patches
from fresco.wraps import call_by_name
from tests.conftest import traces
from tests.families import FAMILIES, MIXING
from tests.family import repeated
from tests.staged import MIXED, RANDOM, STAGED


def record_call(family, pipe, **asked):
    """The first call of a plain run, by name."""
    calls = []

    def record(module, args, kwargs):
        calls.append(call_by_name(module, args, kwargs))

    with pipe.transformer.register_forward_pre_hook(record, with_kwargs=True):
        family.draw(pipe, **asked)
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


@pytest.mark.parametrize("name", ["chroma", "flux", "flux2", "longcat_image", "ovis_image"])
def test_ids_of_a_coarse_grid_are_those_of_a_smaller_picture(name):
    family = FAMILIES[name]
    pipe = family.make()
    adapter = find_adapter(pipe.transformer)
    call, smaller = record_call(family, pipe), record_call(family, pipe, height=32, width=48)
    layout = TokenLayout.whole(4, 6, 2, adapter.patch_px)
    tokens = adapter.unembed([smaller["hidden_states"]], layout)
    entered = adapter.embed(call, tokens, layout, layout.positions("native"))
    assert entered["hidden_states"].equal(smaller["hidden_states"])
    assert entered["img_ids"].equal(smaller["img_ids"].float())


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
    with pytest.raises(
        errors.AdapterError,
        match=r"fine with \w+, got positions: coarse\. Use others: .* by the size",
    ):
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


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "DDIMScheduler"])
def test_pixart_runs_any_schedule_of_its_own_to_the_bit(scheduler):
    family = FAMILIES["pixart"]
    pipe = family.make()
    pipe.scheduler = getattr(diffusers, scheduler)()
    plain, before = family.draw(pipe), traces(pipe)
    stack = [{"kind": "quantize", "form": "int8_weight_only"}]
    baseline = {"steps": 6, "height": 64, "width": 96}
    for raw in ({}, {"baseline": baseline}):
        with fresco.accelerate(pipe, {"schema": 1, "model": "any", **raw}) as accelerated:
            assert family.draw(pipe).equal(plain)
            assert [step.passes for step in accelerated.report.steps] == [1] * 6
            assert all(0 < step.sigma < 1 for step in accelerated.report.steps)
    assert traces(pipe) == before
    with fresco.accelerate(pipe, {"schema": 1, "model": "any", "stack": stack}):
        assert 0 < (family.draw(pipe) - plain).norm() / plain.norm() < 0.1
    assert family.draw(pipe).equal(plain)


def test_pixart_alpha_s_sizes_go_with_the_images_of_mixed_layouts():
    """Of sample_size 128 it is told height, width and their ratio, one row per image."""
    family = FAMILIES["pixart"]
    config = {
        **family.config,
        "sample_size": 128,
        "attention_head_dim": 24,
        "cross_attention_dim": 48,
    }
    alpha = replace(family, pipeline="PixArtAlphaPipeline", config=config)
    pipe = alpha.make()
    pipe.transformer.to(torch.float64)  # float32 rounds: these latents grow to 600
    with fresco.accelerate(pipe, RANDOM) as accelerated:
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        together = alpha.draw(pipe, **repeated(alpha.asked()), generator=generators)
        run = accelerated._middleware.last
        assert len(run.groups(run.plan.steps[2])) == 2
        for i in range(2):
            alone = alpha.draw(pipe, seed=i)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-9)
    assert accelerated.cost().flops > 0


def test_pixart_s_table_of_positions_is_put_back_also_after_a_death():
    family = FAMILIES["pixart"]
    pipe = family.make()
    module = pipe.transformer.pos_embed
    before = (module.height, module.width, module.pos_embed)

    def die(*_):
        if module.height == 1:  # inside of a mixed step
            raise ValueError("on purpose")

    with fresco.accelerate(pipe, MIXED):
        right = family.draw(pipe)
        with (
            module.proj.register_forward_pre_hook(die),
            pytest.raises(ValueError, match="on purpose"),
        ):
            family.draw(pipe)
        assert (module.height, module.width) == before[:2]
        assert module.pos_embed is before[2]
        assert family.draw(pipe).equal(right)


def test_a_pixart_that_predicts_anything_else_is_refused():
    pipe = FAMILIES["pixart"].make()
    pipe.transformer.register_to_config(out_channels=5)
    with pytest.raises(errors.AdapterError, match=r"noise \(4 channels\), .*got 5 channels"):
        fresco.accelerate(pipe, STAGED)


def test_qwen_image_counts_coarse_units_from_the_middle_of_the_cells():
    family = FAMILIES["qwen_image"]
    pipe = family.make()
    call, adapter = record_call(family, pipe), find_adapter(pipe.transformer)
    sides = torch.tensor([[2, 2, 1, 1, 2, 2]] * 4)
    layout = TokenLayout(sides, adapter.patch_px)
    tokens = torch.zeros(1, layout.n_tokens, 4, 2, 2)
    of_cells, of_text = pipe.transformer.pos_embed([(1, 2, 3)], max_txt_seq_len=5)
    undo = adapter.attach(pipe.transformer, {"coarse"})
    entered = adapter.embed(call, tokens, layout, layout.positions("coarse", 2))
    got, text = pipe.transformer.pos_embed(entered["img_shapes"][0], max_txt_seq_len=5)
    undo()
    assert len(got) == layout.n_tokens
    got = got[layout.token_sides == 2].unflatten(0, (2, 2))
    torch.testing.assert_close(got, of_cells.unflatten(0, (2, 3))[:, ::2])
    assert text.equal(of_text)
