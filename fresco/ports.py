"""What the engine asks of a model family, and the registry of those that answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from fresco.errors import AdapterError
from fresco.layout import TokenLayout

ENTRY_POINT_GROUP = "fresco.adapters"


class AbstractModelAdapter(ABC):
    """Everything that fresco must know about one model family.

    The carrier is the pipeline's latents as [b, c, h, w]; a call is the transformer's
    arguments by name. Tokens are [b, n, c, p, p] in the order of their layout.
    """

    model: ClassVar[str]  # class name of pipe.transformer
    patch_px: ClassVar[int]  # latent pixels along one side of a fine token
    noise_coefficient: ClassVar[float]  # of eps in what the transformer returns: 1 for a flow

    @abstractmethod
    def check(self, pipe: Any) -> None:
        """Raise `AdapterError` for pipelines of this model that staged recipes cannot drive."""

    @abstractmethod
    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        """Fine token rows and columns of a picture in image px; None is the pipeline's default."""

    @abstractmethod
    def shift(self, scheduler: Any, n_tokens: int) -> float:
        """Shift that the pipeline would give the scheduler for a picture of `n_tokens`."""

    @abstractmethod
    def unpack(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        """View pipeline latents, condition tokens left aside, as the carrier."""

    @abstractmethod
    def pack(self, carrier: Tensor) -> Tensor:
        """Undo `unpack`."""

    @abstractmethod
    def read(self, call: Mapping[str, Any], layout: TokenLayout) -> Tensor:
        """Take the carrier out of a call."""

    @abstractmethod
    def select(self, call: Mapping[str, Any], images: Sequence[int]) -> dict[str, Any]:
        """Return the call of some images of its batch, by their numbers."""

    @abstractmethod
    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        """Return the call with `tokens` in place of the full grid's, at `positions` [n, 2]."""

    @abstractmethod
    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        """Take the predicted tokens out of the transformer's output."""

    @abstractmethod
    def replace(self, output: Any, carrier: Tensor, layout: TokenLayout) -> Any:
        """Return the output with the full grid's prediction in place of the tokens'."""

    def attach_strides(self, transformer: Any) -> Callable[[], None]:
        """Let coarse queries see keys at their own stride, where `aim` says so; returns the undo.

        Raises:
            AdapterError: If the family's attention cannot be reached.
        """
        raise AdapterError(
            "accelerate(pipe, recipe)",
            "a model family with phase-aligned attention for positions: phase",
            type(transformer).__name__,
            "Use positions: fine.",
        )

    def aim(self, call: Mapping[str, Any], layout: TokenLayout | None) -> None:  # noqa: B027
        """Say whose strides the next call's attention follows; None: those of the call."""

    def with_sample(self, output: Any, sample: Tensor) -> Any:
        """Return the output with another prediction in it; both of diffusers' forms."""
        return (sample, *output[1:]) if isinstance(output, tuple) else type(output)(sample=sample)

    @abstractmethod
    def text_tokens(self, call: Mapping[str, Any]) -> int:
        """Number of text tokens in a call."""

    @abstractmethod
    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        """Arguments of one pass on the transformer's device, batch 1, to count FLOPs with."""


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
    """Find the adapter of a transformer, by its class or a base class.

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
            return known[base.__name__]()
    raise AdapterError(
        "accelerate(pipe, recipe)",
        f"a transformer with an adapter ({', '.join(sorted(known))})",
        f"{type(transformer).__name__} (no adapter)",
        "Write one from docs/how-to/add-a-model.md.",
    )
