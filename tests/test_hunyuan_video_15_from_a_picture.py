"""HunyuanVideo 1.5 from a picture, which is channels of the latents and says how large they are.

Its cells are one latent pixel, and its sizes those of a list; so it has tests of its own.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from torch.nn import functional

import fresco
from tests import test_families as of_all
from tests.families import FAMILIES
from tests.picture_families import picture
from tests.staged import MIXED, STAGED
from tests.watch import Watch

PLAIN = FAMILIES["hunyuan_video_15"]


def parts():
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    return PLAIN.parts() | {
        "image_encoder": transformers.SiglipVisionModel(vision).eval(),
        "feature_extractor": transformers.SiglipImageProcessor(size={"height": 28, "width": 28}),
    }


FAMILY = replace(
    PLAIN,
    pipeline="HunyuanVideo15ImageToVideoPipeline",
    config={**PLAIN.config, "target_size": 80},  # px along a square
    asked=lambda: PLAIN.asked() | {"image": picture()},
    is_picture_sized=True,
    parts=parts,
)


def test_identity_recipes_and_restore_leave_no_trace():
    of_all.test_identity_recipes_and_restore_leave_no_trace(FAMILY, FAMILY.make())


def test_mixed_stages_run():
    of_all.test_mixed_stages_run_or_are_refused_with_the_reason(FAMILY, FAMILY.make())


def test_a_video_does_not_depend_on_its_batch(monkeypatch):
    of_all.test_an_image_does_not_depend_on_its_batch(FAMILY, FAMILY.make())
    monkeypatch.setitem(FAMILIES, "from_picture", FAMILY)
    of_all.test_an_image_of_a_mixed_stage_does_not_depend_on_its_batch("from_picture")


def test_channels_of_the_picture_are_averaged_without_noise():
    pipe = FAMILY.make()
    watch, channels = Watch(pipe), FAMILY.config["out_channels"]
    with fresco.accelerate(pipe, MIXED) as accelerated:
        FAMILY.draw(pipe)
        layout = accelerated._middleware.last.mixed[0]
    whole, mixed, fine = (watch.seen[k][:, channels:] for k in (0, 2, -1))
    assert fine[:, :, 0].any()
    assert not fine[:, :, 1:].any()
    coarse = functional.avg_pool3d(fine, (1, 2, 2))
    torch.testing.assert_close(whole, coarse, rtol=0, atol=1e-6)
    assert layout.sides_used == (2, 1)
    places = zip(layout.token_starts.tolist(), layout.token_sides.tolist(), strict=True)
    for i, ((row, column), side) in enumerate(places):
        expected = (fine if side == 1 else coarse)[..., row // side, column // side]
        torch.testing.assert_close(mixed[..., 0, i], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "grid"), [((64, 96), (6, 4)), ((96, 64), (4, 6))], ids=str)
def test_the_grid_is_that_of_the_picture(size, grid):
    """Planned, without a picture, is the wide one that the pipeline from a text makes."""
    pipe, text = FAMILY.make(), replace(PLAIN, config=FAMILY.config).make()
    raw = {**STAGED, "baseline": {"steps": 6}}  # which says no size
    with fresco.accelerate(text, raw) as accelerated:
        wide = accelerated.plan
    with fresco.accelerate(pipe, raw) as accelerated:
        planned = accelerated.plan
        FAMILY.draw(pipe, image=picture().resize(size), width=size[0], height=size[1])
        made = accelerated.plan
    assert (made.rows, made.columns) == grid
    forecast = fresco.plan(pipe, raw, text_tokens=5).plan
    for each in (planned, forecast):
        assert (each.rows, each.columns) == (wide.rows, wide.columns)
