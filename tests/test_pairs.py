"""Pairs of plain and accelerated runs: their order, times and noise floor, and what fails them."""

from __future__ import annotations

import pytest
import torch

import fresco
import fresco.pairs
import fresco.reference
from fresco.errors import RecipeError
from fresco.pairs import Pairs, ValidationError, check_report, measure_pairs, other_way
from fresco.recipe import load_recipe
from fresco.specimen import make_specimen
from fresco.validation import check_mechanics, pictures_record
from tests.conftest import traces
from tests.reference_parts import assemble_untrained
from tests.validated import PICTURE, PROMPTS

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


def test_what_spoils_the_plain_runs_or_does_not_attach_is_said_before_they_start(pipe, monkeypatch):
    monkeypatch.setattr(fresco.pairs, "call_pipe", lambda *_, **__: pytest.fail("sampled"))
    quantize = {"kind": "quantize", "form": "int8_weight_only", "keep_original": False}
    with pytest.raises(ValidationError, match="weights that come back for the plain runs"):
        measure_pairs(pipe, load_recipe({**COARSE, "stack": [quantize]}), PICTURE, PROMPTS)
    with pytest.raises(RecipeError, match="the recipe is for SD3Transformer2DModel"):
        measure_pairs(pipe, load_recipe("sd35_fast"), PICTURE, PROMPTS)
