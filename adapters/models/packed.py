"""Pipelines that pack 2 x 2 latent pixels into a token before the transformer sees them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.errors import AdapterError
from fresco.layout import TokenLayout
from fresco.noise import NoiseField
from fresco.transfer import cut_patches, join_patches, restrict

from .arguments import ArgumentsAdapter, zeros_for
from .residuals import pool_residuals
from .rotations import Rotations, uses_norms
from .rows import join_rows


class PackedAdapter(ArgumentsAdapter):
    """Tokens [b, n, c * 2 * 2], packed (channel, row, column); condition tokens behind them."""

    patch_px = 2
    residuals: ClassVar[tuple[str, ...]] = (
        "controlnet_block_samples",
        "controlnet_single_block_samples",
    )
    text_width: ClassVar[str] = "joint_attention_dim"

    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        default = pipe.default_sample_size * pipe.vae_scale_factor
        token_px = pipe.vae_scale_factor * self.patch_px
        return int(height or default) // token_px, int(width or default) // token_px

    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        return layout.n_tokens, self.config.in_channels

    def unpack(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        rows, columns = layout.sides.shape
        patches = self._patches(packed[:, : rows * columns])
        return join_patches(patches, rows)

    def pack(self, carrier: Tensor) -> Tensor:
        return cut_patches(carrier, self.patch_px).flatten(2)

    def swap(self, hidden: Tensor, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """Put tokens in place of the full grid's, condition tokens as they are."""
        own = tokens.flatten(2).to(hidden.dtype)
        return torch.cat((own, hidden[:, layout.sides.numel() :]), dim=1)

    def average(self, conditions: Tensor, layout: TokenLayout) -> Tensor:
        """Average the channels of conditions over cells, [b, n, d]; there is no noise in them."""
        grid = self.unpack(conditions, layout)
        no_noise = NoiseField(torch.zeros_like(grid), self.patch_px)
        return restrict(grid, no_noise, 0.0, layout).flatten(2)

    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        return self._patches(output[0][:, : layout.n_tokens])

    def replace(self, output: Any, carrier: Tensor, layout: TokenLayout) -> Any:
        predicted = output[0]
        packed = self.pack(carrier).to(predicted.dtype)
        sample = torch.cat((packed, predicted[:, layout.n_tokens :]), dim=1)
        return self.with_sample(output, sample)

    def given_tokens(self, call: Mapping[str, Any], layout: TokenLayout) -> int:
        return int(call["hidden_states"].shape[1]) - layout.sides.numel()

    def example_latents(self, transformer: Any, n_tokens: int) -> Tensor:
        return zeros_for(transformer, 1, n_tokens, self.config.in_channels)

    def _patches(self, packed: Tensor) -> Tensor:
        """[b, n, c * p * p] as [b, n, c, p, p], the order the pipeline packs in."""
        b, n, d = packed.shape
        return packed.reshape(b, n, d // self.patch_px**2, self.patch_px, self.patch_px)


class PackedIdsAdapter(PackedAdapter):
    """Packed tokens whose positions come with the call: `img_ids`, those of text `txt_ids`.

    The transformer takes the ids of one picture for a whole batch; pictures with positions of
    their own are turned by them before it would do so.
    """

    _rotations: Rotations | None = None

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        rotations = self._rotations = Rotations(transformer)

        def detach() -> None:
            rotations.stop()
            self._rotations = None

        return detach

    def aim(self, call: Mapping[str, Any], layout: TokenLayout | None) -> None:
        if self._rotations:
            self._rotations.stop()

    def select(self, call: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
        if "ip_adapter_image_embeds" in (call.get("joint_attention_kwargs") or {}):
            raise AdapterError(
                "pipe(prompt, ...)",
                "a batch without IP-Adapter images in a mixed stage",
                f"{len(call['hidden_states'])} pictures with them",
                "Ask for one picture per call, or use a recipe of whole-grid stages.",
            )
        return super().select(call, rows)

    def can_merge(self, transformer: Any) -> bool:
        return uses_norms(transformer)

    def merge(self, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if len(calls) == 1 or self._rotations is None:
            return super().merge(calls)
        ids = [
            call["img_ids"].expand(len(call["hidden_states"]), *call["img_ids"].shape[-2:])
            for call in calls
        ]
        self._rotations.start(torch.cat(ids), calls[0]["txt_ids"])
        names = [name for name in self.batched if name != "img_ids"]
        return join_rows(calls, names, self.pooled)

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        return {
            **call,
            "hidden_states": self.swap(call["hidden_states"], tokens, layout),
            "img_ids": swap_ids(call["img_ids"], positions, layout),
            **pool_residuals(call, self.pooled, layout),
        }

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        call = super().example_call(transformer, n_tokens, n_text_tokens)
        like, axes = call["timestep"], len(self.config.axes_dims_rope)
        ids = {
            "img_ids": like.new_zeros(n_tokens, axes),
            "txt_ids": like.new_zeros(n_text_tokens, axes),
        }
        return {**call, **ids}


def swap_ids(ids: Tensor, positions: Tensor, layout: TokenLayout) -> Tensor:
    """Put positions in place of the full grid's ids, those of condition tokens as they are.

    Args:
        ids: Of image tokens, [n, axes] or [b, n, axes]; rows and columns are axes 1 and 2. The
            first token's are where the picture begins.
        positions: Float32 [m, 2], from there.
        layout: Of the full grid, cut into m tokens.

    Returns:
        Float32 [m + conditions, axes] or [b, m + conditions, axes].
    """
    moved = torch.zeros(len(positions), ids.shape[-1])
    moved[:, 1:3] = positions
    own = ids[..., :1, :].float() + moved.to(ids.device)
    conditions = ids[..., layout.sides.numel() :, :].float()
    return torch.cat((own, conditions), dim=-2)
