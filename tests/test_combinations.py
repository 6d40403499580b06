"""The matrix of combinations: what it has to cover, and what is made of it.

Its rows are run in `test_matrix_eager.py` and `test_matrix_compiled.py`, a file for each process.
"""

from __future__ import annotations

import itertools

import pytest

import fresco
from fresco import errors
from fresco.combinations import Matrix, Row, load_matrix
from fresco.techniques import techniques
from tests import matrix, write_matrix
from tests.covering import covering_rows
from tests.matrix_run import REMAKE, enable

ROWS = load_matrix().rows
FULL = {"schema": 1, "model": "any"}


def test_the_file_has_the_rows_of_the_axes_and_the_page_those_of_the_file():
    refused, covering = matrix.make_rows()
    assert len(covering) > 100
    assert [row.values for row in ROWS] == [*refused, *covering], REMAKE
    assert write_matrix.JSON.read_text(encoding="utf-8") == write_matrix.to_json(ROWS), REMAKE
    assert write_matrix.PAGE.read_text(encoding="utf-8") == write_matrix.to_page(ROWS), REMAKE


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_every_legal_choice_of_values_is_in_a_legal_row(strength):
    axes = {"a": ["0", "1", "2"], "b": ["0", "1", "2", "3"], "c": ["0", "1"], "d": ["0", "1", "2"]}

    def is_legal(row):
        return not (row.get("a") == "1" and row.get("b") == "3")

    rows = covering_rows(axes, strength, is_legal)
    assert all(is_legal(row) and row.keys() == axes.keys() for row in rows)
    assert len(rows) < 3 * 4 * 2 * 3 / 2
    assert rows == covering_rows(axes, strength, is_legal)
    for names in itertools.combinations(axes, strength):
        for values in itertools.product(*(axes[name] for name in names)):
            some = dict(zip(names, values, strict=True))
            assert any(some.items() <= row.items() for row in rows) == is_legal(some)


def test_all_rows_of_two_axes_are_needed_for_their_pairs():
    rows = covering_rows({"a": ["0", "1"], "b": ["0", "1"]}, 2, lambda _row: True)
    assert sorted(row["a"] + row["b"] for row in rows) == ["00", "01", "10", "11"]


def made(*rows):
    axes = {axis: {"none": {}, "on": {"kind": axis}} for axis in ("cache", "lora", "compile")}
    return Matrix(axes, [Row(dict.fromkeys(on, "on"), "validated") for on in rows])


PAIRS = [(), ("cache",), ("lora",), ("compile",), ("cache", "lora"), ("lora", "compile")]
PAIRS.append(("cache", "compile"))


def test_a_stack_is_known_if_every_three_of_its_values_were_together():
    everything = {"cache": "on", "lora": "on", "compile": "on"}
    triple = tuple(everything.items())
    assert made(*PAIRS, tuple(everything)).unknown(everything) == ()
    assert made(*PAIRS).unknown(everything) == triple
    assert made(*PAIRS[:-1]).unknown(everything) == (triple[0], triple[2])


def test_what_is_refused_on_one_device_is_only_unknown_elsewhere():
    bad = {"quantize": "int4_weight_only"}
    row = next(row for row in ROWS if row.values == bad)
    assert (row.status, row.device) == ("refused", "cpu")
    assert load_matrix().refusal(bad) is None
    assert ("quantize", "int4_weight_only") in load_matrix().unknown(bad)


def test_settings_beyond_the_value_do_not_matter():
    cache = techniques()["cache"](method="pab", interval=3)
    assert load_matrix().find(cache) == ("cache", "pab")
    lora = techniques()["lora"](source="x", strength=0.3, fuse=True)
    assert load_matrix().find(lora) == ("lora", "fused")
    compiled = techniques()["compile"](backend="inductor")
    assert load_matrix().find(compiled) == ("compile", "blocks")


def test_known_bad_is_refused_with_the_reason_of_the_matrix(tiny_flux_pipe):
    enable(tiny_flux_pipe, "group_leaf")
    message = (
        r"got quantize int8_dynamic with offload group_leaf. It is refused: expected linear layers "
        r"without hooks on their forward"
    )
    with pytest.raises(errors.AttachError, match=message):
        fresco.accelerate(
            tiny_flux_pipe, FULL | {"stack": [{"kind": "quantize", "form": "int8_dynamic"}]}
        )


def test_what_was_never_run_is_warned_of_and_nothing_stays_if_that_is_an_error(tiny_flux_pipe):
    enable(tiny_flux_pipe, "group_leaf")
    recipe = FULL | {"stack": [{"kind": "compile", "backend": "eager"}]}
    message = r"compile blocks \+ offload group_leaf was not run in the matrix"
    with pytest.raises(errors.FrescoWarning, match=message):  # warnings are errors here
        fresco.accelerate(tiny_flux_pipe, recipe)
    with pytest.warns(errors.FrescoWarning, match=message):
        fresco.accelerate(tiny_flux_pipe, recipe).restore()
