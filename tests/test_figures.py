"""What is measured of a row of pictures, and of real ones."""

import json

import pytest
import torch

from fresco.reference import figures
from fresco.reference.captions import Caption, parse
from fresco.reference.dataset import make_example
from fresco.reference.measured import Measured


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(figures, "FRECHET_DRAWS", 20)


@pytest.fixture(scope="module")
def real():
    """Rendered pictures whose captions say everything, and their pictures as a row."""
    captions, pictures = [], []
    for index in range(6):
        scene, picture = make_example(figures.REAL_SEED, index)
        things = " and ".join(
            f"a {t.size} {t.texture} {t.colour} {t.shape} at the {t.place}".replace(
                "at the centre", "in the centre"
            )
            for t in scene.objects
        )
        text = f"{things} on a {scene.background_kind} {scene.background_colour} background"
        captions.append(Caption(text, (), parse(text)))
        pictures.append(torch.from_numpy(picture))
    return captions, row_of(torch.stack(pictures), 2.0, 50)


def row_of(images, loop_s, full_steps, step_s=1.0):
    n = len(images)
    seconds, flops = (loop_s,) * n, (float(full_steps),) * n
    return Measured(images, seconds, flops, full_steps, seconds, (step_s,) * n)


def test_figures_of_the_same_pictures(real, tmp_path):
    captions, full = real
    features = figures.real_features(tmp_path, 6)
    assessed = figures.assess(full, full, captions)
    found = figures.figures(assessed, assessed, features)
    assert found["psnr_db"] is None  # infinite
    assert found["psnr_db_interval"] is None
    for name in ("speedup", "flops_speedup", "hf"):
        assert found[name] == pytest.approx(1)
    assert found["ssim"] == pytest.approx(1, abs=2e-3)  # float32, where a picture is flat
    assert found["hf_interval"] == pytest.approx([1, 1])
    assert found["frechet"] == pytest.approx(0, abs=1e-4)
    assert found["judge"] > 0.95
    json.dumps(found, allow_nan=False)


def test_figures_of_worse_pictures(real, tmp_path):
    captions, full = real
    grey = torch.nn.functional.avg_pool2d(full.images.float(), 2).repeat_interleave(2, -1)
    coarse = row_of(grey.repeat_interleave(2, -2).round().byte(), 0.5, 10)
    blank = row_of(torch.full_like(full.images, 255), 0.1, 5)
    assessed = [figures.assess(row, full, captions) for row in (full, coarse, blank)]
    features = figures.real_features(tmp_path, 6)
    found = [figures.figures(row, assessed[0], features) for row in assessed]
    assert found[1]["speedup"] == pytest.approx(4)
    assert found[1]["flops_speedup"] == pytest.approx(5)
    error = (coarse.images.float() - full.images.float()).div(255).square().mean((1, 2, 3))
    assert found[1]["psnr_db"] == pytest.approx(-10 * error.log10().mean().item(), abs=1e-3)
    assert found[2]["hf"] == 0
    assert found[2]["scene"] == 0
    assert found[0]["judge"] > found[2]["judge"]
    assert found[0]["frechet"] < found[1]["frechet"] < found[2]["frechet"]
    for figure in found:
        for name in ("ssim", "judge", "scene", "hf"):
            low, high = figure[f"{name}_interval"]
            assert low <= figure[name] + 1e-6
            assert figure[name] <= high + 1e-6
    lost = figures.differences(assessed[2], assessed[0], features)
    assert lost["judge_difference"] == pytest.approx(found[2]["judge"] - found[0]["judge"])
    assert lost["judge_difference_interval"][1] < 0
    assert lost["scene_difference"] == pytest.approx(found[2]["scene"] - found[0]["scene"])
    assert lost["frechet_difference"] == pytest.approx(found[2]["frechet"] - found[0]["frechet"])
    low, high = lost["frechet_difference_interval"]
    assert 0 < low < lost["frechet_difference"] < high
    zero = dict.fromkeys(("judge_difference", "scene_difference", "frechet_difference"), 0)
    same = figures.differences(assessed[0], assessed[0], features)
    assert same == zero | {f"{name}_interval": [0, 0] for name in zero}
    assert "frechet_difference" not in figures.differences(assessed[2], assessed[0])


def test_a_paired_interval_is_narrower_than_one_rows_own(real, tmp_path):
    captions, full = real
    dark, lighter = (row_of(full.images // 2 + more, 1.0, 10) for more in (0, 1))
    features = figures.real_features(tmp_path, 6)
    row, other = (figures.assess(each, full, captions) for each in (lighter, dark))
    paired = figures.differences(row, other, features)["frechet_difference_interval"]
    for alone in (
        figures.figures(each, row, features)["frechet_interval"] for each in (row, other)
    ):
        assert paired[1] - paired[0] < alone[1] - alone[0]


def test_speedup_is_by_full_steps_beside_the_rows(real):
    captions, full = real
    beside_other_work = row_of(full.images, 2.0, 50, step_s=4.0)
    alone, slowed = (figures.assess(row, full, captions) for row in (full, beside_other_work))
    assert figures.figures(slowed, alone)["speedup"] == pytest.approx(4)


def test_real_features_are_drawn_once(tmp_path, monkeypatch):
    drawn = figures.real_features(tmp_path, 2)
    monkeypatch.setattr(figures, "make_example", lambda *_: pytest.fail("drawn again"))
    assert torch.equal(figures.real_features(tmp_path, 2), drawn)
    assert drawn.shape == (2, 192)
