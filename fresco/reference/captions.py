"""Captions of scenes: one grammar that is spoken (`describe`) and understood (`parse`).

    small red striped circle at the top left and a blue square with dots on a yellow background
    at the bottom, a big ring, and a green object

A caption says every attribute in one of several ways, or leaves it out: then the model
must choose, and nobody may judge it for its choice.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from fresco.errors import FrescoError
from fresco.reference.scenes import BACKGROUND_COLOURS, COLOURS, PLACES, Scene

Words = Mapping[str | None, tuple[str, ...]]  # attribute -> the ways to say it

SHAPE_WORDS: Words = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "donut"),
    None: ("object", "shape"),
}
TEXTURE_WORDS: Words = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "with stripes"),
    "dotted": ("dotted", "spotted", "with dots"),
    "checked": ("checked", "chequered", "with checks"),
}
SIZE_WORDS: Words = {"small": ("small", "little"), "large": ("large", "big")}
COLOUR_WORDS: Words = {name: (name,) for name in COLOURS}
PLACE_WORDS: Words = {
    **{p: (f"at the {p}", f"in the {p} corner") for p in PLACES if " " in p},
    **{p: (f"at the {p}", f"on the {p} side") for p in ("top", "left", "right", "bottom")},
    "centre": ("in the centre", "in the middle", "at the centre"),
}
KIND_WORDS: Words = {
    "plain": ("plain",),
    "graded": ("graded", "shaded"),
    "patterned": ("patterned", "lined"),
}
PAPER_WORDS: Words = {name: (name,) for name in BACKGROUND_COLOURS}
OBJECT_TABLES = {
    "shape": SHAPE_WORDS,
    "colour": COLOUR_WORDS,
    "texture": TEXTURE_WORDS,
    "size": SIZE_WORDS,
    "place": PLACE_WORDS,
}
BACKGROUND_TABLES = {"background_colour": PAPER_WORDS, "background_kind": KIND_WORDS}
FILLERS = ("a", "an", "and", ",", "on", "against", "background", "the", "at", "in", "with")
LEFT_OUT = {
    "shape": 0.08,
    "colour": 0.12,
    "texture": 0.25,
    "size": 0.4,
    "place": 0.05,
    "background": 0.1,
    "background_colour": 0.1,
    "background_kind": 0.5,
}  # probability that a caption does not say it


class CaptionError(FrescoError, ValueError):
    """A text is not a caption of the reference grammar."""


@dataclass(frozen=True)
class AskedObject:
    """What a caption asks of one object; None where it leaves the choice."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class AskedScene:
    """What a caption asks for; None where it leaves the choice."""

    objects: tuple[AskedObject, ...]
    background_colour: str | None = None
    background_kind: str | None = None


@dataclass(frozen=True)
class Caption:
    """A text, and which object each of its words speaks of (-1: none, -2: the background)."""

    text: str
    owners: tuple[int, ...]
    asked: AskedScene


def vocabulary() -> list[str]:
    """Every word of the grammar, sorted."""
    tables = (*OBJECT_TABLES.values(), *BACKGROUND_TABLES.values())
    phrases = [phrase for table in tables for ways in table.values() for phrase in ways]
    return sorted({word for phrase in phrases for word in phrase.split()} | set(FILLERS))


def describe(scene: Scene, rng: np.random.Generator) -> Caption:
    """Say a scene in one of many ways, leaving things out (`LEFT_OUT`).

    Args:
        scene: What the caption is true of.
        rng: Source of the wording; it is advanced.

    Returns:
        The caption; `parse(caption.text) == caption.asked`.
    """
    asked = _leave_out(scene, rng)
    words: list[str] = []
    owners: list[int] = []
    for index, thing in enumerate(asked.objects):
        if index:
            joint = str(rng.choice((", ", " and "))).split()
            words += joint
            owners += [-1] * len(joint)
        phrase = _say_object(thing, rng)
        words += phrase
        owners += [index] * len(phrase)
    if asked.background_colour or asked.background_kind:
        phrase = _say_background(asked, rng)
        words += phrase
        owners += [-2] * len(phrase)
    return Caption(" ".join(words).replace(" ,", ","), tuple(owners), asked)


def parse(text: str) -> AskedScene:
    """Read what a caption asks for.

    Args:
        text: A caption in the grammar of this module.

    Returns:
        The asked attributes, objects in the order of the text.

    Raises:
        CaptionError: If a word is not in the grammar, an attribute is asked twice of one
            object, or there are not one to three objects.

    Example:
        >>> parse("a red ring at the top").objects
        (AskedObject(shape='ring', colour='red', texture=None, size=None, place='top'),)
    """
    words = re.findall(r"[\w']+|,", text.lower())
    known = vocabulary()
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known words: {', '.join(known)}."
            raise CaptionError("parse(text)", "words of the reference grammar", word, hint)
    sentence = " ".join(words)
    ground = re.search(r"\b(?:on|against) (?:a|an) ((?:\w+ )*)background$", sentence)
    if ground:
        sentence = sentence[: ground.start()]
    parts = [part for part in re.split(r" , and | , | and ", f" {sentence} ") if part.strip()]
    if not 1 <= len(parts) <= 3:
        fix = "Name each as in 'a red ring at the top', joined by 'and' or a comma."
        raise CaptionError("parse(text)", "one to three objects", len(parts), fix)
    objects = tuple(AskedObject(**_read(part, OBJECT_TABLES, needs_shape=True)) for part in parts)
    behind = _read(ground[1], BACKGROUND_TABLES, needs_shape=False) if ground else {}
    return AskedScene(objects, **behind)


def _read(part: str, tables: Mapping[str, Words], needs_shape: bool) -> dict[str, str | None]:
    """Attributes that a part of a caption names, and nothing else may stand in it.

    Long phrases are looked for first: 'at the top left' is not also 'at the top'.
    """
    ways = [
        (way, name, word) for name, t in tables.items() for word, all_ in t.items() for way in all_
    ]
    rest, found = f" {part.strip()} ", dict[str, str | None]()
    for way, name, word in sorted(ways, key=lambda w: -len(w[0])):
        if f" {way} " in rest and name not in found:
            found[name] = word
            rest = rest.replace(f" {way} ", "  ", 1)
    over = [word for word in rest.split() if word not in ("a", "an")]
    if over or (needs_shape and "shape" not in found):
        fix = "Join objects with 'and' or a comma, and name the shape ('object' leaves the choice)."
        got = f"{part.strip()!r}" + (f" with {' '.join(over)!r} left over" if over else "")
        raise CaptionError("parse(text)", "an object with each attribute said once", got, fix)
    return found


def _leave_out(scene: Scene, rng: np.random.Generator) -> AskedScene:
    def keep(attribute: str, value: str) -> str | None:
        return None if rng.uniform() < LEFT_OUT[attribute] else value

    objects = tuple(
        AskedObject(**{f.name: keep(f.name, getattr(thing, f.name)) for f in fields(AskedObject)})
        for thing in scene.objects
    )
    if keep("background", "said") is None:
        return AskedScene(objects)
    colour = keep("background_colour", scene.background_colour)
    return AskedScene(objects, colour, keep("background_kind", scene.background_kind))


def _say_object(thing: AskedObject, rng: np.random.Generator) -> list[str]:
    def say(table: Words, value: str | None) -> str:
        return str(rng.choice(table[value])) if value in table else ""

    texture = say(TEXTURE_WORDS, thing.texture) if thing.texture else ""
    after = texture if texture.startswith("with") else ""
    before = [say(COLOUR_WORDS, thing.colour), "" if after else texture]
    if rng.uniform() < 0.3:
        before.reverse()
    words = (
        f"{say(SIZE_WORDS, thing.size)} {' '.join(before)} {say(SHAPE_WORDS, thing.shape)} {after}"
    )
    place = say(PLACE_WORDS, thing.place)
    noun = words.split()
    noun = ["an" if noun[0][0] in "aeiou" else "a", *noun]
    return [*place.split(), *noun] if rng.uniform() < 0.15 else [*noun, *place.split()]


def _say_background(asked: AskedScene, rng: np.random.Generator) -> list[str]:
    kind = str(rng.choice(KIND_WORDS[asked.background_kind])) if asked.background_kind else ""
    opening = str(rng.choice(("on a", "against a")))
    return f"{opening} {kind} {asked.background_colour or ''} background".split()
