"""What a row of the matrix gives: its picture, compared link by link with those of less."""

from __future__ import annotations

import copy
import functools
import warnings
from unittest.mock import patch

import torch

import fresco
from fresco.combinations import Row
from fresco.errors import FrescoError, FrescoWarning
from tests.conftest import draw_latents, make_flux_pipe, traces
from tests.matrix import (
    FORCED,
    NEVER,
    REFUSED_HERE,
    RESOLUTIONS,
    entries,
    lora_weights,
)

N_STEPS = 6
REMAKE = "run `python -m tests.write_matrix` and commit what it writes"


@functools.cache
def _base(weights=""):
    """The pipeline, or one whose weights were changed by hand."""
    pipe = make_flux_pipe(n_blocks=2)
    lora = lora_weights(pipe)
    for name, module in pipe.transformer.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        a, b = (lora.get(f"transformer.{name}.lora_{half}.weight") for half in "AB")
        with torch.no_grad():
            if "lora" in weights and a is not None:
                module.weight += b @ a
            if "layerwise" in weights and "norm" not in name and name != "proj_out":
                for parameter in module.parameters():
                    parameter.copy_(parameter.to(torch.float8_e4m3fn).float())
    return pipe


def enable(pipe, offload):
    """Offload as a user does; on a CPU, from a CPU to itself."""
    from accelerate import cpu_offload

    cpu = torch.device("cpu")
    if offload == "model":
        pipe.enable_model_cpu_offload(device=cpu)
    elif offload == "sequential":  # what the pipeline's own method calls; weights go to meta
        cpu_offload(pipe.transformer, cpu)
    elif offload.startswith("group"):
        kind = f"{offload.removeprefix('group_')}_level"
        pipe.enable_group_offload(cpu, offload_type=kind, num_blocks_per_group=1)
    elif offload == "layerwise":
        pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def picture(values, settings="forced", weights=""):
    """Latents of a row and its counts; restored to the bit, or the row is wrong."""
    return _picture(tuple(values.items()), settings, weights)


@functools.cache
def _picture(items, settings, weights):
    values = dict(items)
    if "compile" in values:
        torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others say while they are refused
        warnings.simplefilter("error", FrescoWarning)  # nothing may be idle
        if settings == "never":
            warnings.filterwarnings("ignore", r"cache\w* is on, but did nothing")
        warnings.filterwarnings("ignore", ".*was not run in the matrix")  # which is being made
        return _run(values, settings, weights)


def _make(offload, weights):
    """A pipeline of its own, always the same."""
    pipe = copy.deepcopy(_base(weights))
    enable(pipe, offload)
    return pipe


@functools.cache
def _plain(offload, weights):
    """What it draws in a step without a stack."""
    return draw_latents(_make(offload, weights), num_inference_steps=1)


def _run(values, settings, weights):
    """One run, and the way back."""
    offload = values.get("offload", "none")
    plain, pipe = _plain(offload, weights), _make(offload, weights)
    before = _marks(pipe)
    raw = dict(RESOLUTIONS[values.get("resolution", "none")])
    raw["stack"] = entries(values, FORCED if settings == "forced" else NEVER)
    with (
        patch("fresco.api.check_combination", return_value=None),
        fresco.accelerate(pipe, raw) as accelerated,
    ):
        got = draw_latents(pipe, num_inference_steps=N_STEPS)
        counts = {row.kind: row.counts for row in accelerated.summary().rows}
    after = _marks(pipe)
    is_offloaded = offload != "none"  # which makes its own hooks anew at every run
    check(after[is_offloaded:] == before[is_offloaded:], "traces stay")
    check(draw_latents(pipe, num_inference_steps=1).equal(plain), "not restored to the bit")
    return got, counts


def _marks(pipe):
    """What a stack may leave behind: hooks and wraps, and modules."""
    return traces(pipe), {name: id(module) for name, module in pipe.transformer.named_modules()}


def check(is_right, what):
    """Raise if a picture is not the one that it must be."""
    if not is_right:
        raise AssertionError(what)


def distance(got, expected):
    """Relative, in the norm."""
    return float((got - expected).norm() / expected.norm())


def without(values, *axes):
    return {axis: value for axis, value in values.items() if axis not in axes}


def check_picture(values):
    """Compare a row with rows of less, link by link, down to weights changed by hand."""
    got, counts = picture(values)
    check(got.isfinite().all(), "values that are not finite")
    cache, offload = values.get("cache"), values.get("offload")
    less = without(values, "compile", "offload")
    if less != values:
        weights = "layerwise" if offload == "layerwise" else ""
        expected, _ = picture(less, weights=weights)
        is_exact = "compile" not in values and offload != "layerwise"
        check(distance(got, expected) <= (0 if is_exact else 1e-5), "offload or compile changes it")
    if cache:
        hits = [found["hits"] for kind, found in counts.items() if kind.startswith("cache")]
        check(hits[0] > 0, "no hit")
        eager = without(values, "compile")  # as near as above, and much sooner made
        uncached, _ = picture(without(eager, "cache"))
        check(0 < distance(picture(eager)[0], uncached) < 0.3, "hits are off")
        if "compile" not in values:
            never, _ = picture(values, "never")
            check(never.equal(uncached), "a cache that never hits changes the picture")
    uncached = without(less, "cache")
    if "quantize" in uncached:
        away = distance(picture(uncached)[0], picture(without(uncached, "quantize"))[0])
        check(0 < away < 0.02, f"quantized pictures are {away} away")
    if "lora" in uncached:
        adapted = without(uncached, "quantize")
        by_hand, _ = picture(without(adapted, "lora"), weights="lora")
        check(distance(picture(adapted)[0], by_hand) < 1e-5, "not the LoRA's own picture")
        check(
            distance(by_hand, picture(without(adapted, "lora"))[0]) > 0.003, "LoRA without effect"
        )


def name_of(row):
    """Name of a row's test."""
    return " + ".join(row.values.values()) or "nothing"


def run_row(values):
    """How one row ends."""
    device = "cpu" if values in REFUSED_HERE else ""
    try:
        check_picture(values)
    except FrescoError as error:
        reason = str(error).removeprefix(f"{error.where}: ").replace("\n", " ")
        return Row(values, "refused", reason, device)
    except RuntimeError as error:  # others' own, in the middle of a run
        return Row(values, "refused", f"the run ends with RuntimeError: {error}", device)
    return Row(values, "validated")
