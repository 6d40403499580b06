"""Every row of the matrix that compiles ends as the packaged file says."""

import os
import shutil

import pytest

from fresco.combinations import load_matrix
from tests.matrix_run import REMAKE, name_of, run_row

ROWS = [row for row in load_matrix().rows if "compile" in row.values]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_every_row_ends_as_the_file_says(row):
    ends = run_row(row.values)
    if row.values["compile"] == "inductor" and not shutil.which(os.environ.get("CXX", "g++")):
        assert "a C++ compiler, which inductor needs" in ends.reason
    else:
        assert ends == row, REMAKE
