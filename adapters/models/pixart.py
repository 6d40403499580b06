"""PixArt-alpha and -Sigma: predictions of the noise in latents that preserve variance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid
from torch import Tensor

from fresco.layout import PositionUnits, TokenLayout
from fresco.registry import register_adapter
from fresco.target import Prediction

from .arguments import no_stages
from .strip import StripAdapter, during_calls


@register_adapter
class PixArtAdapter(StripAdapter):
    """`PixArtTransformer2DModel`; it scales positions to the size of the picture itself.

    Channels behind the predicted noise are its variance, which pipelines drop: zero in
    coarse stages.

    Source:
        huggingface/diffusers@v0.42.1:
        src/diffusers/pipelines/pixart_alpha/pipeline_pixart_sigma.py (Apache-2.0).
    """

    model: ClassVar[str] = "PixArtTransformer2DModel"
    text_width: ClassVar[str] = "caption_channels"
    passes_sigmas: ClassVar[bool] = False
    prediction: ClassVar[Prediction] = "epsilon"
    scheduler: ClassVar[str] = "DDIMScheduler"
    units: ClassVar[Collection[PositionUnits]] = ("native", "fine", "anchor")
    batched: ClassVar[tuple[str, ...]] = (*StripAdapter.batched, "encoder_attention_mask")

    def check(self, pipe: Any) -> None:
        latents, predicted = self.config.in_channels, self.config.out_channels
        if predicted not in {None, latents, 2 * latents}:
            expected = (
                f"a transformer that predicts noise ({latents} channels), or its variance too"
            )
            raise no_stages(expected, f"{predicted} channels")

    def select(self, call: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
        sizes = call.get("added_cond_kwargs") or {}
        chosen = {name: None if size is None else size[list(rows)] for name, size in sizes.items()}
        return {**super().select(call, rows), "added_cond_kwargs": chosen}

    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        return super().unembed((output[0][:, : self.config.in_channels],), layout)

    def replace(self, output: Any, carrier: Tensor, layout: TokenLayout) -> Any:
        n_dropped = output[0].shape[1] - carrier.shape[1]
        dropped = carrier.new_zeros(len(carrier), n_dropped, *carrier.shape[2:])
        return super().replace(output, torch.cat((carrier, dropped), dim=1), layout)

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        module = transformer.pos_embed

        def table() -> dict[str, Any]:
            """These tokens' positions, for a picture of their one row."""
            if self._places is None:
                return {}
            places = self._places.to(module.pos_embed.device)
            waves = _positions(module, places, self._sides)
            return {"height": 1, "width": len(places), "pos_embed": waves[None]}

        return during_calls(module, table)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        call = super().example_call(transformer, n_tokens, n_text_tokens)
        like = call["timestep"]
        sizes = {"resolution": like.new_ones(1, 2), "aspect_ratio": like.new_ones(1, 1)}
        return {**call, "added_cond_kwargs": sizes}


def _positions(module: Any, places: Tensor, sides: tuple[int, int]) -> Tensor:
    """Sines and cosines at places [n, 2] of a picture of `sides`, columns first, [n, d]."""
    d = module.pos_embed.shape[-1] // 2
    scaled = [
        places[:, axis] / (sides[axis] / module.base_size) / module.interpolation_scale
        for axis in (1, 0)
    ]
    waves = [get_1d_sincos_pos_embed_from_grid(d, each, output_type="pt") for each in scaled]
    return torch.cat(waves, dim=1).float()
