"""Quantization that frees the original weights, as its recipe says."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import fresco
from fresco import errors
from tests.conftest import draw_latents, traces
from tests.matrix import lora_weights
from tests.stacks import counts, with_stack

FORMS = ("int8_weight_only", "quanto_qint8")


def freeing(form="int8_weight_only", **more):
    return {"kind": "quantize", "form": form, "keep_original": False, **more}


def block_weights(pipe):
    """Weak references to the weights that will be quantized."""
    kept = fresco.accelerate(pipe, with_stack("none", {"kind": "quantize"}))
    quantized = {n for n, m in pipe.transformer.named_modules() if is_quantized(m)}
    kept.restore()
    modules = dict(pipe.transformer.named_modules())
    return {name: weakref.ref(modules[name].weight) for name in quantized}


def is_quantized(module):
    return isinstance(module, torch.nn.Linear) and type(module.weight.data) is not torch.Tensor


def alive(references):
    gc.collect()
    return [name for name, reference in references.items() if reference() is not None]


@pytest.mark.parametrize("form", FORMS)
def test_original_weights_are_freed_and_restore_says_that_it_leaves_the_others(
    tiny_flux_pipe, form
):
    weights, before = block_weights(tiny_flux_pipe), traces(tiny_flux_pipe)
    assert len(alive(weights)) == 17
    accelerated = fresco.accelerate(tiny_flux_pipe, with_stack("whole", freeing(form)))
    assert alive(weights) == []
    assert counts(accelerated, "quantize")["originals"] == "freed"
    assert counts(accelerated, "quantize")["layers"] == 17
    assert draw_latents(tiny_flux_pipe).isfinite().all()
    with pytest.warns(errors.FrescoWarning, match="leaves 17 quantized layers: the recipe set"):
        accelerated.restore()
    for module in filter(is_quantized, tiny_flux_pipe.transformer.modules()):
        vars(module).pop("extra_repr", None)  # torchao's own label of a layer that stays quantized
    assert traces(tiny_flux_pipe) == before  # all else is off
    assert sum(map(is_quantized, tiny_flux_pipe.transformer.modules())) == 17
    accelerated.restore()  # a second time does nothing, and says nothing


def test_weights_stay_where_they_are_kept(tiny_flux_pipe):
    weights = block_weights(tiny_flux_pipe)
    with fresco.accelerate(tiny_flux_pipe, with_stack("whole", {"kind": "quantize"})) as kept:
        assert len(alive(weights)) == 17
        assert counts(kept, "quantize")["originals"] == "kept"


def test_restore_warns_before_anything_is_taken_off(tiny_flux_pipe):
    accelerated = fresco.accelerate(tiny_flux_pipe, with_stack("whole", freeing()))
    attached = traces(tiny_flux_pipe)
    with pytest.raises(errors.FrescoWarning, match="keep_original: false"):  # warnings raise here
        accelerated.restore()
    assert traces(tiny_flux_pipe) == attached
    assert draw_latents(tiny_flux_pipe).isfinite().all()


def test_nothing_is_freed_where_a_later_technique_is_refused(tiny_flux_pipe):
    plain, weights = draw_latents(tiny_flux_pipe), block_weights(tiny_flux_pipe)
    stack = [freeing(), {"kind": "compile", "backend": "eagre"}]
    with pytest.raises(errors.AttachError, match="eagre"):
        fresco.accelerate(tiny_flux_pipe, with_stack("whole", *stack))
    assert len(alive(weights)) == 17
    assert draw_latents(tiny_flux_pipe).equal(plain)


def test_layers_that_were_left_quantized_are_not_quantized_again(tiny_flux_pipe):
    accelerated = fresco.accelerate(tiny_flux_pipe, with_stack("none", freeing()))
    with pytest.warns(errors.FrescoWarning, match="leaves 17"):
        accelerated.restore()
    with pytest.raises(errors.AttachError, match="17 that are quantized already"):
        fresco.accelerate(tiny_flux_pipe, with_stack("none", {"kind": "quantize"}))


def test_a_lora_that_would_hold_on_to_the_weights_is_refused(tiny_flux_pipe):
    lora = {"kind": "lora", "state_dict": lora_weights(tiny_flux_pipe)}
    with pytest.raises(errors.RecipeError, match="so that nothing would be freed"):
        fresco.accelerate(tiny_flux_pipe, with_stack("none", freeing(), lora))
