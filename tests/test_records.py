"""Every reference recipe that can run carries a fresh record: `python -m tests.write_records`."""

from __future__ import annotations

import pytest

import fresco.reference
from fresco.recipe import known_recipes, load_recipe
from fresco.validation import shortfalls
from fresco.weights import weights_digest


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
    assert record.noise_floor.how in {"bfloat16 autocast", "torch.compile"}
    measured = (record.speedup_interval, record.ssim, record.judge, record.is_within_noise)
    assert None not in measured


def test_pictures_of_the_reference_model_are_of_the_weights_that_ship():
    """A record of other weights is stale: `python -m tests.write_records reference`."""
    shipped = weights_digest(fresco.reference.load())[:16]
    measured = [(name, record.weights) for name in known_recipes()
                for record in load_recipe(name).validated
                if "pictures" in record.covers and record.model == "reference"]  # fmt: skip
    assert [name for name, weights in measured if weights != shipped] == []
