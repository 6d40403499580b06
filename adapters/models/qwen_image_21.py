"""Qwen-Image 2.1: text and picture in one stream, tokens of one latent pixel, a cached text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fresco.layout import TokenLayout
from fresco.registry import register_adapter
from fresco.transfer import cut_patches, join_patches

from .arguments import ArgumentsAdapter, no_stages, zeros_for
from .qwen_positions import QwenPositions, coarse_unit, rotations

_DEFAULT_PX = 1024  # of both sides: the pipeline's `output_resolution`
_SLOT = 4  # of the transformer's tokens, 2 x 2, which the encoder sees as one


@register_adapter
class QwenImage21Adapter(QwenPositions, ArgumentsAdapter):
    """`QwenImage21Transformer2DModel`: shapes of whole grids at its root, rotations of mixed ones.

    It takes pictures in slots of 2 x 2 latent pixels, so such a slot is a token of a layout.
    Text and condition pictures come first and do not see what is drawn: what the first call
    of a run caches of them holds in every layout. FLOPs are those of the calls after it, where
    they are only attended to: all of them count as text.

    Source:
        huggingface/diffusers@v0.42.1:
        src/diffusers/models/transformers/transformer_qwenimage21.py (Apache-2.0).
    """

    model: ClassVar[str] = "QwenImage21Transformer2DModel"
    patch_px = 2
    text_width: ClassVar[str] = "context_in_dim"
    batched: ClassVar[tuple[str, ...]] = (*ArgumentsAdapter.batched, "encoder_hidden_states_mask")

    def check(self, pipe: Any) -> None:
        super().check(pipe)
        own = getattr(pipe, "config", {}).get("sample_sigmas")  # a sketch has no config
        if own is not None:
            raise no_stages("noise levels by the number of steps", f"sample_sigmas={own}")
        if not self.config.causal_condition:
            raise no_stages("a text that does not see the picture", "causal_condition=False")

    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        token_px = pipe.vae_scale_factor * self.patch_px
        return int(height or _DEFAULT_PX) // token_px, int(width or _DEFAULT_PX) // token_px

    def mu(self, config: Any, n_tokens: int, n_steps: int) -> float:
        return super().mu(config, _SLOT * n_tokens, n_steps)

    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        return math.prod(layout.grid_px), self.config.in_channels

    def unpack(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        own = packed[:, -math.prod(layout.grid_px) :]  # condition pictures are before it
        carrier: Tensor = own.transpose(1, 2).unflatten(2, layout.grid_px)
        return carrier

    def pack(self, carrier: Tensor) -> Tensor:
        return carrier.flatten(2).transpose(1, 2)

    def select(self, call: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
        part, cache = super().select(call, rows), call.get("kv_cache")
        if cache is None:
            return part
        own = type(cache)(len(cache.layer_caches))
        for layer, whole in zip(own.layer_caches, cache.layer_caches, strict=True):
            layer.store(*(each[list(rows)] for each in whole.get()))
        return part | {"kv_cache": own}

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        hidden, mask = call["hidden_states"], call["img_mask"]
        n, n_fine, rows = layout.n_tokens, layout.sides.numel(), _rows(layout)
        self._rotations, shape = None, (1, 2 * rows, 2 * n // rows)
        if not (layout.is_whole and positions.equal(layout.positions("native"))):
            places = self.pack(join_patches(_places(layout, positions), rows))[0]
            own = rotations(places, self.config.axes_dims_rope[1:])
            self._rotations, shape = own.to(hidden.device), (1, _SLOT, n)
        own = self.pack(join_patches(tokens, rows)).to(hidden.dtype)
        return {
            **call,
            "hidden_states": torch.cat((hidden[:, : -_SLOT * n_fine], own), dim=1),
            "img_mask": torch.cat((mask[:, :-n_fine], mask.new_ones(len(mask), n)), dim=1),
            "img_shapes": [[*conditions, shape] for *conditions, _ in call["img_shapes"]],
        }

    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        own = output[0][:, -_SLOT * layout.n_tokens :].transpose(1, 2)
        return cut_patches(own.unflatten(2, (2 * _rows(layout), -1)), self.patch_px)

    def replace(self, output: Any, carrier: Tensor, layout: TokenLayout) -> Any:
        before = output[0][:, : -_SLOT * layout.n_tokens]  # text, in a call that fills the cache
        packed = self.pack(carrier).to(before.dtype)
        return self.with_sample(output, torch.cat((before, packed), dim=1))

    def text_tokens(self, call: Mapping[str, Any]) -> int:
        n_text = call["img_mask"].shape[1] - call["hidden_states"].shape[1] // _SLOT
        conditions = call["img_shapes"][0][:-1]
        return int(n_text + sum(math.prod(each) for each in conditions))

    def example_latents(self, transformer: Any, n_tokens: int) -> Tensor:
        return zeros_for(transformer, 1, _SLOT * n_tokens, self.config.in_channels)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        """Arguments of a pass that finds the text in the cache."""
        from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

        call, config = super().example_call(transformer, n_tokens, n_text_tokens), self.config
        like, cache = call["timestep"], QwenImage21KVCache(config.num_layers)
        heads = config.num_attention_heads, config.attention_head_dim
        for layer in cache.layer_caches:
            layer.store(*(like.new_zeros(1, n_text_tokens, *heads) for _ in range(2)))
        device = "cpu" if like.is_meta else like.device  # it says how long the sequence is
        mask = torch.arange(n_text_tokens + n_tokens, device=device)[None] >= n_text_tokens
        shapes = {"img_shapes": [[(1, _SLOT, n_tokens)]], "img_mask": mask}
        return {**call, **shapes, "kv_cache": cache, "kv_cache_mode": "cached"}

    def make_countable(self, skeleton: Any) -> None:
        """Have it sort tokens by a mask with values, and compute with one that has none."""
        for each in (*skeleton.transformer_blocks, skeleton.norm_out):
            each.register_forward_pre_hook(_without_values, with_kwargs=True)

    def _after_positions(self, _module: nn.Module, _given: object, output: Tensor) -> Tensor | None:
        if self._rotations is None:
            return None
        n, d = self._rotations.shape
        frame = output[-n:, :-d]  # how far the text has come; the same for the whole picture
        return torch.cat((output[:-n], torch.cat((frame, self._rotations), dim=1)))


def _rows(layout: TokenLayout) -> int:
    """Rows of slots that the transformer is given: those of a whole grid, else one."""
    return layout.cells(layout.sides_used[0])[0] if layout.is_whole else 1


def _places(layout: TokenLayout, positions: Tensor) -> Tensor:
    """Where the tokens of every slot are, from the middle of the picture: [1, n, 2, 2, 2].

    The third axis is row and column. Slots at their centres are as far spread as their cells;
    in cells of the coarsest side, so much less; at an anchor they are that slot's own tokens.
    """
    sides = layout.token_sides.float()
    unit = coarse_unit(layout, positions)
    spread = sides if unit is None else sides / unit if unit > 1 else torch.ones_like(sides)
    first = (1 - sides) / 2 if unit is None else torch.zeros_like(sides)
    corners = 2 * positions + first[:, None] - torch.tensor(layout.cells(unit or 1))
    inside = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij"))
    return (corners[:, :, None, None] + inside * spread[:, None, None, None])[None]


def _without_values(
    _module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments on the meta device, all tensors among them."""
    moved = {name: each.to("meta") for name, each in named.items() if isinstance(each, Tensor)}
    return tuple(each.to("meta") for each in given), named | moved
