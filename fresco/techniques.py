"""Techniques that a recipe can stack: their registry, their order, and what bites what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from fresco.calls import AbstractListener
from fresco.errors import AttachError
from fresco.problems import place, unknown
from fresco.registry import load_extensions
from fresco.stages import Config

Phase = Literal["weights", "hooks", "graph"]
PHASES: tuple[Phase, ...] = ("weights", "hooks", "graph")  # the order of attaching
Counts = Mapping[str, int | float | str]


class AbstractAttachment(ABC):
    """A technique that is on a pipeline: proves itself by counts, and comes off again."""

    @abstractmethod
    def restore(self) -> None:
        """Take the technique off; the pipeline is bit-identical to before."""

    @abstractmethod
    def counts(self) -> Counts:
        """What proves that the technique is on: layers, bytes, hits, graphs."""

    @abstractmethod
    def idle(self) -> str | None:
        """Why the technique does nothing, as far as can be told by now; None if it does."""

    def check_restorable(self) -> None:  # noqa: B027
        """Raise `AttachError` if others have built on it since, and it cannot come off."""

    def settle(self) -> None:  # noqa: B027
        """Let go of what will not be put back: the whole stack has been attached."""

    @property
    def listener(self) -> AbstractListener | None:
        """Who wants to be told of the transformer's calls; None: nobody."""
        return None


@dataclass(frozen=True)
class Conflict:
    """Two techniques that do not go together, with the reason.

    Args:
        other: Kind of the other technique; its own kind if it cannot be there twice.
        reason: Why, as it is said to the user.
        own: Values of its own fields with which it bites; no field: always.
        others: The same of the other technique's fields.
    """

    other: str
    reason: str
    own: Mapping[str, frozenset[object]] = field(default_factory=dict)
    others: Mapping[str, frozenset[object]] = field(default_factory=dict)


class TechniqueConfig(Config, ABC):
    """An entry of a recipe's stack; a technique is a subclass with a `kind` of its own."""

    kind: str
    phase: ClassVar[Phase]
    touches: ClassVar[str]  # what it changes, in words for `explain()`
    keeps_state: ClassVar[bool] = False  # state that depends on the token layout
    after: ClassVar[Mapping[str, str]] = {}  # kinds of its phase that go before it: why
    conflicts: ClassVar[tuple[Conflict, ...]] = ()
    only_one: ClassVar[str] = "it attaches to the first"  # why not where there are transformers

    @abstractmethod
    def attach(self, pipe: Any) -> AbstractAttachment:
        """Attach the technique to one pipeline's instances, or nothing if that fails."""


class TransformerTechnique(TechniqueConfig, ABC):
    """A technique on transformers alone: on each one that a pipeline's steps are divided among."""

    def attach(self, pipe: Any) -> AbstractAttachment:
        return self.attach_to(pipe.transformer)

    @abstractmethod
    def attach_to(self, transformer: Any) -> AbstractAttachment:
        """Attach the technique to one transformer, or nothing if that fails."""


_TECHNIQUES: dict[str, type[TechniqueConfig]] = {}


def register_technique(technique: type[TechniqueConfig]) -> type[TechniqueConfig]:
    """Register a technique; use it as a class decorator.

    Args:
        technique: Concrete config whose `kind` has a default.

    Returns:
        The same class.

    Raises:
        AttachError: If another class has that kind, or its phase is none.
    """
    where = "register_technique(technique)"
    kind, phase = technique.model_fields["kind"].default, getattr(technique, "phase", None)
    if not isinstance(kind, str) or phase not in PHASES:
        got = f"kind {kind!r}, phase {phase!r} in {technique.__qualname__}"
        raise AttachError(where, f"a kind and one phase of {', '.join(PHASES)}", got, "Set both.")
    known = _TECHNIQUES.setdefault(kind, technique)
    if known is not technique:
        got = f"{technique.__qualname__} besides {known.__qualname__}"
        raise AttachError(where, f"one technique {kind!r}", got, "Uninstall one of the two.")
    return technique


def techniques() -> Mapping[str, type[TechniqueConfig]]:
    """Load every installed technique and view them by `kind`, read-only.

    Example:
        >>> "cache" in techniques()
        True
    """
    load_extensions()
    return MappingProxyType(_TECHNIQUES)


def parse_stack(stack: object) -> tuple[tuple[TechniqueConfig, ...], list[str]]:
    """Read a recipe's stack.

    Args:
        stack: What the recipe has under `stack`, checked or not.

    Returns:
        Techniques in the recipe's order, and every problem as `description @ $.path`.

    Example:
        >>> parse_stack([{"kind": "cahce"}])[1]  # doctest: +ELLIPSIS
        ["unknown technique 'cahce'; known: cache, ... Did you mean 'cache'? @ $.stack[0].kind"]
    """
    entries = list(stack) if isinstance(stack, list | tuple) else []
    known = techniques() if entries else {}
    configs, problems = [], []
    for i, entry in enumerate(entries):
        kind = entry.get("kind") if isinstance(entry, Mapping) else None
        if isinstance(entry, Mapping) and kind is None:
            problems.append(
                f"a technique needs its kind: {', '.join(sorted(known))} @ $.stack[{i}]"
            )
            continue
        if not isinstance(kind, str) or kind not in known:
            problems.append(f"{unknown('technique', kind, sorted(known))} @ $.stack[{i}].kind")
            continue
        try:
            configs.append(known[kind].model_validate(dict(entry)))
        except ValidationError as error:
            found = error.errors(include_url=False)
            problems += [_describe(dict(each), known[kind], i) for each in found]
    if not problems:
        problems = [f"{reason} @ $.stack" for reason in conflict_reasons(configs)]
    return tuple(configs), problems


def technique_problems(stack: object) -> list[str]:
    """Check a recipe's stack.

    Args:
        stack: What the recipe has under `stack`, checked or not.

    Returns:
        Every problem as `description @ $.path`.

    Example:
        >>> technique_problems([{"kind": "cache", "method": "taylorseer", "intervall": 2}])[0]
        ... # doctest: +ELLIPSIS
        "unknown key 'intervall'; known: ... Did you mean 'interval'? @ $.stack[0].intervall"
    """
    return parse_stack(stack)[1]


def conflict_reasons(configs: Sequence[TechniqueConfig]) -> list[str]:
    """Say which techniques of a stack do not go together, and why.

    Example:
        >>> conflict_reasons([])
        []
    """
    return [
        f"{one.kind} and {other.kind} do not go together: {conflict.reason}"
        for i, one in enumerate(configs)
        for j, other in enumerate(configs)
        for conflict in one.conflicts
        if i != j and not (one.kind == other.kind and i > j)
        if conflict.other == other.kind
        if _matches(one, conflict.own) and _matches(other, conflict.others)
    ]


def in_order(configs: Iterable[TechniqueConfig]) -> tuple[TechniqueConfig, ...]:
    """Order techniques by phase, and within one by what each must come after.

    The order of the recipe does not matter.

    Args:
        configs: Techniques in any order.

    Returns:
        The same, first attached first.

    Example:
        >>> known = techniques()
        >>> stack = [known["compile"](), known["quantize"](), known["cache"]()]
        >>> [config.kind for config in in_order(stack)]
        ['quantize', 'cache', 'compile']
    """
    left = sorted(configs, key=lambda c: (PHASES.index(c.phase), c.kind, repr(c)))
    ordered: list[TechniqueConfig] = []
    while left:
        phase = [c for c in left if c.phase == left[0].phase]
        kinds = {c.kind for c in phase}
        free = [c for c in phase if not kinds & (set(c.after) - {c.kind})]
        if not free:
            expected = f"techniques of which one can go first, among {', '.join(sorted(kinds))}"
            fix = "Correct `after` in one of them."
            raise AttachError("accelerate(pipe, recipe)", expected, "a circle", fix)
        ordered.append(free[0])
        left.remove(free[0])
    return tuple(ordered)


def _matches(config: TechniqueConfig, values: Mapping[str, frozenset[object]]) -> bool:
    """Whether all named fields have one of the named values."""
    return all(getattr(config, name) in allowed for name, allowed in values.items())


def _describe(problem: Mapping[str, Any], technique: type[TechniqueConfig], i: int) -> str:
    """Put one pydantic problem as `description @ $.path`."""
    loc = problem["loc"]
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        text = unknown("key", loc[-1], technique.model_fields)
    return f"{text} @ {place(loc, f'$.stack[{i}]')}"
