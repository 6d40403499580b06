"""Published configurations: how many weights they have, and plans as arithmetic has them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import diffusers
import pytest
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus

import fresco
from fresco.cost import weight_bytes
from fresco.registry import find_adapter
from fresco.sketch import known_models, load_model_config, model_like, sketch_model
from tests.families import FAMILIES
from tests.staged import HALVES

BILLIONS = {  # as its name or card says; where that says less, as its blocks come to
    "aura-flow": 6.8,
    "chroma": 8.9,
    "cogvideox-2b": 1.7,  # 30 layers of 1920; named 2
    "cogvideox-5b": 5.6,
    "cogvideox-5b-i2v": 5.6,
    "cogvideox15-5b": 5.6,
    "cogvideox15-5b-i2v": 5.6,
    "cogview4-6b": 6,
    "flux1-dev": 12,
    "flux1-fill-dev": 12,
    "flux1-kontext-dev": 12,
    "flux1-schnell": 12,
    "flux2-dev": 32,
    "flux2-klein-4b": 4,
    "flux2-klein-9b": 9,
    "hunyuan-image-21": 17,
    "hunyuan-video": 13,
    "hunyuan-video-i2v": 13,
    "hunyuan-video15-480p": 8.3,
    "ltx-video": 2,
    "ltx2": 19,
    "lumina2": 2.6,
    "mochi-1-preview": 10,
    "pixart-sigma-1024": 0.6,
    "qwen-image": 20,
    "qwen-image-edit": 20,
    "qwen-image-edit-2509": 20,
    "sana-1600m-1024": 1.6,
    "sd3-medium": 2.0,
    "sd35-large": 8.1,
    "sd35-medium": 2.5,
    "wan21-14b": 14,
    "wan21-i2v-14b": 16.4,  # 14 and the attention to CLIP's picture, 2 x 40 layers of 5120 x 5120
    "wan21-t2v-1300m": 1.4,  # named 1.3
    "wan22-i2v-a14b": 14,
    "wan22-t2v-a14b": 14,
    "wan22-ti2v-5b": 5,
    "z-image-turbo": 6,
}
TOKENS = {  # of a full step: latent frames x rows x columns, of what is not given
    "cogvideox-2b": 13 * 30 * 45,
    "cogvideox-5b": 13 * 30 * 45,
    "cogvideox-5b-i2v": 13 * 30 * 45,
    "cogvideox15-5b": 11 * 48 * 85,  # 21 latent frames, in pairs
    "cogvideox15-5b-i2v": 11 * 48 * 85,
    "flux1-fill-dev": 64 * 64,
    "flux1-kontext-dev": 64 * 64,
    "flux2-klein-4b": 64 * 64,
    "flux2-klein-9b": 64 * 64,
    "hunyuan-image-21": 64 * 64,
    "hunyuan-video15-480p": 31 * 30 * 53,
    "hunyuan-video-i2v": 32 * 45 * 80,  # of 33 latent frames, the first is given
    "ltx-video": 21 * 16 * 22,
    "ltx2": 16 * 16 * 24,
    "lumina2": 64 * 64,
    "mochi-1-preview": 28 * 30 * 53,
    "pixart-sigma-1024": 64 * 64,
    "qwen-image-edit": 64 * 64,
    "qwen-image-edit-2509": 64 * 64,
    "sana-1600m-1024": 32 * 32,
    "wan21-i2v-14b": 21 * 30 * 52,
    "wan21-t2v-1300m": 21 * 30 * 52,
    "wan22-i2v-a14b": 21 * 45 * 80,
    "wan22-t2v-a14b": 21 * 45 * 80,
    "wan22-ti2v-5b": 31 * 22 * 40,
}


def test_every_known_model_has_a_size():
    assert BILLIONS.keys() == known_models().keys() - {"reference"}
    assert TOKENS.keys() < BILLIONS.keys()


@pytest.mark.parametrize("model", BILLIONS)
def test_a_configuration_has_as_many_weights_as_is_said_and_plans(model, monkeypatch):
    transformer = sketch_model(model).transformer
    tables = sum(table.numel() for table in transformer.buffers())  # of positions, in SD3's files
    found = weight_bytes(transformer) / 2e9 + tables / 1e9
    assert found == pytest.approx(BILLIONS[model], rel=0.07)
    if model in TOKENS:
        monkeypatch.setattr("fresco.planner.pass_bytes", lambda *_: 0)  # builds it once more
        forecast = fresco.plan(model, HALVES)
        coarse, full = (step.n_tokens for step in forecast.plan.steps)
        assert full == forecast.plan.n_full_tokens == TOKENS[model]
        assert full / 4 <= coarse < full / 3.8  # an odd number of rows has one coarse row more
        given, n_text = forecast.n_given_tokens, forecast.n_text_tokens
        few, many = forecast.flops
        assert ((coarse + given) / (full + given)) ** 2 < few / many  # all were attention
        assert few / many < 1.01 * (coarse + given + n_text) / (full + given + n_text)  # none
        assert forecast.flops_speedup == 2 * many / (few + many)


@pytest.mark.parametrize(
    ("model", "n_predicted", "n_conditions"),
    [
        ("cogvideox-5b-i2v", 16, 16),
        ("cogvideox15-5b-i2v", 16, 16),
        ("flux1-fill-dev", 64, 64 + 256),  # the picture, and a mask of 8 x 8 px per latent px
        ("wan21-i2v-14b", 16, 4 + 16),  # a mask of each of four frames, and the picture
        ("wan22-i2v-a14b", 16, 4 + 16),
        ("wan22-ti2v-5b", 48, 0),
    ],
)
def test_conditions_are_channels_behind_the_latents(model, n_predicted, n_conditions):
    config = load_model_config(model).transformer
    assert config["out_channels"] == n_predicted
    assert config["in_channels"] == n_predicted + n_conditions


def joint(n, d, layers):
    """Blocks of one stream: 12 d x d matrices a token, and attention of all with all."""
    return layers * (24 * d * d * n + 4 * n * n * d)


def crossed(n, n_text, d, d_ff, layers):
    """Wan's: four matrices, attention to all, two and two to the text, two of the MLP."""
    own = 8 * d * d * n + 4 * n * n * d
    text = 4 * d * d * (n + n_text) + 4 * n * n_text * d
    return layers * (own + text + 4 * d * d_ff * n)


def beside(n, n_text, d, d_text, layers):
    """Mochi's: 12 matrices a token in each of two streams, two of text meet the picture's width."""
    own, text = 24 * d * d * n, 2 * (4 * d + 8 * d_text) * d_text * n_text
    return layers * (own + text + 4 * (n + n_text) ** 2 * d)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("flux1-kontext-dev", joint(2 * 4096 + 512, 3072, 19 + 38)),
        ("cogvideox-5b", joint(13 * 30 * 45 + 226, 48 * 64, 42)),
        ("cogvideox-5b-i2v", joint(13 * 30 * 45 + 226, 48 * 64, 42)),
        ("cogvideox15-5b-i2v", joint(11 * 48 * 85 + 226, 48 * 64, 42)),
        ("mochi-1-preview", beside(28 * 30 * 53, 256, 3072, 1536, 48)),
        ("qwen-image-edit", joint(2 * 4096 + 37 * 37 + 2 + 512, 3072, 60)),
        ("qwen-image-edit-2509", joint(2 * 4096 + 14 * 14 + 2 + 5 + 512, 3072, 60)),
        ("hunyuan-video15-480p", joint(31 * 30 * 53 + 1000 + 256 + 729, 2048, 54)),
        ("wan22-ti2v-5b", crossed(31 * 22 * 40, 512, 3072, 14336, 30)),
        ("wan21-t2v-1300m", crossed(21 * 30 * 52, 512, 1536, 8960, 30)),
    ],
)
def test_flops_are_those_of_the_blocks_matrices(model, expected, monkeypatch):
    monkeypatch.setattr("fresco.planner.pass_bytes", lambda *_: 0)
    found = fresco.plan(model, "identity", steps=3)
    assert found.total_flops == pytest.approx(3 * expected, rel=0.005)  # embeddings are the rest


@pytest.mark.parametrize(
    ("model", "area_px", "label"),  # of the picture that Qwen2.5-VL sees; tokens that name it
    [
        ("qwen-image-edit", pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE, 0),
        ("qwen-image-edit-2509", pipeline_qwenimage_edit_plus.CONDITION_IMAGE_SIZE, 5),
    ],
)
def test_the_text_of_an_edit_has_the_picture_as_its_pipeline_sizes_it(model, area_px, label):
    width, height = pipeline_qwenimage_edit_plus.calculate_dimensions(area_px, 1.0)
    n_seen = round(width / 28) * round(height / 28)  # 2 x 2 patches of 14 px
    n_prompt = load_model_config("qwen-image").run.text_tokens
    assert load_model_config(model).run.text_tokens == n_seen + 2 + label + n_prompt


@pytest.mark.parametrize(
    ("family", "frames"), [("ltx", 17), ("mochi", 13), ("wan", 9), ("cogvideox", 9)]
)
def test_frames_are_divided_as_the_pipeline_divides_them(family, frames):
    pipe = FAMILIES[family].make()
    n_patches = 3 // FAMILIES[family].patch_frames + 3 % FAMILIES[family].patch_frames
    assert find_adapter(pipe.transformer).latent_frames(pipe, frames) == n_patches


def test_a_config_stands_for_the_known_model_it_shares_most_with():
    for model in (
        "wan21-i2v-14b",
        "wan22-ti2v-5b",
        "flux1-fill-dev",
        "cogvideox-5b-i2v",
        "cogvideox15-5b",
        "cogvideox15-5b-i2v",
        "hunyuan-video",
        "qwen-image",
    ):
        assert (
            model_like(json.loads(json.dumps(dict(load_model_config(model).transformer)))) == model
        )


def test_the_docs_name_every_known_model():
    page = Path(__file__).parents[1] / "docs/how-to/add-a-model.md"
    listed = page.read_text().split("They are: ")[1].split(".\n")[0]
    assert set(re.findall(r"`([^`]+)`", listed)) == set(known_models())


@pytest.mark.parametrize("page", ["README.md", "docs/changelog.md"])
def test_their_number_is_said_as_it_is(page):
    text = (Path(__file__).parents[1] / page).read_text()
    said = re.findall(r"(\d+) models(?:\]\(docs/how-to/add|, \[each with)", text)
    assert said == [str(len(known_models()) - 1)]  # the reference ships


def test_schedulers_and_pipelines_are_classes_of_diffusers():
    for model in known_models().keys() - {"reference"}:
        config = load_model_config(model)
        assert hasattr(diffusers, config.pipeline.class_name or "FluxPipeline")
        assert hasattr(diffusers, config.scheduler["_class_name"])
