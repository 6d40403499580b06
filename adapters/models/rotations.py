"""Positions of every picture's own in one call of a transformer whose ids have no batch axis.

The call's ids are zeros, by which its own rotary embedding turns nothing; queries and keys are
turned before, as they leave their norms. Calls of other threads are left alone.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn


class Rotations:
    """Hooks on the norms of queries and keys, while a call with such positions is on.

    Args:
        transformer: One with `pos_embed`, and blocks as FLUX.1 has them: images in the first
            ones, behind the text in the others.
    """

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self._handles: list[Any] = []
        self._rotary: tuple[Tensor, Tensor] | None = None

    def start(self, ids: Tensor) -> None:
        """Turn the image tokens of the next call by their ids, [b, n, axes]."""
        self.stop()
        self._rotary = self._transformer.pos_embed(ids.flatten(0, 1))
        self._shape, self._thread = ids.shape[:2], threading.current_thread()
        for block in _blocks(self._transformer):
            for norm in (block.attn.norm_q, block.attn.norm_k):
                self._handles.append(norm.register_forward_hook(self._turn))

    def stop(self) -> None:
        """Take the hooks off."""
        self._rotary = None
        while self._handles:
            self._handles.pop().remove()

    def _turn(self, _norm: nn.Module, _args: object, values: Tensor) -> Tensor | None:
        """Turn the image tokens of queries or keys, [b, s, heads, d]."""
        if self._rotary is None or self._thread is not threading.current_thread():
            return None
        b, n = self._shape
        text, image = values.split((values.shape[1] - n, n), dim=1)
        line = image.reshape(1, b * n, *image.shape[2:])  # what is turned alike in every batch
        turned = apply_rotary_emb(line, self._rotary, sequence_dim=1).view_as(image)
        return torch.cat((text, turned), dim=1) if text.shape[1] else turned


def uses_norms(transformer: Any) -> bool:
    """Whether all attention is diffusers' own, which calls the norms of queries and keys."""
    attentions = [getattr(block, "attn", None) for block in _blocks(transformer)]
    return all(
        type(getattr(each, "processor", None)) in getattr(each, "_available_processors", ())
        for each in attentions
    )


def _blocks(transformer: Any) -> tuple[Any, ...]:
    return (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
