"""Quantization and LoRA on dynamic resolution."""

from __future__ import annotations

import pytest
import torch

import fresco
from fresco import errors
from tests.conftest import draw_latents
from tests.matrix import lora_weights
from tests.stacks import FORCED, cache, counts, run, with_stack

RUNS_HERE = ("int8_weight_only", "int8_dynamic", "float8_weight_only", "quanto_qint8")
REFUSED_HERE = {
    "int4_weight_only": "torchao left the layer as it was with Int4WeightOnlyConfig",
    "float8_dynamic": "CUDA compute capability",
}


@pytest.mark.parametrize("form", RUNS_HERE)
def test_quantized_layers_are_the_blocks_own_and_smaller(intact, form):
    expected, _, _ = run(intact, with_stack("whole"))
    with fresco.accelerate(intact, with_stack("whole", {"kind": "quantize", "form": form})) as on:
        got = draw_latents(intact, num_inference_steps=12)
        quantized = {
            name
            for name, module in intact.transformer.named_modules()
            if isinstance(module, torch.nn.Linear) and type(module.weight.data) is not torch.Tensor
        }
        numbers = counts(on, "quantize")
    assert len(quantized) == numbers["layers"] == 17
    assert all("blocks.0." in name and "norm" not in name for name in quantized)
    assert numbers["bytes"] < 0.4 * numbers["bytes before"]
    assert 0 < (got - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize("form", REFUSED_HERE)
def test_what_cannot_run_here_is_refused_with_the_reason(intact, form):
    with pytest.raises(errors.AttachError, match=REFUSED_HERE[form]):
        fresco.accelerate(intact, with_stack("whole", {"kind": "quantize", "form": form}))


def test_nothing_left_to_quantize_is_warned_of(intact):
    entry = {"kind": "quantize", "exclude": ["blocks"]}
    with pytest.warns(errors.FrescoWarning, match="no linear layer of a block was left"):
        run(intact, with_stack("none", entry))


def test_a_lora_makes_the_same_picture_kept_and_fused(intact):
    plain, _, _ = run(intact, with_stack("whole"))
    entry = {"kind": "lora", "state_dict": lora_weights(intact)}
    kept, rows, _ = run(intact, with_stack("whole", entry))
    fused, fused_rows, _ = run(intact, with_stack("whole", {**entry, "fuse": True}))
    half, half_rows, _ = run(intact, with_stack("whole", {**entry, "strength": 0.5}))
    assert (kept - plain).norm() / plain.norm() > 0.005
    assert (half - kept).norm() / plain.norm() > 0.001
    torch.testing.assert_close(kept, fused, rtol=0, atol=1e-4)
    weights = lora_weights(intact)
    pairs = [(k, k.replace("_A.", "_B.")) for k in weights if "lora_A" in k]
    norm = sum(float((weights[b] @ weights[a]).pow(2).sum()) for a, b in pairs) ** 0.5
    assert rows["lora"]["layers"] == fused_rows["lora"]["layers"] == len(pairs)
    assert rows["lora"]["norm of delta"] == pytest.approx(norm, rel=1e-4)
    assert half_rows["lora"]["norm of delta"] == pytest.approx(norm / 2, rel=1e-4)


def test_a_lora_without_effect_is_warned_of(intact):
    entry = {"kind": "lora", "state_dict": lora_weights(intact, factor=0.0)}
    with pytest.warns(errors.FrescoWarning, match="its difference to the weights is zero"):
        run(intact, with_stack("none", entry))


def test_a_lora_may_bring_its_scheduler_settings(intact):
    own = intact.scheduler
    entry = {
        "kind": "lora",
        "state_dict": lora_weights(intact),
        "scheduler": {"use_dynamic_shifting": False, "shift": 3.0},
    }
    with fresco.accelerate(intact, with_stack("whole", entry)):
        assert intact.scheduler is not own
        assert intact.scheduler.config.shift == 3.0
        draw_latents(intact)
    assert intact.scheduler is own


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated")  # peft's, of merging
def test_a_lora_loaded_after_accelerate_must_be_unloaded_first(intact):
    accelerated = fresco.accelerate(intact, with_stack("whole", {"kind": "quantize"}))
    intact.load_lora_weights(lora_weights(intact), adapter_name="late")
    with pytest.raises(errors.AttachError, match="Unload the LoRA that was loaded since"):
        accelerated.restore()
    intact.unload_lora_weights()
    accelerated.restore()
    vars(intact.transformer).pop("_hf_peft_config_loaded", None)  # diffusers leaves it


LATE = {
    "resolution": [],
    "cache": [cache("first_block", FORCED["first_block"])],
    "compile": [{"kind": "compile", "backend": "eager"}],
}


@pytest.mark.parametrize("name", LATE)
def test_a_lora_loaded_after_accelerate_works_as_one_loaded_before(intact, name):
    raw = with_stack("whole", *LATE[name])
    plain, _, _ = run(intact, raw)
    weights = lora_weights(intact)
    intact.load_lora_weights(weights, adapter_name="own")
    expected, _, _ = run(intact, raw)
    intact.unload_lora_weights()
    with fresco.accelerate(intact, raw):
        intact.load_lora_weights(weights, adapter_name="own")
        late = draw_latents(intact, num_inference_steps=12)
        intact.unload_lora_weights()
        torch.testing.assert_close(
            draw_latents(intact, num_inference_steps=12), plain, rtol=0, atol=1e-6
        )
    assert (expected - plain).norm() / plain.norm() > 0.001
    torch.testing.assert_close(late, expected, rtol=0, atol=1e-6)
    vars(intact.transformer).pop("_hf_peft_config_loaded", None)  # diffusers leaves it


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # peft's, of two LoRAs
@pytest.mark.filterwarnings("ignore:Adapter late was active which is now deleted")
def test_a_second_lora_is_deleted_before_the_recipe_s_own_comes_off(intact):
    late = lora_weights(intact, 0.1)
    entry = {"kind": "lora", "state_dict": lora_weights(intact)}
    accelerated = fresco.accelerate(intact, with_stack("whole", entry))
    intact.load_lora_weights(late, adapter_name="late")
    with pytest.raises(errors.AttachError, match="delete_adapters leaves the recipe's"):
        accelerated.restore()
    intact.delete_adapters("late")
    accelerated.restore()


def test_a_recipe_s_lora_that_the_user_unloaded_comes_off_nevertheless(intact):
    entry = {"kind": "lora", "state_dict": lora_weights(intact)}
    accelerated = fresco.accelerate(intact, with_stack("whole", entry))
    intact.unload_lora_weights()
    assert draw_latents(intact).isfinite().all()
    accelerated.restore()


def test_a_lora_with_text_encoder_weights_is_refused_and_nothing_stays(intact):
    weights = lora_weights(intact) | {"text_encoder.x.lora_A.weight": torch.zeros(2, 2)}
    with pytest.raises(errors.AttachError, match="1 tensors for text encoders"):
        fresco.accelerate(intact, with_stack("whole", {"kind": "lora", "state_dict": weights}))
