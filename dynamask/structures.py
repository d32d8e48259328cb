"""Names and value types that every layer of the package shares."""

from __future__ import annotations

from dataclasses import asdict, dataclass

MASK_SIZES: tuple[int, ...] = (14, 28, 56, 112)
"""Candidate mask sides in mask pixels, coarse to fine (tiny, small, medium, large in the paper)."""
IOU_MEASURES = ("mask_iou", "boundary_iou")
"""The measures of mask quality, in the order of the last axis of arrays of quality."""


class DynaMaskError(ValueError):
    """A mistake that the user can correct; the message is one sentence: what is wrong and what to do."""


def first_sentence(error: BaseException) -> str:
    """The first sentence of another library's error, on one line and at most 160 characters."""
    return " ".join(str(error).split()).split(". ")[0][:160]


class ReportedElsewhereError(DynaMaskError):
    """A mistake that another process of a distributed run reports to the user, so that this one stays silent."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval; what is undefined is None.

    Attributes:
        mean: the estimate.
        low, high: bounds of the interval.
    """

    mean: float | None = None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """The JSON form: ``{"mean": …, "low": …, "high": …}``."""
        return asdict(self)

    @property
    def sign(self) -> int:
        """Of a difference: 1 if the interval lies above zero, -1 if below, 0 if it contains zero or is undefined."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)
