"""Families of pictures whose pipeline packs 2 x 2 latent pixels into a token."""

from __future__ import annotations

from tests import image_calls as calls
from tests.family import Family

PACKED = {
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
        calls.flux,
        clock=0,
        mixes=True,
        scheduler={"use_dynamic_shifting": True},
        missing=("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
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
        calls.flux2,
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
        calls.chroma,
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
        calls.qwen_image,
        clock=0,
        mixes=True,
        scheduler={"use_dynamic_shifting": True, "shift_terminal": 0.02},
    ),
}
