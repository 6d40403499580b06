"""Wan 2.1 and 2.2, with and without a picture: latents [b, c, f, h, w], guidance by two calls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.layout import TokenLayout
from fresco.registry import register_adapter

from .first_frame import FirstFrameAdapter
from .video import rotate


@register_adapter
class WanAdapter(FirstFrameAdapter):
    """`WanTransformer3DModel`, with one timestep per video or one per token.

    Of two (Wan 2.2), the timestep says which is called: a lift back over the boundary calls the
    one for high noise again. A picture comes as condition channels, of which coarse cells get
    the average, or (Wan 2.2 TI2V, one timestep per token) as a first frame at timestep 0, whose
    tokens stay those of the full grid.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/wan/pipeline_wan.py (Apache-2.0).
    """

    model: ClassVar[str] = "WanTransformer3DModel"
    text_width: ClassVar[str] = "text_dim"
    passes_sigmas: ClassVar[bool] = False

    def select(self, call: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
        part, name = super().select(call, rows), "encoder_hidden_states_image"
        n = len(call["encoder_hidden_states"])  # 1: what all videos share, pictures too
        if n > 1 and (pictures := call.get(name)) is not None:  # one, or first and last, of each
            part[name] = pictures.unflatten(0, (n, -1))[list(rows)].flatten(0, 1)
        return part

    def prepared(self, result: Any) -> Tensor:
        is_mixed = isinstance(result, tuple) and len(result) == 3  # latents, picture, mask
        self.n_still = int(is_mixed)
        return super().prepared(result)

    def still_frames(self, pipe: Any) -> int:
        takes_picture = any(c.__name__ == "WanImageToVideoPipeline" for c in type(pipe).__mro__)
        return int(takes_picture and pipe.config.expand_timesteps)

    def latent_frames(self, pipe: Any, frames: int) -> int:
        return frames // int(pipe.vae_scale_factor_temporal) + 1  # it rounds up to 4 n + 1

    def frames(self, packed: Tensor, layout: TokenLayout) -> int:
        return super().frames(packed, layout) - self.n_still

    def unpack(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        return super().unpack(packed[:, :, self.n_still :], layout)

    def pack(self, carrier: Tensor) -> Tensor:
        return self.refill(carrier)

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        entered, times = super().embed(call, tokens, layout, positions), call["timestep"]
        if times.ndim == 2:  # one per token
            n = entered["hidden_states"][0, 0].numel() // self.patch_px**2
            n_still = self.n_still * layout.sides.numel()
            moving = times[:, -1:].expand(-1, n - n_still)
            entered["timestep"] = torch.cat((times[:, :n_still], moving), dim=1)
        return entered

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        undo = ExitStack()
        undo.callback(super().attach(transformer, units))
        undo.callback(transformer.rope.register_forward_pre_hook(self._before_positions).remove)
        return undo.close

    def rotations(self, rope: Any, given: Sequence[Any], places: Tensor) -> Any:
        axes_d = (rope.t_dim, rope.h_dim, rope.w_dim)
        waves = rotate(given[0], places, axes_d, 10000.0, torch.float64)
        return tuple(each[None, :, None] for each in waves)  # [1, f * n, 1, d]

    def _before_positions(self, _rope: Any, given: Any) -> Any:
        """Show one patch only: the module's table may be shorter than a row of all tokens."""
        p = self.patch_px
        return None if self._places is None else (given[0][..., :p, :p],)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        call = super().example_call(transformer, n_tokens, n_text_tokens)
        d = self.config.image_dim
        picture = d and call["timestep"].new_zeros(1, 257, d)
        return {**call, "encoder_hidden_states_image": picture}
