"""Mixed layouts on plain latents: tokens as a picture of one row, at positions of their own.

The model cuts that picture into its own patches and embeds them; only where it looks up
positions must it be told others. A family says how, in `attach`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fresco.layout import TokenLayout
from fresco.transfer import join_patches
from fresco.wraps import wrap_method

from .plain import PlainAdapter
from .residuals import pool_residuals


class StripAdapter(PlainAdapter):
    """Plain latents of any layout; whole grids at native positions as they are."""

    mixes: ClassVar[bool] = True
    _places: Tensor | None = None  # float32 [n, 2] of this call's tokens; None: the model's own
    _sides = (0, 0)  # fine rows and columns of the picture

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        self._places = None
        call = {**call, **pool_residuals(call, self.pooled, layout)}
        if layout.is_whole and positions.equal(layout.positions("native")):
            return super().embed(call, tokens, layout, positions)
        self._places, self._sides = positions, (layout.sides.shape[0], layout.sides.shape[1])
        strip = self.pack(join_patches(tokens, 1))
        return {**call, "hidden_states": strip.to(call["hidden_states"].dtype)}

    def aim(self, call: Mapping[str, Any], layout: TokenLayout | None) -> None:
        if layout is None and not call:
            self._places = None

    def stand_in(self, owner: Any, name: str, at: Callable[..., Tensor]) -> Callable[[], None]:
        """Let `at(places, *args)` stand in for a method that looks up the model's own positions.

        What this returns ends it.
        """

        def choose(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            if self._places is None:
                return original(*args, **kwargs)
            return at(self._places, *args, **kwargs)

        return wrap_method(owner, name, choose)


class RopeAdapter(StripAdapter):
    """Positions are what the transformer's module `rope` returns: rotations."""

    @abstractmethod
    def rotations(self, rope: Any, given: Sequence[Any], places: Tensor) -> Any:
        """What the transformer's `rope` returns for tokens at other places.

        Args:
            rope: The module.
            given: Its positional arguments.
            places: Of the tokens (of one frame), float32 [n, 2].

        Returns:
            Rotations of n tokens; of a video f x n, frame after frame.
        """

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        rope: nn.Module = transformer.rope
        return rope.register_forward_hook(self._after_positions).remove

    def _after_positions(self, rope: Any, given: Any, _output: object) -> Any:
        return None if self._places is None else self.rotations(rope, given, self._places)


def during_calls(module: nn.Module, others: Callable[[], Mapping[str, Any]]) -> Callable[[], None]:
    """Let attributes of a module have other values during a call: those `others()` returns by name.

    What this returns ends it.
    """
    own: dict[str, Any] = {}  # what is set aside during a call

    def put(*_given: object) -> None:
        for name, value in others().items():
            own[name] = getattr(module, name)
            setattr(module, name, value)

    def put_back(*_given: object) -> None:
        while own:
            setattr(module, *own.popitem())

    undo = ExitStack()
    undo.callback(module.register_forward_pre_hook(put).remove)
    undo.callback(module.register_forward_hook(put_back, always_call=True).remove)
    return undo.close


def between(table: Tensor, places: Tensor) -> Tensor:
    """Values of a table [rows, columns, d] at fractional places [n, 2], bilinear, [n, d]."""
    most = torch.tensor(table.shape[:2]) - 1
    places = places.minimum(most).clamp(min=0)
    low = places.floor()
    values: Tensor = table.new_zeros(len(places), table.shape[-1])
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        step = torch.tensor(corner)
        share = (1 - (places - low - step).abs()).prod(dim=1).to(table)
        rows, columns = (low + step).minimum(most).long().to(table.device).unbind(dim=1)
        values = values + share[:, None] * table[rows, columns]
    return values
