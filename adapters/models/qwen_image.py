"""Qwen-Image: packed as FLUX.1, positions counted from the middle of the picture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fresco.layout import SIDES, TokenLayout
from fresco.ports import register_adapter

from .arguments import near_square, no_stages
from .packed import PackedAdapter


@register_adapter
class QwenImageAdapter(PackedAdapter):
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
    _rotations: Tensor | None = None  # complex64 [m, d / 2], of the picture's tokens in this call
    _n_fine = 0

    def check(self, pipe: Any) -> None:
        if self.config.zero_cond_t:
            raise no_stages("one noise level for all tokens", "zero_cond_t=True")

    def select(self, call: Mapping[str, Any], rows: Any) -> dict[str, Any]:
        shapes = call["img_shapes"]
        return super().select({**call, "img_shapes": None}, rows) | {"img_shapes": shapes[:1]}

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        hidden = self.swap(call["hidden_states"], tokens, layout)
        self._rotations = None
        entered = {**call, "hidden_states": hidden}
        if positions.equal(layout.positions("native")):
            rows, columns = layout.cells(layout.sides_used[0])
            shapes = [[(1, rows, columns), *conditions] for _, *conditions in call["img_shapes"]]
            return entered | {"img_shapes": shapes}
        cells = layout.cells(coarse_unit(layout, positions) or 1)
        middle = torch.tensor([-(-side // 2) for side in cells])
        places = pad(positions - middle, (1, 0))  # the frame is the first, 0
        self._rotations = rotations(places, self.config.axes_dims_rope).to(hidden.device)
        self._n_fine = layout.sides.numel()
        return entered

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        positions: nn.Module = transformer.pos_embed
        return positions.register_forward_hook(self._after_positions).remove

    def aim(self, call: Mapping[str, Any], layout: TokenLayout | None) -> None:
        if layout is None and not call:
            self._rotations = None

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        call = super().example_call(transformer, n_tokens, n_text_tokens)
        return {**call, "img_shapes": [[(1, *near_square(n_tokens))]]}

    def _after_positions(self, _module: nn.Module, _given: object, output: Any) -> Any:
        if self._rotations is None:
            return None
        picture, text = output
        return torch.cat((self._rotations, picture[self._n_fine :])), text


def coarse_unit(layout: TokenLayout, positions: Tensor) -> int | None:
    """The side of the cells that positions count; None where they count fine tokens' centres."""
    return next((side for side in SIDES if positions.equal(layout.positions("coarse", side))), None)


def rotations(places: Tensor, widths: Sequence[int]) -> Tensor:
    """Rotations at places, float32 [n, axes], as wide as each axis is: complex64 [n, d / 2]."""
    angles = []
    for place, d in zip(places.unbind(dim=1), widths, strict=True):
        frequencies = 10000 ** -(torch.arange(0, d, 2).float() / d)
        angles.append(place[:, None] * frequencies)
    angle = torch.cat(angles, dim=1)
    return torch.polar(torch.ones_like(angle), angle)
