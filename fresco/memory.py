"""Activation memory of one transformer call, followed on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # torch has no public view of ops
from torch.utils._pytree import tree_leaves


def peak_bytes(call: Callable[[], object], known: Iterable[Tensor] = ()) -> int:
    """Follow what a call allocates, and say how much of it was held at once.

    Attention counts as a fused kernel takes it: its output, no matrix of scores.

    Args:
        call: What is followed; on the meta device nothing is computed.
        known: Tensors that are there already and do not count: the weights.

    Returns:
        Bytes at the peak.

    Example:
        >>> x = torch.empty(1000, device="meta")
        >>> peak_bytes(lambda: (x + 1) * 2)  # both at once, 4 bytes each
        8000
    """
    follower = _Follower(known)
    with torch.no_grad(), _FusedAttention(), follower:
        call()
    return follower.peak


class _Follower(TorchDispatchMode):
    """Counts storages as they come and go."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._known = {id(storage): storage for storage in (t.untyped_storage() for t in known)}
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        given = [t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), {id(storage) for storage in given})
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, n_bytes = id(storage), storage.nbytes()
        if key in given or key in self._known or key in self._seen:
            return  # a view
        self._seen.add(key)
        self.held += n_bytes
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget, key, n_bytes)

    def _forget(self, key: int, n_bytes: int) -> None:
        self._seen.discard(key)
        self.held -= n_bytes


class _FusedAttention(TorchFunctionMode):
    """Puts an empty output in place of attention."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func is functional.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
    """Output of attention, without any arithmetic."""
    del key
    return query.new_empty(*query.shape[:-1], value.shape[-1])
