"""What techniques are told of calls, of layouts that make their state stale, of a run's end."""

from __future__ import annotations

import pytest
import torch

import fresco
from fresco.calls import AbstractListener, Call, Listeners
from fresco.layout import TokenLayout
from fresco.noise import NoiseField
from fresco.run import Group
from tests.conftest import FRESCO_5, draw_latents


class Told(AbstractListener):
    """Counts what it is told."""

    def __init__(self):
        self.calls, self.layouts, self.ends = [], [], 0

    def on_layout(self, call):
        self.layouts.append(call.step)

    def before_call(self, call):
        self.calls.append(call)

    def after_call(self):
        return False

    def end_run(self):
        self.ends += 1


def test_listeners_are_told_of_calls_layouts_and_ends(tiny_flux_pipe):
    told = Told()
    with fresco.accelerate(tiny_flux_pipe, FRESCO_5) as accelerated:
        accelerated._middleware.listeners.on_layout.append(told)
        draw_latents(tiny_flux_pipe, negative_prompt="blue", true_cfg_scale=2.0)
        assert told.layouts == [0, 2, 4]
        assert [(c.step, c.n_pass) for c in told.calls] == [
            (i, j) for i in range(6) for j in (0, 1)
        ]
        assert {(c.n_steps, c.group) for c in told.calls} == {(6, 0)}
        assert [c.sigma for c in told.calls[::2]] == list(accelerated.plan.sigmas[:-1])
        assert told.calls[0].carrier().shape == (1, 4, 16, 16)
        draw_latents(tiny_flux_pipe)
        assert told.layouts[3:] == [0, 2, 4]  # the next run begins anew
        assert told.ends == 2


class Step:
    """What listeners look at of a step."""

    def __init__(self, lift=None, units="fine", is_injected=False):
        self.lift, self.units, self.is_injected = lift, units, is_injected


def groups_of(sides, images=(0,)):
    layout = TokenLayout(torch.tensor(sides), patch_px=2)
    return [Group(images, layout, NoiseField(torch.zeros(1, 1, 8, 8), 2))]


TOP = [[1, 1, 2, 2], [1, 1, 2, 2], [2, 2, 2, 2], [2, 2, 2, 2]]
BOTTOM = TOP[::-1]


@pytest.mark.parametrize(
    ("before", "now", "is_stale"),
    [
        ((Step(), groups_of(TOP)), (Step(), groups_of(TOP)), False),
        ((Step(), groups_of(TOP)), (Step(), groups_of(BOTTOM)), True),
        ((Step(lift="up"), groups_of(TOP)), (Step(), groups_of(TOP)), True),
        ((Step(), groups_of(TOP)), (Step(lift="up"), groups_of(TOP)), False),
        ((Step(), groups_of(TOP)), (Step(units="coarse"), groups_of(TOP)), True),
        ((Step(), groups_of(TOP)), (Step(is_injected=True), groups_of(TOP)), True),
        ((Step(), groups_of(TOP, (0, 1))), (Step(), groups_of(TOP, (0, 2))), True),
        ((Step(), groups_of(TOP, (0,)) * 2), (Step(), groups_of(TOP, (0,))), True),
    ],
)
def test_cache_state_is_not_shared_between_layouts_of_equal_size(before, now, is_stale):
    assert groups_of(TOP)[0].layout.n_tokens == groups_of(BOTTOM)[0].layout.n_tokens
    listeners, told = Listeners(), Told()
    listeners.on_layout.append(told)

    class Run:
        def groups(self, step):
            return (before if step is before[0] else now)[1]

    run = Run()
    for i, (step, _) in enumerate((before, now)):
        listeners.begin_step(run, step, Call(i, 2, 0.5, 0, 0, lambda: None))
    assert told.layouts == ([0, 1] if is_stale else [0])
