"""How pipelines of pictures are called: embeddings of a prompt, and what else a family needs."""

from __future__ import annotations

from typing import Any

import torch

from tests.family import guided, noise


def sd3() -> dict[str, Any]:
    pooled, negative = noise(1, 16, seed=3), noise(1, 16, seed=4)
    return guided(pooled_prompt_embeds=pooled, negative_pooled_prompt_embeds=negative)


def aura_flow() -> dict[str, Any]:
    return guided(torch.ones(1, 5), torch.ones(1, 5))


def flux2() -> dict[str, Any]:
    return {"prompt_embeds": noise(1, 5, 32)}


def chroma() -> dict[str, Any]:
    masks = torch.tensor([[[1, 1, 1, 1, 0]], [[1, 1, 0, 0, 0]]], dtype=torch.bool)
    return guided(*masks)


def qwen_image() -> dict[str, Any]:
    return {
        "prompt_embeds": noise(1, 5, 32),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 0]]),
    }


def qwen_image_21() -> dict[str, Any]:
    mask = torch.tensor([[1, 1, 1, 1, 0]], dtype=torch.bool)
    return {"prompt_embeds": noise(1, 5, 32), "prompt_embeds_mask": mask}


def krea2() -> dict[str, Any]:
    """Of three layers of the text encoder, padded in the middle as its template is."""
    masks = torch.tensor([[[1, 1, 1, 0, 1]], [[1, 1, 0, 0, 1]]], dtype=torch.bool)
    return guided(
        prompt_embeds=noise(1, 5, 3, 32),
        prompt_embeds_mask=masks[0],
        negative_prompt_embeds=noise(1, 5, 3, 32, seed=2),
        negative_prompt_embeds_mask=masks[1],
    )


def lumina2() -> dict[str, Any]:
    everything = torch.ones(1, 5, dtype=torch.bool)
    # off, for it rescales by a norm, which restriction changes
    return guided(everything, everything, cfg_normalization=False)


def z_image() -> dict[str, Any]:
    return {
        "prompt_embeds": [noise(5, 32)],
        "negative_prompt_embeds": [noise(3, 32, seed=2)],
        "guidance_scale": 2.0,
    }


def binned() -> dict[str, Any]:
    """Of pipelines that round sizes to bins unless told not to."""
    negative_mask = torch.tensor([[1, 1, 1, 0, 0]])
    return guided(
        torch.ones(1, 5), negative_mask, negative_prompt=None, use_resolution_binning=False
    )


def hunyuan_image() -> dict[str, Any]:
    return {
        "prompt_embeds": noise(1, 5, 32),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 0]]),
        "prompt_embeds_2": torch.zeros(1, 3, 16),
        "prompt_embeds_mask_2": torch.zeros(1, 3, dtype=torch.int64),
    }


def flux() -> dict[str, Any]:
    return {"prompt_embeds": noise(1, 5, 16), "pooled_prompt_embeds": noise(1, 16, seed=3)}


def ovis_image() -> dict[str, Any]:
    return guided(negative_prompt=None)


def longcat_image() -> dict[str, Any]:
    return {
        "prompt": ["a red ring"],
        "negative_prompt": ["blur"],
        "guidance_scale": 2.0,
        "enable_prompt_rewrite": False,
        "enable_cfg_renorm": False,  # a norm, which restriction changes
    }
