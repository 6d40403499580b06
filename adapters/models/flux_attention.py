"""Phase-aligned attention for FLUX: a query sees the keys at its own stride.

Rotary embedding knows distances on a grid of one stride. So a coarse query attends once more,
to one token per cell of its own side, at positions in units of that side; finer tokens are
represented by the upper left one of a cell. Fine queries see everything in fine units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fresco.errors import AdapterError
from fresco.layout import TokenLayout


@dataclass(frozen=True)
class View:
    """What the queries of one side see.

    Args:
        seen: Image tokens, int64 [m].
        own: Where the queries are among them, int64 [k].
        queries: The queries among all image tokens, int64 [k].
        rotary: Cosines and sines of the text and of the seen tokens.
    """

    seen: Tensor
    own: Tensor
    queries: Tensor
    rotary: tuple[Tensor, Tensor]


class Strides:
    """Hooks on every attention of one transformer.

    Args:
        transformer: A `FluxTransformer2DModel`.

    Source:
        PMA, arXiv 2511.19778 (ECCV 2026).
    """

    def __init__(self, transformer: Any) -> None:
        self._embed_positions = transformer.pos_embed
        self._views: list[View] = []
        self._handles = [
            block.attn.register_forward_hook(self._align, with_kwargs=True)
            for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def aim(self, call: Mapping[str, Any], layout: TokenLayout | None) -> None:
        """Follow the strides of a layout in the next call, or those of the call itself.

        Raises:
            AdapterError: If the call has tokens of other pictures, too.
        """
        self._views = []
        if layout is not None:
            if n_others := len(call["img_ids"]) - layout.n_tokens:
                expected = "tokens of the picture alone with positions: phase"
                got, fix = f"{n_others} tokens of other pictures", "Use positions: fine."
                raise AdapterError("pipe(image=...)", expected, got, fix)
            coarse = [side for side in layout.sides_used if side > 1]
            self._views = [self._view(call, layout, side) for side in coarse]

    def _view(self, call: Mapping[str, Any], layout: TokenLayout, side: int) -> View:
        ids, text_ids = call["img_ids"], call["txt_ids"]
        seen, positions = (x.to(ids.device) for x in layout.seen_at(side))
        queries = (layout.token_sides == side).nonzero().flatten().to(ids.device)
        own = torch.searchsorted(seen, queries)
        seen_ids = torch.cat((torch.zeros(len(seen), 1, device=ids.device), positions), dim=1)
        text_ids = text_ids.reshape(-1, text_ids.shape[-1]).to(seen_ids.dtype)
        rotary = self._embed_positions(torch.cat((text_ids, seen_ids)))
        return View(seen, own, queries, rotary)

    def _align(self, attn: nn.Module, _args: object, kwargs: dict[str, Any], output: Any) -> Any:
        """Put what the coarse queries see at their own stride into their rows of the output."""
        for view in self._views:
            if kwargs.get("encoder_hidden_states") is None:  # text and image in one sequence
                output = self._joint(attn, kwargs["hidden_states"], view, output)
            else:
                part = {**kwargs, "hidden_states": kwargs["hidden_states"][:, view.seen]}
                again = attn.forward(**{**part, "image_rotary_emb": view.rotary})
                image = output[0].index_copy(1, view.queries, again[0][:, view.own])
                output = (image, *output[1:])
        return output

    def _joint(self, attn: nn.Module, hidden: Tensor, view: View, output: Tensor) -> Tensor:
        n_text = view.rotary[0].shape[0] - len(view.seen)
        text = torch.arange(n_text, device=hidden.device)
        part = hidden[:, torch.cat((text, n_text + view.seen))]
        again = attn.forward(hidden_states=part, image_rotary_emb=view.rotary)
        return output.index_copy(1, n_text + view.queries, again[:, n_text + view.own])
