"""Scenes of the reference data: what is in a picture, before it is drawn or described.

A scene is one to three objects on a 3 x 3 grid of places, over a background. Every
attribute is a word of the vocabularies below, so that a caption can ask for it, and a
judge can read it back from the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = ("red", "yellow", "green", "blue", "purple", "black")
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "large")
PLACES = (
    *("top left", "top", "top right"),
    *("left", "centre", "right"),
    *("bottom left", "bottom", "bottom right"),
)  # row by row
BACKGROUND_COLOURS = ("white", "grey", "yellow", "green", "blue", "pink")
BACKGROUND_KINDS = ("plain", "graded", "patterned")

COUNT_PROBABILITIES = (0.5, 0.4, 0.1)  # of one, two and three objects
KIND_PROBABILITIES = (0.5, 0.3, 0.2)  # of BACKGROUND_KINDS


@dataclass(frozen=True)
class SceneObject:
    """One object; the attributes are words of this module's vocabularies."""

    shape: str
    colour: str
    texture: str
    size: str
    place: str


@dataclass(frozen=True)
class Scene:
    """Objects on different places, and what is behind them."""

    objects: tuple[SceneObject, ...]
    background_colour: str
    background_kind: str


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: attributes independent, those of objects uniform; places distinct.

    Args:
        rng: Source of randomness; it is advanced.

    Returns:
        A scene of one to three objects (`COUNT_PROBABILITIES`, `KIND_PROBABILITIES`).
    """
    n_objects = 1 + int(rng.choice(3, p=COUNT_PROBABILITIES))
    places = rng.choice(len(PLACES), size=n_objects, replace=False)
    objects = tuple(
        SceneObject(
            shape=str(rng.choice(SHAPES)),
            colour=str(rng.choice(COLOURS)),
            texture=str(rng.choice(TEXTURES)),
            size=str(rng.choice(SIZES)),
            place=PLACES[place],
        )
        for place in places
    )
    colour = str(rng.choice(BACKGROUND_COLOURS))
    return Scene(objects, colour, str(rng.choice(BACKGROUND_KINDS, p=KIND_PROBABILITIES)))
