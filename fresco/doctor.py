"""What is installed, what it can run on, and which techniques attach here, or why not."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import ValidationError

from fresco.errors import FrescoError
from fresco.registry import adapters
from fresco.techniques import TechniqueConfig, techniques

PACKAGES = ("torch", "diffusers", "transformers", "accelerate",
            "peft", "torchao", "optimum-quanto", "cache-dit")  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    Args:
        what: A package, a device, a model or a technique, with the choice that was tried.
        state: A version, what the device has, or `yes`, `no` and `needs settings`.
        why: Why it is not there or does not run; empty where it does.
    """

    what: str
    state: str
    why: str = ""


def installed() -> list[Finding]:
    """Say which packages are installed, in what version.

    Example:
        >>> installed()[0].what
        'python'
    """
    found = [Finding("python", platform.python_version())]
    for name in ("fresco", *PACKAGES):
        try:
            found.append(Finding(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(name, "none", f"pip install {name}"))
    return found


def devices() -> list[Finding]:
    """Say what there is to run on."""
    found = [Finding("cpu", f"{torch.get_num_threads()} threads")]
    for i in range(torch.cuda.device_count()):
        has = torch.cuda.get_device_properties(i)
        state = f"{has.name}, {has.total_memory / 2**30:.0f} GiB, compute {has.major}.{has.minor}"
        found.append(Finding(f"cuda:{i}", state))
    if len(found) == 1:
        built = "torch is built without CUDA" if torch.version.cuda is None else "no GPU was found"
        found.append(Finding("cuda", "none", built))
    return found


def models() -> list[Finding]:
    """Say which model families have adapters."""
    return [Finding(name, "yes") for name in sorted(adapters())]


def try_techniques(pipe: Any, on_try: Callable[[int, int], None]) -> list[Finding]:
    """Attach every choice of every technique to a pipeline, and take it off again.

    Args:
        pipe: A pipeline that nothing is attached to.
        on_try: Called with progress, (done, total).

    Returns:
        One finding per choice.
    """
    found = []
    choices = [choice for kind in techniques() for choice in _choices(kind)]
    for i, (kind, content) in enumerate(choices):
        what = " ".join(str(value) for value in (kind, *content.values()))
        found.append(Finding(what, *_try(pipe, techniques()[kind], content)))
        on_try(i + 1, len(choices))
    return found


def _choices(kind: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A technique by itself, or with each value of its first field that is a choice."""
    for name, field in techniques()[kind].model_fields.items():
        if name != "kind" and get_origin(field.annotation) is Literal:
            yield from ((kind, {name: value}) for value in get_args(field.annotation))
            return
    yield kind, {}


def _try(pipe: Any, technique: type[TechniqueConfig], content: dict[str, str]) -> tuple[str, str]:
    """Whether one choice attaches, and why not."""
    try:
        config = technique.model_validate(content)
    except ValidationError as error:
        return "needs settings", str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    try:
        config.attach(pipe).restore()
    except (FrescoError, ImportError) as error:
        return "no", str(error)
    return "yes", ""
