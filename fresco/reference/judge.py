"""The judge: a small network that reads a scene back from a picture.

It looks at nine overlapping windows, one around each place, at full resolution (textures
have periods of 11 to 16 px), and at the whole picture at half resolution for the
background. What it reads is a `Scene`; `fresco.reference.verdict` compares that with what
a caption asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fresco.errors import FrescoError
from fresco.reference import WeightsError
from fresco.reference.render import SIZE_PX
from fresco.reference.scenes import (
    BACKGROUND_COLOURS,
    BACKGROUND_KINDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
)

WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"
WINDOW_PX = 96  # the largest object at its farthest reaches 44 px from the middle of its place
PADDING_PX = 8
STARTS_PX = tuple(round((k + 0.5) * SIZE_PX / 3) - WINDOW_PX // 2 + PADDING_PX for k in range(3))
WINDOW_CLASSES = {
    "is_present": (False, True),
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
}
BACKGROUND_CLASSES = {"colour": BACKGROUND_COLOURS, "kind": BACKGROUND_KINDS}
BATCH = 16  # pictures per forward


class PictureError(FrescoError, ValueError):
    """Pictures have a shape that the judge cannot read."""


class Judge(nn.Module):
    """Two convolutional networks, of a window and of the background."""

    def __init__(self) -> None:
        super().__init__()
        self.window = _network((24, 48, 64, 96), WINDOW_PX // 16, WINDOW_CLASSES)
        self.background = _network((16, 24, 32, 32), SIZE_PX // 2 // 16, BACKGROUND_CLASSES)

    @torch.no_grad()
    def read(self, images: Tensor) -> list[Scene]:
        """Say what pictures show.

        Args:
            images: Float [b, 3, h, w] in [0, 1]; squares of 256 px or a multiple of it,
                which is averaged down.

        Returns:
            A scene per picture, objects in the order of `PLACES`; it may have none, or more
            than three.

        Raises:
            PictureError: If the shape is another.
        """
        return [scene for part in _at_full_size(images).split(BATCH) for scene in self._read(part)]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the classifiers see of pictures, for a distance between sets of pictures.

        Args:
            images: As `read` takes them.

        Returns:
            Float32 [b, 192], at least 0: 96 of the background, then the mean over the nine
            windows of their 96.

        Raises:
            PictureError: If the shape is another.
        """
        return torch.cat([self._features(part) for part in _at_full_size(images).split(BATCH)])

    def _features(self, images: Tensor) -> Tensor:
        behind = self.background[:-1](F.avg_pool2d(images, 2))  # without the heads
        windows = self.window[:-1](crop_windows(images)).view(len(images), len(PLACES), -1)
        return torch.cat([behind, windows.mean(1)], 1)

    def _read(self, images: Tensor) -> list[Scene]:
        windows = {name: x.argmax(-1) for name, x in self.window(crop_windows(images)).items()}
        grid = {name: x.view(len(images), len(PLACES)) for name, x in windows.items()}
        behind = {n: x.argmax(-1) for n, x in self.background(F.avg_pool2d(images, 2)).items()}
        scenes = []
        for row in range(len(images)):
            objects = tuple(
                SceneObject(
                    shape=SHAPES[grid["shape"][row, place]],
                    colour=COLOURS[grid["colour"][row, place]],
                    texture=TEXTURES[grid["texture"][row, place]],
                    size=SIZES[grid["size"][row, place]],
                    place=PLACES[place],
                )
                for place in torch.nonzero(grid["is_present"][row]).flatten().tolist()
            )
            colour = BACKGROUND_COLOURS[behind["colour"][row]]
            scenes.append(Scene(objects, colour, BACKGROUND_KINDS[behind["kind"][row]]))
        return scenes


def crop_windows(images: Tensor) -> Tensor:
    """Cut the windows of all places out of pictures.

    Args:
        images: Float [b, 3, 256, 256].

    Returns:
        Float [b * 9, 3, 96, 96], the places of one picture together, in order.
    """
    padded = F.pad(images, (PADDING_PX,) * 4, mode="replicate")
    windows = [
        padded[:, :, top : top + WINDOW_PX, left : left + WINDOW_PX]
        for top in STARTS_PX
        for left in STARTS_PX
    ]
    return torch.stack(windows, 1).flatten(0, 1)


@functools.cache
def load_judge() -> Judge:
    """The shipped judge; its provenance is in `weights/judge.json`.

    Raises:
        WeightsError: If the package has been installed without its weights.
    """
    if not WEIGHTS.exists():
        fix = "Train it with `fresco reference judge --train`."
        raise WeightsError("load_judge()", f"a file {WEIGHTS.name}", "none", fix)
    judge = Judge()
    state = load_file(WEIGHTS)
    judge.load_state_dict(
        {name: x.float() if x.is_floating_point() else x for name, x in state.items()}
    )
    return judge.eval().requires_grad_(False)


class _Heads(nn.Module):
    """One linear classifier per attribute, on shared features."""

    def __init__(self, width: int, classes: Mapping[str, tuple[object, ...]]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(c)) for name, c in classes.items()})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {name: head(features) for name, head in self.heads.items()}


def _network(
    widths: tuple[int, ...], side: int, classes: Mapping[str, tuple[object, ...]]
) -> nn.Sequential:
    """Four halvings, pooled to a third of what is left, then 96 features and the heads."""
    layers: list[nn.Module] = []
    for before, width in zip((3, *widths), widths, strict=False):
        kernel = 5 if before == 3 else 3
        layers += [
            nn.Conv2d(before, width, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    pooled = 3 if side % 3 == 0 else 4
    layers += [
        nn.Conv2d(widths[-1], widths[-1], 3, padding=1, bias=False),
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(),
        nn.AvgPool2d(side // pooled),
        nn.Flatten(),
        nn.Linear(widths[-1] * pooled**2, 96),
        nn.ReLU(),
        _Heads(96, classes),
    ]
    return nn.Sequential(*layers)


def _at_full_size(images: Tensor) -> Tensor:
    shape = tuple(images.shape)
    if (
        len(shape) != 4
        or shape[1] != 3
        or shape[2] != shape[3]
        or shape[2] % SIZE_PX
        or not shape[2]
    ):
        raise PictureError(
            "Judge.read(images)",
            f"pictures [b, 3, h, h], h a multiple of {SIZE_PX} px",
            list(shape),
            "Make square pictures of 256 px; smaller ones do not show textures.",
        )
    return F.avg_pool2d(images.float(), shape[2] // SIZE_PX)
