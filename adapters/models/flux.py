"""FLUX.1 and Kontext: 2 x 2 latent pixels per token, packed by the pipeline."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.layout import PositionUnits, TokenLayout
from fresco.registry import register_adapter

from .flux_attention import Strides
from .packed import PackedIdsAdapter


@register_adapter
class FluxAdapter(PackedIdsAdapter):
    """`FluxTransformer2DModel`, hooked at its root.

    Channels beyond those it predicts are conditions (Fill's mask, a control picture): cells
    average them as they are, and a ControlNet's residuals too. Tokens behind the picture's
    (Kontext) keep their resolution.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/flux/pipeline_flux.py (Apache-2.0).
    """

    model: ClassVar[str] = "FluxTransformer2DModel"
    batched: ClassVar[tuple[str, ...]] = (
        *PackedIdsAdapter.batched,
        "pooled_projections",
        "guidance",
    )
    residuals: ClassVar[tuple[str, ...]] = ()
    pooled: ClassVar[tuple[str, ...]] = PackedIdsAdapter.residuals
    from_pictures: ClassVar[Collection[str]] = (
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxFillPipeline",
        "FluxKontextInpaintPipeline",
    )
    units: ClassVar[Collection[PositionUnits]] = (*PackedIdsAdapter.units, "phase")
    _strides: Strides | None = None

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        self.n_own = int(self.config.out_channels or self.config.in_channels)

    def check(self, pipe: Any) -> None:
        """Conditions are welcome."""

    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        return layout.n_tokens, self.n_own

    def read(self, call: Mapping[str, Any], layout: TokenLayout) -> Tensor:
        own = call["hidden_states"][..., : self.n_own]
        return super().read({**call, "hidden_states": own}, layout)

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        hidden, ids = call["hidden_states"], call["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        own = {**call, "hidden_states": hidden[..., : self.n_own], "img_ids": ids}
        entered = super().embed(own, tokens, layout, positions)
        if hidden.shape[-1] > self.n_own:
            conditions = self.average(hidden[..., self.n_own :], layout).to(hidden.dtype)
            seen = torch.cat((entered["hidden_states"], conditions), dim=-1)
            entered["hidden_states"] = seen
        return entered

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        with contextlib.ExitStack() as undo:
            undo.callback(super().attach(transformer, units))
            if "phase" in units:
                self._strides = Strides(transformer)
                undo.callback(self._strides.remove)
            return undo.pop_all().close

    def aim(self, call: Mapping[str, Any], layout: TokenLayout | None) -> None:
        super().aim(call, layout)
        if self._strides:
            self._strides.aim(call, layout)
