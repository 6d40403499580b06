"""An auxiliary loss: in its middle, the transformer knows what the scene shows at each place.

Representation alignment (REPA, Yu et al., arXiv 2410.06940) speeds the training of diffusion
transformers up by aligning the hidden states of an early block with features of a clean
picture. Here the scene itself is known, so every image token tells, through one linear
layer that is thrown away afterwards, the attributes of the object at the place that it
belongs to. It binds words to places long before the pictures do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from fresco.reference.scenes import (
    BACKGROUND_COLOURS,
    BACKGROUND_KINDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
)

OBJECT_WORDS = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}
BACKGROUND_WORDS = {"background_colour": BACKGROUND_COLOURS, "background_kind": BACKGROUND_KINDS}
N_CLASSES = [1 + len(words) for words in (*OBJECT_WORDS.values(), *BACKGROUND_WORDS.values())]
AFTER_SINGLE_BLOCK = 2  # the fifth of eleven blocks


def scene_classes(scene: Scene) -> Tensor:
    """What is at each place, int64 [9 places, 6]; 0 is nothing, 1 the first word, and so on.

    Columns: the object's shape, colour, texture and size, the background's colour and kind.
    """
    classes = torch.zeros(len(PLACES), len(N_CLASSES), dtype=torch.int64)
    for column, (name, words) in enumerate((OBJECT_WORDS | BACKGROUND_WORDS).items()):
        if name in OBJECT_WORDS:
            for thing in scene.objects:
                row = PLACES.index(thing.place)
                classes[row, column] = 1 + words.index(getattr(thing, name))
        else:
            classes[:, column] = 1 + words.index(getattr(scene, name))
    return classes


class Readout(nn.Module):
    """One linear layer from a transformer's hidden states to the scene.

    Args:
        transformer: Whose hidden states are read, from its next forward on.
    """

    def __init__(self, transformer: FluxTransformer2DModel) -> None:
        super().__init__()
        self.tell = nn.Linear(transformer.inner_dim, sum(N_CLASSES))
        self.hidden: Tensor | None = None
        block = transformer.single_transformer_blocks[AFTER_SINGLE_BLOCK]
        block.register_forward_hook(self._keep)

    def _keep(self, _block: nn.Module, _given: object, output: tuple[Tensor, Tensor]) -> None:
        self.hidden = output[1]

    def loss(self, classes: Tensor, places: Tensor) -> Tensor:
        """Cross entropy of the last forward.

        Args:
            classes: `scene_classes` of the batch, [b, 9, 6].
            places: Of each image token that the transformer was given, as `token_places` has it.

        Returns:
            Mean over tokens and attributes, in nats.
        """
        assert self.hidden is not None
        wanted = classes[:, places.to(classes.device)]
        scores = self.tell(self.hidden.float()).split(N_CLASSES, dim=-1)
        losses = [
            F.cross_entropy(score.flatten(0, 1), wanted[..., column].flatten())
            for column, score in enumerate(scores)
        ]
        self.hidden = None
        return torch.stack(losses).mean()


def token_places(side: int) -> Tensor:
    """Which of the 3 x 3 places each token of a square grid belongs to, int64 [side * side]."""
    third = (2 * torch.arange(side) + 1) * 3 // (2 * side)  # of the token's centre
    return (3 * third[:, None] + third[None, :]).flatten()
