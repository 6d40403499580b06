"""The stack of one pipeline: techniques attached in order, taken off last in, first out."""

from __future__ import annotations

import contextlib
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fresco.errors import AttachError, FrescoError, FrescoWarning
from fresco.foreign_caches import guard_caches, minds_caches
from fresco.middleware import Middleware
from fresco.offload import offload_of
from fresco.run import Run
from fresco.summary import SummaryRow, sum_up
from fresco.techniques import (
    PHASES,
    AbstractAttachment,
    TechniqueConfig,
    TransformerTechnique,
    conflict_reasons,
    in_order,
)

_WHERE = "accelerate(pipe, recipe)"


@dataclass(frozen=True)
class Layer:
    """One technique that is on.

    Args:
        config: As the recipe has it.
        attachment: What undoes it and counts.
        transformer: What it is on; None if it is on the pipeline.
    """

    config: TechniqueConfig
    attachment: AbstractAttachment
    transformer: torch.nn.Module | None


class Stack:
    """Everything that a recipe puts on one pipeline.

    Args:
        pipe: The pipeline.
        configs: Techniques in any order.
        transformers: Those that the pipeline's steps are divided among.
    """

    def __init__(
        self,
        pipe: Any,
        configs: Iterable[TechniqueConfig],
        transformers: Sequence[torch.nn.Module],
    ) -> None:
        self.pipe, self.configs, self.transformers = pipe, in_order(configs), transformers
        self.layers: list[Layer] = []
        self._middleware: Middleware | None = None
        self._modules: dict[tuple[int, str], torch.nn.Module] = {}  # as weights left them
        self._found: Mapping[tuple[int, str], torch.nn.Module] = {}  # as they found them
        self._undo = contextlib.ExitStack()
        self._offload = offload_of(transformers)
        self._ended: Run | None = None  # the last run that came to its end

    def attach(self, make_middleware: Callable[[], Middleware]) -> Middleware:
        """Attach the techniques and, between weights and hooks, the middleware; or nothing.

        Args:
            make_middleware: Called once the weights are as they will be; it checks and makes.

        Returns:
            The middleware, attached.

        Raises:
            AttachError: If techniques do not go together, or one fails; it is named.
        """
        reasons = conflict_reasons(self.configs)
        if reasons:
            raise AttachError(_WHERE, "techniques that go together", reasons[0], "Leave one out.")
        with contextlib.ExitStack() as undo:
            self._found = weakref.WeakValueDictionary(_modules(self.transformers))
            self._attach_phase("weights", undo)
            self._modules = _modules(self.transformers) if self.layers else {}
            middleware = self._middleware = make_middleware()
            middleware.attach()
            undo.callback(middleware.restore)
            self._attach_phase("hooks", undo)
            self._attach_phase("graph", undo)
            if minds_caches(middleware.recipe):
                for each in self.transformers:
                    undo.callback(guard_caches(each))
            self._listen(middleware)
            middleware.listeners.on_end += [self._note_end, self.warn_idle, self.warn_offload]
            self.warn_idle(("weights",))
            self.warn_offload()
            self._undo = undo.pop_all()
        for layer in self.layers:
            layer.attachment.settle()
        return middleware

    def restore(self, *, has_failed: bool = False) -> None:
        """Take everything off, last in first out; a second time does nothing.

        Args:
            has_failed: Whether an exception has ended what went on.

        Raises:
            AttachError: If others have built on it since, or a call goes on; nothing is taken
                off then.
        """
        if not self._middleware:
            return
        run = self._middleware.last
        if run and run is not self._ended and run.goes_on and not has_failed:
            raise AttachError(
                "Accelerated.restore()",
                "a pipeline between its calls",
                f"one whose call goes on, in thread {run.thread.name!r}",
                "Wait for its end; pipe._interrupt = True in a callback brings it.",
            )
        self._middleware.check_restorable()
        if self._modules:
            self._check_modules()
        for layer in self.layers:
            layer.attachment.check_restorable()
        self._middleware, self.layers = None, []
        self._undo.close()

    def summary(self) -> tuple[SummaryRow, ...]:
        """What every technique did by now, in the order of attaching."""
        by_config = itertools.groupby(self.layers, lambda layer: id(layer.config))
        return tuple(
            sum_up(layers[0].config, [layer.attachment for layer in layers])
            for layers in ([*group] for _, group in by_config)
        )

    def warn_idle(self, phases: Sequence[str] = ("hooks", "graph")) -> None:
        """Warn of techniques of some phases that do nothing; by default, of a run's."""
        for row in self.summary():
            if row.idle and row.phase in phases:
                message = f"{row.kind} is on, but did nothing: {row.idle}"
                warnings.warn(message, FrescoWarning, stacklevel=3)

    def warn_offload(self) -> None:
        """Warn, once, if the offload of before `accelerate()` is not as it was."""
        before, now = self._offload, offload_of(self.transformers)
        if now != before != "none":
            self._offload = now
            message = f"offload {before} was overridden, now it is {now}; enable it again"
            warnings.warn(message, FrescoWarning, stacklevel=3)

    def _note_end(self) -> None:
        """Remember which run came to its end: its pipeline may be in a call around it yet."""
        self._ended = self._middleware.last if self._middleware else None

    def _listen(self, middleware: Middleware) -> None:
        """Tell each technique of calls, those of its own transformer if it has one."""
        for layer in self.layers:
            if listener := layer.attachment.listener:
                middleware.listeners.on_layout.append(listener)
                if layer.transformer is not None:
                    middleware.listeners.of[listener] = layer.transformer

    def _check_modules(self) -> None:
        """Refuse to put weights back under modules that came since."""
        known = {*self._modules.values(), *self._found.values()}  # others may have put some back
        now = _modules(self.transformers).items()
        changed = [key for (_, key), module in now if module not in known]
        if changed:
            raise AttachError(
                "Accelerated.restore()",
                "the modules as this recipe left them",
                f"others in {len(changed)} places ({changed[0]}, ...)",
                "Unload the LoRA that was loaded since (delete_adapters leaves the recipe's): "
                "last on, first off.",
            )

    def _attach_phase(self, phase: str, undo: contextlib.ExitStack) -> None:
        """Attach the techniques of one phase."""
        for config in self.configs:
            if config.phase != phase:
                continue
            targets: Sequence[torch.nn.Module | None] = (None,)
            if isinstance(config, TransformerTechnique):
                targets = self.transformers
            for transformer in targets:
                attachment = _attach(config, self.pipe, transformer)
                undo.callback(attachment.restore)
                self.layers.append(Layer(config, attachment, transformer))


def _attach(
    config: TechniqueConfig, pipe: Any, transformer: torch.nn.Module | None
) -> AbstractAttachment:
    """Attach a technique to a transformer, or to the pipeline."""
    try:
        if isinstance(config, TransformerTechnique) and transformer is not None:
            return config.attach_to(transformer)
        return config.attach(pipe)
    except FrescoError:
        raise
    except Exception as error:
        expected = f"stack entry {config.kind!r} to attach"
        got = f"{type(error).__name__}: {error}"
        raise AttachError(_WHERE, expected, got, "Nothing was attached.") from error


def _modules(
    transformers: Iterable[torch.nn.Module],
) -> dict[tuple[int, str], torch.nn.Module]:
    """What hangs where: child by its parent and name."""
    return {
        (id(parent), key): child
        for transformer in transformers
        for parent in transformer.modules()
        for key, child in parent.named_children()
    }


def explain_order(configs: Sequence[TechniqueConfig], stages: int) -> str:
    """Say in which order things are attached, and why.

    Args:
        configs: Techniques, first attached first.
        stages: Stages of the recipe.

    Returns:
        One line each.

    Example:
        >>> print(explain_order((), 0))
        the pipeline's own schedule; steps are recorded only
        restore() goes the other way
    """
    reasons = {
        "weights": "first, so that everything after it sees the weights that run",
        "hooks": "after dynamic resolution, so that it is told when a layout changes",
        "graph": "last, so that it captures what is there",
    }
    resolution = (
        f"dynamic resolution: {stages} stages; after weights, so that it sees what runs; "
        "before hooks, so that they see the tokens"
        if stages
        else "the pipeline's own schedule; steps are recorded only"
    )
    lines = []
    for phase in PHASES:
        if phase == "hooks":
            lines.append(resolution)
        for config in configs:
            if config.phase == phase:
                others = {other.kind for other in configs}
                why = [text for kind, text in config.after.items() if kind in others]
                text = "; ".join([f"touches {config.touches}", reasons[phase], *why])
                lines.append(f"{config.kind} ({phase}): {text}")
    return "\n".join([*lines, "restore() goes the other way"])
