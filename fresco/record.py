"""Records of validation: what was measured of a recipe, on what, and when."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from fresco.stages import Config

Interval = tuple[float, float]  # 95%


class NoiseFloorConfig(Config):
    """How far apart two equally good pictures are: the plain run, once more in another way."""

    how: str = Field(min_length=1, description="what was different, such as bfloat16")
    psnr_db: float | None = Field(description="to the plain run; none: equal pictures")
    ssim: float


class RecordConfig(Config):
    """One validation of a recipe; written by `fresco validate` only.

    Example:
        >>> record = RecordConfig(date="2026-01-31", covers=("mechanics", "FLOPs"), model="tiny",
        ...     versions={"torch": "2.13.0"}, hardware="CPU", steps=50, flops_speedup=5.1)
        >>> str(record.date), record.psnr_db
        ('2026-01-31', None)
    """

    date: datetime.date
    covers: tuple[Literal["mechanics", "FLOPs", "pictures"], ...] = Field(min_length=1)
    model: str = Field(min_length=1, description="that it ran on; FLOPs are of the recipe's own")
    recipe: str | None = Field(default=None, description="digest of what ran, `Recipe.digest`")
    weights: str | None = Field(default=None, description="digest of the reference model's weights")
    versions: Mapping[str, str]
    hardware: str
    steps: int = Field(ge=1, description="requested")
    flops_speedup: float = Field(gt=0)
    prompts: int | None = Field(default=None, ge=1, description="how many; one picture each")
    prompts_sha256: str | None = Field(default=None, description="of the prompts, a line each")
    seed: int | None = Field(
        default=None, description="of the first picture; the next has the next"
    )
    speedup: float | None = Field(
        default=None, gt=0, description="of the denoising loop, paired runs"
    )
    speedup_interval: Interval | None = None
    psnr_db: float | None = Field(
        default=None, description="to the plain run; none: equal or unmeasured"
    )
    ssim: float | None = None
    judge: float | None = Field(default=None, description="mean over pictures")
    judge_baseline: float | None = Field(default=None, description="the same of the plain run")
    judge_by: str | None = Field(
        default=None, description="who judged: the reference judge, or whose"
    )
    noise_floor: NoiseFloorConfig | None = None
    is_within_noise: bool | None = None

    @property
    def judge_kept(self) -> float | None:
        """Judge's score over that of the plain run; None: unmeasured, or nothing to keep."""
        if self.judge is None or not self.judge_baseline:
            return None
        return self.judge / self.judge_baseline
