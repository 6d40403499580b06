"""Tiny random pipelines that make a video from a picture, as `tests.families` has the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch

from tests.families import FAMILIES
from tests.family import Family


def _hunyuan_video() -> dict[str, Any]:
    picture = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    return FAMILIES["hunyuan_video"].asked() | {"image": picture, "num_frames": 9}


def _hunyuan_video_parts() -> dict[str, Any]:
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2,
        scaling_factor=1.0, mid_block_add_attention=False,
    )  # fmt: skip
    return {"vae": vae.eval()}


def _of_hunyuan_video(pipeline: str, frames: int = 3, still: int = 0, **config: Any) -> Family:
    """HunyuanVideo with another pipeline and a VAE, on a transformer of this config."""
    plain = FAMILIES["hunyuan_video"]
    return replace(
        plain,
        pipeline=pipeline,
        config={**plain.config, **config},
        asked=_hunyuan_video,
        frames=frames,
        still_frames=still,
        missing=plain.missing[1:] + ("image_processor",) * ("Skyreels" not in pipeline),
        parts=_hunyuan_video_parts,
    )


def picture() -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def _wan() -> dict[str, Any]:
    return FAMILIES["wan"].asked() | {"image": picture(), "num_frames": 9}


def _wan_parts() -> dict[str, Any]:
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return {"vae": vae.eval(), "expand_timesteps": True}


def _cogvideox_parts() -> dict[str, Any]:
    vae = diffusers.AutoencoderKLCogVideoX(
        latent_channels=4, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    return {"vae": vae.eval()}


def _of_cogvideox(n_pictures: int, **config: Any) -> Family:
    """CogVideoX that sees a picture, on a transformer of this config."""
    plain = FAMILIES["cogvideox"]
    picture = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    return replace(
        plain,
        pipeline="CogVideoXImageToVideoPipeline",
        config={**plain.config, "in_channels": 8, **config},
        asked=lambda: plain.asked() | {"image": picture, "num_frames": n_pictures},
        patch_frames=config.get("patch_size_t", 1),
        missing=plain.missing[1:],
        parts=_cogvideox_parts,
    )


FROM_PICTURES = {  # frames: those that are predicted
    "latent_concat": _of_hunyuan_video(
        "HunyuanVideoImageToVideoPipeline", in_channels=9, image_condition_type="latent_concat"
    ),
    "skyreels": _of_hunyuan_video("HunyuanSkyreelsImageToVideoPipeline", in_channels=8),
    "token_replace": _of_hunyuan_video(
        "HunyuanVideoImageToVideoPipeline", 2, 1, image_condition_type="token_replace"
    ),
    "wan_ti2v": replace(
        FAMILIES["wan"],
        pipeline="WanImageToVideoPipeline",
        asked=_wan,
        still_frames=1,
        missing=("text_encoder", "tokenizer", "image_encoder", "image_processor"),
        parts=_wan_parts,
    ),
    "cogvideox_i2v": _of_cogvideox(5),
    "cogvideox_15": _of_cogvideox(
        13, patch_size_t=2, patch_bias=False, ofs_embed_dim=8, sample_height=16, sample_width=24
    ),
}
LEARNED = _of_cogvideox(5, use_learned_positional_embeddings=True)  # takes one size
