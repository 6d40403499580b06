"""Recipes that ship: three intents a model, bounds that are met, runs as planned, a fresh page."""

from __future__ import annotations

import pytest
import torch

import fresco
from fresco.planner import model_of
from fresco.recipe import known_recipes, load_recipe
from fresco.sketch import load_model_config
from fresco.specimen import make_specimen
from fresco.validation import check_mechanics, shortfalls
from tests.conftest import draw_latents

INTENTS = ("quality", "balanced", "fast")
MODELS = (
    *("flux1-dev", "flux1-schnell", "flux2", "hunyuan-video"),
    *("qwen-image", "sd35", "wan21", "z-image"),
)
BY_MODEL = [f"{model}_{intent}" for model in MODELS for intent in INTENTS]


def test_every_model_has_recipes_at_three_intents():
    expected = {f"{model}_{intent}" for model in (*MODELS, "reference") for intent in INTENTS}
    assert expected <= known_recipes().keys()


@pytest.mark.parametrize("name", BY_MODEL)
def test_records_of_models_without_weights_meet_their_bounds_and_claim_no_quality(name):
    recipe = load_recipe(name)
    assert recipe.model == load_model_config(model_of(name)).transformer["_class_name"]
    assert recipe.expects.model_dump(exclude_none=True).keys() == {"flops_speedup"}
    (record,) = recipe.validated
    assert record.covers == ("mechanics", "FLOPs")
    assert shortfalls(recipe.expects, record) == []
    bound = recipe.expects.flops_speedup
    assert record.flops_speedup < 1.1 * bound  # a bound that says something
    assert record.speedup is record.psnr_db is record.ssim is record.judge is None


@pytest.mark.parametrize(
    "name", [name for name in known_recipes() if name.startswith(("reference_", "rival_"))]
)
def test_bounds_of_recipes_for_the_reference_model_say_something_and_are_met(name):
    bounds, found = load_recipe(name).expects, fresco.plan("reference", name).flops_speedup
    assert bounds.flops_speedup <= found < 1.1 * bounds.flops_speedup
    if name.startswith("reference_"):
        assert 1 < bounds.speedup < found  # time is won by FLOPs that are not spent


@pytest.mark.parametrize("name", known_recipes())
def test_records_that_ship_are_of_the_stages_that_ship(name):
    recipe = load_recipe(name)
    why = f"run `fresco validate {name}`"
    assert [record.recipe for record in recipe.validated] == [recipe.digest] * len(
        recipe.validated
    ), why


@pytest.mark.parametrize("name", ["flux1-dev_fast", "flux1-schnell_fast", "sd35_fast"])
def test_flops_of_a_record_are_counted_again(name):
    (record,) = load_recipe(name).validated
    found = fresco.plan(model_of(name), name)
    assert found.flops_speedup == pytest.approx(record.flops_speedup, rel=1e-3)


@pytest.mark.parametrize("model", [*MODELS, "reference"])
def test_intents_are_in_the_order_of_their_speed(model):
    speeds = [load_recipe(f"{model}_{intent}").expects.flops_speedup for intent in INTENTS]
    assert speeds == sorted(set(speeds))


@pytest.mark.parametrize("name", BY_MODEL[:6])
def test_recipes_of_flux_run_as_planned(name, tiny_flux_pipe):
    recipe = load_recipe(name)
    before = draw_latents(tiny_flux_pipe, num_inference_steps=2)
    with fresco.accelerate(tiny_flux_pipe, recipe) as fast:
        latents = draw_latents(tiny_flux_pipe, num_inference_steps=recipe.baseline_steps)
        assert [step.tokens for step in fast.report.steps] == [s.n_tokens for s in fast.plan.steps]
        assert fast.report.n_passes == sum(stage.steps for stage in recipe.stages)
    assert latents.isfinite().all()
    assert torch.equal(before, draw_latents(tiny_flux_pipe, num_inference_steps=2))


@pytest.mark.parametrize("model", [model for model in MODELS if not model.startswith("flux1")])
def test_recipes_run_as_planned_on_a_tiny_pipeline_of_the_model_s_class(model):
    specimen = make_specimen(model_of(f"{model}_fast"))
    for intent in INTENTS:
        recipe = load_recipe(f"{model}_{intent}")
        check_mechanics(specimen, recipe)
        with fresco.accelerate(specimen.pipe, recipe) as fast:
            specimen.draw(recipe.baseline_steps)
            sides = [step.side for step in fast.report.steps]
        assert sides == [stage.cell for stage in recipe.stages for _ in range(stage.steps)]


def test_a_specimen_is_the_same_every_time_and_leaves_the_seed_alone():
    before = torch.random.get_rng_state()
    one, other = (make_specimen("sd35-large") for _ in range(2))
    assert torch.equal(one.draw(2), other.draw(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.pipe.scheduler.config.shift == 3
    assert one.name == "tiny StableDiffusion3Pipeline, random weights"


def test_the_page_of_recipes_and_the_readme_s_table_are_fresh():
    from tests import write_recipes

    why = "run `python -m tests.write_recipes` and commit what it writes"
    assert write_recipes.PAGE.read_text(encoding="utf-8") == write_recipes.make_page(), why
    readme = write_recipes.README.read_text(encoding="utf-8")
    assert readme == write_recipes.make_readme(readme), why
    assert all(f"`{name}`" in write_recipes.make_page() for name in known_recipes())
