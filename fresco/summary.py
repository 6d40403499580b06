"""What the techniques of a stack did by now, one row for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fresco.techniques import AbstractAttachment, Counts, TechniqueConfig


@dataclass(frozen=True)
class SummaryRow:
    """What one technique did by now, on all transformers together.

    Args:
        kind: Its name in recipes.
        phase: When it was attached.
        counts: What proves that it is on.
        idle: Why it did nothing; None if it did.
    """

    kind: str
    phase: str
    counts: Counts
    idle: str | None = None

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {value}" for name, value in self.counts.items())
        return f"{self.phase:8} {self.kind:10} {counts}" + (f"  ! {self.idle}" if self.idle else "")


@dataclass(frozen=True)
class Summary:
    """What is on, in the order of attaching.

    Args:
        rows: One per technique, dynamic resolution among them.

    Example:
        >>> print(Summary((SummaryRow("quantize", "weights", {"layers": 8}),)))
        weights  quantize   layers 8
    """

    rows: tuple[SummaryRow, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.rows))


def sum_up(config: TechniqueConfig, attachments: Sequence[AbstractAttachment]) -> SummaryRow:
    """Make one technique's row.

    Args:
        config: The technique.
        attachments: One, or one for each transformer; numbers are added up.

    Returns:
        The row; idle if the technique is on every transformer.
    """
    counts = dict(attachments[0].counts())
    for attachment in attachments[1:]:
        for name, value in attachment.counts().items():
            before = counts[name]
            if not isinstance(before, str) and not isinstance(value, str):
                counts[name] = before + value
    reasons = [attachment.idle() for attachment in attachments]
    idle = None if None in reasons else "; ".join(dict.fromkeys(filter(None, reasons)))
    return SummaryRow(config.kind, config.phase, counts, idle)
