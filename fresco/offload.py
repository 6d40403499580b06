"""How the parts of a pipeline come to its device: the ways of diffusers and accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


def offload_of(transformers: Sequence[torch.nn.Module]) -> str:
    """Name how transformers' weights are kept elsewhere, or in less bits, between calls.

    Args:
        transformers: Of one pipeline.

    Returns:
        `none`, `model`, `sequential`, `group_block`, `group_leaf` or `layerwise` (casting);
        several with `+` between them.

    Example:
        >>> offload_of([torch.nn.Identity()])
        'none'
    """
    return "+".join(sorted({name for each in transformers for name in _names(each)})) or "none"


def _names(transformer: torch.nn.Module) -> Iterator[str]:
    """Names of all ways, of every module."""
    from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook

    for module in transformer.modules():
        own = vars(module)
        hook = own.get("_hf_hook")
        for each in hook.hooks if isinstance(hook, SequentialHook) else (hook,):
            if isinstance(each, CpuOffload):
                yield "model"
            elif isinstance(each, AlignDevicesHook) and each.offload:
                yield "sequential"
        registry = own.get("_diffusers_hook")
        hooks = registry.hooks if registry is not None else {}
        if "layerwise_casting" in hooks:
            yield "layerwise"
        if "group_offloading" in hooks:
            yield f"group_{hooks['group_offloading'].config.offload_type.value.split('_')[0]}"
