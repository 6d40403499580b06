"""Sheets of pictures."""

import torch
from PIL import Image

from fresco import comparison
from fresco.comparison import Row, save_comparison, save_sheet


def test_sheets_take_any_number_of_pictures(tmp_path):
    images = torch.rand(5, 3, 8, 8)
    save_sheet(images, ["a"] * 5, tmp_path / "sheet.png")
    save_comparison([Row("full", 4, images[:1], 2.0, 3.0)], ["a"], tmp_path / "one.unknown")
    for name in ("sheet.png", "one.unknown"):
        with Image.open(tmp_path / name) as sheet:
            assert sheet.format == "PNG"


def test_rows_are_labelled_with_their_own_speedup_or_that_of_their_seconds(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(comparison, "write_figure", lambda _, figure: figures.append(figure))
    images = torch.rand(1, 3, 8, 8)
    rows = [
        Row("full", 4, images, 2.0, 3.0),
        Row("fewer", 2, images, 0.8, 1.0),
        Row("beside a clock", 2, images, 0.8, 1.0, 2.0),
    ]
    save_comparison(rows, ["a"], tmp_path / "a.png")
    labels = [axis.get_ylabel() for axis in figures[0].axes]
    assert labels == [
        "full\n4 steps\n2.00 s  (1.0x)",
        "fewer\n2 steps\n0.80 s  (2.5x)",
        "beside a clock\n2 steps\n0.80 s  (2.0x)",
    ]
