"""FLOPs on the meta device are those of the real module."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fresco.cost import _cast, pass_flops, plan_cost
from fresco.recipe import load_recipe
from fresco.registry import find_adapter
from fresco.request import PlanRequest
from fresco.schedule import make_plan
from tests.conftest import make_flux_pipe
from tests.families import FAMILIES
from tests.strategies import recipes

TRANSFORMER = make_flux_pipe().transformer
SIZES = (1, 2, 15, 64, 65, 256, 300)


def formula(transformer, n_tokens, n_text):
    """The matrix products of one pass, written out."""
    c, d = transformer.config, transformer.inner_dim
    n = n_tokens + n_text
    embed = n_tokens * c.in_channels * d + n_text * c.joint_attention_dim * d
    time = 256 * d + d * d + c.pooled_projection_dim * d + d * d
    attention = 2 * n * n * d
    double = 2 * 6 * d * d + n * 4 * d * d + attention + n * 8 * d * d
    single = 3 * d * d + n * 3 * d * d + attention + n * 4 * d * d + n * 5 * d * d
    last = 2 * d * d + n_tokens * d * c.in_channels
    return 2 * (embed + time + double * c.num_layers + single * c.num_single_layers + last)


@pytest.mark.parametrize(("n_tokens", "n_text"), [(64, 16), (6, 3), (1024, 64)])
def test_flops_match_the_formula_and_a_count_on_the_real_module(n_tokens, n_text):
    transformer = make_flux_pipe().transformer
    call = find_adapter(transformer).example_call(transformer, n_tokens, n_text)
    # the counter does not know the fused attention of the CPU
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        transformer(**call)
    predicted = pass_flops(transformer, n_tokens, n_text)
    assert predicted == formula(transformer, n_tokens, n_text)
    assert predicted == counter.get_total_flops()


@given(st.sampled_from(SIZES), st.sampled_from(SIZES))
def test_fewer_tokens_cost_fewer_flops(a, b):
    few, many = sorted((a, b))
    if few != many:
        assert pass_flops(TRANSFORMER, few, 16) < pass_flops(TRANSFORMER, many, 16)


@given(recipes(mixed=False))
def test_predicted_flops_fall_when_a_stage_gets_coarser(raw):
    def flops(stages):
        recipe = load_recipe({**raw, "stages": stages})
        request = PlanRequest(20, 16, 16, lambda _n_tokens: 1.0)
        return plan_cost(make_plan(recipe, request), TRANSFORMER, 16).flops

    for i, stage in enumerate(raw["stages"][:-1]):
        if stage["cell"] < 4 and not any(other["cell"] < 4 for other in raw["stages"][:i]):
            coarser = {**stage, "cell": 2 * stage["cell"]}
            changed = [*raw["stages"][:i], coarser, *raw["stages"][i + 1 :]]
            if i and "lift" in raw["stages"][i]:
                continue
            assert flops(changed) < flops(raw["stages"])


def test_speedup_of_a_pinned_plan():
    recipe = load_recipe("reference_5x")
    plan = make_plan(recipe, PlanRequest(50, 32, 32, lambda _n_tokens: 1.0))
    cost = plan_cost(plan, TRANSFORMER, 64)
    full, half = (formula(TRANSFORMER, n, 64) for n in (1024, 256))
    assert cost.baseline_flops == 50 * full
    n_fine = sum(step.side == 1 for step in plan.steps)
    assert cost.flops == n_fine * full + (len(plan.steps) - n_fine) * half


@pytest.mark.parametrize("name", ["flux", "krea2", "wan"])  # none, norms; and single weights
def test_copies_to_count_with_are_cast_as_weights_are_loaded(name, tmp_path):
    transformer = FAMILIES[name].make().transformer
    transformer.save_pretrained(tmp_path)
    loaded = type(transformer).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    _cast(transformer, torch.bfloat16)
    expected = {name: weight.dtype for name, weight in loaded.named_parameters()}
    assert {name: weight.dtype for name, weight in transformer.named_parameters()} == expected
    assert find_adapter(loaded).example_call(loaded, 24, 5)["hidden_states"].dtype == torch.bfloat16
