"""Offload and layerwise casting: seen, and said if overridden. Pictures: test_combinations.py."""

from __future__ import annotations

import pytest
import torch

import fresco
from fresco import errors
from fresco.offload import offload_of
from tests.conftest import FRESCO_5, draw_latents
from tests.matrix import AXES
from tests.matrix_run import enable


@pytest.mark.parametrize("how", AXES["offload"])
def test_offload_is_seen(tiny_flux_pipe, how):
    enable(tiny_flux_pipe, how)
    assert offload_of([tiny_flux_pipe.transformer]) == how
    draw_latents(tiny_flux_pipe, num_inference_steps=1)
    assert offload_of([tiny_flux_pipe.transformer]) == how


def test_two_ways_at_once_are_both_named(tiny_flux_pipe):
    enable(tiny_flux_pipe, "layerwise")
    enable(tiny_flux_pipe, "group_block")
    assert offload_of([tiny_flux_pipe.transformer]) == "group_block+layerwise"
    with pytest.warns(errors.FrescoWarning, match="offload group_block.layerwise was not run"):
        fresco.accelerate(tiny_flux_pipe, FRESCO_5)


def test_sequential_offload_leaves_no_weight_where_hooks_could_read_it(tiny_flux_pipe):
    expected = draw_latents(tiny_flux_pipe)
    enable(tiny_flux_pipe, "sequential")
    with fresco.accelerate(tiny_flux_pipe, FRESCO_5):
        assert not draw_latents(tiny_flux_pipe).equal(expected)
        assert {p.device.type for p in tiny_flux_pipe.transformer.parameters()} == {"meta"}
    assert draw_latents(tiny_flux_pipe).equal(expected)


def test_layerwise_casting_keeps_eight_bits_between_calls(tiny_flux_pipe):
    enable(tiny_flux_pipe, "layerwise")
    with fresco.accelerate(tiny_flux_pipe, FRESCO_5):
        draw_latents(tiny_flux_pipe)
        weight = tiny_flux_pipe.transformer.transformer_blocks[0].attn.to_q.weight
        assert weight.dtype == torch.float8_e4m3fn


def test_an_offload_that_was_overridden_is_warned_of_once(tiny_flux_pipe):
    enable(tiny_flux_pipe, "model")
    with fresco.accelerate(tiny_flux_pipe, FRESCO_5):
        draw_latents(tiny_flux_pipe)
        tiny_flux_pipe.remove_all_hooks()
        del tiny_flux_pipe._all_hooks, tiny_flux_pipe._offload_device
        with pytest.warns(
            errors.FrescoWarning, match="offload model was overridden, now it is none"
        ):
            draw_latents(tiny_flux_pipe)
        draw_latents(tiny_flux_pipe)


def test_offload_may_be_enabled_after_accelerate(tiny_flux_pipe):
    with fresco.accelerate(tiny_flux_pipe, FRESCO_5):
        expected = draw_latents(tiny_flux_pipe)
        enable(tiny_flux_pipe, "model")
        assert draw_latents(tiny_flux_pipe).equal(expected)
