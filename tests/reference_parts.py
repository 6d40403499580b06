"""An untrained reference pipeline: the real architecture, random weights."""

from __future__ import annotations

import torch

from fresco.reference.assemble import assemble
from fresco.reference.autoencoder import build_autoencoder, measure_latents
from fresco.reference.text import build_encoders
from fresco.reference.transformer import build_transformer


def assemble_untrained(folder):
    """Write a run's parts and the pipeline made of them; returns the pipeline's directory."""
    torch.manual_seed(0)
    vae = build_autoencoder()
    measure_latents(vae, torch.randn(1, 4, 8, 8))
    clip, t5 = build_encoders()
    vae.save_pretrained(folder / "vae")
    clip.save_pretrained(folder / "text_encoder")
    t5.save_pretrained(folder / "text_encoder_2")
    transformer = build_transformer()
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.02)  # else it is the identity
    return assemble(folder, transformer, folder / "pipeline")
