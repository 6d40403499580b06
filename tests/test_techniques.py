"""The engine of stacking: parsing, order, conflicts, all or nothing, undo, warnings."""

from __future__ import annotations

import itertools
from typing import ClassVar, Literal

import pytest
import torch

import fresco
from fresco import errors, techniques
from fresco.recipe import load_recipe
from fresco.techniques import AbstractAttachment, Conflict, TechniqueConfig, in_order, parse_stack
from tests.conftest import FRESCO_5, draw_latents, traces

pytestmark = pytest.mark.filterwarnings("ignore:.*was not run in the matrix")  # of course not
EVENTS: list[str] = []
PLAIN = {"schema": 1, "model": "any"}


class Noted(AbstractAttachment):
    """Notes what becomes of it."""

    def __init__(self, config):
        self.config = config
        if getattr(config, "fails", False):
            raise ValueError("on purpose")
        EVENTS.append(f"+{config.kind}")

    def restore(self):
        EVENTS.append(f"-{self.config.kind}")

    def counts(self):
        return {"notes": len(EVENTS)}

    def idle(self):
        return "it is lazy" if self.config.is_idle else None


class NotedConfig(TechniqueConfig):
    is_idle: bool = False

    def attach(self, _pipe):
        return Noted(self)


class First(NotedConfig):
    kind: Literal["first"] = "first"
    phase: ClassVar = "weights"
    touches: ClassVar = "weights"


class Second(NotedConfig):
    kind: Literal["a_second"] = "a_second"
    phase: ClassVar = "weights"
    touches: ClassVar = "weights"
    after: ClassVar = {"first": "after first, which it builds on"}


class Hooked(NotedConfig):
    kind: Literal["hooked"] = "hooked"
    phase: ClassVar = "hooks"
    touches: ClassVar = "blocks"
    fails: bool = False
    conflicts: ClassVar = (
        Conflict("graphed", "they fight", others={"is_idle": frozenset({True})}),
        Conflict("hooked", "one is enough"),
    )


class Graphed(NotedConfig):
    kind: Literal["graphed"] = "graphed"
    phase: ClassVar = "graph"
    touches: ClassVar = "blocks"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The real techniques and the four above."""
    monkeypatch.setattr(techniques, "_TECHNIQUES", dict(techniques.techniques()))
    for technique in (First, Second, Hooked, Graphed):
        techniques.register_technique(technique)
    EVENTS.clear()


ALL = [{"kind": kind} for kind in ("graphed", "hooked", "a_second", "first")]


def test_every_problem_of_a_stack_is_reported_with_its_place():
    found = parse_stack(
        [
            {"kind": "cahce"},
            {"kind": "cache", "treshold": 0.1},
            {"kind": "cache", "threshold": -1},
            {"kind": "cache", "method": "pab", "threshold": 0.1},
            {"kind": "lora"},
            {"kind": "quantize", "form": "int3"},
            "cache",
            {"kind": "quantize", "exclude": ["attn", "to_(q"]},
        ]
    )[1]
    expected = [
        ("unknown technique 'cahce'", "Did you mean 'cache'? @ $.stack[0].kind"),
        ("unknown key 'treshold'", "Did you mean 'threshold'? @ $.stack[1].treshold"),
        ("Input should be greater than or equal to 0", "@ $.stack[2].threshold"),
        ("threshold has no meaning for pab, use interval, sigmas", "@ $.stack[3]"),
        ("give source or state_dict, one of the two", "@ $.stack[4]"),
        ("Input should be 'int8_weight_only'", "@ $.stack[5].form"),
        ("unknown technique None", "@ $.stack[6].kind"),
        ("'to_(q' is no regular expression: missing ), unterminated", "@ $.stack[7].exclude"),
    ]
    assert len(found) == len(expected)
    for problem, (start, end) in zip(found, expected, strict=True):
        assert problem.startswith(start)
        assert problem.endswith(end)


def test_a_recipe_reports_problems_of_its_stack_with_all_others():
    with pytest.raises(errors.RecipeError) as caught:
        load_recipe({**PLAIN, "stagse": [], "stack": [{"kind": "cahce"}]})
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("stack", list(itertools.permutations(ALL)))
def test_order_of_the_recipe_does_not_matter(stack):
    configs, problems = parse_stack(stack)
    assert not problems
    assert [c.kind for c in in_order(configs)] == ["first", "a_second", "hooked", "graphed"]


def test_a_circle_of_orders_is_refused():
    class Third(NotedConfig):
        kind: Literal["first"] = "first"
        phase: ClassVar = "weights"
        touches: ClassVar = "weights"
        after: ClassVar = {"a_second": "for nothing"}

    with pytest.raises(errors.AttachError, match="a_second, first, got a circle"):
        in_order([Third(), Second()])


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        ([{"kind": "hooked"}, {"kind": "graphed"}], []),
        (
            [{"kind": "graphed", "is_idle": True}, {"kind": "hooked"}],
            ["hooked and graphed do not go together: they fight @ $.stack"],
        ),
        (
            [{"kind": "hooked"}, {"kind": "hooked"}],
            ["hooked and hooked do not go together: one is enough @ $.stack"],
        ),
    ],
)
def test_conflicts_are_refused_with_their_reason(stack, expected):
    assert parse_stack(stack)[1] == expected


def test_registering_a_kind_twice_is_refused():
    class Other(NotedConfig):
        kind: Literal["first"] = "first"
        phase: ClassVar = "weights"

    assert techniques.register_technique(First) is First
    with pytest.raises(errors.AttachError, match="Other besides First"):
        techniques.register_technique(Other)


def test_registering_without_a_phase_is_refused():
    class Timeless(NotedConfig):
        kind: Literal["timeless"] = "timeless"

    with pytest.raises(errors.AttachError, match="got kind 'timeless', phase None"):
        techniques.register_technique(Timeless)


def test_phases_go_around_the_middleware_and_come_off_in_reverse(tiny_flux_pipe, monkeypatch):
    from fresco.middleware import Middleware

    attach, restore = Middleware.attach, Middleware.restore
    monkeypatch.setattr(Middleware, "attach", lambda m: (EVENTS.append("+DR"), attach(m))[1])
    monkeypatch.setattr(Middleware, "restore", lambda m: (EVENTS.append("-DR"), restore(m))[1])
    accelerated = fresco.accelerate(tiny_flux_pipe, {**FRESCO_5, "stack": ALL})
    kinds = ["first", "a_second", "DR", "hooked", "graphed"]
    assert [f"+{kind}" for kind in kinds] == EVENTS
    explained = accelerated.explain().splitlines()
    assert [line.split()[0] for line in explained[:5]] == [
        "first",
        "a_second",
        "dynamic",
        "hooked",
        "graphed",
    ]
    assert "after first, which it builds on" in explained[1]
    accelerated.restore()
    accelerated.restore()
    assert EVENTS[5:] == [f"-{kind}" for kind in reversed(kinds)]


def test_a_technique_that_fails_takes_everything_off_and_is_named(tiny_flux_pipe):
    before = traces(tiny_flux_pipe)
    stack = [*ALL[2:], {"kind": "hooked", "fails": True}]
    with pytest.raises(errors.AttachError, match="'hooked' to attach, got ValueError: on purpose"):
        fresco.accelerate(tiny_flux_pipe, {**FRESCO_5, "stack": stack})
    assert EVENTS == ["+first", "+a_second", "-a_second", "-first"]
    assert traces(tiny_flux_pipe) == before


def test_a_restore_that_is_refused_takes_nothing_off(tiny_flux_pipe):
    accelerated = fresco.accelerate(tiny_flux_pipe, {**PLAIN, "stack": ALL})
    block = tiny_flux_pipe.transformer.transformer_blocks[0]
    linear, block.attn.to_q = block.attn.to_q, torch.nn.Identity()
    with pytest.raises(errors.AttachError, match=r"others in 1 places \(to_q"):
        accelerated.restore()
    assert not any(event.startswith("-") for event in EVENTS)
    block.attn.to_q = linear
    accelerated.restore()
    assert EVENTS[-1] == "-first"


def test_a_silent_no_op_of_weights_is_warned_of_when_attached(tiny_flux_pipe):
    stack = [{"kind": "first", "is_idle": True}]
    with pytest.warns(errors.FrescoWarning, match="first is on, but did nothing: it is lazy"):
        fresco.accelerate(tiny_flux_pipe, {**PLAIN, "stack": stack}).restore()


def test_a_silent_no_op_of_hooks_is_warned_of_after_a_run(tiny_flux_pipe):
    stack = [{"kind": "hooked", "is_idle": True}]
    with fresco.accelerate(tiny_flux_pipe, {**PLAIN, "stack": stack}) as accelerated:
        with pytest.warns(errors.FrescoWarning, match="hooked is on, but did nothing"):
            draw_latents(tiny_flux_pipe)
        assert "hooks    hooked     notes 1  ! it is lazy" in str(accelerated.summary())
        assert accelerated.trace() == accelerated.report.steps
        assert len(accelerated.trace()) == 6
