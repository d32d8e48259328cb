"""The weights that visitors can choose from; each is loaded once, when it is first used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.limits import LIMITS
from app.work import MODEL
from dynamask.models.weights import list_bundled
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from dynamask.predict import Prediction, Predictor

ABOUT = {
    "things": "photographs, 80 classes",
    "shapes": "shapes scenes",
    "shapes-solov2": "shapes scenes, one-stage",
    "shapes-sodar": "one-stage, aggregation",
    "shapes-sodar-mask": "one-stage, coarser mask grid",
}
"""A few words on each set of bundled weights."""
ONE_STAGE_MASKS = 100
"""Largest number of objects that one-stage weights find in a picture."""
TRAINED_FOR = {"scene": "shapes", "photo": "things"}
"""The weights for each kind of picture."""


class SharedPredictor:
    """A predictor that computes for one request at a time; everything else is that of the predictor itself.

    Args:
        predictor: of any family.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def __call__(self, image: Any, **options: Any) -> Prediction:
        """Predict on one image, see :class:`dynamask.predict.Predictor`.

        Raises:
            DynaMaskError: as the predictor does, or the current request ended while it waited.
        """
        with MODEL():
            return self._predictor(image, **options)

    def check_size(self, height: int, width: int) -> None:
        """Raise :class:`DynaMaskError` for a picture that is too large for one-stage weights, whose masks are kept as
        whole pictures."""
        most = LIMITS.mask_megapixels * 1_000_000 // ONE_STAGE_MASKS
        if not self._predictor.mask_sizes and height * width > most:
            raise DynaMaskError(
                f"one-stage weights take pictures of at most {most / 1e6:.1f} million pixels here, and this one has "
                f"{height * width / 1e6:.1f}; make it smaller, or choose two-stage weights"
            )


class WeightsCatalog:
    """Named weights and their predictors.

    Args:
        load: returns the predictor of weights, given a bundled name or the path of a .safetensors file.
        first: the weights that the page opens with.
        bundled: names of other weights on offer.

    Attributes:
        names: of all weights, the opening ones first.
        first: name of the opening weights.
    """

    def __init__(self, load: Callable[[str], Predictor], first: str, bundled: list[str]) -> None:
        path = Path(first)
        self.first = path.stem if path.suffix == ".safetensors" else first
        self.names = [self.first, *(name for name in bundled if name != self.first)]
        self._sources = {**{name: name for name in self.names}, self.first: first}
        self._load, self._lock = load, threading.Lock()
        self._loaded: dict[str, SharedPredictor] = {}

    def get(self, name: str) -> SharedPredictor:
        """The predictor of weights by their name.

        Raises:
            DynaMaskError: no weights have this name, or they cannot be loaded.
        """
        if not isinstance(name, str) or name not in self._sources:
            raise DynaMaskError(f"there are no weights {str(name)[:40]!r} here; choose one of {', '.join(self.names)}")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = SharedPredictor(self._load(self._sources[name]))
            return self._loaded[name]

    def suitable(self, kind: str, present: str) -> str:
        """The weights for a picture: the present ones, unless they are those for the other kind.

        Args:
            kind: "scene" or "photo".
            present: the weights in use.
        """
        other = TRAINED_FOR["photo" if kind == "scene" else "scene"]
        return TRAINED_FOR[kind] if present == other and TRAINED_FOR[kind] in self.names else present

    def choices(self) -> list[dict[str, str]]:
        """`name` and `about`, a few words, of all weights."""
        return [{"name": name, "about": ABOUT.get(name, "")} for name in self.names]


def open_catalog(first: str, device: str, backend: str | None = None) -> WeightsCatalog:
    """The bundled weights and the ones that the page opens with; the latter are loaded at once.

    Args:
        first: bundled name or the path of a .safetensors file.
        device: a device of torch, or "auto".
        backend: of inference, see :func:`dynamask.predict.load`; by default openvino on the CPU if it is installed.

    Raises:
        DynaMaskError: the first weights, the device or the back end cannot be used, or the weights are two-stage and
            have no switch, or are those of CondInst.
    """
    from dynamask.models.openvino import is_installed
    from dynamask.ops.devices import AUTO, best_device
    from dynamask.predict import load

    on_cpu = device == "cpu" or (device == AUTO and best_device() == "cpu")
    backend = backend or ("openvino" if on_cpu and is_installed() else "torch")
    catalog = WeightsCatalog(lambda source: load(source, device, backend=backend), first, list(list_bundled()))
    opening = catalog.get(catalog.first)
    if opening.mask_sizes:
        opening.check_switch("the page")
    elif opening.model.config.detector_kind == "condinst":
        raise DynaMaskError("the app shows grid cells, and CondInst has none; use `dynamask predict` for its weights")
    return catalog
