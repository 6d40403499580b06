"""Pipelines that start from a noisy picture, and what their transformer sees."""

from __future__ import annotations

import diffusers
import torch

from fresco.transfer import join_patches
from tests.conftest import make_flux_pipe, make_vae
from tests.families import FAMILIES

PICTURE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
HALF = torch.zeros(1, 1, 64, 96)
HALF[..., 48:] = 1  # the right half is painted
MASKED = {"mask_image": HALF}


def make_sd3(name, **parts):
    torch.manual_seed(0)
    family = FAMILIES["sd3"]
    config = family.config | {"in_channels": 16, "out_channels": 16}
    vae = make_vae(latent_channels=16)  # drawn before the transformer
    pipe = getattr(diffusers, name)(
        transformer=diffusers.SD3Transformer2DModel(**config).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        **dict.fromkeys(set(family.missing) - {"vae"}),
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_flux(name):
    pipe = getattr(diffusers, name)(**make_flux_pipe().components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


KINDS = {
    "flux": (make_flux, "FluxImg2ImgPipeline", {}),
    "sd3": (make_sd3, "StableDiffusion3Img2ImgPipeline", {}),
    "flux inpaint": (make_flux, "FluxInpaintPipeline", MASKED),
    "sd3 inpaint": (make_sd3, "StableDiffusion3InpaintPipeline", MASKED),
    "kontext inpaint": (
        make_flux,
        "FluxKontextInpaintPipeline",
        MASKED | {"_auto_resize": False, "max_area": 64 * 96},
    ),
}


class Started:
    """A pipeline, how it is asked, and what its transformer sees."""

    def __init__(self, kind):
        make, name, self.asked = KINDS[kind]
        self.pipe, self.is_flux = make(name), make is make_flux
        self.seen = []  # by the transformer, of the last run

    def _record(self, _module, _args, kwargs):
        self.seen.append(kwargs["hidden_states"].clone())

    def draw(self, **asked):
        self.seen.clear()
        if self.is_flux:
            asked = {"prompt": "a red circle", "max_sequence_length": 16} | asked
        else:
            asked = FAMILIES["sd3"].asked() | asked
        size = {"image": PICTURE, "height": 64, "width": 96, "num_inference_steps": 6}
        size["generator"] = torch.Generator().manual_seed(asked.pop("seed", 0))
        call = size | self.asked | {"strength": 0.7} | asked
        hook = self.pipe.transformer.register_forward_pre_hook(self._record, with_kwargs=True)
        with hook:  # after those of fresco
            return self.pipe(**call, output_type="latent", return_dict=False)[0]

    def mixture(self):
        """What the pipeline mixes by itself: picture, noise and their mixture."""
        parts, scheduler = [], self.pipe.scheduler
        original = scheduler.scale_noise

        def listen(sample, timestep, noise):
            parts.append((sample, noise, original(sample, timestep, noise)))
            return parts[-1][-1]

        scheduler.scale_noise = listen
        self.draw()
        del scheduler.scale_noise
        return parts[0]


def pooled(grid, side):
    """Slow and obvious: the mean of side x side latent pixels, one by one."""
    b, c, h, w = grid.shape
    out = torch.zeros(b, c, h // side, w // side)
    for row in range(h // side):
        for column in range(w // side):
            here = grid[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
            out[..., row, column] = here.mean(dim=(2, 3))
    return out


def seen_grid(started, k, step):
    """What the transformer saw in a step of a whole grid, [b, c, h, w]."""
    if not started.is_flux:
        return started.seen[k][:1]
    own = started.seen[k][:, : step.n_tokens]  # reference pictures are behind it
    return join_patches(own.unflatten(2, (-1, 2, 2)), 8 // step.side)
