"""The rows that the headline has besides full steps: recipes, caches, the LoRA alone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from fresco.recipe import load_recipe
from fresco.reference import WeightsError, headline_rows
from fresco.reference.trajectories import BORDERS, LIFTED_BORDERS
from fresco.request import PlanRequest
from fresco.schedule import make_plan


@pytest.mark.parametrize("n", [8, 4, 2])
def test_a_lora_steps_where_its_windows_end(n, lora_file):
    way = headline_rows.distilled_way(n, headline_rows.Lora("a.safetensors", lora_file))
    request = PlanRequest(way.steps, 32, 32, lambda _n_tokens: 2.5)
    found = make_plan(load_recipe(way.recipe), request).sigmas
    assert len(found) == n + 1
    borders = BORDERS if n > 2 else (1, *LIFTED_BORDERS[1:])
    fewer, more = sorted((found, borders), key=len)
    assert set(fewer) <= set(more)
    plain = headline_rows.undistilled_way()
    assert (plain.steps, plain.recipe["stack"]) == (len(BORDERS) - 1, [])
    assert (plain.recipe["stages"] == way.recipe["stages"]) == (n > 2)


def test_the_lora_that_is_asked_for_is_in_the_recipes(lora_file):
    lora, _ = headline_rows.find_lora(lora_file)
    way = headline_rows.recipe_way("reference_22x", lora)
    (entry,) = [e for e in load_recipe(way.recipe).stack if e["kind"] == "lora"]
    assert entry["source"] == str(lora_file)
    assert way.recipe["stages"] == load_recipe("reference_22x").model_dump(
        mode="json", exclude_unset=True, by_alias=True
    )["stages"]  # fmt: skip
    assert headline_rows.recipe_way("reference_22x", None) is None
    assert headline_rows.recipe_way("reference_10x", None).steps == 50


def pair(a, b, layer="proj_out"):
    shapes = {"A": a, "B": b}
    return {
        f"transformer.{layer}.lora_{side}.weight": torch.ones(shape)
        for side, shape in shapes.items()
        if shape is not None
    }


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"a LoRA", ", which cannot be read"),
        ({"proj_out.weight": torch.ones(1)}, ", which holds none"),
        ({"unet.mid.lora_A.weight": torch.ones(1)}, " with '.*', which is no lora_A"),
        (pair((8, 192), (16, 8), "mid"), " with 'mid', no linear layer"),
        (pair((8, 192), (16, 8), "norm_out"), " with 'norm_out', no linear layer"),
        (pair((8, 3), (16, 8)), r" with .*\[8, 3\].* of \[16, 192\]"),
        (pair((8, 192), (3, 8)), r" with .*\[3, 8\].* of \[16, 192\]"),
        (pair((8, 192), (16, 4)), r" with .*\[16, 4\].* of \[16, 192\]"),
        (pair((8,), (16, 8)), r" with {'A': \[8\], 'B'"),
        (pair((), (16, 8)), r" with {'A': \[\], 'B'"),
        (pair((8, 192), None), r" with {'A': \[8, 192\]} on"),
        (pair(None, (16, 8)), r" with {'B': \[16, 8\]} on"),
    ],
    ids=[
        *("no tensors", "no LoRA", "another part's", "another model's", "no linear layer"),
        *("inputs", "outputs", "ranks", "a vector", "a number", "no B", "no A"),
    ],
)
def test_a_file_that_holds_no_lora_is_refused(lora_file, content, got):
    if isinstance(content, bytes):
        lora_file.write_bytes(content)
    else:
        save_file(content, lora_file)
    with pytest.raises(WeightsError, match=f"expected a LoRA's file, got '.*'{got}"):
        headline_rows.find_lora(lora_file)


def test_cache_rows_are_valid_recipes_that_reuse_more_the_faster_they_should_be():
    for speedup in (10, 22):
        for ways in headline_rows.cache_ways(speedup).values():
            entries = [load_recipe(way.recipe).techniques[0] for way in ways]
            for name in ("interval", "max_skips", "threshold"):
                values = [getattr(entry, name) for entry in entries]
                assert values == sorted(values, key=lambda value: value or 0)
            for name in ("interval", "max_skips"):
                values = [value for entry in entries if (value := getattr(entry, name))]
                assert all(value >= speedup for value in values)
                assert len(set(values)) == len(values)
