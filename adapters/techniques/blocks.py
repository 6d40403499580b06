"""Where in a transformer the repeated blocks are, and their linear layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

NEVER = (r"lora_", r"norm", r"embed", r"(^|[._])mod(ulation)?([._]|$)", r"ada_?ln")


def repeated_blocks(transformer: torch.nn.Module) -> list[torch.nn.Module]:
    """List the blocks of a transformer: entries of its own module lists.

    Example:
        >>> model = torch.nn.Module()
        >>> model.blocks = torch.nn.ModuleList([torch.nn.Linear(1, 1)] * 2)
        >>> len(repeated_blocks(model))
        2
    """
    lists = (child for child in transformer.children() if isinstance(child, torch.nn.ModuleList))
    return [block for blocks in lists for block in blocks]


@dataclass(frozen=True)
class Place:
    """A module and where it hangs.

    Args:
        name: Dotted name in the transformer.
        parent: Module that has it.
        key: Its name there.
        module: What is there.
    """

    name: str
    parent: torch.nn.Module
    key: str
    module: torch.nn.Module

    def put(self, module: torch.nn.Module) -> None:
        """Hang another module there."""
        self.parent._modules[self.key] = module


def places(transformer: torch.nn.Module) -> list[Place]:
    """List every module below the root."""
    return [
        Place(f"{name}.{key}".lstrip("."), parent, key, module)
        for name, parent in transformer.named_modules()
        for key, module in parent.named_children()
    ]


def block_linears(transformer: torch.nn.Module, never: Sequence[str] = ()) -> Iterator[Place]:
    """Find the linear layers of the blocks that may be quantized.

    Never those of LoRA, norms, embeddings and modulation; embedders and the last
    projection are outside of the blocks.

    Args:
        transformer: The transformer.
        never: More regular expressions that are searched in names.

    Returns:
        Their places, in the order of the model.
    """
    lists = [
        name
        for name, child in transformer.named_children()
        if isinstance(child, torch.nn.ModuleList)
    ]
    for place in places(transformer):
        if type(place.module) is not torch.nn.Linear or place.name.split(".")[0] not in lists:
            continue
        if not any(re.search(pattern, place.name) for pattern in (*NEVER, *never)):
            yield place


def first_weight(transformer: torch.nn.Module) -> torch.Tensor:
    """An empty tensor of the type and device of a transformer's first weight.

    It is outside of the blocks in every family that is known, so nothing quantizes it.
    """
    weight = next(p for p in transformer.parameters() if p.is_floating_point())
    return torch.empty(0, dtype=weight.dtype, device=weight.device)


def moved(
    weight: torch.nn.Parameter, was: torch.Tensor, transformer: torch.nn.Module
) -> torch.nn.Parameter:
    """Move a kept weight along, if the transformer has moved since; itself, if not.

    Args:
        weight: Kept while another stood in its place.
        was: `first_weight` when it was taken out.
        transformer: As it is now.

    Returns:
        The weight, where `transformer.to(...)` would have brought it.
    """
    now = first_weight(transformer)
    if (now.dtype, now.device) == (was.dtype, was.device):
        return weight
    return torch.nn.Parameter(weight.detach().to(now), weight.requires_grad)
