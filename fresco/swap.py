"""One model call of a step: the carrier swapped for tokens, and the prediction swapped back.

Images of one batch that have different layouts go in one call if they have equally many tokens
and the model can be told the positions of each; else they are called one group after another.
"""

from __future__ import annotations

import itertools
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
from fresco.wraps import is_compiled


def can_merge(adapter: AbstractModelAdapter, step: Step, transformer: torch.nn.Module) -> bool:
    """Whether images of several layouts can be in one call.

    Attention at strides follows one layout. Hooks are no part of a graph that is compiled, nor of
    what a backward pass computes again; a sequence that devices share is another in every one.
    """
    if step.units == "phase" or torch.is_grad_enabled() or not adapter.can_merge(transformer):
        return False
    is_shared = getattr(transformer, "_parallel_config", None)
    return not is_shared and not any(map(is_compiled, transformer.modules()))


def share_calls(groups: Sequence[Group], merges: bool) -> list[list[Group]]:
    """Which groups go in one call: those of equally many tokens, or each in its own.

    Example:
        >>> from fresco.layout import TokenLayout
        >>> layouts = (TokenLayout.whole(2, 2, side, 2) for side in (1, 2, 1))
        >>> groups = [Group((i,), layout, None) for i, layout in enumerate(layouts)]
        >>> [[group.images for group in call] for call in share_calls(groups, merges=True)]
        [[(0,), (2,)], [(1,)]]
    """
    if not merges:
        return [[group] for group in groups]
    by_tokens: dict[int, list[Group]] = {}
    for group in groups:
        by_tokens.setdefault(group.layout.n_tokens, []).append(group)
    return [*by_tokens.values()]


def enter_tokens(
    adapter: AbstractModelAdapter,
    call: Mapping[str, Any],
    run: Run,
    step: Step,
    groups: Sequence[Group],
) -> dict[str, Any]:
    """Make the call of some groups' images, with the tokens of their layouts.

    Args:
        adapter: Of the transformer.
        call: Arguments of the whole batch's call, by name.
        run: The run at hand.
        step: Its step at hand.
        groups: Images of one layout each, all of equally many tokens.

    Returns:
        Arguments by name.
    """
    carrier = adapter.read(call, run.fine)
    entered = [_enter_group(adapter, call, carrier, run, step, group) for group in groups]
    adapter.aim(entered[0], groups[0].layout if step.units == "phase" else None)
    return adapter.merge(entered)


def _enter_group(
    adapter: AbstractModelAdapter,
    call: Mapping[str, Any],
    carrier: Tensor,
    run: Run,
    step: Step,
    group: Group,
) -> dict[str, Any]:
    rows = _rows(group, len(carrier), run)
    part = call
    if len(rows) < len(carrier):
        part, carrier = adapter.select(call, rows), carrier[rows]
    if step.is_injected:
        tokens = inject(carrier, group.layout)
    else:
        noise = adapter.target(step.sigma).noise
        tokens = restrict(carrier, _field(group, rows, run), noise, group.layout)
    return adapter.embed(part, tokens, group.layout, group.layout.positions(step.units, step.side))


def leave_tokens(
    adapter: AbstractModelAdapter,
    outputs: Sequence[Any],
    calls: Sequence[Sequence[Group]],
    run: Run,
    step: Step,
) -> Any:
    """Bring the predictions of all groups back to the full grid, in the batch's order.

    Args:
        adapter: Of the transformer.
        outputs: What it returned for each of `calls`.
        calls: The step's groups, by the calls they went in.
        run: The run at hand.
        step: Its step at hand.

    Returns:
        One output of the transformer's own form.
    """
    adapter.aim({}, None)
    spread = interpolate if step.is_injected else prolong
    coefficient = adapter.noise_coefficient * adapter.target(step.sigma).predicted_noise
    predicted = [adapter.unembed(o, g[0].layout) for o, g in zip(outputs, calls, strict=True)]
    n = sum(map(len, predicted))
    parts: list[Any] = []
    order: list[int] = []
    for output, groups, tokens in zip(outputs, calls, predicted, strict=True):
        rows = [_rows(group, n, run) for group in groups]
        own = tokens.split([*map(len, rows)])
        grids = [
            spread(values, _field(group, at, run), coefficient, group.layout)
            for values, group, at in zip(own, groups, rows, strict=True)
        ]
        parts.append(adapter.replace(output, torch.cat(grids), groups[0].layout))
        order += itertools.chain(*rows)
    if len(parts) == 1 and order == sorted(order):
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
