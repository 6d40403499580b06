"""Records of validations: their bounds, their place in a recipe, those of the weights that ship."""

from __future__ import annotations

import pytest
import yaml

import fresco.reference
from fresco.errors import RecipeError
from fresco.recipe import ExpectsConfig, known_recipes, load_recipe
from fresco.recipe_file import write_record
from fresco.record import RecordConfig
from fresco.validation import shortfalls
from fresco.weights import weights_digest
from tests.validated import RECIPE


@pytest.fixture(scope="module")
def shipped():
    """Digest of the weights that ship, as records have it."""
    return weights_digest(fresco.reference.load())[:16]


def can_run(name):
    """Whether the few-step LoRA, where a recipe needs it, ships."""
    needs_lora = any(entry["kind"] == "lora" for entry in load_recipe(name).stack)
    return any(fresco.reference.LORA.glob("*.safetensors")) or not needs_lora


NAMES = [name for name in known_recipes() if name.startswith("reference_") and can_run(name)]


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_recipe_that_can_run_has_a_record_of_the_weights_that_ship(name, shipped):
    recipe = load_recipe(name)
    found = [each for each in recipe.validated if each.weights == shipped]
    assert [each.covers for each in found] == [("mechanics", "FLOPs", "pictures")], (
        "run `python -m tests.write_records reference --prompts 8`"
    )
    (record,) = found
    assert shortfalls(recipe.expects, record) == []
    assert record.steps == recipe.baseline_steps
    assert record.prompts >= 8
    assert record.judge_by == "reference judge"
    assert record.noise_floor.how == "bfloat16 autocast"
    measured = (record.speedup_interval, record.ssim, record.judge, record.is_within_noise)
    assert None not in measured


def test_pictures_of_the_reference_model_are_of_the_weights_that_ship(shipped):
    """A record of other weights is stale: `python -m tests.write_records reference`."""
    measured = [(name, record.weights) for name in known_recipes()
                for record in load_recipe(name).validated
                if "pictures" in record.covers and record.model == "reference"]  # fmt: skip
    assert [name for name, weights in measured if weights != shipped] == []


RECORD = {
    "date": "2026-01-31",
    "covers": ["FLOPs"],
    "model": "tiny",
    "versions": {},
    "hardware": "CPU",
    "steps": 50,
    "flops_speedup": 5,
}


@pytest.fixture
def recipe(tmp_path):
    """A recipe's file that meets its bound."""
    path = tmp_path / "reference_mine.yaml"
    path.write_text(RECIPE % 2)
    return path


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
