"""The type that training computes in is the faster one here, whatever instructions there are."""

from __future__ import annotations

import pytest
import torch

from fresco.reference import precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _asked_anew():
    precision._faster_dtype.cache_clear()
    yield
    precision._faster_dtype.cache_clear()


@pytest.mark.parametrize("faster", [torch.float32, torch.bfloat16])
def test_a_processor_computes_in_what_it_multiplies_faster(monkeypatch, faster):
    monkeypatch.setattr(precision, "_seconds_of_product", lambda dtype: 2.0 - (dtype == faster))
    assert precision.compute_dtype(CPU) == faster
    with precision.autocast(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == faster


def test_a_gpu_computes_in_bfloat16(monkeypatch):
    monkeypatch.setattr(precision, "_seconds_of_product", lambda _: 2.0)
    assert precision.compute_dtype(torch.device("cuda")) == torch.bfloat16


def test_seconds_are_those_of_a_product_in_the_type_asked():
    seen = []
    original, linear = precision.F.linear, lambda x, w: seen.append((x.dtype, w.dtype))
    precision.F.linear = linear
    try:
        assert precision._seconds_of_product(torch.bfloat16) > 0
    finally:
        precision.F.linear = original
    assert seen == [(torch.bfloat16,) * 2] * (1 + precision.N_TRIALS)
