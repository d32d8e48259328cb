"""Options of the reports, apart from the code that makes them: the command line needs them for its help."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from dynamask.structures import DynaMaskError

DEFAULT_WEIGHTS = ("shapes-solov2", "shapes-sodar", "shapes-sodar-mask")
"""Bundled weights that the reports judge where none are given, as far as they are bundled."""
DEFAULT_RIVAL = "shapes"
"""DynaMask's beside them, where both families are compared."""
VOTING_IOUS = (0.7,)


@dataclass(frozen=True)
class TableOptions:
    """How to judge.

    Attributes:
        samples: resampled sets of pictures for means over instances, at least 2.
        ap_samples: the same for AP; at least 2.
        seed: of the resampling and of the other views.
        cache: folder for what was predicted; None keeps nothing.
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
class Wanted:
    """What is predicted of every picture.

    Attributes:
        given: masks in the true boxes.
        detected: detections.
        score: those below it are left out.
        views: how many other views of each picture the first weights with a switch see, for the noise-aware oracle.
        signals: keep the losses of every size of the first weights with a switch, for Fig. 5.
    """

    given: bool = True
    detected: bool = True
    score: float = 0.05
    views: int = 0
    signals: bool = False


@dataclass(frozen=True)
class CurveOptions:
    """What the curve has beside what every report is judged by (:class:`dynamask.reports.world.TableOptions`).

    Attributes:
        budgets: how many budgets, at least 2.
        views: other views of each picture for the noise-aware oracle, at least 0.
        permutations: how many permutations the random choice on detections is the mean over.
    """

    budgets: int = 12
    views: int = 5
    permutations: int = 5

    def __post_init__(self) -> None:
        for name, least in {"budgets": 2, "views": 0, "permutations": 1}.items():
            if getattr(self, name) < least:
                raise DynaMaskError(f"{name} must be at least {least}; give a larger number")


@dataclass(frozen=True)
class SpeedOptions:
    """How to time.

    Attributes:
        rounds: timed runs of each case, at least 1.
        pictures: that the rounds go through in turn, at least 1.
        detections: that every model keeps, the best whatever their scores, at least 1.
    """

    rounds: int = 15
    pictures: int = 5
    detections: int = 20

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise DynaMaskError(f"--{name} is {value}; give a whole number of at least 1")
