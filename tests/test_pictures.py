"""`fresco run`: changes of a recipe, and pictures that can be made again."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

import fresco
import fresco.reference
from fresco.errors import RecipeError
from fresco.overrides import override
from fresco.pairs import measure_pairs
from fresco.pictures import (
    PictureError,
    PictureRequest,
    call_pipe,
    load_pipe,
    make_picture,
    read_request,
)
from fresco.recipe import load_recipe
from fresco.specimen import make_specimen
from fresco.validation import Judge, pictures_record
from tests.command import run
from tests.reference_parts import assemble_untrained

SIZE = ("--steps", "4", "--height", "64", "--width", "64")


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ("stages[0].steps=4", lambda recipe: recipe.stages[0].steps == 4),
        ("stages[1].lift.form=clean", lambda recipe: recipe.stages[1].lift.form == "clean"),
        ("expects.ssim=0.5", lambda recipe: recipe.expects.ssim == 0.5),
        ("stages[0].sigmas=[1.0, 0.9]", None),
        ("stack=[{kind: cache}]", lambda recipe: recipe.stack[0]["kind"] == "cache"),
        ("requires.torch='>=2'", lambda recipe: recipe.requires.torch == ">=2"),
    ],
)
def test_a_change_by_path_is_checked_as_the_file_is(change, read):
    if read is None:
        with pytest.raises(RecipeError, match=r"2 sigmas for 1 steps @ \$.stages\[0\]"):
            override(load_recipe("reference_5x"), [change])
    else:
        assert read(override(load_recipe("reference_5x"), [change]))


def test_changes_leave_the_recipe_itself_alone():
    recipe = load_recipe("reference_5x")
    override(recipe, ["stages[0].steps=4"])
    assert recipe == load_recipe("reference_5x")
    assert override(recipe, []) is recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages[2].steps=4", "$.stages has 2 entries, so the last is [1] @ --set stages[2]"),
        ("stages.steps=4", "$.stages is no mapping, so it has no 'steps'"),
        ("baseline[0]=4", "$.baseline is no list, so it has no [0]"),
        ("stages[0].steps", "write it as path=value"),
        ("stages[0]steps[=4", "write it as path=value"),
        ("=4", "write it as path=value"),
        ("stagse[0].steps=4", "Did you mean 'stages'?"),
        ("stages[0].stpes=4", "Did you mean 'steps'? @ $.stages[0].stpes"),
        ("stages[0].steps=many", "valid integer"),
        ("stages[0].steps=[", "@ --set"),
        ("stages[0].steps=!!python/object:os.system x", "could not determine a constructor"),
    ],
)
def test_changes_that_do_not_fit_say_why(change, message):
    with pytest.raises(RecipeError) as caught:
        override(load_recipe("reference_5x"), [change])
    assert message in str(caught.value)


def test_all_wrong_changes_are_reported_at_once():
    with pytest.raises(RecipeError, match=r"2 problem\(s\)"):
        override(load_recipe("reference_5x"), ["a=1", "stages[7].steps=4"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with an untrained pipeline."""
    return assemble_untrained(tmp_path_factory.mktemp("pipeline"))


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_picture_says_how_it_can_be_made_again(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(fresco.reference, "PIPELINE", folder)
    prompts = ("--prompt", "a red ring", "--prompt", "a blue plus", "--prompt", "a blue plus")
    change = ("--set", "stages[1].lift.form=clean", "--set", "stages[1].lift.to_sigma=0.9")
    result = run("run", "reference_5x", *prompts, *change, *SIZE, "--out", str(tmp_path / "a"))
    assert result.exit_code == 0, result.output
    first, second, third = sorted((tmp_path / "a").iterdir())
    request = read_request(second)
    assert (request.prompt, request.seed, request.steps) == ("a blue plus", 1, 4)
    assert load_recipe(request.recipe).stages[1].lift.form == "clean"
    with Image.open(second) as picture:
        assert json.loads(picture.info["fresco"])["versions"]["torch"]
    result = run("run", str(second), "--out", str(tmp_path / "b"))
    assert result.exit_code == 0, result.output
    (again,) = (tmp_path / "b").iterdir()
    assert np.array_equal(pixels(again), pixels(second))
    assert not np.array_equal(pixels(again), pixels(first))
    assert not np.array_equal(pixels(again), pixels(third))  # the seed counts
    assert read_request(again) == request
    assert "may differ" not in result.output
    result = run("run", "identity", *prompts, *SIZE, "--out", str(tmp_path / "c"))
    assert result.exit_code == 0
    plain = sorted((tmp_path / "c").iterdir())[1]
    assert not np.array_equal(pixels(plain), pixels(second))  # the recipe was on


def test_a_picture_says_with_what_it_was_made(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(fresco.reference, "PIPELINE", folder)
    out, asked = tmp_path / "a", ("--prompt", "a red ring", "--steps", "1")
    assert run("run", "identity", *asked, *SIZE[2:], "--out", str(out)).exit_code == 0
    (path,) = out.iterdir()
    monkeypatch.setattr("fresco.pictures.versions", lambda: {"torch": "0.1"})
    monkeypatch.setattr("fresco.pictures.weights_digest", lambda _: "f" * 64)
    result = run("run", str(path), "--out", str(tmp_path / "b"))
    assert result.exit_code == 0
    assert (
        f"made with torch {torch.__version__}, here is 0.1: the picture may differ" in result.output
    )
    assert "here is ffffffffffffffff: the picture may differ" in result.output


def test_a_pipeline_s_directory_is_a_model(tmp_path, folder):
    arguments = ("--model", str(folder), "--prompt", "a red ring", *SIZE, "--dtype", "bfloat16")
    result = run("run", "reference_5x", *arguments, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.iterdir()
    assert (read_request(path).model, read_request(path).dtype) == (str(folder), "bfloat16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reference_5x",), "at least one --prompt"),
        (("reference_5", "--prompt", "x"), "Did you mean 'reference_5x'?"),
        (("reference_5x", "--prompt", "x", "--model", "none"), "a directory with a model_index"),
        (("reference_5x", "--prompt", "x", "--dtype", "half"), "a dtype of float32, bfloat16"),
        (("reference_5x", "--prompt", "x", "--device", "cuda:9"), "a device that is here"),
        (("reference_5x", "--prompt", "x", "--set", "stages[9].steps=1"), "$.stages has 2 entries"),
        (("none.png",), "a picture with its request"),
        (("none.png", "--prompt", "x"), "no option but --out, got --prompt"),
        (("none.png", "--steps", "4", "--set", "a=1"), "got --set, --steps"),
    ],
)
def test_bad_input_to_run_is_a_clear_error(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fresco.reference.load", lambda **_: pytest.fail("loaded"))
    result = run("run", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_pictures_of_others_do_not_say(tmp_path):
    path = tmp_path / "other.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(PictureError, match="KeyError: 'fresco'"):
        read_request(path)


def make_video_pipe():
    """A tiny Wan pipeline with a VAE, whose text encoder is replaced by fixed embeddings."""
    pipe = make_specimen("wan21-14b").pipe
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    pipe.register_modules(vae=vae.eval())
    pipe.encode_prompt = lambda **_: (torch.ones(1, 5, 32), torch.zeros(1, 5, 32))
    return pipe


def test_a_video_is_an_animated_png_that_can_be_made_again(tmp_path):
    pipe, file = make_video_pipe(), tmp_path / "video.png"
    recipe = load_recipe("wan21_fast").model_dump(mode="json", by_alias=True, exclude_unset=True)
    request = PictureRequest("wan", recipe, "a", 3, 50, 2.0, 128, 128, frames=5)
    taken = []
    make_picture(pipe, request, file, taken.append)
    assert len(taken) == sum(stage["steps"] for stage in recipe["stages"])
    assert read_request(file) == request
    make_picture(pipe, read_request(file), tmp_path / "again.png")
    frames = []
    for name in ("video.png", "again.png"):
        with Image.open(tmp_path / name) as video:
            assert video.n_frames == 5
            frames.append(
                [np.asarray(each.convert("RGB")) for each in ImageSequence.Iterator(video)]
            )
    assert np.array_equal(*frames)
    assert (frames[0][0] != frames[0][4]).any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.png", "video.png"]


def test_a_recipe_for_videos_is_validated_frame_by_frame():
    picture = PictureRequest("wan", None, "", 3, 4, 2.0, 64, 64, frames=5)
    pipe, recipe = make_video_pipe(), load_recipe("wan21_balanced")
    pairs = measure_pairs(pipe, recipe, picture, ["a", "b"], floor="none")
    assert [each.shape for each in pairs.plain] == [(5, 3, 64, 64)] * 2
    assert len(pairs.figures()) == 2
    asked = []
    judge = Judge("one", lambda images, prompts: asked.append((len(images), prompts)) or 0.5)
    record = pictures_record(pipe, recipe, picture, ["a", "b"], pairs, judge)
    assert asked == [(10, ["a"] * 5 + ["b"] * 5)] * 2
    expected = fresco.plan(pipe, recipe, height=64, width=64, steps=4, frames=5, text_tokens=5)
    assert record.flops_speedup == pytest.approx(expected.flops_speedup, rel=1e-3)
    assert record.weights is None


def test_pictures_of_before_there_were_videos_are_read(tmp_path):
    old = {"model": "reference", "recipe": None, "prompt": "a red ring", "seed": 1, "steps": 4}
    text = PngInfo()
    text.add_text("fresco", json.dumps({"request": old, "versions": {}}))
    Image.new("RGB", (8, 8)).save(tmp_path / "old.png", pnginfo=text)
    assert read_request(tmp_path / "old.png") == PictureRequest(**old)


def test_what_a_pipeline_does_not_take_is_a_clear_error(tmp_path):
    pipe = make_specimen("sd35-large").pipe
    pipe.encode_prompt = lambda **_: pytest.fail("called")
    with pytest.raises(PictureError, match="StableDiffusion3Pipeline takes, got num_frames in it"):
        call_pipe(pipe, PictureRequest("x", None, "a", frames=5))
    with pytest.raises(PictureError, match=r"takes, got .*divisible by 16"):
        call_pipe(pipe, PictureRequest("x", None, "a", height=50, width=64))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(PictureError, match="a whole pipeline of diffusers"):
        load_pipe(str(tmp_path))
