"""What lies behind the masks of one-stage weights: the grid, the cell, its neighbours and their representations.

The page asks for it when an instance is selected.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import torch

from app.images import png_url
from app.session import SessionInstances
from dynamask.predict import Prediction
from dynamask.viz import cells

KEPT_PREDICTIONS = 2
"""Predictions whose network features are kept for the next click; each may hold hundreds of megabytes."""


class RecentPredictions:
    """The last few predictions with their network features, by session."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Prediction] = OrderedDict()

    def put(self, token: str, prediction: Prediction) -> None:
        """Keep a prediction without its masks, which are large, and drop the one that was used longest ago."""
        small = dataclasses.replace(prediction.cells, masks=prediction.masks[:0].clone())
        self._kept[token] = dataclasses.replace(prediction, cells=small)
        self._kept.move_to_end(token)
        while len(self._kept) > KEPT_PREDICTIONS:
            self._kept.popitem(last=False)

    def get(self, token: str) -> Prediction | None:
        """The prediction of a session, if it is still kept."""
        if token in self._kept:
            self._kept.move_to_end(token)
        return self._kept.get(token)


def matching_row(prediction: Prediction, instances: SessionInstances, row: int) -> int | None:
    """The row in a new prediction of the same picture of an instance of a session; None where it is missing."""
    found = prediction.cells
    same = (found.level == int(instances.level[row])) & (found.cell == int(instances.cell[row]))
    rows = torch.nonzero(same & (prediction.labels == int(instances.labels[row])))[:, 0].tolist()
    return rows[0] if rows else None


def explanation(prediction: Prediction, row: int) -> dict[str, Any]:
    """What lies behind one instance, as JSON values; positions are (x, y) in pixels of the picture."""
    view = prediction.cells.explain(row)
    crop = cells.object_crop(view, size=prediction.image_size)
    moved = cells.moved(view)
    *pictures, mask = map(png_url, cells.tile_pictures(view, crop))
    tiles = []
    for i, (name, picture) in enumerate(zip(cells.place_names(view), pictures, strict=True)):
        place, base = (cells.position_text(positions[i].tolist()) for positions in (view.positions, view.base))
        tiles.append({"name": name, "place": f"{base} → {place}" if moved[i] else place, "picture": picture})
    return {
        "frame": list(view.frame),
        "grid": view.grid,
        "mask_grid": view.mask_grid,
        "aggregated": view.neighbours is not None,
        "cell_box": list(cells.cell_box(view)),
        "base": cells.centres(view, view.base).tolist(),
        "positions": cells.centres(view, view.positions).tolist(),
        "moved": moved,
        "crop": list(cells.crop_box(view, crop)),
        "tiles": tiles,
        "mask": mask,
        "limit": cells.logit_limit(view, crop),
        "scales": {
            "logit": cells.sampled_colours(cells.LOGIT_SCALE, 11),
            "probability": cells.sampled_colours(cells.PROBABILITY_SCALE, 11),
        },
        "sentence": cells.cell_sentence(view),
        "macs": int(prediction.macs[row]),
    }
