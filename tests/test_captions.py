import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fresco.reference.captions import AskedObject, AskedScene, CaptionError, describe, parse
from fresco.reference.dataset import caption_of
from fresco.reference.scenes import sample_scene


@given(st.integers(0, 2**32 - 1))
def test_parse_understands_what_describe_says(seed):
    rng = np.random.default_rng(seed)
    caption = describe(sample_scene(rng), rng)
    assert parse(caption.text) == caption.asked


@given(st.integers(0, 2**32 - 1))
def test_every_word_has_an_owner_and_words_of_an_object_stand_together(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    caption = describe(scene, rng)
    words = caption.text.replace(",", " ,").split()
    assert len(words) == len(caption.owners)
    joints = [
        owner for word, owner in zip(words, caption.owners, strict=True) if word in (",", "and")
    ]
    assert joints == [-1] * (len(scene.objects) - 1)
    runs = [o for i, o in enumerate(caption.owners) if i == 0 or caption.owners[i - 1] != o]
    assert [o for o in runs if o >= 0] == list(range(len(scene.objects)))


@given(st.integers(0, 2**32 - 1))
def test_a_caption_asks_for_nothing_that_the_scene_is_not(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    asked = describe(scene, rng).asked
    for thing, wanted in zip(scene.objects, asked.objects, strict=True):
        for name, value in vars(wanted).items():
            assert value in {None, getattr(thing, name)}


def test_pinned_caption_is_read_word_by_word():
    text = (
        "on the left side a little green box with dots, a big ring and a red object "
        "on a lined grey background"
    )
    assert parse(text) == AskedScene(
        (
            AskedObject("square", "green", "dotted", "small", "left"),
            AskedObject(shape="ring", size="large"),
            AskedObject(colour="red"),
        ),
        "grey",
        "patterned",
    )


def test_long_places_are_not_read_as_short_ones():
    assert parse("a disc in the top left corner").objects[0].place == "top left"
    assert parse("a disc at the top left").objects[0].place == "top left"
    assert parse("a disc on the left side").objects[0].place == "left"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a read circle", "got read. Did you mean 'red'?"),
        ("a red dog", "expected words of the reference grammar, got dog."),
        ("", "expected one to three objects, got 0."),
        ("a ring, a ring, a ring and a ring", "expected one to three objects, got 4."),
        ("a red blue circle", "'a red blue circle' with 'red' left over"),
        ("a red small", "name the shape"),
    ],
)
def test_texts_outside_the_grammar_are_refused_by_what_is_wrong(text, message):
    with pytest.raises(CaptionError) as error:
        parse(text)
    assert message in str(error.value)


def test_held_out_captions_and_the_others_are_disjoint():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(50)]
    held_out = {caption_of(scene, rng, held_out=True).text for scene in scenes}
    others = {caption_of(scene, rng, held_out=False).text for scene in scenes * 4}
    assert not held_out & others
