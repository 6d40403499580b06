import pytest

from fresco.reference.captions import parse
from fresco.reference.scenes import Scene, SceneObject
from fresco.reference.verdict import ATTRIBUTES, Verdict, score, tally

RING = SceneObject("ring", "red", "plain", "small", "top")
BOX = SceneObject("square", "blue", "dotted", "large", "left")
SEEN = Scene((RING, BOX), "white", "graded")


def wrong(text, seen=SEEN):
    verdict = score(parse(text), seen)
    return [n for n in ATTRIBUTES for _ in range(verdict.asked[n] - verdict.right[n])]


def test_a_picture_that_shows_everything_is_right():
    text = (
        "a small red plain ring at the top and a big blue box with dots at the left "
        "on a graded white background"
    )
    verdict = score(parse(text), SEEN)
    assert verdict.asked == verdict.right
    assert sum(verdict.asked.values()) == 12
    assert verdict.is_scene_right


def test_what_is_left_open_is_not_judged():
    verdict = score(parse("an object and a red shape"), SEEN)
    assert sum(verdict.asked.values()) == 1
    assert verdict.is_scene_right


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a blue plain ring at the top and a square at the left", ["colour"]),
        ("a small striped ring at the top and a red box", ["colour", "texture"]),
        ("a ring at the top and a square on a pink graded background", ["background_colour"]),
        ("a ring and a square on a plain white background", ["background_kind"]),
    ],
)
def test_each_wrong_attribute_counts_once(text, expected):
    assert wrong(text) == expected
    assert not score(parse(text), SEEN).is_scene_right


def test_nothing_at_the_asked_place_makes_all_of_that_object_wrong():
    assert wrong("a red ring at the bottom and a square") == ["shape", "colour", "place"]


def test_objects_without_a_place_are_assigned_to_the_best_of_what_is_left():
    assert wrong("a dotted blue square and a small red ring") == []
    # the ring at the top is claimed by its place, though it would fit the other better
    assert wrong("a blue square at the top and a red ring") == [
        "shape",
        "shape",
        "colour",
        "colour",
    ]


def test_one_seen_object_does_not_answer_for_two():
    assert wrong("a ring and a ring", Scene((RING, BOX), "white", "plain")) == ["shape"]
    assert wrong("a ring at the top and a red ring at the top") == ["shape", "place"]


def test_a_wrong_number_of_objects_makes_the_scene_wrong_and_no_attribute():
    verdict = score(parse("a red ring at the top"), SEEN)
    assert verdict.right == verdict.asked
    assert not verdict.is_count_right
    assert not verdict.is_scene_right


def test_an_empty_picture_has_no_object_right():
    verdict = score(parse("a red ring at the top and a circle"), Scene((), "white", "plain"))
    assert sum(verdict.right.values()) == 0
    assert not verdict.is_scene_right


def test_pinned_tally():
    right = dict.fromkeys(ATTRIBUTES, 0)
    one = Verdict(right | {"shape": 2, "colour": 1}, right | {"shape": 1, "colour": 1}, True)
    two = Verdict(right | {"shape": 1}, right | {"shape": 1}, True)
    three = Verdict(right | {"shape": 1}, right | {"shape": 1}, False)
    assert tally([one, two, three]) == {
        "attributes": 4 / 5,
        "shape": 3 / 4,
        "colour": 1.0,
        "count": 2 / 3,
        "scene": 1 / 3,
    }
