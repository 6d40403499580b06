"""Train the judge on rendered pictures, spoiled as generated ones are.

Nearly half of the training pictures have gone through the autoencoder, with noise on the latents;
all are blurred, shifted in colour and position, and noisy, by small random amounts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from fresco.reference.autoencoder import encode
from fresco.reference.dataset import make_example
from fresco.reference.judge import (
    BACKGROUND_CLASSES,
    PADDING_PX,
    STARTS_PX,
    WEIGHTS,
    WINDOW_CLASSES,
    WINDOW_PX,
    Judge,
    load_judge,
)
from fresco.reference.log import Log
from fresco.reference.provenance import provenance
from fresco.reference.scenes import PLACES, Scene

SEED, HELD_OUT_SEED = 2, 3  # series of the judge's scenes
N_SCENES, N_SPOILED, N_HELD_OUT = 3000, 600, 512
SPOILED_REPEATS = 3  # nearly as many as those left alone
STEPS = 1500
WINDOWS, PICTURES = 72, 24  # per step
SHIFT_PX = 4
LATENT_NOISE = 0.25  # deviation at most, of latents whose own is 1

ATTRIBUTES = ("place", "shape", "colour", "texture", "size", "background_colour", "background_kind")
BAR = dict.fromkeys(ATTRIBUTES, 0.99)


@dataclass(frozen=True)
class Examples:
    """Pictures uint8 [n, 3, 256, 256] and what they show, as class numbers."""

    pictures: Tensor
    windows: dict[str, Tensor]  # [n, 9], -1 where there is no object
    backgrounds: dict[str, Tensor]  # [n]


def draw_examples(seed: int, n: int) -> tuple[list[Scene], Tensor]:
    """The first `n` scenes of a series and their pictures, uint8 [n, 3, 256, 256]."""
    pairs = [make_example(seed, index) for index in range(n)]
    return [scene for scene, _ in pairs], torch.stack([torch.from_numpy(p) for _, p in pairs])


def label(scenes: Sequence[Scene], pictures: Tensor) -> Examples:
    """Put scenes as class numbers."""
    windows = {name: torch.full((len(scenes), len(PLACES)), -1) for name in WINDOW_CLASSES}
    windows["is_present"].zero_()
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            place = PLACES.index(thing.place)
            windows["is_present"][row, place] = 1
            for name in ("shape", "colour", "texture", "size"):
                words: tuple[object, ...] = WINDOW_CLASSES[name]
                windows[name][row, place] = words.index(getattr(thing, name))
    backgrounds = {
        name: torch.tensor([words.index(getattr(s, f"background_{name}")) for s in scenes])
        for name, words in BACKGROUND_CLASSES.items()
    }
    return Examples(pictures, windows, backgrounds)


@torch.no_grad()
def reconstruct_noisily(vae: AutoencoderKL, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures through the autoencoder with noise on the latents, uint8 as they came."""
    spoiled = []
    for part in pictures.split(8):
        latents = encode(vae, part.float() / 255)
        deviation = torch.rand(len(part), 1, 1, 1, generator=generator) * LATENT_NOISE
        noise = torch.randn(latents.shape, generator=generator) / vae.config.scaling_factor
        decoded = vae.decode(latents + deviation * noise).sample
        spoiled.append(((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte())
    return torch.cat(spoiled)


def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, colour shift and noise by small random amounts, float [b, 3, h, w] in and out."""
    b = len(images)

    def draw(high: float, channels: int = 1) -> Tensor:
        return high * torch.rand(b, channels, 1, 1, generator=generator)

    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, draw(0.8))
    images = images * (1.04 - draw(0.08, 3)) + 0.03 - draw(0.06, 3)
    return images + draw(0.04) * torch.randn(images.shape, generator=generator)


def train_judge(examples: Examples, steps: int, log: Log) -> Judge:
    """Train both networks.

    Args:
        examples: Training pictures and what they show.
        steps: Optimizer steps.
        log: Called with figures every 50 steps.

    Returns:
        The trained judge, float32, in eval mode.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    judge = Judge().train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=steps, pct_start=0.1
    )
    start = time.perf_counter()
    for step in range(steps):
        crops, window_targets = _draw_windows(examples, generator)
        pictures, background_targets = _draw_pictures(examples, generator)
        loss = _loss(judge.window(crops), window_targets)
        loss = loss + _loss(judge.background(pictures), background_targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49 or step + 1 == steps:
            seconds = time.perf_counter() - start
            log({"step": step + 1, "loss": loss.item(), "elapsed_s": round(seconds, 1)})
    return judge.eval()


def measure_readings(read: Sequence[Scene], true: Sequence[Scene]) -> dict[str, float]:
    """Fraction that was read right, per attribute; of all nine places for `place`.

    An object that was not seen has none of its attributes right.
    """
    right: dict[str, list[bool]] = {}
    for seen, scene in zip(read, true, strict=True):
        at = {thing.place: thing for thing in seen.objects}
        occupied = {thing.place for thing in scene.objects}
        right.setdefault("place", []).extend((p in at) == (p in occupied) for p in PLACES)
        for thing in scene.objects:
            for name in ("shape", "colour", "texture", "size"):
                found = getattr(at.get(thing.place), name, None)
                right.setdefault(name, []).append(found == getattr(thing, name))
        for name in ("background_colour", "background_kind"):
            right.setdefault(name, []).append(getattr(seen, name) == getattr(scene, name))
        right.setdefault("scene", []).append(
            seen.background_colour == scene.background_colour
            and seen.background_kind == scene.background_kind
            and set(seen.objects) == set(scene.objects)
        )
    return {name: sum(values) / len(values) for name, values in right.items()}


def train_and_save(folder: Path, log: Log) -> None:
    """Train the judge that ships, and write its weights and provenance into the package.

    Args:
        folder: Training run of the reference model; its autoencoder spoils a part of the
            pictures. Without one, the judge knows rendered pictures only.
        log: Called with figures every 50 steps.
    """
    start = time.perf_counter()
    scenes, pictures = draw_examples(SEED, N_SCENES)
    if (folder / "vae").exists():
        vae = AutoencoderKL.from_pretrained(folder / "vae")
        generator = torch.Generator().manual_seed(0)
        spoiled = reconstruct_noisily(vae, pictures[:N_SPOILED], generator)
        scenes += scenes[:N_SPOILED] * SPOILED_REPEATS
        pictures = torch.cat([pictures, *[spoiled] * SPOILED_REPEATS])
    judge = train_judge(label(scenes, pictures), STEPS, log)
    save_judge(judge, seconds=round(time.perf_counter() - start, 1))


def save_judge(judge: Judge, seconds: float) -> None:
    """Write weights as float16, and what the judge that ships then reads right."""
    WEIGHTS.parent.mkdir(exist_ok=True)
    state = {n: x.half() if x.is_floating_point() else x for n, x in judge.state_dict().items()}
    save_file(state, WEIGHTS)
    load_judge.cache_clear()
    facts = provenance(
        "fresco reference judge --train",
        steps=STEPS,
        seconds=seconds,
        scenes=N_SCENES,
        held_out_pictures=N_HELD_OUT,
        right=measure_shipped(N_HELD_OUT),
    )
    WEIGHTS.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


def measure_shipped(
    n: int, on_pictures: Callable[[int], None] = lambda _: None
) -> dict[str, float]:
    """What the shipped judge reads right on `n` held-out rendered pictures."""
    scenes, pictures = draw_examples(HELD_OUT_SEED, n)
    read: list[Scene] = []
    for part in pictures.split(64):  # bytes to floats a part at a time
        read += load_judge().read(part.float() / 255)
        on_pictures(len(read))
    return measure_readings(read, scenes)


def _loss(scores: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    losses = [F.cross_entropy(scores[name], targets[name], ignore_index=-1) for name in scores]
    return torch.stack(losses).sum()


def _draw_windows(
    examples: Examples, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Windows, two in three with an object, each shifted by up to `SHIFT_PX`."""
    present = examples.windows["is_present"]
    full, empty = torch.nonzero(present), torch.nonzero(present == 0)

    def pick(cells: Tensor, n: int) -> Tensor:
        return cells[torch.randint(len(cells), (n,), generator=generator)]

    cells = torch.cat([pick(full, 2 * WINDOWS // 3), pick(empty, WINDOWS // 3)])
    shifts = torch.randint(-SHIFT_PX, SHIFT_PX + 1, (len(cells), 2), generator=generator)
    crops = []
    for (row, place), shift in zip(cells.tolist(), shifts.tolist(), strict=True):
        top, left = (STARTS_PX[k] + d for k, d in zip(divmod(place, 3), shift, strict=True))
        picture = F.pad(
            examples.pictures[row].float() / 255, (PADDING_PX + SHIFT_PX,) * 4, mode="replicate"
        )
        top, left = top + SHIFT_PX, left + SHIFT_PX
        crops.append(picture[:, top : top + WINDOW_PX, left : left + WINDOW_PX])
    targets = {name: x[cells[:, 0], cells[:, 1]] for name, x in examples.windows.items()}
    return spoil(torch.stack(crops), generator), targets


def _draw_pictures(
    examples: Examples, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    rows = torch.randint(len(examples.pictures), (PICTURES,), generator=generator)
    pictures = examples.pictures[rows].float() / 255
    if torch.rand(1, generator=generator) < 0.5:
        pictures = pictures.flip(-1)
    spoiled = spoil(F.avg_pool2d(pictures, 2), generator)
    return spoiled, {name: x[rows] for name, x in examples.backgrounds.items()}
