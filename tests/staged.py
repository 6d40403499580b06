"""Recipes with stages for models of any family."""

from __future__ import annotations

STAGED = {
    "schema": 1,
    "model": "any",
    "baseline": {"steps": 6, "height": 64, "width": 96},
    "stages": [
        {"cell": 4, "steps": 2, "until_sigma": 0.7},
        {"cell": 2, "steps": 3, "until_sigma": 0.4, "lift": {"form": "latent"}},
        {"cell": 1, "steps": 2, "lift": {"form": "clean", "to_sigma": 0.6}},
    ],
}
ALL_FINE = {**STAGED, "stages": [{"cell": 1, "steps": 6}]}
MIXED = {
    **STAGED,
    "stages": [
        {"cell": 2, "steps": 2, "until_sigma": 0.6},
        {"cell": "mixed", "steps": 2, "until_sigma": 0.3,
         "promote": {"score": "edges", "budget": 0.4}},
        {"cell": 1, "steps": 2},
    ],
}  # fmt: skip
RANDOM = {  # other layouts for every image of a batch
    **MIXED,
    "stages": [
        MIXED["stages"][0],
        {**MIXED["stages"][1], "promote": {"score": "random", "budget": 0.4}},
        MIXED["stages"][2],
    ],
}
HALVES = {  # one coarse step, one fine
    "schema": 1,
    "model": "any",
    "baseline": {"steps": 2},
    "stages": [{"cell": 2, "steps": 1, "until_sigma": 0.5}, {"cell": 1, "steps": 1}],
}
