"""Threads: two pipelines are independent, one pipeline takes one call at a time."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import fresco
from fresco import errors
from tests.conftest import draw_latents, make_flux_pipe
from tests.matrix import lora_weights
from tests.stacks import FORCED, cache, with_stack
from tests.test_cache_dit import deepen

STACKS = {name: [cache(name.removesuffix("_lite"), FORCED[name])] for name in FORCED}
STACKS["cache_dit"] = [{"kind": "cache_dit", "threshold": 1.0}]
STACKS["weights and cache"] = [{"kind": "lora"}, {"kind": "quantize"}, cache("first_block", {})]
STEPS = 12
WAIT_S = 60


@pytest.fixture
def make_pair():
    def make(is_deep):
        pipes = make_flux_pipe(), make_flux_pipe()
        return tuple(deepen(pipe) for pipe in pipes) if is_deep else pipes

    return make


def die(_pipe, step, _timestep, tensors):
    if step == 5:
        raise ValueError("on purpose")
    return tensors


@pytest.mark.filterwarnings("ignore:cache is on")  # three at its default may hit nothing
@pytest.mark.parametrize("name", STACKS)
def test_two_threads_on_two_pipelines_make_the_pictures_that_each_makes_alone(make_pair, name):
    pipes = make_pair(name == "cache_dit")
    barrier = threading.Barrier(2, timeout=WAIT_S)
    n_met = []

    def meet(_pipe, step, _timestep, tensors):
        n_met.append(barrier.wait())  # both are in the same step, whatever the machine
        return tensors

    def draw(number, **asked):
        return draw_latents(pipes[number], seed=number, num_inference_steps=STEPS, **asked)

    with contextlib.ExitStack() as stack:
        for pipe in pipes:
            entries = [dict(entry) for entry in STACKS[name]]
            for entry in entries:
                if entry["kind"] == "lora":
                    entry["state_dict"] = lora_weights(pipe)
            stack.enter_context(fresco.accelerate(pipe, with_stack("whole", *entries)))
        alone = [draw(number) for number in (0, 1)]
        with ThreadPoolExecutor(2) as pool:
            drawn = [pool.submit(draw, i, callback_on_step_end=meet) for i in (0, 1)]
            together = [each.result(WAIT_S) for each in drawn]
    assert len(n_met) == 2 * STEPS
    assert not alone[0].equal(alone[1])
    for one, other in zip(together, alone, strict=True):
        assert one.equal(other)


def test_a_second_thread_is_refused_and_leaves_the_run_and_its_cache_alone(tiny_flux_pipe):
    refused = []

    def call_elsewhere(pipe, step, _timestep, tensors):
        if step in {2, 6}:
            with ThreadPoolExecutor(1) as pool:
                refused.append(pool.submit(draw_latents, pipe).exception(WAIT_S))
        return tensors

    raw = with_stack("whole", cache("first_block", FORCED["first_block"]))
    with fresco.accelerate(tiny_flux_pipe, raw) as accelerated:
        alone = draw_latents(tiny_flux_pipe, num_inference_steps=STEPS)
        hits = [step.cached for step in accelerated.report.steps]
        asked = {"num_inference_steps": STEPS, "callback_on_step_end": call_elsewhere}
        assert draw_latents(tiny_flux_pipe, **asked).equal(alone)
        assert [step.cached for step in accelerated.report.steps] == hits
    assert [type(error) for error in refused] == [errors.RunError] * 2
    assert "one call at a time" in str(refused[0])


def test_a_run_that_died_is_taken_over_while_its_thread_lives_on(tiny_flux_pipe):
    raw = with_stack("whole", cache("first_block", FORCED["first_block"]))
    with fresco.accelerate(tiny_flux_pipe, raw), ThreadPoolExecutor(1) as pool:
        expected = draw_latents(tiny_flux_pipe, num_inference_steps=STEPS)
        asked = {"num_inference_steps": STEPS, "callback_on_step_end": die}
        assert isinstance(
            pool.submit(draw_latents, tiny_flux_pipe, **asked).exception(WAIT_S), ValueError
        )
        assert pool._threads  # its thread waits for more
        assert draw_latents(tiny_flux_pipe, num_inference_steps=STEPS).equal(expected)


@pytest.mark.parametrize("name", ["first_block", "cache_dit"])
def test_a_call_on_a_shared_transformer_is_refused_while_another_thread_is_in_one(make_pair, name):
    pipe = make_pair(True)[0]
    other = type(pipe)(**pipe.components)
    other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    other.set_progress_bar_config(disable=True)
    other.default_sample_size = 16
    plain = draw_latents(other, num_inference_steps=2)
    refused = []

    def call_elsewhere(*_):
        if len(accelerated.report.steps) == 6:  # a call of the run is going on
            with ThreadPoolExecutor(1) as pool:
                refused.append(pool.submit(draw_latents, other).exception(WAIT_S))

    with fresco.accelerate(pipe, with_stack("whole", *STACKS[name])) as accelerated:
        alone = draw_latents(pipe, num_inference_steps=STEPS)
        first = pipe.transformer.transformer_blocks[0]
        hook = first.register_forward_pre_hook(call_elsewhere)
        assert draw_latents(pipe, num_inference_steps=STEPS).equal(alone)
        hook.remove()
        assert draw_latents(other, num_inference_steps=2).equal(plain)
    (error,) = refused
    assert isinstance(error, errors.RunError)
    assert "one call at a time on a transformer with a cache" in str(error)
