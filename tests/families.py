"""Tiny random pipelines of the model families, and how each is asked for latents.

Text encoders are left out: the pipelines take embeddings. So is the VAE: they give latents.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch


@dataclass(frozen=True)
class Family:
    """One model family.

    Args:
        pipeline: Class of diffusers.
        transformer: Class of diffusers.
        config: Of a tiny transformer.
        asked: Embeddings and sizes of one call.
        passes: Transformer calls of a step.
        frames: Latent frames of that call, or patches of them.
        patch_frames: Latent frames of a patch.
        still_frames: First latent frames that are given, beside those.
        scheduler: Config of the scheduler.
        scheduler_class: Class of diffusers.
        prediction: What the scheduler is given: "flow", or its `prediction_type`.
        clock: What the transformer is told: 0 sigma, 1 a thousand times it, 2 one minus it, 3 a
            thousand times that. Whole timesteps are the scheduler's.
        is_negated: Whether the pipeline or its scheduler negates what the transformer returns.
        mixes: Whether it takes mixed layouts.
        zoom: Image px along a side of a token, over 16.
        is_prompt_first: Whether a doubled batch begins with the prompt's half, and guidance
            adds to that.
        is_frames_first: Whether latents are [b, f, c, h, w].
        missing: Components that are left out.
        parts: Makes components that cannot be left out.
    """

    pipeline: str
    transformer: str
    config: Mapping[str, Any]
    asked: Callable[[], dict[str, Any]]
    passes: int = 1
    frames: int = 1
    patch_frames: int = 1
    still_frames: int = 0
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    scheduler_class: str = "FlowMatchEulerDiscreteScheduler"
    prediction: str = "flow"
    clock: int = 1
    is_negated: bool = False
    mixes: bool = False
    zoom: int = 1
    is_prompt_first: bool = False
    is_frames_first: bool = False
    missing: tuple[str, ...] = ("vae", "text_encoder", "tokenizer")
    parts: Callable[[], dict[str, Any]] = dict

    def make(self) -> Any:
        """Build the pipeline."""
        torch.manual_seed(0)
        with warnings.catch_warnings():  # of diffusers' own imports
            warnings.simplefilter("ignore", FutureWarning)
            transformer = getattr(diffusers, self.transformer)(**self.config).eval()
        with torch.no_grad():
            for weight in transformer.parameters():  # some are zero at first
                if not weight.any():
                    weight.normal_(std=0.1)
        scheduler = getattr(diffusers, self.scheduler_class)(**self.scheduler)
        parts = {"transformer": transformer, "scheduler": scheduler, **self.parts()}
        pipe = getattr(diffusers, self.pipeline)(**parts, **dict.fromkeys(self.missing))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, pipe: Any, **asked: Any) -> torch.Tensor:
        """Call the pipeline for latents."""
        asked = {"num_inference_steps": 6, "height": 64, "width": 96} | self.asked() | asked
        asked["height"], asked["width"] = (asked[side] * self.zoom for side in ("height", "width"))
        asked.setdefault("generator", torch.Generator().manual_seed(asked.pop("seed", 0)))
        with warnings.catch_warnings():  # of Mochi's positions, on a CPU
            warnings.filterwarnings("ignore", "In CPU autocast", UserWarning)
            result = pipe(**asked, output_type="latent", return_dict=False)[0]
        assert isinstance(result, torch.Tensor)
        return result


def _noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _sd3() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "negative_prompt_embeds": _noise(1, 5, 32, seed=2),
        "pooled_prompt_embeds": _noise(1, 16, seed=3),
        "negative_pooled_prompt_embeds": _noise(1, 16, seed=4),
        "guidance_scale": 2.0,
    }


def _wan() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "negative_prompt_embeds": _noise(1, 5, 32, seed=2),
        "guidance_scale": 2.0,
        "num_frames": 5,
    }


def _hunyuan_video() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "pooled_prompt_embeds": _noise(1, 16, seed=3),
        "prompt_attention_mask": torch.ones(1, 5),
        "num_frames": 5,
    }


def _aura_flow() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "prompt_attention_mask": torch.ones(1, 5),
        "negative_prompt_embeds": _noise(1, 5, 32, seed=2),
        "negative_prompt_attention_mask": torch.ones(1, 5),
        "guidance_scale": 2.0,
    }


def _cogview4() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "negative_prompt_embeds": _noise(1, 5, 32, seed=2),
        "guidance_scale": 2.0,
    }


def _flux2() -> dict[str, Any]:
    return {"prompt_embeds": _noise(1, 5, 32)}


def _chroma() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0]], dtype=torch.bool),
        "negative_prompt_embeds": _noise(1, 5, 32, seed=2),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 0, 0, 0]], dtype=torch.bool),
        "guidance_scale": 2.0,
    }


def _qwen_image() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 0]]),
    }


def _lumina2() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "prompt_attention_mask": torch.ones(1, 5, dtype=torch.bool),
        "negative_prompt_embeds": _noise(1, 5, 32, seed=2),
        "negative_prompt_attention_mask": torch.ones(1, 5, dtype=torch.bool),
        "guidance_scale": 2.0,
        "cfg_normalization": False,  # rescales by a norm, which restriction changes
    }


def _z_image() -> dict[str, Any]:
    return {
        "prompt_embeds": [_noise(5, 32)],
        "negative_prompt_embeds": [_noise(3, 32, seed=2)],
        "guidance_scale": 2.0,
    }


def _sana() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "prompt_attention_mask": torch.ones(1, 5),
        "negative_prompt_embeds": _noise(1, 5, 32, seed=2),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
        "guidance_scale": 2.0,
        "negative_prompt": None,
        "use_resolution_binning": False,
    }


def _hunyuan_image() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 0]]),
        "prompt_embeds_2": torch.zeros(1, 3, 16),
        "prompt_embeds_mask_2": torch.zeros(1, 3, dtype=torch.int64),
    }


def _ltx() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "prompt_attention_mask": torch.ones(1, 5),
        "negative_prompt_embeds": _noise(1, 5, 32, seed=2),
        "negative_prompt_attention_mask": torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]),
        "guidance_scale": 2.0,
        "num_frames": 9,
    }


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


def _pixart() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "prompt_attention_mask": torch.ones(1, 5),
        "negative_prompt_embeds": _noise(1, 5, 32, seed=2),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
        "guidance_scale": 2.0,
        "negative_prompt": None,
        "use_resolution_binning": False,
    }


def _cogvideox() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "negative_prompt_embeds": _noise(1, 5, 32, seed=2),
        "guidance_scale": 2.0,
        "num_frames": 5,
    }


def _mochi() -> dict[str, Any]:
    masks = {name: value.bool() for name, value in _ltx().items() if name.endswith("mask")}
    return _ltx() | masks | {"num_frames": 7}


def _hunyuan_video_15() -> dict[str, Any]:
    return {
        "prompt_embeds": _noise(1, 5, 32),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 0]]),
        "prompt_embeds_2": _noise(1, 3, 16, seed=3),
        "prompt_embeds_mask_2": torch.tensor([[1, 1, 0]]),
        "num_frames": 5,
    }


def _hunyuan_video_15_parts() -> dict[str, Any]:
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(32,) * 5, layers_per_block=1
    )
    guider = diffusers.ClassifierFreeGuidance(enabled=False)
    return {"vae": vae.eval(), "guider": guider}


def _flux() -> dict[str, Any]:
    return {"prompt_embeds": _noise(1, 5, 16), "pooled_prompt_embeds": _noise(1, 16, seed=3)}


FAMILIES = {
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
        _wan,
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
        _sana,
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
        _cogview4,
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
        _pixart,
        mixes=True,
        scheduler={"beta_start": 0.0001, "beta_end": 0.02, "clip_sample": False},
        scheduler_class="DDIMScheduler",
        prediction="epsilon",
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
        _cogvideox,
        frames=2,
        mixes=True,
        scheduler={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                   "timestep_spacing": "trailing", "snr_shift_scale": 1.0},
        scheduler_class="CogVideoXDDIMScheduler",
        prediction="v_prediction",
        is_frames_first=True,
    ),
}  # fmt: skip
