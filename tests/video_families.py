"""Families of videos."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests.family import Family, guided, noise


def _guided() -> dict[str, Any]:
    return guided(num_frames=5)


def _hunyuan_video() -> dict[str, Any]:
    return {
        "prompt_embeds": noise(1, 5, 32),
        "pooled_prompt_embeds": noise(1, 16, seed=3),
        "prompt_attention_mask": torch.ones(1, 5),
        "num_frames": 5,
    }


def _ltx() -> dict[str, Any]:
    return guided(torch.ones(1, 5), torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]), num_frames=9)


def _ltx2() -> dict[str, Any]:
    """One call of the transformer per step: guidance by text only."""
    asked = _ltx() | {"negative_prompt_attention_mask": torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0]])}
    off = {"stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0}
    sound = {f"audio_{name}": value for name, value in off.items()}
    return asked | off | sound | {"audio_guidance_scale": 3.0}


def _ltx2_parts() -> dict[str, Any]:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1}
    connector = heads | {"num_learnable_registers": None}
    connectors = LTX2TextConnectors(
        caption_channels=32,
        text_proj_in_factor=1,
        connector_rope_base_seq_len=32,
        **{f"video_connector_{name}": value for name, value in connector.items()},
        **{f"audio_connector_{name}": value for name, value in connector.items()},
    )
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,),
        layers_per_block=(1,), decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False),
        downsample_type=("spatial",), upsample_residual=(False,), upsample_factor=(1,),
        spatial_compression_ratio=32, temporal_compression_ratio=8,
    )  # fmt: skip
    sound = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, in_channels=2,
        resolution=32, latent_channels=2, mid_block_add_attention=False, mel_bins=8,
    )  # fmt: skip
    return {"connectors": connectors.eval(), "vae": vae.eval(), "audio_vae": sound.eval()}


def _mochi() -> dict[str, Any]:
    masks = {name: value.bool() for name, value in _ltx().items() if name.endswith("mask")}
    return _ltx() | masks | {"num_frames": 7}


def _hunyuan_video_15() -> dict[str, Any]:
    return {
        "prompt_embeds": noise(1, 5, 32),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 0]]),
        "prompt_embeds_2": noise(1, 3, 16, seed=3),
        "prompt_embeds_mask_2": torch.tensor([[1, 1, 0]]),
        "num_frames": 5,
    }


def _hunyuan_video_15_parts() -> dict[str, Any]:
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(32,) * 5, layers_per_block=1
    )
    guider = diffusers.ClassifierFreeGuidance(enabled=False)
    return {"vae": vae.eval(), "guider": guider}


VIDEOS = {
    "wan": Family(
        "WanPipeline",
        "WanTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 12,
            "num_attention_heads": 2,
            "text_dim": 32,
            "freq_dim": 16,
            "ffn_dim": 32,
            "rope_max_seq_len": 16,  # positions per side; fewer than tokens of a frame
        },
        _guided,
        mixes=True,
        passes=2,
        frames=2,
        scheduler={"shift": 5.0},
    ),
    "hunyuan_video": Family(
        "HunyuanVideoPipeline",
        "HunyuanVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 32,
            "pooled_projection_dim": 16,
            "rope_axes_dim": (4, 4, 4),
        },
        _hunyuan_video,
        mixes=True,
        frames=2,
        scheduler={"shift": 7.0},
        missing=("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    ),
    "ltx": Family(
        "LTXPipeline",
        "LTXVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "cross_attention_dim": 32,
            "caption_channels": 32,
        },
        _ltx,
        frames=2,
        zoom=2,
        mixes=True,
        scheduler={"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05,
                   "base_image_seq_len": 1024, "shift_terminal": 0.1},
    ),
    "ltx2": Family(
        "LTX2Pipeline",
        "LTX2VideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 32,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 16,
            "rope_type": "split",
            "perturbed_attn": True,
        },
        _ltx2,
        frames=2,
        zoom=2,
        mixes=True,
        scheduler={"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05,
                   "base_image_seq_len": 1024, "shift_terminal": 0.1},
        missing=("text_encoder", "tokenizer", "vocoder"),
        parts=_ltx2_parts,
    ),
    "mochi": Family(
        "MochiPipeline",
        "MochiTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "pooled_projection_dim": 16,
            "text_embed_dim": 32,
            "time_embed_dim": 16,
        },
        _mochi,
        mixes=True,
        frames=2,
        clock=3,
        is_negated=True,
        scheduler={"invert_sigmas": True},
    ),
    "hunyuan_video_15": Family(
        "HunyuanVideo15Pipeline",
        "HunyuanVideo15Transformer3DModel",
        {
            "in_channels": 9,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 32,
            "text_embed_2_dim": 16,
            "image_embed_dim": 16,
            "rope_axes_dim": (4, 6, 6),
        },
        _hunyuan_video_15,
        mixes=True,
        frames=2,
        scheduler={"shift": 5.0},
        missing=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        parts=_hunyuan_video_15_parts,
    ),
    "cogvideox": Family(
        "CogVideoXPipeline",
        "CogVideoXTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "time_embed_dim": 8,
            "text_embed_dim": 32,
            "sample_height": 8,
            "sample_width": 12,
            "sample_frames": 5,
            "max_text_seq_length": 5,
            "use_rotary_positional_embeddings": True,
        },
        _guided,
        frames=2,
        mixes=True,
        scheduler={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                   "timestep_spacing": "trailing", "snr_shift_scale": 1.0},
        scheduler_class="CogVideoXDDIMScheduler",
        prediction="v_prediction",
        is_frames_first=True,
    ),
}  # fmt: skip
