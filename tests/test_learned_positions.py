"""CogVideoX-5B from a picture: positions that it learned for one size, added inside."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fresco
from fresco import errors
from fresco.cost import pass_bytes, plan_cost
from fresco.layout import TokenLayout
from fresco.registry import find_adapter
from fresco.transfer import cut_patches
from tests import test_families as of_all
from tests.conftest import traces
from tests.families import FAMILIES
from tests.family import noise
from tests.matrix_run import enable
from tests.picture_families import FROM_PICTURES, LEARNED
from tests.staged import MIXED, STAGED
from tests.test_mixed_videos import SIDES


def test_identity_recipes_and_restore_leave_no_trace():
    of_all.test_identity_recipes_and_restore_leave_no_trace(LEARNED, LEARNED.make())


def test_mixed_stages_run_and_positions_of_fine_cells_are_the_model_s_own(monkeypatch):
    monkeypatch.setitem(FAMILIES, "learned", LEARNED)
    of_all.test_mixed_stages_run_or_are_refused_with_the_reason(LEARNED, LEARNED.make())
    of_all.test_positions_of_a_mixed_stage_that_is_all_fine_are_the_model_s_own("learned")


def test_mixed_stages_run_under_an_offload_that_replaces_every_forward():
    plain, offloaded = LEARNED.make(), LEARNED.make()
    enable(offloaded, "group_leaf")
    with fresco.accelerate(plain, MIXED), fresco.accelerate(offloaded, MIXED):
        assert LEARNED.draw(offloaded).equal(LEARNED.draw(plain))


def test_a_video_does_not_depend_on_its_batch():
    of_all.test_an_image_does_not_depend_on_its_batch(LEARNED, LEARNED.make())


@pytest.mark.parametrize("sides", [SIDES, torch.full((4, 6), 2)])
@pytest.mark.parametrize("n_frames", [2, 3])  # the table's, and another number
@torch.no_grad()
def test_a_cell_has_the_mean_of_what_was_learned_for_its_tokens(sides, n_frames):
    module = LEARNED.make().transformer.patch_embed
    module.pos_embedding = noise(*module.pos_embedding.shape, seed=3)
    text, latents = noise(1, 5, 32), noise(1, n_frames, 8, 8, 12)
    own = module(text, latents)
    module.use_learned_positional_embeddings = False
    bare = module(text, latents)
    table = (own - bare)[0, 5:].unflatten(0, (n_frames, 4, 6))

    pipe = LEARNED.make()
    pipe.transformer.patch_embed = module
    layout = TokenLayout(sides, 2)
    units = "native" if layout.is_whole else "fine"
    tokens = cut_patches(latents[:, :, :4].transpose(1, 2).flatten(1, 2), 2)[:, : layout.n_tokens]
    module.use_learned_positional_embeddings = True
    adapter = find_adapter(pipe.transformer)
    undo = adapter.attach(pipe.transformer, {"fine"})
    entered = adapter.embed({"hidden_states": latents}, tokens, layout, layout.positions(units))
    got = module(text, entered["hidden_states"])
    adapter.aim({}, None)
    assert module(text, latents).equal(own)
    undo()
    module.use_learned_positional_embeddings = False
    bare = module(text, entered["hidden_states"])
    torch.testing.assert_close((got - bare)[:, :5], (own - module(text, latents))[:, :5])
    starts = zip(layout.token_starts.tolist(), layout.token_sides.tolist(), strict=True)
    means = torch.stack(
        [table[:, r : r + s, c : c + s].mean((1, 2)) for (r, c), s in starts], dim=1
    )
    torch.testing.assert_close((got - bare)[0, 5:], means.flatten(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("raw", [STAGED, MIXED])
def test_another_size_is_refused_before_the_transformer_works(raw):
    pipe = LEARNED.make()
    plain, before, worked = LEARNED.draw(pipe), traces(pipe), []
    with fresco.accelerate(pipe, raw):
        right = LEARNED.draw(pipe)
        hook = pipe.transformer.patch_embed.register_forward_pre_hook(lambda *_: worked.append(1))
        match = r"latents of \(8, 12\) px, the only size that .* learned, got \(4, 6\)"
        with hook, pytest.raises(errors.AdapterError, match=match):
            LEARNED.draw(pipe, height=32, width=48)
        assert not worked
        assert LEARNED.draw(pipe).equal(right)
    assert traces(pipe) == before
    assert LEARNED.draw(pipe).equal(plain)


def test_another_size_is_refused_by_a_plan():
    match = r"latents of \(60, 90\) px, the only size that .* learned, got \(40, 64\)"
    with pytest.raises(errors.AdapterError, match=match):
        fresco.plan("cogvideox-5b-i2v", "identity", height=320, width=512)


@torch.no_grad()
def test_its_flops_are_counted_as_if_it_took_any_size():
    pipe = LEARNED.make()
    plain = LEARNED.draw(pipe)
    with fresco.accelerate(pipe, STAGED) as accelerated:
        LEARNED.draw(pipe)
        cost, plan = accelerated.cost(), accelerated.plan
    others = FROM_PICTURES["cogvideox_i2v"].make().transformer  # without a table
    assert cost == plan_cost(plan, others, 5)
    assert pass_bytes(pipe.transformer, 48, 5) == pass_bytes(others, 48, 5)
    latents, text = noise(1, 2, 8, 8, 12), noise(1, 5, 32)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pipe.transformer(latents, text, torch.zeros(1))
    assert cost.baseline_flops == plan.n_requested * counter.get_total_flops()
    assert LEARNED.draw(pipe).equal(plain)
