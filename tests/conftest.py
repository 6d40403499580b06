"""A whole FluxPipeline of random weights, small enough to run dozens of times in a test run."""

from __future__ import annotations

import contextlib
import gc
import os
import types

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from safetensors.torch import save_file

if "PYTEST_XDIST_WORKER" in os.environ:  # of two, on two cores
    torch.set_num_threads(1)

PROFILE = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),  # explaining is slow
}
settings.register_profile("dev", max_examples=30, **PROFILE)
settings.register_profile("ci", max_examples=300, derandomize=True, **PROFILE)
settings.load_profile("dev")


def pytest_collection_finish():
    """Spare the collector what is imported by now: it looked at it again and again."""
    gc.freeze()


WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "small", "large")


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=16,
    )


def _text_encoders():
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    t5 = T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return CLIPTextModel(clip).eval(), T5EncoderModel(t5).eval()


def make_vae(**config):
    """A tiny one of factor 4, with random weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        shift_factor=0.1,
        **config,
    ).eval()


def make_flux_pipe(n_blocks=1):
    """Build the pipeline: 4 latent channels, factor 4, 64 x 64 image px by default.

    `n_blocks` are those of each list; a cache that skips the middle of a list needs two.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    vae = make_vae(latent_channels=4, use_quant_conv=False, use_post_quant_conv=False)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=n_blocks,
        num_single_layers=n_blocks,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    clip, t5 = _text_encoders()
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=clip,
        tokenizer=_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=_tokenizer(),
        transformer=transformer.eval(),
    )
    pipe.default_sample_size = 16
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny_flux_pipe():
    """A pipeline of its own for every test."""
    return make_flux_pipe()


FRESCO_5 = {  # three stages, both ways of lifting, six steps
    "schema": 1,
    "model": "FluxTransformer2DModel",
    "baseline": {"steps": 12, "height": 64, "width": 64},
    "stages": [
        {"cell": 4, "steps": 4, "until_sigma": 0.7},
        {"cell": 2, "steps": 4, "until_sigma": 0.4, "lift": {"form": "latent"}},
        {"cell": 1, "steps": 4, "lift": {"form": "clean", "to_sigma": 0.6}},
    ],
}


def draw_latents(pipe, **asked):
    """Call a pipeline for latents, always the same prompt and seed unless told."""
    asked.setdefault("prompt", "a red circle")
    asked.setdefault("generator", torch.Generator().manual_seed(asked.pop("seed", 0)))
    asked.setdefault("num_inference_steps", 6)
    asked.setdefault("max_sequence_length", 16)
    asked.setdefault("output_type", "latent")
    return pipe(**asked).images


def traces(pipe):
    """Everything that middleware could leave behind on a pipeline's instances."""
    hooks = [name for name in vars(torch.nn.Module()) if "hooks" in name]
    return {
        "pipe": {name: id(value) for name, value in vars(pipe).items() if callable(value)},
        "scheduler": {k: id(v) for k, v in vars(pipe.scheduler).items() if callable(v)},
        "names": (
            sorted(set(vars(pipe)) - {"_current_timestep", "_interrupt"} - PIPELINE_STATE),
            sorted(set(vars(pipe.scheduler)) - {"num_inference_steps"}),
        ),
        "hooks": [
            [(name, dict(getattr(module, name))) for name in hooks if getattr(module, name)]
            for module in pipe.transformer.modules()
        ],
        "forward": "forward" in vars(pipe.transformer),
        "methods": [
            [name for name, value in vars(module).items() if isinstance(value, types.MethodType)]
            for module in pipe.transformer.modules()
        ],
    }


PIPELINE_STATE = {"_guidance_scale", "_joint_attention_kwargs", "_num_timesteps"}


@contextlib.contextmanager
def left_as_it_was(pipe):
    """Hold a pipeline to what it is and draws, to the bit, once the block ends."""
    plain, before = draw_latents(pipe), traces(pipe)
    modules = {name: id(module) for name, module in pipe.transformer.named_modules()}
    own = [sorted(vars(module)) for module in pipe.transformer.modules()]
    yield
    assert traces(pipe) == before
    assert {name: id(module) for name, module in pipe.transformer.named_modules()} == modules
    assert [sorted(vars(module)) for module in pipe.transformer.modules()] == own
    assert draw_latents(pipe).equal(plain)


@pytest.fixture
def intact(tiny_flux_pipe):
    """The pipeline; after the test, it must be as it was, to the bit."""
    with left_as_it_was(tiny_flux_pipe):
        yield tiny_flux_pipe


@pytest.fixture
def lora_file(tmp_path):
    """A file that names a layer of the reference model, and how it was made beside it."""
    (tmp_path / "lora").mkdir()
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    pair = {"A": torch.zeros(1, 192), "B": torch.zeros(16, 1)}
    save_file(
        {f"transformer.proj_out.lora_{side}.weight": each for side, each in pair.items()}, file
    )
    (tmp_path / "lora" / "provenance.json").write_text('{"steps": 7}')
    return file
