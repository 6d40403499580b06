"""LongCat-Image that edits a picture: the picture's tokens are behind those that are made."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import numpy as np
import PIL.Image
import pytest
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit

import fresco
from tests.conftest import traces
from tests.families import FAMILIES
from tests.family import noise
from tests.readers import longcat_image_parts
from tests.staged import ALL_FINE, MIXED, STAGED

PROMPT, NEGATIVE = "a ring", "blur"


class Sight:
    """A processor of pictures for the text encoder, which is not asked."""

    image_processor = None


def parts():
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4, latent_channels=16, norm_num_groups=2, shift_factor=0.0,
    )  # fmt: skip
    return longcat_image_parts() | {"vae": vae.eval(), "text_processor": Sight()}


def asked():
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    return {
        "image": PIL.Image.fromarray(pixels),
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "guidance_scale": 2.0,
    }


EDIT = replace(
    FAMILIES["longcat_image"],
    pipeline="LongCatImageEditPipeline",
    asked=asked,
    is_picture_sized=True,
    missing=(),
    parts=parts,
)


@pytest.fixture
def pipe(monkeypatch):
    monkeypatch.setattr(
        pipeline_longcat_image_edit, "calculate_dimensions", lambda _, ratio: (int(64 * ratio), 64)
    )
    pipe = EDIT.make()
    monkeypatch.setattr(pipe, "_encode_prompt", lambda prompt, _: noise(1, len(prompt[0]), 32))
    return pipe


@pytest.mark.parametrize("raw", [STAGED, MIXED])
def test_a_picture_to_edit_keeps_its_tokens_and_their_places(pipe, raw):
    plain, before = EDIT.draw(pipe), traces(pipe)
    seen, ids = [], []
    hooks = (
        pipe.transformer.x_embedder.register_forward_pre_hook(lambda _, x: seen.append(x[0])),
        pipe.transformer.pos_embed.register_forward_pre_hook(lambda _, x: ids.append(x[0])),
    )
    EDIT.draw(pipe)
    picture, places = seen[0][:, 24:], ids[0][-24:]
    start = [float(len(PROMPT))] * 2
    assert places[0].tolist() == [2.0, *start]
    seen.clear()
    ids.clear()
    with fresco.accelerate(pipe, raw) as accelerated:
        got = EDIT.draw(pipe)
        report = accelerated.report
    assert got.shape == plain.shape
    assert got.isfinite().all()
    assert report.n_given_tokens == 24
    assert [step.passes for step in report.steps] == [2] * len(report.steps)
    assert [x.shape[1] - 24 for x in seen[::2]] == [step.tokens for step in report.steps]
    assert all(x[:, -24:].equal(picture) for x in seen)
    assert all(each[-24:].equal(places.float()) for each in ids)
    assert all(each[len(PROMPT), 0] == 1 for each in ids[::2])
    assert ids[0][len(PROMPT)].tolist() == [1.0, *start]  # a whole grid's
    for hook in hooks:
        hook.remove()
    assert traces(pipe) == before
    with fresco.accelerate(pipe, ALL_FINE):
        assert EDIT.draw(pipe).equal(plain)
    assert EDIT.draw(pipe).equal(plain)
