"""All model families that tests run, by name."""

from __future__ import annotations

from tests.packed_families import PACKED
from tests.plain_families import PLAIN
from tests.video_families import VIDEOS

FAMILIES = PACKED | PLAIN | VIDEOS
MIXING = [name for name, family in FAMILIES.items() if family.mixes]  # with mixed layouts
