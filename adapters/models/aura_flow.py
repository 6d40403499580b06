"""AuraFlow: latents [b, c, h, w], guidance by a doubled batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fresco.layout import PositionUnits
from fresco.registry import register_adapter

from .strip import StripAdapter, between


@register_adapter
class AuraFlowAdapter(StripAdapter):
    """`AuraFlowTransformer2DModel`; positions are learned, from the middle of a table.

    The place between four entries has their mean.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/aura_flow/pipeline_aura_flow.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "AuraFlowTransformer2DModel"
    text_width: ClassVar[str] = "joint_attention_dim"
    passes_sigmas: ClassVar[bool] = False
    units: ClassVar[Collection[PositionUnits]] = ("native", "fine", "anchor")
    _change: Tensor | None = None  # of the model's positions in this call, [n, d]

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        module: Any = transformer.pos_embed

        def choose(places: Tensor, *_size: int) -> Tensor:
            most = math.isqrt(module.pos_embed_max_size)
            corner = torch.tensor([most // 2 - side // 2 for side in self._sides])
            table = module.pos_embed[0].view(most, most, -1)
            self._change = between(table, places + corner) - table[0, 0]
            return torch.zeros(len(places), dtype=torch.int64, device=table.device)

        def add(_module: nn.Module, _given: object, output: Tensor) -> Tensor | None:
            change, self._change = self._change, None
            return None if change is None else output + change

        undo = ExitStack()
        undo.callback(self.stand_in(module, "pe_selection_index_based_on_dim", choose))
        undo.callback(module.register_forward_hook(add).remove)
        return undo.close
