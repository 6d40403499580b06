"""Parts for tests: an untrained reference pipeline of the real architecture, rendered scenes."""

from __future__ import annotations

import torch

from fresco.reference.assemble import assemble
from fresco.reference.autoencoder import build_autoencoder, measure_latents
from fresco.reference.captions import Caption, parse
from fresco.reference.dataset import make_example
from fresco.reference.figures import REAL_SEED
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


def scene_and_caption(index):
    """A rendered picture, uint8 [3, 256, 256], and the caption that asks for all of it."""
    scene, picture = make_example(REAL_SEED, index)
    things = " and ".join(
        f"a {t.size} {t.texture} {t.colour} {t.shape} at the {t.place}".replace(
            "at the centre", "in the centre"
        )
        for t in scene.objects
    )
    text = f"{things} on a {scene.background_kind} {scene.background_colour} background"
    return Caption(text, (), parse(text)), torch.from_numpy(picture)
