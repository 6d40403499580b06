"""Stacks that people would use, on the reference model: their pictures stay what they were.

Mechanics are checked in the matrix of combinations; here trained weights draw, and the judge reads.
"""

from __future__ import annotations

import pytest

import fresco
from fresco.quality import psnr_db
from fresco.recipe import load_recipe
from fresco.reference import load
from fresco.reference.bench import How, sample
from fresco.reference.dataset import held_out_captions
from fresco.reference.evaluate import judge_pictures

CAPTIONS = held_out_captions(4, seed=12)
STAGES = load_recipe("reference_5x").model_dump(by_alias=True, exclude_unset=True)
FIRST_BLOCK = {"kind": "cache", "method": "first_block", "threshold": 0.3}
TAYLORSEER = {"kind": "cache", "method": "taylorseer", "interval": 2, "warmup": 3}
CACHE_DIT = {"kind": "cache_dit", "threshold": 0.3, "warmup": 2}
INT8 = {"kind": "quantize", "form": "int8_weight_only"}
INT8_DYNAMIC = {"kind": "quantize", "form": "int8_dynamic"}
STACKS = {  # by name: entries, and the least PSNR to dynamic resolution alone
    "first_block": ([FIRST_BLOCK], 28),
    "taylorseer": ([TAYLORSEER], 36),
    "cache_dit": ([CACHE_DIT], 32),
    "int8_weight_only": ([INT8], 45),
    "int8_dynamic": ([INT8_DYNAMIC], 43),
    "first_block int8_weight_only": ([FIRST_BLOCK, INT8], 28),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipe():
    return load()


def draw(pipe, *stack):
    """Pictures of all captions under dynamic resolution and this stack, and its summary."""
    with fresco.accelerate(pipe, {**STAGES, "stack": list(stack)}) as accelerated:
        prompts = [caption.text for caption in CAPTIONS]
        pictures = sample(pipe, prompts, 50, How())
        return pictures, accelerated.summary()


@pytest.fixture(scope="module")
def alone(pipe):
    return draw(pipe)[0]


def judged(pictures):
    return judge_pictures(pictures, [caption.asked for caption in CAPTIONS])["attributes"]


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_keeps_the_picture_and_what_the_judge_reads_in_it(pipe, alone, name):
    entries, least_psnr_db = STACKS[name]
    pictures, summary = draw(pipe, *entries)
    assert not any(row.idle for row in summary.rows)
    assert not pictures.equal(alone)
    psnr, judge = psnr_db(pictures, alone).mean().item(), judged(pictures)
    assert psnr > least_psnr_db
    assert judge > judged(alone) - 0.1
