"""Compilation and whole stacks on dynamic resolution: what comes off again, what is refused."""

from __future__ import annotations

import pytest
import torch

import fresco
from fresco import errors
from tests.conftest import draw_latents
from tests.matrix import RESOLUTIONS, lora_weights
from tests.stacks import FORCED, cache, run, with_stack


@pytest.fixture(autouse=True)
def _fresh_graphs():
    torch._dynamo.reset()


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_compiled_blocks_give_the_same_picture_in_few_graphs(intact, resolution):
    expected, _, _ = run(intact, with_stack(resolution))
    entry = {"kind": "compile", "backend": "eager"}
    got, rows, _ = run(intact, with_stack(resolution, entry))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert rows["compile"] == {"blocks": 2, "graphs": 2}


def test_blocks_that_stay_eager_are_warned_of(intact):
    entry = {"kind": "compile", "backend": "eager"}
    message = "compile is on, but did nothing: no graph was captured"
    with (
        fresco.accelerate(intact, with_stack("none", entry)),
        torch.compiler.set_stance("force_eager"),
        pytest.warns(errors.FrescoWarning, match=message),
    ):
        draw_latents(intact)


def test_an_unknown_backend_is_refused(intact):
    entry = {"kind": "compile", "backend": "eagre"}
    with pytest.raises(errors.AttachError, match=r"expected a backend of .*eager.*, got eagre"):
        fresco.accelerate(intact, with_stack("none", entry))


def test_a_full_graph_under_a_cache_that_breaks_it_is_refused(intact):
    stack = [{"kind": "compile", "fullgraph": True}, cache("first_block", {})]
    with pytest.raises(errors.RecipeError, match="which breaks a full graph"):
        fresco.accelerate(intact, with_stack("none", *stack))


@pytest.mark.parametrize("method", ["pab", "fastercache"])
def test_a_cache_that_compiles_anew_at_every_step_is_refused(intact, method):
    stack = [{"kind": "compile"}, cache(method, FORCED[method])]
    with pytest.raises(errors.RecipeError, match="step counter becomes a constant of the graph"):
        fresco.accelerate(intact, with_stack("none", *stack))


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_all_phases_at_once_come_off_to_the_bit(intact, resolution):
    stack = [cache("first_block", FORCED["first_block"]), {"kind": "quantize"}]
    stack.append({"kind": "lora", "state_dict": lora_weights(intact)})
    picture, rows, _ = run(intact, with_stack(resolution, *stack))
    assert list(rows) == ["lora", "quantize", "resolution", "cache"]
    assert picture.isfinite().all()


@pytest.mark.parametrize("entry", ["quantize", "fused"])
def test_restoring_follows_a_pipeline_that_has_moved(tiny_flux_pipe, entry):
    fused = {"kind": "lora", "state_dict": lora_weights(tiny_flux_pipe), "fuse": True}
    stack = [{"kind": "quantize"} if entry == "quantize" else fused]
    accelerated = fresco.accelerate(tiny_flux_pipe, {"schema": 1, "model": "any", "stack": stack})
    tiny_flux_pipe.to(torch.bfloat16)
    accelerated.restore()
    types = {weight.dtype for weight in tiny_flux_pipe.transformer.parameters()}
    assert types == {torch.bfloat16}
    assert draw_latents(tiny_flux_pipe).isfinite().all()


def test_a_scheduler_that_was_put_in_since_stays(tiny_flux_pipe):
    entry = {
        "kind": "lora",
        "state_dict": lora_weights(tiny_flux_pipe),
        "scheduler": {"use_dynamic_shifting": False, "shift": 3.0},
    }
    accelerated = fresco.accelerate(tiny_flux_pipe, with_stack("none", entry))
    own = type(tiny_flux_pipe.scheduler).from_config(tiny_flux_pipe.scheduler.config)
    tiny_flux_pipe.scheduler = own
    accelerated.restore()
    assert tiny_flux_pipe.scheduler is own
