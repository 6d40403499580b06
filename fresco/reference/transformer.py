"""The reference model's transformer: `FluxTransformer2DModel`, and one step of its training.

Flow matching at three sizes: `x = (1 - sigma) x0 + sigma eps`, the model predicts `eps - x0`.
In the last part of the training the guidance scale that the model is told becomes part of it, as
in FLUX.1-dev: the target goes on from the data in the direction that the caption makes a
difference in (model guidance: Tang et al., arXiv 2502.12154v1). Deviates: the direction is that
of a frozen teacher, the model so far, because with the model as its own teacher the loss
exploded within about 50 steps (docs/explanation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from fresco.reference.muon import Muon
from fresco.reference.text import WIDTH

SHIFT = {8: 1.0, 16: 1.6, 32: 2.5}  # of the noise level, by tokens per side (64, 128, 256 px)
GUIDANCE = (1.0, 4.0)  # range of the distilled guidance scale
NO_CAPTION = 0.1  # probability of training without a caption


def build_transformer() -> FluxTransformer2DModel:
    """An untrained transformer of 8.0 M parameters whose blocks start as the identity (DiT)."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=9,
        attention_head_dim=64,
        num_attention_heads=3,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(16, 24, 24),
    )
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and ("norm" in name or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def transformer_of(weights: Mapping[str, Tensor]) -> FluxTransformer2DModel:
    """A transformer with these weights, on the CPU, to sample from."""
    transformer = build_transformer()
    transformer.load_state_dict({name: weight.cpu() for name, weight in weights.items()})
    return transformer.eval()


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler with the dynamic shift of FLUX: e^0 at 64 tokens, e^0.92 at 1024."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.0,
        max_shift=math.log(2.5),
        base_image_seq_len=64,
        max_image_seq_len=1024,
    )


@dataclass(frozen=True)
class Batch:
    """Clean latents [b, 4, h, w] (scaled) and what they are conditioned on."""

    latents: Tensor
    text: Tensor  # [b, t, d]
    pooled: Tensor  # [b, d]
    no_text: Tensor  # [1, t, d], of the empty caption
    no_pooled: Tensor  # [1, d]
    scenes: Tensor  # [b, 9, 6], of `readout.scene_classes`


@dataclass(frozen=True)
class Tokens:
    """Image tokens [b, n, 16], packed as FluxPipeline does, and their positions [n, 3]."""

    values: Tensor
    ids: Tensor


def pack(latents: Tensor) -> Tensor:
    """Latents [b, 4, h, w] as tokens [b, h/2 * w/2, 16]."""
    packed: Tensor = FluxPipeline._pack_latents(latents, *latents.shape)
    return packed


def flow_loss(
    transformer: FluxTransformer2DModel,
    batch: Batch,
    generator: torch.Generator,
    teacher: FluxTransformer2DModel | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """Mean squared error to the velocity, guided by a teacher if there is one.

    Args:
        transformer: What is trained.
        batch: Clean latents and captions.
        generator: Source of noise, noise levels, guidance and dropped captions.
        teacher: Frozen; guidance g adds (g - 1) times what the caption changes in its prediction.
        seen: Numbers of the image tokens that the transformers are given, int64 [n]; default: all.
    """
    x0 = batch.latents
    b, _, h, _ = x0.shape
    randn = partial(torch.randn, generator=generator, device=x0.device)
    rand = partial(torch.rand, generator=generator, device=x0.device)
    eps = randn(x0.shape)
    ids = FluxPipeline._prepare_latent_image_ids(b, h // 2, h // 2, x0.device, x0.dtype)
    noise, clean = pack(eps), pack(x0)
    if seen is not None:
        noise, clean, ids = noise[:, seen], clean[:, seen], ids[seen]
    odds = torch.exp(randn(b)) * SHIFT[h // 2]
    sigma = odds / (1 + odds)
    tokens = Tokens(torch.lerp(clean, noise, sigma.view(b, 1, 1)), ids)
    low, high = GUIDANCE
    g = low + (high - low) * rand(b)
    dropped = rand(b) < NO_CAPTION
    text = torch.where(dropped.view(b, 1, 1), batch.no_text, batch.text)
    pooled = torch.where(dropped.view(b, 1), batch.no_pooled, batch.pooled)
    target = noise - clean
    if teacher is not None:
        with torch.no_grad():
            one = torch.ones_like(g)
            with_caption = velocity(teacher, tokens, sigma, one, text, pooled)
            nothing = batch.no_text.expand_as(text), batch.no_pooled.expand_as(pooled)
            without = velocity(teacher, tokens, sigma, one, *nothing)
        target = target + (g.view(b, 1, 1) - 1) * (with_caption - without)
    return F.mse_loss(velocity(transformer, tokens, sigma, g, text, pooled), target)


def velocity(
    transformer: FluxTransformer2DModel,
    tokens: Tokens, sigma: Tensor, guidance: Tensor, text: Tensor, pooled: Tensor,
) -> Tensor:  # fmt: skip
    """What the transformer predicts for tokens, float32 [b, n, 16].

    Noise level and guidance reach the embedding in float32 even if the transformer is
    bfloat16: rounded to bfloat16, 1000 sigma would come in steps of 4.
    """
    dtype = transformer.dtype
    exact = transformer.time_text_embed.register_forward_pre_hook(
        lambda _, args: (1000 * sigma, 1000 * guidance, *args[2:])
    )
    predicted: Tensor = transformer(
        hidden_states=tokens.values.to(dtype),
        timestep=sigma,
        guidance=guidance,
        pooled_projections=pooled.to(dtype),
        encoder_hidden_states=text.to(dtype),
        txt_ids=torch.zeros(text.shape[1], 3, device=sigma.device),
        img_ids=tokens.ids,
        return_dict=False,
    )[0]
    exact.remove()
    return predicted.float()


def build_optimizers(
    transformer: FluxTransformer2DModel, readout: nn.Module
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    matrices = [p for n, p in transformer.named_parameters() if "blocks." in n and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    every = (*transformer.parameters(), *readout.parameters())
    rest = [p for p in every if id(p) not in chosen]
    return [
        Muon(matrices, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
