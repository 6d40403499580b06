"""One model call of a step: the carrier swapped for tokens, and the prediction swapped back.

Images of one batch that have different layouts are called one group after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fresco.injection import inject, interpolate
from fresco.lift import lift_latents
from fresco.noise import NoiseField
from fresco.ports import AbstractModelAdapter
from fresco.run import Group, Run
from fresco.schedule import Step
from fresco.transfer import prolong, restrict


def enter_tokens(
    adapter: AbstractModelAdapter, call: Mapping[str, Any], run: Run, step: Step, group: Group
) -> dict[str, Any]:
    """Make the call of a group's images, with the tokens of their layout.

    Args:
        adapter: Of the transformer.
        call: Arguments of the whole batch's call, by name.
        run: The run at hand.
        step: Its step at hand.
        group: Images of one layout.

    Returns:
        Arguments by name.
    """
    carrier = adapter.read(call, run.fine)
    rows = _rows(group, len(carrier), run)
    part = call
    if len(rows) < len(carrier):
        part, carrier = adapter.select(call, rows), carrier[rows]
    if step.is_injected:
        tokens = inject(carrier, group.layout)
    else:
        noise = adapter.target(step.sigma).noise
        tokens = restrict(carrier, _field(group, rows, run), noise, group.layout)
    positions = group.layout.positions(step.units, step.side)
    entered = adapter.embed(part, tokens, group.layout, positions)
    adapter.aim(entered, group.layout if step.units == "phase" else None)
    return entered


def leave_tokens(
    adapter: AbstractModelAdapter, outputs: Sequence[Any], run: Run, step: Step
) -> Any:
    """Bring the predictions of all groups back to the full grid, in the batch's order.

    Args:
        adapter: Of the transformer.
        outputs: What it returned for each of `run.groups(step)`.
        run: The run at hand.
        step: Its step at hand.

    Returns:
        One output of the transformer's own form.
    """
    adapter.aim({}, None)
    groups = run.groups(step)
    spread = interpolate if step.is_injected else prolong
    coefficient = adapter.noise_coefficient * adapter.target(step.sigma).predicted_noise
    predicted = [adapter.unembed(o, g.layout) for o, g in zip(outputs, groups, strict=True)]
    n = sum(map(len, predicted))
    parts, order = [], []
    for output, group, tokens in zip(outputs, groups, predicted, strict=True):
        rows = _rows(group, n, run)
        field = _field(group, rows, run)
        grid = spread(tokens, field, coefficient, group.layout)
        parts.append(adapter.replace(output, grid, group.layout))
        order += rows
    if len(parts) == 1:
        return parts[0]
    return adapter.join(parts, torch.tensor(order, device=parts[0][0].device).argsort())


def _rows(group: Group, n: int, run: Run) -> list[int]:
    """Rows of a group's images in a call of `n` rows: guidance may have the batch repeated."""
    b = len(run.noise.eps)
    return [start + image for start in range(0, n, b) for image in group.images]


def _field(group: Group, rows: list[int], run: Run) -> NoiseField:
    """The field of these rows."""
    copies = len(rows) // len(group.images)
    return group.field if copies == 1 else run.field_of(group.images * copies)


def lift_carrier(run: Run, step: Step, latents: Tensor, velocity: Tensor) -> Tensor:
    """Lift the carrier after a step, each image by its own layout.

    Args:
        run: The run at hand; `fresh` and `spectral` lifts exchange its field.
        step: Its step at hand, with a lift.
        latents: Of the step's call, as a flow's, float32 [b, c, h, w].
        velocity: Guided prediction on the full grid, as a flow's, float32 [b, c, h, w].

    Returns:
        Latents of a flow at the next step's sigma, [b, c, h, w].
    """
    assert step.lift
    if step.lift.form == "fresh":
        run.exchange(run.noise.redrawn(run.n_done))
    elif step.lift.form == "spectral":
        change = run.exchange(run.noise.redrawn_details(run.n_done, step.side))
        latents, velocity = latents + step.sigma * change, velocity + change
    lifted = torch.empty_like(latents)
    for group in run.groups(step):
        i = list(group.images)
        lifted[i] = lift_latents(latents[i], velocity[i], group.field, step.lift, group.layout)
    return lifted
