"""What a run did, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fresco.schedule import Step


@dataclass(frozen=True)
class StepRecord:
    """One step that was taken.

    Args:
        stage: Which stage it belonged to, from 0.
        sigma: Noise level of its model calls.
        side: Cell side in fine tokens.
        tokens: Image tokens that the transformer saw per picture.
        passes: Transformer calls (two with true classifier-free guidance).
        seconds: From its first call to the end of its solver step.
        cached: Transformer calls that a cache answered in part.
        reused: Modules (blocks, or their attention) that these did not compute.
    """

    stage: int
    sigma: float
    side: int
    tokens: int
    passes: int
    seconds: float
    cached: int = 0
    reused: int = 0

    @classmethod
    def of(
        cls, step: Step, passes: int, seconds: float, cached: int = 0, reused: int = 0
    ) -> StepRecord:
        """Record a planned step as taken."""
        plan = step.stage, step.sigma, step.side, step.n_tokens
        return cls(*plan, passes, seconds, cached, reused)


@dataclass(frozen=True)
class Report:
    """Record of the last run, whole or as far as it came.

    Args:
        steps: The steps taken, in order.
        n_text_tokens: Text tokens of its calls.
        n_given_tokens: Image tokens of its calls beside those of the steps: of a reference
            picture, or a first frame that is given.

    Example:
        >>> print(Report((StepRecord(0, 1.0, 2, 256, 1, 0.5),)))
        step stage  sigma side tokens passes cached reused seconds
           0     0 1.0000    2    256      1      0      0   0.500
    """

    steps: tuple[StepRecord, ...] = ()
    n_text_tokens: int = 0
    n_given_tokens: int = 0

    @property
    def seconds(self) -> float:
        """Seconds of the denoising steps together."""
        return sum(step.seconds for step in self.steps)

    @property
    def n_passes(self) -> int:
        """Transformer calls together."""
        return sum(step.passes for step in self.steps)

    def __str__(self) -> str:
        lines: Iterable[str] = (
            f"{i:4} {s.stage:5} {s.sigma:6.4f} {s.side:4} {s.tokens:6} {s.passes:6} "
            f"{s.cached:6} {s.reused:6} {s.seconds:7.3f}"
            for i, s in enumerate(self.steps)
        )
        return "\n".join(["step stage  sigma side tokens passes cached reused seconds", *lines])
