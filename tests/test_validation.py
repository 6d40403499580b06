"""`fresco validate`: what it covers, writes, leaves behind where it stops, and refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import fresco.pairs
import fresco.reference
from fresco.errors import FrescoError
from fresco.recipe import load_recipe
from fresco.validation import find_judge
from tests.command import run
from tests.reference_parts import assemble_untrained
from tests.validated import PICTURE, PROMPTS, RECIPE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with an untrained pipeline."""
    return assemble_untrained(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def pipe(folder, monkeypatch):
    """That pipeline, in the place of the reference."""
    monkeypatch.setattr(fresco.reference, "PIPELINE", folder)
    return fresco.reference.load()


@pytest.fixture
def recipe(tmp_path):
    """A recipe's file that meets its bound."""
    path = tmp_path / "reference_mine.yaml"
    path.write_text(RECIPE % 2)
    return path


@pytest.fixture
def prompts(tmp_path):
    """A file of prompts."""
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS) + "\n")
    return path


def test_without_weights_mechanics_and_flops_are_validated(recipe, pipe):
    for _ in range(2):  # the second record takes the first one's place
        result = run("validate", str(recipe))
        assert result.exit_code == 0, result.output
        assert recipe.read_text().startswith(RECIPE % 2)
        (record,) = load_recipe(recipe).validated
        assert record.covers == ("mechanics", "FLOPs")
        assert record.recipe == load_recipe(recipe).digest
        assert record.versions["torch"] == torch.__version__
        expected = fresco.plan("reference", recipe).flops_speedup
        assert record.flops_speedup == pytest.approx(expected, rel=1e-3)
        measured = (record.speedup, record.psnr_db, record.ssim, record.judge, record.noise_floor)
        assert measured == (None,) * 5


def test_a_recipe_that_falls_short_is_not_written(recipe, pipe, tmp_path):
    recipe.write_text(RECIPE % 99)
    file = tmp_path / "record.json"
    result = run("validate", str(recipe), "--json", str(file))
    assert result.exit_code == 1
    assert "flops_speedup: expected at least 99, got 2" in result.output
    assert recipe.read_text() == RECIPE % 99
    assert json.loads(file.read_text())["falls_short"]


def test_paired_runs_are_measured_and_written(recipe, prompts, pipe, tmp_path):
    file = tmp_path / "record.json"
    asked = ("--model", "reference", "--prompts", str(prompts), "--seed", "3", "--json", str(file))
    asked += ("--height", "256", "--width", "256", "--steps", "4")
    result = run("validate", str(recipe), *asked)
    assert result.exit_code == 0, result.output
    assert "the recipe's difference is beyond the noise" in result.output
    (record,) = load_recipe(recipe).validated
    assert record.covers == ("mechanics", "FLOPs", "pictures")
    assert record.recipe == load_recipe(recipe).digest
    assert (record.prompts, record.seed, record.steps) == (2, 3, 4)
    low, high = record.speedup_interval
    assert low <= record.speedup <= high
    assert record.noise_floor.how == "bfloat16 autocast"
    assert record.noise_floor.psnr_db > record.psnr_db
    assert record.is_within_noise is False
    assert record.judge_by == "reference judge"
    assert 0 <= record.judge <= 1
    found = json.loads(file.read_text())
    assert found["complete"]
    assert len(found["pairs"]) == 2
    mean = sum(pair["psnr_db"] for pair in found["pairs"]) / 2
    assert record.psnr_db == pytest.approx(mean, rel=1e-3)
    assert run("recipes", "check", str(recipe)).exit_code == 0


def test_an_interrupted_validation_leaves_its_pairs(recipe, prompts, pipe, tmp_path, monkeypatch):
    file, calls, call = tmp_path / "record.json", [], fresco.pairs.call_pipe

    def interrupted(*arguments, **more):
        calls.append(1)
        if len(calls) == 4:  # warm-up, both of the first pair, and the first of the second
            raise KeyboardInterrupt
        return call(*arguments, **more)

    monkeypatch.setattr(fresco.pairs, "call_pipe", interrupted)
    asked = ("--model", "reference", "--prompts", str(prompts), "--json", str(file))
    assert run("validate", str(recipe), *asked).exit_code == 130
    found = json.loads(file.read_text())
    assert found["complete"] is False
    assert len(found["pairs"]) == 1
    assert recipe.read_text() == RECIPE % 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("validated: []\n" + RECIPE % 2, "put it last"),
        ("{schema: 1, model: any}", "a line of its own"),
        (RECIPE % 2 + "...\n", "a line of its own"),
        (None, "a directory"),
    ],
)
def test_a_file_that_cannot_take_a_record_is_refused_before_anything_is_measured(
    text, message, recipe, monkeypatch
):
    if text:
        recipe.write_text(text)
    else:
        where = "tempfile.TemporaryFile"
        monkeypatch.setattr(f"fresco.output.{where}", lambda **_: (_ for _ in ()).throw(OSError()))
    monkeypatch.setattr("fresco.validation.mechanics_record", lambda *_: pytest.fail("measured"))
    result = run("validate", str(recipe))
    assert result.exit_code == 2
    assert message in result.output


def test_a_recipe_of_no_known_name_needs_a_model_and_prompts(tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPE % 2)
    result = run("validate", str(tmp_path / "mine.yaml"))
    assert result.exit_code == 2
    assert "fresco validate RECIPE: expected a model" in result.output
    assert "give both --model and --prompts" in result.output


def test_a_metric_of_one_s_own_judges():
    judge = find_judge("tests.test_validation:brightness", None, ["x"])
    assert judge.name == "tests.test_validation:brightness"
    for score in (judge.score, lambda images, _: images.mean(dim=(1, 2, 3))):
        found = replace(judge, score=score).mean(torch.full((1, 3, 8, 8), 0.5), ["x"])
        assert (type(found), found) == (float, 0.5)
    for score in (lambda *_: "good", lambda *_: None, lambda images, _: images):
        with pytest.raises(FrescoError, match=r"brightness.*expected a number"):
            replace(judge, score=score).mean(torch.ones(2, 3, 8, 8), ["x", "y"])
    assert find_judge(None, replace(PICTURE, model="else"), ["x"]) is None


@pytest.mark.parametrize("metric", ["os:name", "os", ":score", ".mine:score", "unparsable:score"])
def test_a_metric_that_cannot_be_called_is_refused(metric, tmp_path, monkeypatch):
    (tmp_path / "unparsable.py").write_text("def")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FrescoError, match="module:function that can be imported"):
        find_judge(metric, None, ["x"])


def test_the_reference_judge_reads_squares_of_256_px():
    for height, width, reads in ((256, 256, True), (64, 64, False), (512, 256, False)):
        picture = replace(PICTURE, height=height, width=width)
        assert (find_judge(None, picture, PROMPTS) is not None) == reads
    assert find_judge(None, replace(PICTURE, height=None, width=None), PROMPTS)


def brightness(images, prompts):
    """Mean over pictures."""
    return images.mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "reference"), "--model and --prompts together"),
        (("--prompts", "none.txt", "--model", "reference"), "a text file with a prompt per line"),
        (("--floor", "loud"), "a noise floor of precision, compile, none, got loud"),
        (("--metric", "no.such:thing"), "module:function that can be imported"),
        (("--metric", "json:no"), "module:function that can be imported"),
    ],
)
def test_bad_input_to_validate_is_a_clear_error(arguments, message, recipe, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    monkeypatch.setattr("fresco.reference.load", lambda **_: pytest.fail("loaded"))
    result = run("validate", str(recipe), *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_captions_that_the_judge_cannot_read_are_refused(recipe, tmp_path, pipe):
    file = tmp_path / "prompts.txt"
    file.write_text("a red dog\n")
    result = run("validate", str(recipe), "--model", "reference", "--prompts", str(file))
    assert result.exit_code == 2
    assert "words of the reference grammar, got dog" in result.output
