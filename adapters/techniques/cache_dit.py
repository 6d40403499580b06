"""cache-dit's Dual Block Cache, on one transformer's instance.

cache-dit's own `enable_cache` patches the pipeline's class and, on FLUX, exchanges the
transformer's forward for a copy. Here only its block module and contexts are used: during a
call of a run, each list of blocks is one of cache-dit's blocks, with a context of its own per
pass and group of images. A flush drops the contexts, which is what its `refresh_context` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from fresco.calls import Call
from fresco.errors import AttachError
from fresco.techniques import (
    AbstractAttachment,
    Conflict,
    Phase,
    TransformerTechnique,
    register_technique,
)

from .caching import AbstractCaching

_RESIDUALS = ("controlnet_block_samples", "controlnet_single_block_samples")


@register_technique
class CacheDitConfig(TransformerTechnique):
    """Compute the first and last blocks of each list, the others where the first have moved.

    Source:
        DBCache: vipshop/cache-dit@v1.5.3:src/cache_dit/caching (Apache-2.0).
    """

    kind: Literal["cache_dit"] = "cache_dit"
    phase: ClassVar[Phase] = "hooks"
    touches: ClassVar[str] = "the lists of blocks, during a call"
    keeps_state: ClassVar[bool] = True
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict("cache_dit", "a list of blocks is cached once"),
        Conflict("cache", "both would skip the same blocks"),
    )
    first: int = Field(1, ge=1, description="computed blocks at the start of a list")
    last: int = Field(0, ge=0, description="computed blocks at its end")
    threshold: float = Field(0.08, ge=0, description="of change; more reuses more, 1: always")
    warmup: int = Field(1, ge=1, description="computed steps after every flush")
    max_skips: int | None = Field(None, ge=1, description="reused steps in a row")
    taylor_order: int = Field(0, ge=0, le=4, description="of an extrapolation in time; 0: none")

    def attach_to(self, transformer: Any) -> AbstractAttachment:
        return _DualBlock(transformer, self)


class _DualBlock(AbstractCaching):
    """Lists of blocks of which the middle is skipped, and their contexts by key."""

    hint = "raise threshold, or lower warmup"

    def __init__(self, transformer: Any, config: CacheDitConfig) -> None:
        super().__init__()
        self._transformer = transformer
        self._contexts: dict[str, dict[str, Any]] = {}  # by key, then by list
        self._at_hand: dict[str, Any] = {}
        self._own: dict[str, Any] = {}  # the transformer's blocks, while others stand in
        self._make_context = _context_maker(config)
        self._lists = _cached_lists(transformer, config)
        self._n_skipped = {
            name: len(cached.transformer_blocks) - config.first - config.last
            for name, cached in self._lists.items()
        }
        with ExitStack() as undo:
            pre = transformer.register_forward_pre_hook(self._put_in, with_kwargs=True)
            undo.callback(pre.remove)
            post = transformer.register_forward_hook(self._put_back, always_call=True)
            undo.callback(post.remove)
            if hasattr(transformer, "cache_context"):
                undo.callback(self.name_passes(transformer))
            self._undo = undo.pop_all()

    def restore(self) -> None:
        self.flush()
        self._undo.close()

    def flush(self) -> None:
        self._contexts.clear()

    def enter(self, key: str, call: Call | None) -> None:
        if call is None:
            return
        if key not in self._contexts:
            self._contexts[key] = {name: self._make_context(name) for name in self._lists}
        self._at_hand = self._contexts[key]

    def leave(self) -> int:
        hits = {
            name
            for name, context in self._at_hand.items()
            if context.get_current_step() in context.get_cached_steps()
        }
        return sum(self._n_skipped[name] for name in hits)

    def abandon(self) -> None:
        self._at_hand = {}

    def _put_in(self, _module: object, _args: object, kwargs: Mapping[str, Any]) -> None:
        """Put cache-dit's blocks in place of the transformer's, if the call is one of a run's.

        Residuals of a ControlNet are spread over the lists' lengths: then without.
        """
        if not self._at_hand or any(kwargs.get(name) is not None for name in _RESIDUALS):
            self._at_hand = {}
            return
        modules = self._transformer._modules
        self._own = {name: modules[name] for name in self._lists}
        for name, cached in self._lists.items():
            cached.cache_context = self._at_hand[name]
            modules[name] = torch.nn.ModuleList([cached])

    def _put_back(self, *_call: object) -> None:
        """Put the transformer's own blocks back, however the call ended."""
        self._transformer._modules.update(self._own)
        self._own = {}


def _context_maker(config: CacheDitConfig) -> Callable[[str], Any]:
    """What makes an empty context of cache-dit's."""
    cache_dit = _import()

    def make(name: str) -> Any:
        taylor = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=config.taylor_order)
        return cache_dit.caching.CachedContext(
            name=name,
            cache_config=cache_dit.DBCacheConfig(
                Fn_compute_blocks=config.first,
                Bn_compute_blocks=config.last,
                residual_diff_threshold=config.threshold,
                max_warmup_steps=config.warmup,
                max_continuous_cached_steps=config.max_skips or -1,
                enable_separate_cfg=False,  # passes have contexts of their own
            ),
            calibrator_config=taylor if config.taylor_order else None,
        )

    return make


def _cached_lists(transformer: Any, config: CacheDitConfig) -> dict[str, Any]:
    """Cache-dit's block for every list of blocks that has some in the middle."""
    caching = _import().caching
    found = {}
    for name, blocks in transformer.named_children():
        if not isinstance(blocks, torch.nn.ModuleList):
            continue
        if len(blocks) > config.first + config.last:
            found[name] = cached = caching.CachedBlocks(
                blocks,
                transformer=transformer,
                forward_pattern=_pattern(blocks[0]),
                check_forward_pattern=False,  # hooks and LoRA hide the signature
                check_num_outputs=False,
                cache_prefix=name,
                cache_context=name,
                context_manager=caching.CachedContextManager(name=name),
            )
            # no child of its child: offload walks the tree while the blocks stand in
            vars(cached)["transformer"] = cached._modules.pop("transformer")
    if not found:
        raise AttachError(
            "cache_dit.attach(pipe)",
            f"a list of more than {config.first} + {config.last} blocks (first + last)",
            f"none in {type(transformer).__name__}",
            "Lower first or last, or leave it out.",
        )
    return found


def _pattern(block: torch.nn.Module) -> Any:
    """What a block takes and returns, in cache-dit's words, from what diffusers knows of it."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    patterns = _import().ForwardPattern
    try:
        known = TransformerBlockRegistry.get(type(block))
    except ValueError as error:
        expected, got = "blocks that diffusers' caches know", type(block).__name__
        fix = "Leave cache_dit out."
        raise AttachError("cache_dit.attach(pipe)", expected, got, fix) from error
    arguments = [*inspect.signature(type(block).forward).parameters]  # self, latents, ...
    takes_text = arguments[2:3] == ["encoder_hidden_states"]
    if known.return_encoder_hidden_states_index is None:
        return patterns.Pattern_2 if takes_text else patterns.Pattern_3
    if known.return_hidden_states_index == 0:
        return patterns.Pattern_0 if takes_text else patterns.Pattern_4
    return patterns.Pattern_1 if takes_text else patterns.Pattern_5


def _import() -> Any:
    """The package, or a clear error."""
    try:
        import cache_dit
    except ImportError as error:
        fix = "Install it: pip install 'fresco[cache-dit]'."
        raise AttachError(
            "cache_dit.attach(pipe)", "the package cache-dit", str(error), fix
        ) from error
    return cache_dit
