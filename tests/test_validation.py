"""`fresco validate` measures pairs and a noise floor, holds recipes to bounds, writes records."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

import fresco.pairs
import fresco.reference
from fresco.errors import RecipeError
from fresco.pairs import Pairs, ValidationError, check_report, measure_pairs, other_way
from fresco.pictures import PictureRequest
from fresco.recipe import ExpectsConfig, load_recipe
from fresco.recipe_file import write_record
from fresco.record import RecordConfig
from fresco.specimen import make_specimen
from fresco.validation import check_mechanics, find_judge, pictures_record, shortfalls
from tests.command import run
from tests.conftest import traces
from tests.reference_parts import assemble_untrained

RECIPE = """# A recipe of a test.
#   fresco validate reference_mine.yaml
schema: 1
model: FluxTransformer2DModel  # FLUX
baseline: {steps: 8, height: 64, width: 64}
stages:
  - {cell: 2, steps: 2, until_sigma: 0.6}
  - {cell: 1, steps: 2, lift: {form: latent}}
expects: {flops_speedup: %s}
"""
PROMPTS = ("a red ring", "a blue plus")
PICTURE = PictureRequest("reference", None, "", 3, 4, None, 64, 64)
COARSE = {
    "schema": 1,
    "model": "any",
    "baseline": {"steps": 4},
    "stages": [{"cell": 2, "steps": 3, "until_sigma": 0.3}, {"cell": 1, "steps": 1}],
}


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


def test_a_recipe_that_changes_nothing_is_within_the_noise(pipe):
    identity, before = load_recipe("identity"), traces(pipe)
    pairs = measure_pairs(pipe, identity, PICTURE, PROMPTS)
    assert traces(pipe) == before
    assert all(torch.equal(a, b) for a, b in zip(pairs.plain, pairs.fast, strict=True))
    assert not torch.equal(pairs.plain[0], pairs.floor[0])
    record = pictures_record(pipe, identity, PICTURE, PROMPTS, pairs)
    assert (record.psnr_db, record.ssim, record.is_within_noise) == (None, 1, True)
    assert record.flops_speedup == 1


def test_pairs_change_their_order(pipe, monkeypatch):
    order, call = [], fresco.pairs.call_pipe

    def noted(pipe, request, *arguments, **more):
        order.append((request.prompt, request.seed, hasattr(pipe.scheduler.step, "__wrapped__")))
        return call(pipe, request, *arguments, **more)

    monkeypatch.setattr(fresco.pairs, "call_pipe", noted)
    measure_pairs(pipe, load_recipe(COARSE), PICTURE, PROMPTS, floor="none")
    is_fast = [wrapped for _, _, wrapped in order[1:]]
    assert [request[:2] for request in order[1:]] == [
        ("a red ring", 3), ("a red ring", 3), ("a blue plus", 4), ("a blue plus", 4)
    ]  # fmt: skip
    assert is_fast == [False, True, True, False]


def test_speedup_is_the_ratio_of_the_sums():
    pairs = Pairs(plain_s=[4.0, 8.0], fast_s=[1.0, 2.0])
    assert pairs.speedup() == 4
    assert Pairs(plain_s=[4.0, 2.0], fast_s=[1.0, 2.0]).speedup(torch.tensor([0, 0])) == 4


def test_another_precision_leaves_the_weights_to_the_bit(folder):
    pipe = fresco.reference.load(folder, torch.bfloat16)
    before = {name: weight.clone() for name, weight in pipe.transformer.state_dict().items()}
    with other_way(pipe, "precision") as how:
        assert how == "float32"
        assert pipe.transformer.dtype == torch.float32
    after = pipe.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert pipe.vae.dtype == torch.bfloat16


def test_a_run_that_differs_from_its_plan_fails(pipe, monkeypatch):
    with fresco.accelerate(pipe, COARSE) as fast, pytest.raises(ValidationError, match="steps of"):
        check_report(fast)  # nothing has run yet
    specimen, restore = make_specimen("reference"), fresco.stack.Stack.restore

    def leave_a_trace(self, *, has_failed=False):
        restore(self, has_failed=has_failed)
        specimen.pipe.transformer.proj_out.weight.data.mul_(1.1)

    monkeypatch.setattr("fresco.stack.Stack.restore", leave_a_trace)
    with pytest.raises(ValidationError, match="bit-identical once restored"):
        check_mechanics(specimen, load_recipe(COARSE))


RECORD = {
    "date": "2026-01-31",
    "covers": ["FLOPs"],
    "model": "tiny",
    "versions": {},
    "hardware": "CPU",
    "steps": 50,
    "flops_speedup": 5,
}


@pytest.mark.parametrize(
    ("expects", "found", "short"),
    [
        ({"flops_speedup": 5}, {}, []),
        ({"flops_speedup": 5.1}, {}, ["flops_speedup: expected at least 5.1, got 5"]),
        ({"speedup": 9, "psnr_db": 99, "judge": 1}, {}, []),  # not covered
        ({"speedup": 3}, {"speedup": 2.9}, ["speedup: expected at least 3, got 2.9"]),
        ({"psnr_db": 30}, {"psnr_db": 29}, ["psnr_db: expected at least 30, got 29"]),
        ({"ssim": 0.9, "judge": 0.5}, {"ssim": 0.8, "judge": 0.6},
         ["ssim: expected at least 0.9, got 0.8"]),
        ({"judge_kept": 0.96}, {"judge": 0.9, "judge_baseline": 0.8}, []),
        ({"judge_kept": 0.96}, {"judge": 0.76, "judge_baseline": 0.8},
         ["judge_kept: expected at least 0.96, got 0.95"]),
        ({"judge_kept": 0.96}, {"judge": 0.0, "judge_baseline": 0.0}, []),  # nothing to keep
    ],
)  # fmt: skip
def test_bounds_are_enforced_where_they_are_covered(expects, found, short):
    record = RecordConfig.model_validate(RECORD | found)
    assert shortfalls(ExpectsConfig(**expects), record) == short


def test_records_of_other_models_stay(recipe):
    for model in ("a", "b", "a"):
        write_record(recipe, RecordConfig.model_validate({**RECORD, "model": model}))
    assert [record.model for record in load_recipe(recipe).validated] == ["b", "a"]
    assert yaml.safe_load(recipe.read_text())["validated"][0]["date"] == "2026-01-31"


def test_records_come_last_or_are_refused(recipe):
    recipe.write_text("validated: []\n" + RECIPE % 2)
    with pytest.raises(RecipeError, match="put it last"):
        write_record(recipe, RecordConfig.model_validate(RECORD))
    assert recipe.read_text() == "validated: []\n" + RECIPE % 2


@pytest.mark.parametrize(
    ("text", "message"), [("validated: []\n" + RECIPE % 2, "put it last"), (None, "a directory")]
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


def test_what_spoils_the_plain_runs_or_does_not_attach_is_said_before_they_start(pipe, monkeypatch):
    monkeypatch.setattr(fresco.pairs, "call_pipe", lambda *_, **__: pytest.fail("sampled"))
    quantize = {"kind": "quantize", "form": "int8_weight_only", "keep_original": False}
    with pytest.raises(ValidationError, match="weights that come back for the plain runs"):
        measure_pairs(pipe, load_recipe({**COARSE, "stack": [quantize]}), PICTURE, PROMPTS)
    with pytest.raises(RecipeError, match="the recipe is for SD3Transformer2DModel"):
        measure_pairs(pipe, load_recipe("sd35_fast"), PICTURE, PROMPTS)


def test_a_metric_of_one_s_own_judges():
    judge = find_judge("tests.test_validation:brightness", None, ["x"])
    assert judge.name == "tests.test_validation:brightness"
    assert judge.score(torch.full((1, 3, 8, 8), 0.5), ["x"]) == 0.5
    assert find_judge(None, replace(PICTURE, model="else"), ["x"]) is None


def test_the_reference_judge_reads_squares_of_256_px():
    for height, width, reads in ((256, 256, True), (64, 64, False), (512, 256, False)):
        picture = replace(PICTURE, height=height, width=width)
        assert (find_judge(None, picture, PROMPTS) is not None) == reads
    assert find_judge(None, replace(PICTURE, height=None, width=None), PROMPTS)


def brightness(images, prompts):
    """Mean over pictures."""
    return images.mean().item()


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
