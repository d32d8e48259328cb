"""Names that every layer of the package shares."""

from __future__ import annotations

MASK_SIZES: tuple[int, ...] = (14, 28, 56, 112)
"""Candidate mask sides in mask pixels, coarse to fine (tiny, small, medium, large in the paper)."""


class DynaMaskError(ValueError):
    """A mistake the user can mend; the message is one sentence that says what is wrong and what to do."""


class ReportedElsewhereError(DynaMaskError):
    """A mistake that another process of a distributed run reports to the user, so that this one stays silent."""
