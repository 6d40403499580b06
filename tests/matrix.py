"""The matrix of combinations: its axes as data, and the rows that cover them.

A new technique is one more value of an axis; then `python -m tests.write_matrix`.
"""

from __future__ import annotations

import functools
import itertools
import re

import torch

from fresco.techniques import conflict_reasons, techniques
from tests.conftest import FRESCO_5, make_flux_pipe
from tests.covering import covering_rows
from tests.mixed import MIXED

RESOLUTIONS = {"none": {"schema": 1, "model": "any"}, "whole": FRESCO_5, "mixed": MIXED}
FORCED = {  # reuse wherever the method may
    "first_block": {"threshold": 1e6},
    "magcache": {"threshold": 1e6, "retention": 0.0, "max_skips": 100},
    "taylorseer": {"interval": 2, "warmup": 1},
    "pab": {"sigmas": (0.0, 1.0)},
    "fastercache": {"sigmas": (0.0, 1.0)},
    "seacache": {"threshold": 1e6},
    "cache_dit": {"threshold": 1.0, "warmup": 1},
}
NEVER = {  # on, but with nothing to reuse
    "first_block": {"threshold": 0.0},
    "magcache": {"threshold": 0.0, "ratios": (2.0, 2.0)},
    "taylorseer": {"interval": 1},
    "pab": {"sigmas": (0.5, 0.5)},
    "fastercache": {"sigmas": (0.5, 0.5)},
    "seacache": {"threshold": 0.0},
    "cache_dit": {"threshold": 0.0},
}
FORMS = ("int8_weight_only", "int8_dynamic", "float8_weight_only", "quanto_qint8", "quanto_qfloat8")
AXES = {  # by value: the fields that an entry of the stack has; empty: no technique
    "resolution": {name: {} for name in RESOLUTIONS},
    "cache": {"none": {}}
    | {name: {"kind": "cache", "method": name} for name in FORCED if name != "cache_dit"}
    | {"cache_dit": {"kind": "cache_dit"}},
    "quantize": {"none": {}}
    | {form: {"kind": "quantize", "form": form} for form in FORMS}
    | {form: {"kind": "quantize", "form": form} for form in ("int4_weight_only", "float8_dynamic")},
    "lora": {
        "none": {},
        "kept": {"kind": "lora", "fuse": False},
        "fused": {"kind": "lora", "fuse": True},
    },
    "compile": {
        "none": {},
        "blocks": {"kind": "compile"},  # run with the backend `eager`
        "inductor": {"kind": "compile", "backend": "inductor"},
    },
    "offload": {
        name: {}
        for name in ("none", "model", "sequential", "group_block", "group_leaf", "layerwise")
    },
}
REFUSED_HERE = ({"quantize": "int4_weight_only"}, {"quantize": "float8_dynamic"})  # on a CPU
HOOKED = ("sequential", "group_leaf", "layerwise")  # hooks on every linear layer
REFUSED = [  # beside what techniques declare as `Conflict`
    *({"quantize": form, "offload": how} for form in FORMS for how in HOOKED),
    *({"lora": how, "offload": "layerwise"} for how in ("kept", "fused")),
    *({"lora": how, "offload": "sequential"} for how in ("kept", "fused")),
]
REFUSED += [  # quantized weights cannot be moved once a compiled block holds them
    {"quantize": form, "compile": "blocks", "offload": how}
    for form in FORMS
    for how in ("model", "group_block")
]
NOT_RUN = [{"compile": "blocks", "offload": how} for how in HOOKED]  # a graph per linear layer
WITH_INDUCTOR = {
    "resolution": "mixed",
    "cache": "first_block",
    "lora": "fused",
    "compile": "inductor",
}  # one row: its kernels take long to build


@functools.cache
def _lora():
    """One that fits the tiny pipeline."""
    return lora_weights(make_flux_pipe(n_blocks=2))


def lora_weights(pipe, factor=0.3):
    """Rank 2 on every attention layer; both halves of it are random."""
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, module in pipe.transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and re.search(r"\.(attn\d?|attention)\.to_", name):
            for half, shape in (("A", (2, module.in_features)), ("B", (module.out_features, 2))):
                drawn = torch.randn(shape, generator=generator)
                weights[f"transformer.{name}.lora_{half}.weight"] = factor * drawn
    return weights


def entries(values, settings=FORCED):
    """The stack of a row."""
    stack = [dict(AXES[axis][value]) for axis, value in values.items() if AXES[axis][value]]
    more = {
        "lora": lambda _entry: {"state_dict": dict(_lora())},
        "compile": lambda entry: {"backend": entry.get("backend", "eager")},
        "cache": lambda entry: settings[entry["method"]],
        "cache_dit": lambda _entry: settings["cache_dit"],
        "quantize": lambda _entry: {},
    }
    return [entry | more[entry["kind"]](entry) for entry in stack]


def covered_axes():
    """Names of the values that rows are made of."""
    return {axis: [v for v in values if v != "inductor"] for axis, values in AXES.items()}


def conflicts():
    """Every two values that techniques declare as a conflict."""
    named = [(axis, value) for axis, values in covered_axes().items() for value in values]
    named = [(axis, value) for axis, value in named if AXES[axis][value]]
    for one, other in itertools.combinations(named, 2):
        stack = entries(dict([one, other])) if one[0] != other[0] else []
        configs = [techniques()[entry["kind"]].model_validate(entry) for entry in stack]
        if conflict_reasons(configs):
            yield dict([one, other])


def make_rows():
    """Values of every row: what is refused, then what covers all the rest."""
    refused = [*REFUSED_HERE, *conflicts(), *REFUSED]
    illegal = [*refused, *NOT_RUN]

    def is_legal(values):
        return not any(bad.items() <= values.items() for bad in illegal)

    covering = covering_rows(covered_axes(), 3, is_legal)
    covering = [{axis: row[axis] for axis in AXES if row[axis] != "none"} for row in covering]
    return refused, [*covering, WITH_INDUCTOR]
