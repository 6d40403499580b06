"""A tiny random pipeline of a model family, and how it is asked for latents.

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
        slot: The transformer's tokens in one of fresco's; if several, they are single latent
            pixels, and text comes before them.
        is_prompt_first: Whether a doubled batch begins with the prompt's half, and guidance
            adds to that.
        adds_to_prompt: Whether guidance by two calls adds to the prompt's prediction.
        is_frames_first: Whether latents are [b, f, c, h, w].
        is_picture_sized: Whether a picture that is asked with says how large the result is.
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
    slot: int = 1
    is_prompt_first: bool = False
    adds_to_prompt: bool = False
    is_frames_first: bool = False
    is_picture_sized: bool = False
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
        if self.is_picture_sized:
            height, width = asked.pop("height"), asked.pop("width")
            asked["image"] = asked["image"].resize((width, height))
        asked.setdefault("generator", torch.Generator().manual_seed(asked.pop("seed", 0)))
        with warnings.catch_warnings():  # of Mochi's positions, on a CPU
            warnings.filterwarnings("ignore", "In CPU autocast", UserWarning)
            result = pipe(**asked, output_type="latent", return_dict=False)[0]
        assert isinstance(result, torch.Tensor)
        return result


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def guided(
    mask: torch.Tensor | None = None, negative_mask: torch.Tensor | None = None, **more: Any
) -> dict[str, Any]:
    """Arguments of a call with guidance: both prompts, their masks where there are any."""
    masks = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": negative_mask}
    return {
        "prompt_embeds": noise(1, 5, 32),
        "negative_prompt_embeds": noise(1, 5, 32, seed=2),
        "guidance_scale": 2.0,
        **{name: each for name, each in masks.items() if each is not None},
        **more,
    }


def repeated(asked: dict[str, Any], n: int = 2) -> dict[str, Any]:
    """The same call for several pictures."""
    lists = {key: n * value for key, value in asked.items() if isinstance(value, list)}
    tensors = {k: torch.cat((v,) * n) for k, v in asked.items() if isinstance(v, torch.Tensor)}
    return asked | lists | tensors
