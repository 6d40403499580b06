"""Rows of pictures under their prompts, as one labelled sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fresco.output import write_figure


@dataclass(frozen=True)
class Row:
    """Pictures that were sampled in one way, and what they took.

    Args:
        name: Label.
        n_steps: Solver steps that were taken.
        images: Float [b, 3, h, w] in [0, 1], one per prompt.
        loop_s: Seconds of the denoising loop per picture.
        call_s: Seconds of the whole call per picture.
        speedup: Over the first row; None: by seconds of the loop.
    """

    name: str
    n_steps: int
    images: Tensor
    loop_s: float
    call_s: float
    speedup: float | None = None


def save_comparison(rows: Sequence[Row], prompts: Sequence[str], path: Path) -> None:
    """Write a sheet with a row per way of sampling, and a column per prompt.

    Args:
        rows: At least one; the first is what speedups by seconds refer to.
        prompts: Titles of the columns.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    n = len(prompts)
    figure = Figure(figsize=(2.2 + 2.6 * n, 0.7 + 2.7 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), n, squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        for image, axis in zip(row.images, line, strict=True):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        speedup = row.speedup or rows[0].loop_s / row.loop_s
        label = f"{row.name}\n{row.n_steps} steps\n{row.loop_s:.2f} s  ({speedup:.1f}x)"
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=11, labelpad=10)
    for prompt, axis in zip(prompts, axes[0], strict=True):
        axis.set_title(textwrap.fill(prompt, 34), fontsize=8)
    write_figure(path, figure)


def save_sheet(images: Tensor, titles: Sequence[str], path: Path, n_columns: int = 4) -> None:
    """Write pictures under their captions.

    Args:
        images: Float [b, 3, h, w] in [0, 1].
        titles: One per picture.
        path: PNG file to write.
        n_columns: Pictures side by side.
    """
    from matplotlib.figure import Figure

    n_rows = -(-len(titles) // n_columns)
    figure = Figure(figsize=(2.6 * n_columns, 3.2 * n_rows), dpi=100, layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for image, title, axis in zip(images, titles, axes, strict=False):
        axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
        axis.set_title(textwrap.fill(title, 36), fontsize=7)
    write_figure(path, figure)
