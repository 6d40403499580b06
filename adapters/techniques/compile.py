"""torch.compile on the repeated blocks, attached last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from fresco.errors import AttachError
from fresco.techniques import (
    AbstractAttachment,
    Conflict,
    Counts,
    Phase,
    TransformerTechnique,
    register_technique,
)

from .blocks import first_weight, repeated_blocks


@register_technique
class CompileConfig(TransformerTechnique):
    """Compile each repeated block; the ports, and so the change of tokens, stay eager.

    Source:
        Regional compilation: huggingface/diffusers@v0.42.1:src/diffusers/models/
        modeling_utils.py `compile_repeated_blocks` (Apache-2.0).
    """

    kind: Literal["compile"] = "compile"
    phase: ClassVar[Phase] = "graph"
    touches: ClassVar[str] = "the call of every repeated block"
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict("compile", "a block is compiled once"),
        Conflict(
            "cache",
            "this cache decides inside the blocks' forward, which breaks a full graph; "
            "set fullgraph: false",
            own={"fullgraph": frozenset({True})},
            others={"method": frozenset({"first_block", "taylorseer", "magcache", "seacache"})},
        ),
        Conflict(
            "cache",
            "this cache's step counter becomes a constant of the graph, so that every step "
            "compiles anew until torch gives up (recompile_limit)",
            others={"method": frozenset({"pab", "fastercache"})},
        ),
        Conflict(
            "cache",
            "diffusers keeps every block of this cache out of compilation, so that no graph "
            "is captured",
            others={"method": frozenset({"magcache"})},
        ),
    )
    backend: str = Field("inductor", min_length=1, description="of torch.compile")
    dynamic: bool | None = Field(
        True, description="token counts as symbols; None: from the second on"
    )
    fullgraph: bool = False

    def attach_to(self, transformer: Any) -> AbstractAttachment:
        return _Compiled(transformer, self)


class _Compiled(AbstractAttachment):
    """Blocks whose call is compiled, with a backend that counts."""

    def __init__(self, transformer: torch.nn.Module, config: CompileConfig) -> None:
        self._n_graphs = 0
        self._blocks = repeated_blocks(transformer)
        compiled = [m for m in (transformer, *self._blocks) if m._compiled_call_impl]
        if not self._blocks or compiled:
            got = "one that is compiled already" if compiled else "one without"
            expected = "a transformer with repeated blocks that are not compiled"
            raise AttachError("compile.attach(pipe)", expected, got, "Leave compile out.")
        backend = _find_backend(config.backend)
        if config.backend == "inductor" and first_weight(transformer).device.type == "cpu":
            _check_compiler()

        def counting(graph: Any, inputs: Any) -> Any:
            compiled = backend(graph, inputs)  # may raise, to be called once more
            self._n_graphs += 1
            return compiled

        for block in self._blocks:
            block.compile(backend=counting, dynamic=config.dynamic, fullgraph=config.fullgraph)
        self._put: Mapping[torch.nn.Module, object] = {
            block: block._compiled_call_impl for block in self._blocks
        }

    def restore(self) -> None:
        for block in self._blocks:
            vars(block).pop("_compiled_call_impl", None)

    def counts(self) -> Counts:
        return {"blocks": len(self._blocks), "graphs": self._n_graphs}

    def idle(self) -> str | None:
        return None if self._n_graphs else "no graph was captured; the blocks ran eagerly"

    def check_restorable(self) -> None:
        changed = [b for b in self._blocks if vars(b).get("_compiled_call_impl") != self._put[b]]
        if changed:
            raise AttachError(
                "Accelerated.restore()",
                "blocks compiled by this recipe",
                f"{len(changed)} that were compiled again",
                "Take that off first: last on, first off.",
            )


def _find_backend(name: str) -> Any:
    """The backend's own function, to be counted around."""
    from torch._dynamo import list_backends, lookup_backend  # no public way to wrap one
    from torch._dynamo.exc import InvalidBackend

    try:
        return lookup_backend(name)
    except InvalidBackend:
        known = ", ".join(list_backends(exclude_tags=()))
        fix = "Write one of them."
        raise AttachError("compile.attach(pipe)", f"a backend of {known}", name, fix) from None


def _check_compiler() -> None:
    """Refuse inductor on a CPU without a C++ compiler: it would fail within the first call."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # no public way to ask
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise AttachError(
            "compile.attach(pipe)",
            "a C++ compiler, which inductor needs on a CPU",
            str(error),
            "Install g++ or set CXX, or set backend: eager.",
        ) from error
