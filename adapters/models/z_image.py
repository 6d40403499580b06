"""Z-Image: latents in a list of [c, 1, h, w]; the transformer returns the negated velocity."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor

from fresco.layout import TokenLayout
from fresco.ports import AbstractModelAdapter
from fresco.registry import register_adapter
from fresco.wraps import wrap_method

from .arguments import no_stages
from .strip import StripAdapter


@register_adapter
class ZImageAdapter(StripAdapter):
    """`ZImageTransformer2DModel`; the model pads image and text to multiples of 32 tokens.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/models/transformers/transformer_z_image.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "ZImageTransformer2DModel"
    noise_coefficient: ClassVar[float] = -1.0
    residuals: ClassVar[tuple[str, ...]] = ("controlnet_block_samples",)

    def __init__(self, transformer: Any) -> None:
        AbstractModelAdapter.__init__(self, transformer)
        self.patch_px, self.patch_frames, self.is_video = 2, 1, False  # the pipeline's choice

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        if self.config.siglip_feat_dim is not None:
            raise no_stages("text to image", "a transformer of Z-Image Omni (siglip_feat_dim)")

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        rope = transformer.rope_embedder  # no module

        def patchify(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            parts = list(original(*args, **kwargs))
            if self._places is not None:
                parts[3] = [self._place(ids) for ids in parts[3]]
            return tuple(parts)

        def rotate(ids: Tensor) -> Tensor:
            if not ids.is_floating_point():
                own: Tensor = rope(ids)
                return own
            axes = zip(rope.axes_dims, ids.unbind(dim=1), strict=True)
            parts = [
                get_1d_rotary_pos_embed(d, at, rope.theta, freqs_dtype=torch.float64)
                for d, at in axes
            ]
            return torch.cat(parts, dim=1).to(torch.complex64)

        undo = ExitStack()
        undo.callback(wrap_method(transformer, "patchify_and_embed", patchify))
        undo.callback(setattr, transformer, "rope_embedder", rope)
        transformer.rope_embedder = rotate
        return undo.close

    def select(self, call: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
        lists = {name: [call[name][row] for row in rows] for name in ("x", "cap_feats")}
        return {**call, **lists, "t": call["t"][list(rows)]}

    def read(self, call: Mapping[str, Any], layout: TokenLayout) -> Tensor:
        return super().read({**call, "hidden_states": _stack(call["x"])}, layout)

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        like = {**call, "hidden_states": call["x"][0]}
        grid = super().embed(like, tokens, layout, positions).pop("hidden_states")
        return {**call, "x": list(grid.unsqueeze(2))}

    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        return super().unembed((_stack(output[0]),), layout)

    def replace(self, output: Any, carrier: Tensor, layout: TokenLayout) -> Any:
        return self.with_sample(output, carrier.to(output[0][0].dtype).unsqueeze(2))

    def text_tokens(self, call: Mapping[str, Any]) -> int:
        return len(call["cap_feats"][0])

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        latents = self.example_latents(transformer, n_tokens)
        text = latents.new_zeros(n_text_tokens, self.config.cap_feat_dim)
        return {
            "x": list(latents.unsqueeze(2)),
            "t": latents.new_zeros(1),
            "cap_feats": [text],
            "return_dict": False,
        }

    def _place(self, ids: Tensor) -> Tensor:
        """Ids [tokens and padding, 3] of a picture with this call's places."""
        assert self._places is not None
        placed = ids.double()
        placed[: len(self._places), 1:] = self._places.to(placed)
        return placed


def _stack(items: Sequence[Tensor]) -> Tensor:
    """Items [c, 1, h, w] of a batch as [b, c, h, w]."""
    return torch.stack(tuple(items)).squeeze(2)
