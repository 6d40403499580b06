"""FLUX.1 and Kontext: 2 x 2 latent pixels per token, packed by the pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.errors import AdapterError
from fresco.layout import TokenLayout
from fresco.ports import AbstractModelAdapter, register_adapter
from fresco.transfer import cut_patches, join_patches

from .flux_attention import Strides

BATCHED = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "guidance")


@register_adapter
class FluxAdapter(AbstractModelAdapter):
    """`FluxTransformer2DModel`, hooked at its root only.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/flux/pipeline_flux.py (Apache-2.0).
    """

    model: ClassVar[str] = "FluxTransformer2DModel"
    patch_px: ClassVar[int] = 2
    noise_coefficient: ClassVar[float] = 1.0
    _strides: Strides | None = None

    def check(self, pipe: Any) -> None:
        config = pipe.transformer.config
        if config.out_channels not in {None, config.in_channels}:
            raise AdapterError(
                "accelerate(pipe, recipe)",
                f"a transformer that sees latents only ({config.out_channels} channels)",
                f"{config.in_channels} input channels",
                "Use FluxPipeline, or a recipe without stages.",
            )

    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        default = pipe.default_sample_size * pipe.vae_scale_factor
        token_px = pipe.vae_scale_factor * self.patch_px
        return int(height or default) // token_px, int(width or default) // token_px

    def shift(self, scheduler: Any, n_tokens: int) -> float:
        config = scheduler.config
        if not config.use_dynamic_shifting:
            return float(scheduler.shift)
        least, most = config.base_image_seq_len, config.max_image_seq_len
        slope = (config.max_shift - config.base_shift) / (most - least)
        mu = config.base_shift + slope * (n_tokens - least)
        return math.exp(mu) if config.time_shift_type == "exponential" else float(mu)

    def unpack(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        rows, columns = layout.sides.shape
        patches = self._patches(packed[:, : rows * columns])
        return join_patches(patches, rows)

    def pack(self, carrier: Tensor) -> Tensor:
        return cut_patches(carrier, self.patch_px).flatten(2)

    def read(self, call: Mapping[str, Any], layout: TokenLayout) -> Tensor:
        residuals = ("controlnet_block_samples", "controlnet_single_block_samples")
        given = [name for name in residuals if call.get(name) is not None]
        if given:
            raise AdapterError(
                "pipe(prompt, ...)",
                "a call without ControlNet residuals in coarse stages",
                " and ".join(given),
                "Restore the pipeline, or use a recipe without stages.",
            )
        return self.unpack(call["hidden_states"], layout)

    def select(self, call: Mapping[str, Any], images: Sequence[int]) -> dict[str, Any]:
        if "ip_adapter_image_embeds" in (call.get("joint_attention_kwargs") or {}):
            raise AdapterError(
                "pipe(prompt, ...)",
                "a batch without IP-Adapter images in a mixed stage",
                f"{len(call['hidden_states'])} pictures with them",
                "Ask for one picture per call, or use a recipe of whole-grid stages.",
            )
        return {
            name: value[list(images)] if name in BATCHED and value is not None else value
            for name, value in call.items()
        }

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        hidden, ids = call["hidden_states"], call["img_ids"]
        n_fine = layout.sides.numel()
        swapped = torch.cat((tokens.flatten(2).to(hidden.dtype), hidden[:, n_fine:]), dim=1)
        own = torch.cat((torch.zeros(layout.n_tokens, 1), positions), dim=1).to(ids.device)
        conditions = ids[..., n_fine:, :].reshape(-1, ids.shape[-1]).to(own.dtype)
        return {**call, "hidden_states": swapped, "img_ids": torch.cat((own, conditions))}

    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        return self._patches(output[0][:, : layout.n_tokens])

    def replace(self, output: Any, carrier: Tensor, layout: TokenLayout) -> Any:
        predicted = output[0]
        packed = self.pack(carrier).to(predicted.dtype)
        sample = torch.cat((packed, predicted[:, layout.n_tokens :]), dim=1)
        return self.with_sample(output, sample)

    def attach_strides(self, transformer: Any) -> Callable[[], None]:
        strides = self._strides = Strides(transformer)
        return strides.remove

    def aim(self, call: Mapping[str, Any], layout: TokenLayout | None) -> None:
        if self._strides:
            self._strides.aim(call, layout)

    def text_tokens(self, call: Mapping[str, Any]) -> int:
        return int(call["encoder_hidden_states"].shape[1])

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        config = transformer.config
        like = next(transformer.parameters())
        call: dict[str, Any] = {
            "hidden_states": like.new_zeros(1, n_tokens, config.in_channels),
            "encoder_hidden_states": like.new_zeros(1, n_text_tokens, config.joint_attention_dim),
            "pooled_projections": like.new_zeros(1, config.pooled_projection_dim),
            "timestep": like.new_zeros(1),
            "img_ids": like.new_zeros(n_tokens, 3),
            "txt_ids": like.new_zeros(n_text_tokens, 3),
            "return_dict": False,
        }
        return {**call, "guidance": like.new_zeros(1)} if config.guidance_embeds else call

    def _patches(self, packed: Tensor) -> Tensor:
        """[b, n, c * p * p] as [b, n, c, p, p], the order the pipeline packs in."""
        b, n, d = packed.shape
        return packed.reshape(b, n, d // self.patch_px**2, self.patch_px, self.patch_px)
