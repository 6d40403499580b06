"""Draw a scene: the pictures that the reference model learns from and is judged by.

Everything is drawn as signed distances at twice the resolution and averaged down, so
that no edge is jagged and the smaller sizes are what a camera would see: textures (11 to
16 px at 256 px) fade with the size, and have melted into their mean colour at 16 px. They lie
along the axes of the picture.

What a caption cannot say (exact position, angle, period and phase of a texture) is drawn
from the generator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fresco.reference.scenes import PLACES, Scene, SceneObject

Array = NDArray[np.floating[Any]]

SIZE_PX = 256
SUPERSAMPLING = 2

INK = {
    "red": (0.86, 0.13, 0.14),
    "yellow": (0.95, 0.77, 0.05),
    "green": (0.10, 0.58, 0.22),
    "blue": (0.12, 0.27, 0.84),
    "purple": (0.57, 0.14, 0.68),
    "black": (0.08, 0.08, 0.09),
}
PAPER = {
    "white": (0.97, 0.97, 0.96),
    "grey": (0.70, 0.71, 0.73),
    "yellow": (0.98, 0.92, 0.62),
    "green": (0.70, 0.90, 0.68),
    "blue": (0.66, 0.82, 0.97),
    "pink": (0.98, 0.74, 0.82),
}
HIGHLIGHT = np.array((0.97, 0.97, 0.97), np.float32)  # the second colour of a texture
RADIUS_PX = {"small": (22.0, 27.0), "large": (32.0, 37.0)}
JITTER_PX = {"small": 8.0, "large": 4.0}  # of the centre, around the middle of its place
TILT_RAD = np.deg2rad(15.0)


def render(scene: Scene, rng: np.random.Generator) -> Array:
    """Draw a scene at 256 x 256 px.

    Args:
        scene: What to draw.
        rng: Source of everything that the scene leaves open; it is advanced.

    Returns:
        Picture, float32 [3, 256, 256] in [0, 1].
    """
    canvas = _background(scene, rng)
    for thing in scene.objects:
        _draw(canvas, thing, rng)
    return downsample(canvas.transpose(2, 0, 1), SUPERSAMPLING)


def downsample(picture: Array, times: int) -> Array:
    """Average squares of `times` x `times` px.

    Args:
        picture: Float [c, h, w]; `times` divides h and w.
        times: Side of the squares, in px.

    Returns:
        Float32 [c, h/times, w/times].
    """
    c, h, w = picture.shape
    squares = picture.reshape(c, h // times, times, w // times, times)
    averaged: Array = squares.mean(axis=(2, 4), dtype=np.float32)
    return averaged


def _background(scene: Scene, rng: np.random.Generator) -> Array:
    n = SIZE_PX * SUPERSAMPLING
    colour = np.array(PAPER[scene.background_colour], np.float32)
    canvas = np.empty((n, n, 3), np.float32)
    canvas[:] = colour
    if scene.background_kind == "plain":
        return canvas
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / SUPERSAMPLING
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * (x - SIZE_PX / 2) + np.sin(angle) * (y - SIZE_PX / 2)
    if scene.background_kind == "graded":
        shade = 1 - 0.28 * (0.5 + along / (SIZE_PX * 1.42))
    else:  # thin lines
        distance = _distance_to_lines(along, period=rng.uniform(13, 17), phase=rng.uniform(0, 1))
        shade = 1 - 0.22 * _cover(distance - 1.4)
    canvas *= shade[..., None]
    return canvas


def _draw(canvas: Array, thing: SceneObject, rng: np.random.Generator) -> None:
    row, column = divmod(PLACES.index(thing.place), 3)
    jitter = JITTER_PX[thing.size]
    centre_y = (row + 0.5) * SIZE_PX / 3 + rng.uniform(-jitter, jitter)
    centre_x = (column + 0.5) * SIZE_PX / 3 + rng.uniform(-jitter, jitter)
    radius = rng.uniform(*RADIUS_PX[thing.size])
    window = [
        slice(
            max(0, int((c - 1.3 * radius) * SUPERSAMPLING)),
            int((c + 1.3 * radius) * SUPERSAMPLING),
        )
        for c in (centre_y, centre_x)
    ]
    patch = canvas[window[0], window[1]]
    y, x = np.mgrid[window[0], window[1]][:, : patch.shape[0], : patch.shape[1]]
    y = ((y + 0.5) / SUPERSAMPLING - centre_y).astype(np.float32)
    x = ((x + 0.5) / SUPERSAMPLING - centre_x).astype(np.float32)
    tilt = rng.uniform(-TILT_RAD, TILT_RAD)
    across, down = np.cos(tilt) * x + np.sin(tilt) * y, np.cos(tilt) * y - np.sin(tilt) * x
    inside = _cover(_distance_to_shape(thing.shape, across, down, radius))[..., None]
    ink = np.array(INK[thing.colour], np.float32)
    light = _texture(thing.texture, x, y, rng)[..., None]
    patch[:] = (1 - inside) * patch + inside * ((1 - light) * ink + light * HIGHLIGHT)


def _distance_to_shape(shape: str, x: Array, y: Array, radius: float) -> Array:
    """Signed distance in px, negative inside; areas are roughly equal."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.75 * radius) - 0.30 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    if shape == "triangle":
        slope = np.abs(x) * np.cos(np.pi / 6) - (y - 0.15 * radius) * np.sin(np.pi / 6)
        triangle: Array = np.maximum(slope, y - 0.15 * radius) - 0.62 * radius
        return triangle
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    cross: Array = np.maximum(long - radius, short - 0.34 * radius)
    return cross


def _texture(texture: str, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Share of the highlight, in [0, 1]."""
    if texture == "plain":
        return np.zeros_like(x)
    u, v = (x, y) if rng.integers(2) else (y, x)  # stripes stand or lie
    phase_u, phase_v = rng.uniform(0, 1, 2)
    if texture == "striped":
        period = rng.uniform(11, 13)
        return _cover(_distance_to_lines(u, period, phase_u) - period / 4)
    if texture == "dotted":
        period = rng.uniform(12, 14)
        near = np.hypot(
            _distance_to_lines(u, period, phase_u), _distance_to_lines(v, period, phase_v)
        )
        return _cover(near - 0.30 * period)
    period = rng.uniform(14, 16)  # checked: two stripes, exclusive or
    one = _cover(_distance_to_lines(u, period, phase_u) - period / 4)
    two = _cover(_distance_to_lines(v, period, phase_v) - period / 4)
    return one + two - 2 * one * two


def _distance_to_lines(position: Array, period: float, phase: float) -> Array:
    periods: Array = np.abs((position / period + phase) % 1 - 0.5).astype(np.float32)
    return periods * np.float32(period)


def _cover(distance: Array) -> Array:
    """Share of a pixel that lies inside a boundary at this signed distance (px)."""
    share: Array = np.clip(0.5 - distance * SUPERSAMPLING, 0, 1).astype(np.float32)
    return share
