"""Name a pipeline's weights by their content."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def weights_digest(pipe: Any) -> str:
    """Name all weights of a pipeline, data types included.

    Args:
        pipe: A pipeline of diffusers, on any device.

    Returns:
        64 hexadecimal digits, SHA-256.
    """
    digest = hashlib.sha256()
    for part, module in sorted(pipe.components.items()):
        if isinstance(module, torch.nn.Module):
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(f"{part}.{name} {tensor.dtype} {list(tensor.shape)}".encode())
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
