"""Seconds of a denoising loop, whatever the pipeline calls after a step."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import diffusers
import pytest
import torch

import fresco
from fresco.pictures import PictureRequest, call_pipe
from fresco.timing import LoopTimer
from tests.command import run
from tests.conftest import draw_latents, traces
from tests.families import FAMILIES
from tests.staged import STAGED


@pytest.fixture
def clock(monkeypatch):
    """A clock that is a second later whenever it is read, from 10 on."""
    seconds = itertools.count(10)
    monkeypatch.setattr("fresco.timing.time.perf_counter", lambda: next(seconds))


@pytest.mark.usefixtures("clock")
def test_the_loop_is_from_the_first_call_to_the_last_step(tiny_flux_pipe):
    steps, before = [], traces(tiny_flux_pipe)
    with LoopTimer(tiny_flux_pipe, steps.append) as timer:
        draw_latents(tiny_flux_pipe, num_inference_steps=3)  # 10; 11, 12, 13
    assert timer.loop_s == 3
    assert steps == [0, 1, 2]
    assert traces(tiny_flux_pipe) == before


@pytest.mark.usefixtures("clock")
def test_steps_of_a_copy_of_the_scheduler_end_the_loop_and_are_not_counted(tiny_flux_pipe):
    scheduler, steps = tiny_flux_pipe.scheduler, []
    with LoopTimer(tiny_flux_pipe, steps.append) as timer:
        own = copy.deepcopy(scheduler)
        own.set_timesteps(2, mu=1.0)
        draw_latents(tiny_flux_pipe, num_inference_steps=1)  # 10; 11
        own.step(torch.ones(1, 1), own.timesteps[0], torch.ones(1, 1))  # 12
    assert timer.loop_s == 2
    assert steps == [0]


def test_a_call_that_fails_leaves_nothing_behind(tiny_flux_pipe):
    before = traces(tiny_flux_pipe)
    with pytest.raises(RuntimeError, match="enough"), LoopTimer(tiny_flux_pipe, stop):
        draw_latents(tiny_flux_pipe)
    tiny_flux_pipe.scheduler.step = stop  # no method, which cannot be wrapped
    with pytest.raises(AttributeError), LoopTimer(tiny_flux_pipe):
        pytest.fail("entered")
    del tiny_flux_pipe.scheduler.step
    assert traces(tiny_flux_pipe) == before


def stop(*_):
    raise RuntimeError("enough")


@pytest.mark.parametrize("recipe", ["identity", STAGED])
def test_a_pipeline_without_callbacks_is_timed_too(recipe):
    pipe, steps = FAMILIES["longcat_image"].make(), []
    pipe.rewire_prompt = lambda prompt, _device: prompt
    asked = PictureRequest("x", None, "a ring", steps=6, guidance=2.0, height=64, width=96)
    with fresco.accelerate(pipe, recipe):
        latents, loop_s = call_pipe(pipe, asked, steps.append, "latent")
    assert latents.shape == (1, 24, 64)
    assert loop_s > 0
    assert steps == [*range(7 if recipe is STAGED else 6)]


def test_a_pipeline_that_does_not_say_how_many_steps_it_makes_is_run_too(tmp_path, monkeypatch):
    family = FAMILIES["pixart"]
    pipe = replace(family, config={**family.config, "sample_size": 32}).make()
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4, norm_num_groups=2,
    )  # fmt: skip
    pipe.register_modules(vae=vae.eval())
    text = (torch.ones(1, 5, 32), torch.ones(1, 5))
    pipe.encode_prompt = lambda *_, **__: text + text
    assert not hasattr(pipe, "num_timesteps")
    monkeypatch.setattr("fresco.pictures.load_pipe", lambda *_: pipe)
    asked = ("--model", "x", "--prompt", "a ring", "--steps", "2", "--out", str(tmp_path))
    assert run("run", "identity", *asked).exit_code == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".png"]
