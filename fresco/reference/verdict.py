"""Compare what a caption asks for with what a picture shows.

Nobody may judge the model for what a caption leaves open: only asked attributes count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import permutations

from fresco.reference.captions import AskedObject, AskedScene
from fresco.reference.scenes import Scene, SceneObject

OBJECT_ATTRIBUTES = tuple(field.name for field in fields(AskedObject))
BACKGROUND_ATTRIBUTES = ("background_colour", "background_kind")
ATTRIBUTES = (*OBJECT_ATTRIBUTES, *BACKGROUND_ATTRIBUTES)


@dataclass(frozen=True)
class Verdict:
    """How many attributes were asked of one picture, and how many it shows.

    Args:
        asked: Count by attribute, for all of `ATTRIBUTES`.
        right: Count by attribute, of those asked.
        is_count_right: Whether there are as many objects as the caption names.
    """

    asked: dict[str, int]
    right: dict[str, int]
    is_count_right: bool

    @property
    def is_scene_right(self) -> bool:
        """Whether everything asked is there, and no object more."""
        return self.is_count_right and self.right == self.asked


def score(asked: AskedScene, reading: Scene) -> Verdict:
    """Judge one picture.

    An asked object with a place is compared with what is seen at that place; the others
    with objects that are left, in the assignment that has most attributes right. What is
    asked of an object that is not there is wrong, its place included.

    Args:
        asked: What the caption asks for.
        reading: What the picture shows, as `Judge.read` says.

    Returns:
        Counts per attribute.

    Example:
        >>> from fresco.reference.captions import parse
        >>> seen = Scene((SceneObject("ring", "red", "plain", "small", "top"),), "white", "plain")
        >>> verdict = score(parse("a red circle at the top on a white background"), seen)
        >>> [name for name in verdict.asked if verdict.right[name] < verdict.asked[name]]
        ['shape']
    """
    right = max((_count_right(asked, pairing) for pairing in _pairings(asked, reading)), key=_total)
    wanted = {name: sum(getattr(thing, name) is not None for thing in asked.objects)
              for name in OBJECT_ATTRIBUTES}  # fmt: skip
    for name in BACKGROUND_ATTRIBUTES:
        value = getattr(asked, name)
        wanted[name] = int(value is not None)
        right[name] = int(value is not None and value == getattr(reading, name))
    return Verdict(wanted, right, len(reading.objects) == len(asked.objects))


def tally(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Put verdicts together.

    Args:
        verdicts: One per picture, at least one.

    Returns:
        Fractions in [0, 1]: of all asked `attributes`, of each attribute that was asked at
        least once, of pictures with the right `count` of objects, and of pictures in which
        the whole `scene` is right.

    Example:
        >>> tally([Verdict({"colour": 2}, {"colour": 1}, True)])
        {'attributes': 0.5, 'colour': 0.5, 'count': 1.0, 'scene': 0.0}
    """
    asked, right = _sum([v.asked for v in verdicts]), _sum([v.right for v in verdicts])
    fractions = {name: right[name] / n for name, n in asked.items() if n}
    n_asked = sum(asked.values())
    return {
        "attributes": sum(right.values()) / n_asked if n_asked else 1.0,
        **fractions,
        "count": sum(v.is_count_right for v in verdicts) / len(verdicts),
        "scene": sum(v.is_scene_right for v in verdicts) / len(verdicts),
    }


_Pairing = tuple[SceneObject | None, ...]  # what is seen, by asked object


def _pairings(asked: AskedScene, reading: Scene) -> Iterator[_Pairing]:
    """Ways to assign seen objects to asked ones in which asked places have their objects."""
    wanted = [thing.place for thing in asked.objects]
    seen_or_nothing = (*reading.objects, *(None,) * len(wanted))
    n_at_places = len({thing.place for thing in reading.objects} & set(wanted))
    for pairing in permutations(seen_or_nothing, len(wanted)):
        pairs = [
            (place, thing) for place, thing in zip(wanted, pairing, strict=True) if place and thing
        ]
        if len(pairs) == n_at_places and all(place == thing.place for place, thing in pairs):
            yield pairing


def _count_right(asked: AskedScene, pairing: _Pairing) -> dict[str, int]:
    right = dict.fromkeys(OBJECT_ATTRIBUTES, 0)
    for wanted, thing in zip(asked.objects, pairing, strict=True):
        for name in OBJECT_ATTRIBUTES:
            value = getattr(wanted, name)
            right[name] += thing is not None and value is not None and value == getattr(thing, name)
    return right


def _total(counts: dict[str, int]) -> int:
    return sum(counts.values())


def _sum(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(c[name] for c in counts) for name in counts[0]} if counts else {}
