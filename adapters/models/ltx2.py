"""LTX-2: the tokens of a video, and those of its sound beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.layout import TokenLayout
from fresco.registry import register_adapter

from .arguments import no_stages
from .ltx import LTXVideoAdapter


@register_adapter
class LTX2VideoAdapter(LTXVideoAdapter):
    """`LTX2VideoTransformer3DModel`, hooked at its root only: it takes coordinates as they come.

    Sound stays as it is. The pipeline steps it by a copy of its scheduler, which follows the
    plan: a lift takes sound along its own velocity, the form `trajectory`.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/ltx2/pipeline_ltx2.py (Apache-2.0);
        coordinates: `prepare_video_coords` of models/transformers/transformer_ltx2.py.
    """

    model: ClassVar[str] = "LTX2VideoTransformer3DModel"
    batched: ClassVar[tuple[str, ...]] = (
        *LTXVideoAdapter.batched,
        "audio_hidden_states",
        "audio_encoder_hidden_states",
        "sigma",
        "encoder_attention_mask",
        "audio_encoder_attention_mask",
        "video_coords",
        "audio_coords",
    )

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        names = [base.__name__ for base in type(pipe).__mro__]
        if hasattr(pipe, "prepare_latents") and "LTX2Pipeline" not in names:  # no mere sketch
            got = f"{type(pipe).__name__}, which holds some tokens fixed or appends others"
            raise no_stages("LTX2Pipeline", got)

    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        return self.config.in_channels, -1, *layout.grid_px

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        hidden, whole = call["hidden_states"], call["video_coords"]
        times = whole[:, :1, :: layout.sides.numel()]  # seconds, [b, 1, f, start and end]
        b, _, n_frames, _ = times.shape
        own = tokens.flatten(2).unflatten(2, (-1, n_frames))  # [b, n, c, f]
        _, height_px, width_px = self.config.vae_scale_factors
        starts = positions.to(whole).T  # token rows and columns, [2, n]
        scale = starts.new_tensor([[[height_px]], [[width_px]]])
        boxes = torch.stack((starts, starts + 1), dim=-1) * scale  # image px, [2, n, 2]
        spatial = boxes.repeat(1, n_frames, 1).expand(b, -1, -1, -1)
        temporal = times.repeat_interleave(len(positions), dim=2)
        return {
            **call,
            "hidden_states": own.permute(0, 3, 1, 2).flatten(1, 2).to(hidden.dtype),
            "video_coords": torch.cat((temporal, spatial), dim=1),
        }

    def join(self, outputs: Sequence[Any], back: Tensor) -> Any:
        """Join the sound of all parts, too."""
        video, sound = (torch.cat([output[i] for output in outputs])[back] for i in (0, 1))
        if isinstance(outputs[0], tuple):
            return video, sound
        return type(outputs[0])(sample=video, audio_sample=sound)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        """Arguments of one pass; of the sound, one token: its length is not known."""
        call, config = super().example_call(transformer, n_tokens, n_text_tokens), self.config
        d = config.num_attention_heads * config.attention_head_dim
        sound_d = config.audio_num_attention_heads * config.audio_attention_head_dim
        if config.use_prompt_embeddings:  # it projects the text to these widths itself
            d = sound_d = config.caption_channels
        like = call["timestep"]
        return {
            **call,
            "audio_hidden_states": like.new_zeros(1, 1, config.audio_in_channels),
            "encoder_hidden_states": like.new_zeros(1, n_text_tokens, d),
            "audio_encoder_hidden_states": like.new_zeros(1, n_text_tokens, sound_d),
            "sigma": like.new_zeros(1),
            "audio_encoder_attention_mask": call["encoder_attention_mask"],
            "audio_num_frames": 1,
        }
