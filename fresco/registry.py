"""The model families that are installed, by the class of their transformer."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

from fresco.errors import AdapterError
from fresco.ports import AbstractModelAdapter

ENTRY_POINT_GROUP = "fresco.adapters"

_ADAPTERS: dict[str, type[AbstractModelAdapter]] = {}


def register_adapter(adapter: type[AbstractModelAdapter]) -> type[AbstractModelAdapter]:
    """Register a model family; use it as a class decorator.

    Args:
        adapter: Concrete adapter with its `model` set.

    Returns:
        The same class.

    Raises:
        AdapterError: If another adapter has that model.
    """
    known = _ADAPTERS.setdefault(adapter.model, adapter)
    if known is not adapter:
        raise AdapterError(
            "register_adapter(adapter)",
            f"one adapter for {adapter.model}",
            f"{adapter.__qualname__} besides {known.__qualname__}",
            "Uninstall one of the two.",
        )
    return adapter


def adapters() -> Mapping[str, type[AbstractModelAdapter]]:
    """Load every installed adapter and view them by transformer class name, read-only.

    Example:
        >>> "FluxTransformer2DModel" in adapters()
        True
    """
    load_extensions()
    return MappingProxyType(_ADAPTERS)


def load_extensions() -> None:
    """Import every installed model family and technique; importing registers them."""
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        entry_point.load()


def find_adapter(transformer: object) -> AbstractModelAdapter:
    """Find the adapter of a transformer, by its class or a base class; else the default one.

    Args:
        transformer: `pipe.transformer`.

    Returns:
        A new adapter.

    Raises:
        AdapterError: If none is installed.

    Example:
        >>> find_adapter(object())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        fresco.errors.AdapterError: accelerate(pipe, recipe): ..., got object (no adapter)...
    """
    known = adapters()
    for base in type(transformer).__mro__:
        if base.__name__ in known:
            return known[base.__name__](transformer)
    default = known.get("any")
    if default and hasattr(getattr(transformer, "config", None), "patch_size"):
        return default(transformer)
    raise AdapterError(
        "accelerate(pipe, recipe)",
        f"a transformer with an adapter ({', '.join(sorted(known))})",
        f"{type(transformer).__name__} (no adapter)",
        "Write one from docs/how-to/add-a-model.md.",
    )


def adapter_of(pipe: Any) -> AbstractModelAdapter:
    """Find the adapter of a pipeline's transformer, and let it meet the pipeline.

    Args:
        pipe: A pipeline, or a sketch of one.

    Returns:
        A new adapter.

    Raises:
        AdapterError: If none is installed.
    """
    adapter = find_adapter(pipe.transformer)
    adapter.meet(pipe)
    return adapter
