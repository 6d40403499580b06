"""A picture of a plan: sigma, tokens and cost over its steps."""

from __future__ import annotations

from pathlib import Path

from fresco.output import write_figure
from fresco.planner import Forecast


def save_plan(forecast: Forecast, title: str, path: Path) -> None:
    """Draw sigma, tokens and TFLOPs of every step, one above the other.

    Args:
        forecast: Of one run.
        title: Above all of them.
        path: PNG file to write.

    Raises:
        OutputError: If it cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    plan = forecast.plan
    figure = Figure(figsize=(8, 7), dpi=100, layout="constrained")
    noise, tokens, cost = figure.subplots(3, 1, sharex=True)
    places = range(len(plan.steps))
    noise.step(range(len(plan.sigmas)), plan.sigmas, where="post", color="tab:blue")
    noise.set_ylabel("sigma")
    tokens.bar(places, [step.n_tokens for step in plan.steps], align="edge", color="tab:orange")
    tokens.set_ylabel("image tokens")
    cost.bar(places, [flops / 1e12 for flops in forecast.flops], align="edge", color="tab:green")
    cost.set(ylabel="TFLOPs", xlabel="step")
    figure.suptitle(f"{title}: {forecast.flops_speedup:.2f}x fewer FLOPs")
    write_figure(path, figure)
