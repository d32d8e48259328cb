"""Options of the reports, in a module of their own because the help of the command line needs them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from dynamask.structures import DynaMaskError

DEFAULT_ONE_STAGE_WEIGHTS = ("shapes-solov2", "shapes-sodar", "shapes-sodar-mask")
"""Bundled weights for the reports of the SODAR paper, used where none are given."""
DEFAULT_TWO_STAGE_WEIGHTS = "shapes"
"""Bundled weights that are added to these in reports that compare both families."""
VOTING_IOUS = (0.7,)
REFINE_SETTINGS = ("1,0.75,0.5", "1,0.5,0.3", "1,0.4,0.2", "0.6,0.3,0.15", "0.4,0.2,0.1")
"""Settings of boundary refinement on the budget curve: shares of the cells at 28, 56 and 112."""


@dataclass(frozen=True)
class ReportOptions:
    """Options of a comparison of weights.

    Attributes:
        samples: resampled sets of pictures for means over instances, at least 2.
        ap_samples: the same for AP; at least 2.
        seed: seed of the resampling, the permutations and the other views.
        cache: folder for predictions; None keeps none.
        progress: show a bar for every pass over the pictures.
    """

    samples: int = 1000
    ap_samples: int = 200
    seed: int = 0
    cache: Path | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        for name, least in {"samples": 2, "ap_samples": 2, "seed": 0}.items():
            if getattr(self, name) < least:
                raise DynaMaskError(f"{name.replace('_', '-')} must be at least {least}; give a larger number")


@dataclass(frozen=True)
class CollectOptions:
    """Selects what is predicted for every picture.

    Attributes:
        true_boxes: masks in the true boxes.
        detections: detections with their masks.
        score: detections below it are left out.
        views: number of other views of each picture, for the noise-aware oracle.
        size_losses: the losses of every mask size, for Fig. 5.
    """

    true_boxes: bool = True
    detections: bool = True
    score: float = 0.05
    views: int = 0
    size_losses: bool = False


@dataclass(frozen=True)
class CurveOptions:
    """Options of the budget curve.

    Attributes:
        budgets: number of budgets, at least 2.
        views: number of other views of each picture for the noise-aware oracle, at least 0.
        permutations: number of permutations that a random choice on detections is averaged over, at least 1.
        refine: settings of boundary refinement that are measured beside the dense sizes, as "1,0.4,0.2".
    """

    budgets: int = 12
    views: int = 5
    permutations: int = 5
    refine: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in {"budgets": 2, "views": 0, "permutations": 1}.items():
            if getattr(self, name) < least:
                raise DynaMaskError(f"{name} must be at least {least}; give a larger number")


@dataclass(frozen=True)
class SpeedOptions:
    """Options of the timing of models.

    Attributes:
        rounds: timed runs of each case, at least 1.
        pictures: number of pictures; the rounds take them in turn; at least 1.
        detections: number of detections that every model keeps, whatever their scores, at least 1.
    """

    rounds: int = 15
    pictures: int = 5
    detections: int = 20

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise DynaMaskError(f"--{name} is {value}; give a whole number of at least 1")
