import json

import pytest
import torch

from fresco.reference.captions import AskedObject, AskedScene
from fresco.reference.judge import WEIGHTS, PictureError, crop_windows, load_judge
from fresco.reference.judge_training import (
    ATTRIBUTES,
    HELD_OUT_SEED,
    draw_examples,
    label,
    measure_readings,
    spoil,
)
from fresco.reference.render import PAPER
from fresco.reference.scenes import Scene, SceneObject
from fresco.reference.verdict import score


@pytest.fixture(scope="module")
def held_out():
    scenes, pictures = draw_examples(HELD_OUT_SEED + 100, 64)
    return scenes, pictures.float() / 255


def test_held_out_renders_are_read_right(held_out):
    scenes, pictures = held_out
    right = measure_readings(load_judge().read(pictures), scenes)
    assert set(right) == {*ATTRIBUTES, "scene"}
    assert min(right[name] for name in ATTRIBUTES) >= 0.98  # one of some 115 objects
    assert right["scene"] >= 0.95


def test_slightly_spoiled_renders_are_read_right(held_out):
    scenes, pictures = held_out
    spoiled = spoil(pictures[:32], torch.Generator().manual_seed(0))
    right = measure_readings(load_judge().read(spoiled), scenes[:32])
    assert min(right[name] for name in ATTRIBUTES) >= 0.95


def test_provenance_says_the_bar_is_met():
    right = json.loads(WEIGHTS.with_suffix(".json").read_text())["right"]
    assert min(right[name] for name in ATTRIBUTES) >= 0.99


def test_weights_are_small():
    assert WEIGHTS.stat().st_size <= 1.5 * 2**20


def test_a_blank_picture_shows_no_object():
    papers = torch.tensor(list(PAPER.values())).view(-1, 3, 1, 1).expand(-1, 3, 256, 256)
    asked = AskedScene((AskedObject("ring", "red", "plain", "small", "top"),))
    for scene in load_judge().read(papers):
        assert scene.objects == ()
        assert sum(score(asked, scene).right.values()) == 0


def test_pictures_unlike_any_scene_are_no_right_scene():
    noise = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    asked = [AskedScene((AskedObject(),) * n) for n in (1, 2, 3)]
    for scene in load_judge().read(torch.cat([noise, torch.zeros(1, 3, 256, 256)])):
        assert not any(score(a, scene).is_scene_right for a in asked)


def test_reading_does_not_depend_on_the_rest_of_the_batch(held_out):
    pictures = held_out[1][:20]
    judge = load_judge()
    assert judge.read(pictures) == [judge.read(picture[None])[0] for picture in pictures]


def test_features_are_what_the_heads_read(held_out):
    pictures = held_out[1][:18]  # more than one batch
    judge = load_judge()
    features = judge.features(pictures)
    assert features.shape == (18, 192)
    background = judge.background(torch.nn.functional.avg_pool2d(pictures, 2))
    heads = judge.background[-1](features[:, :96])
    assert torch.allclose(heads["colour"], background["colour"], atol=1e-4)
    present = judge.window[-1].heads["is_present"]  # linear: the mean of what it says
    said = judge.window(crop_windows(pictures))["is_present"].view(18, 9, 2).mean(1)
    assert torch.allclose(present(features[:, 96:]), said, atol=1e-4)


def test_larger_squares_are_averaged_down(held_out):
    pictures = held_out[1][:4]
    doubled = pictures.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert load_judge().read(doubled) == load_judge().read(pictures)


@pytest.mark.parametrize(
    "shape", [(1, 3, 256, 128), (1, 3, 128, 128), (3, 256, 256), (1, 4, 256, 256)]
)
def test_other_shapes_are_refused(shape):
    with pytest.raises(PictureError, match=rf"got \[{', '.join(map(str, shape))}\]"):
        load_judge().read(torch.zeros(shape))


def test_windows_are_around_the_places_row_by_row():
    pictures = torch.zeros(1, 3, 256, 256)
    pictures[0, :, 128 - 4 : 128 + 4, 213 - 4 : 213 + 4] = 1  # the middle of `right`
    windows = crop_windows(pictures)
    assert windows.shape == (9, 3, 96, 96)
    assert windows.flatten(1).sum(1).argmax() == 5
    y, x = torch.nonzero(windows[5, 0]).float().mean(0)
    assert abs(y - 47.5) <= 1
    assert abs(x - 47.5) <= 1


def test_labels_and_measure_by_hand():
    scene = Scene((SceneObject("ring", "red", "plain", "small", "top"),), "white", "plain")
    examples = label([scene], torch.zeros(1, 3, 256, 256, dtype=torch.uint8))
    assert examples.windows["is_present"].tolist() == [[0, 1, 0, 0, 0, 0, 0, 0, 0]]
    assert examples.windows["shape"].tolist() == [[-1, 4, -1, -1, -1, -1, -1, -1, -1]]
    assert examples.backgrounds["colour"].tolist() == [0]
    seen = Scene((SceneObject("ring", "blue", "plain", "small", "left"),), "white", "graded")
    right = measure_readings([seen], [scene])
    assert right == pytest.approx(
        {"place": 7 / 9, "shape": 0, "colour": 0, "texture": 0, "size": 0}
        | {"background_colour": 1, "background_kind": 0, "scene": 0}
    )
