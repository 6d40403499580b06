"""All model families that tests run, by name."""

from __future__ import annotations

from tests.image_families import IMAGES
from tests.video_families import VIDEOS

FAMILIES = IMAGES | VIDEOS
MIXING = [name for name, family in FAMILIES.items() if family.mixes]  # with mixed layouts
