"""Qwen-Image: packed as FLUX.1, positions counted from the middle of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fresco.layout import TokenLayout
from fresco.registry import register_adapter

from .arguments import near_square, no_stages
from .packed import PackedAdapter
from .qwen_positions import QwenPositions, coarse_unit, rotations


@register_adapter
class QwenImageAdapter(QwenPositions, PackedAdapter):
    """`QwenImageTransformer2DModel`: shapes of whole grids at its root, rotations of mixed ones.

    Guidance of the pipeline rescales by the norm of every token's prediction, which does not
    commute with averaging: with it, a coarse stage is near the coarse model's, not equal.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/qwenimage/pipeline_qwenimage.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "QwenImageTransformer2DModel"
    batched: ClassVar[tuple[str, ...]] = (
        *PackedAdapter.batched,
        "encoder_hidden_states_mask",
        "guidance",
        "img_shapes",
    )
    _n_cells = 0  # for which the model makes rotations, before those of conditions

    def check(self, pipe: Any) -> None:
        if self.config.zero_cond_t:
            raise no_stages("one noise level for all tokens", "zero_cond_t=True")

    def select(self, call: Mapping[str, Any], rows: Any) -> dict[str, Any]:
        shapes = call["img_shapes"]
        return super().select({**call, "img_shapes": None}, rows) | {"img_shapes": shapes[:1]}

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        rows, columns = layout.cells(coarse_unit(layout, positions) or 1)
        entered = {
            **call,
            "hidden_states": self.swap(call["hidden_states"], tokens, layout),
            "img_shapes": [[(1, rows, columns), *others] for _, *others in call["img_shapes"]],
        }
        self._rotations = None
        if not positions.equal(layout.positions("native")):
            places = positions - torch.tensor([-(-rows // 2), -(-columns // 2)])
            places = pad(places, (1, 0))  # the frame is the first, 0
            own = rotations(places, self.config.axes_dims_rope)
            self._rotations = own.to(call["hidden_states"].device)
            self._n_cells = rows * columns
        return entered

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        call = super().example_call(transformer, n_tokens, n_text_tokens)
        return {**call, "img_shapes": [[(1, *near_square(n_tokens))]]}

    def _after_positions(self, _module: nn.Module, _given: object, output: Any) -> Any:
        if self._rotations is None:
            return None
        picture, text = output
        return torch.cat((self._rotations, picture[self._n_cells :])), text
