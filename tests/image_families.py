"""Families of pictures."""

from __future__ import annotations

from typing import Any

import torch

from tests.family import Family, guided, noise


def _sd3() -> dict[str, Any]:
    pooled, negative = noise(1, 16, seed=3), noise(1, 16, seed=4)
    return guided(pooled_prompt_embeds=pooled, negative_pooled_prompt_embeds=negative)


def _aura_flow() -> dict[str, Any]:
    return guided(torch.ones(1, 5), torch.ones(1, 5))


def _flux2() -> dict[str, Any]:
    return {"prompt_embeds": noise(1, 5, 32)}


def _chroma() -> dict[str, Any]:
    masks = torch.tensor([[[1, 1, 1, 1, 0]], [[1, 1, 0, 0, 0]]], dtype=torch.bool)
    return guided(*masks)


def _qwen_image() -> dict[str, Any]:
    return {
        "prompt_embeds": noise(1, 5, 32),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 0]]),
    }


def _lumina2() -> dict[str, Any]:
    everything = torch.ones(1, 5, dtype=torch.bool)
    # off, for it rescales by a norm, which restriction changes
    return guided(everything, everything, cfg_normalization=False)


def _z_image() -> dict[str, Any]:
    return {
        "prompt_embeds": [noise(5, 32)],
        "negative_prompt_embeds": [noise(3, 32, seed=2)],
        "guidance_scale": 2.0,
    }


def _binned() -> dict[str, Any]:
    """Of pipelines that round sizes to bins unless told not to."""
    negative_mask = torch.tensor([[1, 1, 1, 0, 0]])
    return guided(
        torch.ones(1, 5), negative_mask, negative_prompt=None, use_resolution_binning=False
    )


def _hunyuan_image() -> dict[str, Any]:
    return {
        "prompt_embeds": noise(1, 5, 32),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 0]]),
        "prompt_embeds_2": torch.zeros(1, 3, 16),
        "prompt_embeds_mask_2": torch.zeros(1, 3, dtype=torch.int64),
    }


def _flux() -> dict[str, Any]:
    return {"prompt_embeds": noise(1, 5, 16), "pooled_prompt_embeds": noise(1, 16, seed=3)}


IMAGES = {
    "flux": Family(
        "FluxPipeline",
        "FluxTransformer2DModel",
        {
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 6, 6),
        },
        _flux,
        clock=0,
        mixes=True,
        scheduler={"use_dynamic_shifting": True},
        missing=("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    ),
    "sd3": Family(
        "StableDiffusion3Pipeline",
        "SD3Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 16,
        },
        _sd3,
        mixes=True,
        scheduler={"shift": 3.0},
        missing=(
            "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2",
            "text_encoder_3", "tokenizer_3",
        ),
    ),
    "aura_flow": Family(
        "AuraFlowPipeline",
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 256,
        },
        _aura_flow,
        clock=0,
        mixes=True,
        scheduler={"shift": 1.73},
    ),
    "flux2": Family(
        "Flux2Pipeline",
        "Flux2Transformer2DModel",
        {
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        _flux2,
        clock=0,
        mixes=True,
        scheduler={"use_dynamic_shifting": True},
    ),
    "chroma": Family(
        "ChromaPipeline",
        "ChromaTransformer2DModel",
        {
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": (4, 6, 6),
            "approximator_num_channels": 16,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        _chroma,
        clock=0,
        passes=2,
        mixes=True,
        scheduler={"use_dynamic_shifting": True},
    ),
    "qwen_image": Family(
        "QwenImagePipeline",
        "QwenImageTransformer2DModel",
        {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": (4, 6, 6),
        },
        _qwen_image,
        clock=0,
        mixes=True,
        scheduler={"use_dynamic_shifting": True, "shift_terminal": 0.02},
    ),
    "z_image": Family(
        "ZImagePipeline",
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 24,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 32,
            "axes_dims": (4, 4, 4),
            "axes_lens": (64, 32, 32),
        },
        _z_image,
        is_negated=True,
        is_prompt_first=True,
        clock=2,
        mixes=True,
        scheduler={"shift": 3.0},
    ),
    "sana": Family(
        "SanaPipeline",
        "SanaTransformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 32,
        },
        _binned,
        zoom=2,
        scheduler={"shift": 3.0},
    ),
    "hunyuan_image": Family(
        "HunyuanImagePipeline",
        "HunyuanImageTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 32,
            "text_embed_2_dim": 16,
            "rope_axes_dim": (8, 8),
        },
        _hunyuan_image,
        zoom=2,
        mixes=True,
        scheduler={"shift": 5.0},
        missing=("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    ),
    "cogview4": Family(
        "CogView4Pipeline",
        "CogView4Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "text_embed_dim": 32,
            "time_embed_dim": 32,
            "condition_dim": 8,
            "rope_axes_dim": (16, 16),
        },
        guided,
        passes=2,
        mixes=True,
        scheduler={"use_dynamic_shifting": True, "base_shift": 0.25, "max_shift": 0.75,
                   "time_shift_type": "linear", "base_image_seq_len": 256},
    ),
    "lumina2": Family(
        "Lumina2Pipeline",
        "Lumina2Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "axes_dim_rope": (4, 4, 4),
            "axes_lens": (32, 32, 32),
            "cap_feat_dim": 32,
        },
        _lumina2,
        passes=2,
        is_negated=True,
        clock=2,
        mixes=True,
        scheduler={"use_dynamic_shifting": True},
    ),
    "pixart": Family(
        "PixArtSigmaPipeline",
        "PixArtTransformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "cross_attention_dim": 32,
            "caption_channels": 32,
        },
        _binned,
        mixes=True,
        scheduler={"beta_start": 0.0001, "beta_end": 0.02, "clip_sample": False},
        scheduler_class="DDIMScheduler",
        prediction="epsilon",
    ),
}  # fmt: skip
