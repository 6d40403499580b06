"""HunyuanVideo, with and without a picture: latents [b, c, f, h, w], distilled guidance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.layout import TokenLayout
from fresco.registry import register_adapter

from .first_frame import FirstFrameAdapter
from .video import refuse_no_picture, rotate


@register_adapter
class HunyuanVideoAdapter(FirstFrameAdapter):
    """`HunyuanVideoTransformer3DModel`; a picture to start from is channels or the first frame.

    As channels (`latent_concat`, SkyReels), coarse cells get their average; the first frame's
    tokens (`token_replace`) stay those of the full grid. The field is the run's first latents
    as they are: noise, with a thousandth of the picture where the pipeline puts one there.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/hunyuan_video/
        pipeline_hunyuan_video.py and pipeline_hunyuan_video_image2video.py (Apache-2.0).
    """

    model: ClassVar[str] = "HunyuanVideoTransformer3DModel"
    text_width: ClassVar[str] = "text_embed_dim"
    batched: ClassVar[tuple[str, ...]] = (
        *FirstFrameAdapter.batched,
        "encoder_attention_mask",
        "pooled_projections",
        "guidance",
    )

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        self.n_still = int(self.config.image_condition_type == "token_replace")

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        kind, n_seen = self.config.image_condition_type, self.config.in_channels
        if kind or n_seen > self.channels:
            refuse_no_picture(pipe, kind or f"{n_seen} channels")

    def still_frames(self, pipe: Any) -> int:
        return self.n_still

    def prepared(self, result: Any) -> Tensor:
        return super().prepared(result)[:, :, self.n_still :]  # its steps leave them out, too

    def read(self, call: Mapping[str, Any], layout: TokenLayout) -> Tensor:
        moving = call["hidden_states"][:, :, self.n_still :]
        return super().read({**call, "hidden_states": moving}, layout)

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        undo = ExitStack()
        undo.callback(super().attach(transformer, units))
        if self.n_still:
            for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
                undo.callback(block.register_forward_pre_hook(self._before_block).remove)
        return undo.close

    def _before_block(self, _block: Any, given: Any) -> Any:
        """Say how many of the one row's tokens, the last argument, are the still frame's."""
        return None if self._places is None else (*given[:-1], len(self._still))

    def rotations(self, rope: Any, given: Sequence[Any], places: Tensor) -> Any:
        return rotate(given[0], places, rope.rope_dim, rope.theta, torch.float32)
