"""Calls on the meta device whose shapes depend on values: as if no token were padding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FullMasks(TorchFunctionMode):
    """Lets a transformer on the meta device sort its tokens by a mask.

    Every mask holds for all tokens, its inverse for none, and no other condition on values is
    true. So it counts what a call computes where padding is computed as the rest is.

    Example:
        >>> x, mask = torch.ones(3, 2, device="meta"), torch.ones(3, device="meta").bool()
        >>> with FullMasks():
        ...     torch.cat((x[mask], x[~mask])).shape
        torch.Size([3, 2])
        >>> with FullMasks():
        ...     mask[None].sum(dim=1).tolist(), bool(x.sum() == 0)
        ([3], False)
        >>> with FullMasks():
        ...     torch.nonzero(mask).shape, torch.nonzero(~mask).shape
        (torch.Size([3, 1]), torch.Size([0, 1]))
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer for tensors without values; do as asked with all others."""
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func is Tensor.__bool__:
                return False
            if func is Tensor.__invert__:
                inverse = func(*args)
                inverse.holds_for_none = True
                return inverse
            if func is Tensor.sum and args[0].dtype == torch.bool:
                counts: Any = func(*args, **(kwargs or {}))
                counts.of_each = args[0].numel() // counts.numel()
                return counts
            if func is Tensor.tolist and (of_each := getattr(args[0], "of_each", None)):
                return [of_each] * len(args[0])
            if func is torch.nonzero and not (kwargs or {}).get("as_tuple"):
                n_found = 0 if hasattr(args[0], "holds_for_none") else args[0].numel()
                return args[0].new_empty(n_found, args[0].ndim, dtype=torch.int64)
            if func is Tensor.__getitem__ and _is_mask(args[1]):
                return args[0][:0] if hasattr(args[1], "holds_for_none") else args[0]
        return func(*args, **(kwargs or {}))


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.is_meta and index.dtype == torch.bool
