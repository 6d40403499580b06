"""Every row of the matrix that compiles nothing ends as the packaged file says."""

import pytest

from fresco.combinations import load_matrix
from tests.matrix_run import REMAKE, name_of, run_row

ROWS = [row for row in load_matrix().rows if "compile" not in row.values]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_every_row_ends_as_the_file_says(row):
    assert run_row(row.values) == row, REMAKE
