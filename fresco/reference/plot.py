"""The Pareto plot: what a method's pictures are worth at each speedup."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fresco.output import write_figure

PANELS = {
    "judge": "asked attributes that the pictures show",
    "scene": "whole scenes that they show",
    "frechet": "Fréchet distance to rendered scenes",
}


def save_pareto(report: Mapping[str, Any], path: Path) -> None:
    """Draw the judge's shares and Fréchet distance against speedup, a line per method.

    Args:
        report: Of `run_study`, a group per method; the first is drawn on top.
        path: PNG file to write.

    Raises:
        OutputError: If it cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(18, 4.5), dpi=120, layout="constrained")
    for axis, (name, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        rows = report["rows"]
        full = rows[report["baseline"]][name]
        axis.axhline(full, color="0.6", linestyle=":", label=f"{report['baseline']} (1x)")
        for i, (method, group) in enumerate(report["groups"].items()):
            points = sorted((rows[row] for row in group["rows"]), key=lambda row: row["speedup"])
            middle = [point[name] for point in points]
            ends = [point[f"{name}_interval"] for point in points]
            below = [max(0.0, m - low) for m, (low, _) in zip(middle, ends, strict=True)]
            above = [max(0.0, high - m) for m, (_, high) in zip(middle, ends, strict=True)]
            speedups = [point["speedup"] for point in points]
            axis.errorbar(
                speedups,
                middle,
                [below, above],
                marker="o",
                capsize=3,
                label=method,
                zorder=9 - i / 9,
            )
        axis.set(xlabel="speedup of the denoising loop, wall clock", ylabel=label)
        axis.grid(alpha=0.3)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper")
    figure.suptitle(
        f"{report['n_prompts']} held-out captions, 95% bootstrap intervals", fontsize=10
    )
    write_figure(path, figure)
