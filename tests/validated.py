"""What tests validate: a small recipe, its prompts, the picture that they ask for."""

from __future__ import annotations

from fresco.pictures import PictureRequest

RECIPE = """# A recipe of a test.
#   fresco validate reference_mine.yaml
schema: 1
model: FluxTransformer2DModel  # FLUX
baseline: {steps: 8, height: 64, width: 64}
stages:
  - {cell: 2, steps: 2, until_sigma: 0.6}
  - {cell: 1, steps: 2, lift: {form: latent}}
expects: {flops_speedup: %s}
"""
PROMPTS = ("a red ring", "a blue plus")
PICTURE = PictureRequest("reference", None, "", 3, 4, None, 64, 64)
