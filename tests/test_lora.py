"""LoRAs from files and by hand: as diffusers loads them, in any order with quantization."""

from __future__ import annotations

import pytest
import torch

import fresco
from fresco import errors
from tests.conftest import draw_latents, make_flux_pipe, traces
from tests.matrix import lora_weights
from tests.stacks import with_stack


@pytest.fixture
def trained(tmp_path):
    """A folder with a LoRA as diffusers' own training scripts save it: alpha in the metadata."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = make_flux_pipe()
    torch.manual_seed(3)
    targets = {"target_modules": ["to_q", "to_k"], "init_lora_weights": False}
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=8, **targets))
    type(pipe).save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(pipe.transformer),
        **_collate_lora_metadata({"transformer": pipe.transformer}),
    )
    return tmp_path


@pytest.mark.parametrize("fuse", [False, True])
def test_a_file_has_the_strength_that_it_was_trained_with(tiny_flux_pipe, trained, fuse):
    plain = draw_latents(tiny_flux_pipe)
    other = make_flux_pipe()
    other.load_lora_weights(trained)
    expected = draw_latents(other)
    entry = {"kind": "lora", "source": str(trained), "fuse": fuse}
    with fresco.accelerate(tiny_flux_pipe, with_stack("none", entry)):
        got = draw_latents(tiny_flux_pipe)
    assert (expected - plain).norm() > 0.005 * plain.norm()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "got 0 tensors, none of it. Choose a LoRA of this model"),
        ({"unet.x.lora_A.weight": torch.zeros(2, 2)}, r"1 tensors, none of it \(unet\.x\.lora_A"),
        ({"transformer.norm_out.linear.bias": torch.zeros(64)}, "1 tensors that are no LoRA"),
        ({"transformer.proj_out.lokr_w1": torch.zeros(2, 2)}, r"that are no LoRA .*lokr_w1"),
    ],
    ids=["nothing", "of a U-Net", "a norm's", "LoKr"],
)
def test_what_is_no_lora_of_the_transformer_is_refused(tiny_flux_pipe, weights, message):
    before = traces(tiny_flux_pipe)
    with pytest.raises(errors.AttachError, match=message):
        fresco.accelerate(
            tiny_flux_pipe, with_stack("none", {"kind": "lora", "state_dict": weights})
        )
    assert traces(tiny_flux_pipe) == before


@pytest.mark.parametrize("whose", ["the user's, loaded before", "the recipe's"])
def test_a_lora_on_quantized_layers_may_be_unloaded_by_hand(tiny_flux_pipe, whose):
    plain = draw_latents(tiny_flux_pipe)
    modules = {name: id(module) for name, module in tiny_flux_pipe.transformer.named_modules()}
    weights, stack = lora_weights(tiny_flux_pipe), [{"kind": "quantize"}]
    if whose == "the recipe's":
        stack.append({"kind": "lora", "state_dict": weights})
    else:
        tiny_flux_pipe.load_lora_weights(weights, adapter_name="own")
    accelerated = fresco.accelerate(tiny_flux_pipe, with_stack("none", *stack))
    adapted = draw_latents(tiny_flux_pipe)
    tiny_flux_pipe.unload_lora_weights()
    quantized = draw_latents(tiny_flux_pipe)
    assert (adapted - quantized).norm() > 0.003 * plain.norm()
    assert 0 < (quantized - plain).norm() < 0.01 * plain.norm()
    accelerated.restore()
    assert draw_latents(tiny_flux_pipe).equal(plain)
    after = {name: id(module) for name, module in tiny_flux_pipe.transformer.named_modules()}
    assert after == modules
