"""One-stage weights on the Explore tab, without Gradio: instances that come from cells, and what is behind each.

A one-stage model has one mask per instance and no switch. The page gets the masks at once; the grid, the neighbours and
their representations are asked for when an instance is selected.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dynamask.config import STRIDES
from dynamask.evaluation.mask_quality import mask_iou, quality_by_size
from dynamask.evaluation.matching import match_greedily
from dynamask.ops.rle import decode_rle, encode_rle
from dynamask.predict import Prediction
from dynamask.viz import cells
from dynamask.viz.style import LEVEL_COLOURS, Outline, contrast_colour

MASK_SIDE = 320
"""Longest side, in cells, of a mask that is sent to the browser."""
FIRST_SCORE = 0.3
"""Score threshold that the page starts with: scores after matrix NMS are lower than those of a detector."""
KEPT_PREDICTIONS = 2
"""Predictions whose network features are kept for the next click; more would fill the memory."""
LEVEL_OUTLINES = (
    Outline(width=5, core=True),
    Outline(width=3),
    Outline(width=3, dash=22, gap=6),
    Outline(width=3, dash=11, gap=6),
    Outline(width=3, dash=4, gap=5),
)
"""Outline of each level, fine to coarse."""


@dataclass(frozen=True)
class CellInstances:
    """R instances of a one-stage model, as a session keeps them.

    Attributes:
        boxes: (R, 4) xyxy in pixels of the picture, around the masks.
        labels: (R,) from 1.
        scores: (R,) 0–1.
        drawn: (R,) bool, never: such a model takes no boxes.
        level: (R,) 0 (fine) to 4 (coarse).
        cell: (R,) row · G + column.
        rles: R masks in COCO's RLE.
        mask_iou, boundary_iou: (R, 1) with the truth; NaN where none is known.
    """

    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    drawn: npt.NDArray[np.bool_]
    level: npt.NDArray[np.int64]
    cell: npt.NDArray[np.int64]
    rles: list[dict[str, Any]]
    mask_iou: npt.NDArray[np.float64]
    boundary_iou: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def of(cls, prediction: Prediction) -> CellInstances:
        """The instances of a prediction, as yet without truth."""
        unknown = np.full((len(prediction), 1), np.nan)
        return cls(
            prediction.boxes.double().numpy(),
            prediction.labels.numpy(),
            prediction.scores.double().numpy(),
            np.zeros(len(prediction), dtype=bool),
            prediction.cells.level.numpy(),
            prediction.cells.cell.numpy(),
            [encode_rle(mask) for mask in prediction.masks],
            unknown,
            unknown.copy(),
        )

    def pasted(self, row: int, _: int, image_size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """(H, W) mask of one instance; there is one size."""
        return decode_rle(self.rles[row])

    def judged(self, image_size: tuple[int, int], truth: npt.NDArray[np.bool_]) -> CellInstances:
        """The same with IoU and boundary IoU against the true shape that each mask overlaps the most, from IoU 0.5.

        The best scores choose first, and a shape is chosen once.

        Args:
            image_size: (H, W) in pixels.
            truth: (N, H, W) bool.
        """
        inner, outer = self.mask_iou.copy(), self.boundary_iou.copy()
        masks = [self.pasted(row, 0, image_size) for row in range(len(self))]
        ious = np.array([[mask_iou(mask, true) for true in truth] for mask in masks]).reshape(len(masks), len(truth))
        for row, match in enumerate(match_greedily(ious)):
            if match is not None:
                own, rim = quality_by_size(truth[match][None], [masks[row][None]])
                inner[row], outer[row] = own[0], rim[0]
        return dataclasses.replace(self, mask_iou=inner, boundary_iou=outer)


class Recent:
    """The last few predictions with their network features, by session."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Prediction] = OrderedDict()

    def put(self, token: str, prediction: Prediction) -> None:
        """Keep one without its masks, which are large; the one that was used longest ago goes."""
        cells_alone = dataclasses.replace(prediction.cells, masks=prediction.masks[:0])
        self._kept[token] = dataclasses.replace(prediction, cells=cells_alone)
        self._kept.move_to_end(token)
        while len(self._kept) > KEPT_PREDICTIONS:
            self._kept.popitem(last=False)

    def get(self, token: str) -> Prediction | None:
        """The prediction of a session, if it is still kept."""
        if token in self._kept:
            self._kept.move_to_end(token)
        return self._kept.get(token)


def level_styles() -> list[dict[str, Any]]:
    """Name, colour, text colour and outline of each level, fine to coarse."""
    styles = []
    for level, (colour, outline) in enumerate(zip(LEVEL_COLOURS, LEVEL_OUTLINES)):
        red, green, blue = contrast_colour(colour)
        text = f"#{red:02x}{green:02x}{blue:02x}"
        styles.append({"size": f"L{level + 1}", "colour": colour, "text": text, **dataclasses.asdict(outline)})
    return styles


def level_facts(prediction: Prediction) -> dict[str, list[Any]]:
    """Stride, grid and grid of representations of each level, and the padded frame (H, W) in pixels of the picture."""
    config, encoded = prediction.cells.model.config, prediction.cells.encoded
    sides = zip(encoded.frame, prediction.image_size, encoded.network_sizes[0])
    frame = [side * own / network for side, own, network in sides]
    grids = {"grids": list(config.grids), "mask_grids": list(config.representation_grids)}
    return {"strides": list(STRIDES), **grids, "frame": frame}


def encode_masks(instances: CellInstances, image_size: tuple[int, int]) -> tuple[list[list[int]], bytes]:
    """Each mask in its box, thinned out where it is large: its (rows, columns), and all bytes (probability × 255)."""
    shapes, parts = [], []
    for row, box in enumerate(instances.boxes):
        x0, y0, x1, y1 = np.rint(box).astype(int)
        mask = instances.pasted(row, 0, image_size)[y0:y1, x0:x1].astype(np.uint8) * 255
        scale = min(1.0, MASK_SIDE / max(mask.shape))
        if scale < 1:
            size = [max(1, round(side * scale)) for side in mask.shape[::-1]]
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
        shapes.append([int(side) for side in mask.shape])
        parts.append(mask.tobytes())
    return shapes, b"".join(parts)


def encode_instances(
    instances: CellInstances, class_names: tuple[str, ...], levels: dict[str, list[Any]], shapes: list[list[int]]
) -> list[dict[str, Any]]:
    """Class, score, box, level, cell, shape of the mask and, where known, true quality of each.

    `cell` is (row, column), `spot` the cell's centre (x, y) in pixels of the picture.
    """
    rows, (high, wide) = [], levels["frame"]
    for i, label in enumerate(instances.labels.tolist()):
        level = int(instances.level[i])
        grid = levels["grids"][level]
        down, across = divmod(int(instances.cell[i]), grid)
        row = {
            "label": class_names[label] if label < len(class_names) else f"class {label}",
            "score": float(instances.scores[i]),
            "box": instances.boxes[i].tolist(),
            "drawn": False,
            "level": level,
            "cell": [down, across],
            "spot": [(across + 0.5) * wide / grid, (down + 0.5) * high / grid],
            "shape": shapes[i],
        }
        if not math.isnan(instances.mask_iou[i, 0]):
            row |= {"iou": instances.mask_iou[i].tolist(), "boundary": instances.boundary_iou[i].tolist()}
        rows.append(row)
    return rows


def explained(prediction: Prediction, row: int) -> dict[str, Any]:
    """What is behind one instance, as JSON values; places are (x, y) in pixels of the picture."""
    view = prediction.cells.explain(row)
    crop = cells.object_crop(view, size=prediction.image_size)
    pictures = [_png_url(picture) for picture in cells.tile_pictures(view, crop)]
    places = [cells.position_text(place) for place in view.positions.tolist()]
    bases = [cells.position_text(place) for place in view.base.tolist()]
    tiles = [
        {"name": name, "place": place if not shift else f"{base} → {place}", "picture": picture}
        for name, place, base, shift, picture in zip(
            cells.place_names(view), places, bases, cells.moved(view), pictures
        )
    ]  # fmt: skip
    return {
        "frame": list(view.frame),
        "grid": view.grid,
        "mask_grid": view.mask_grid,
        "aggregated": view.neighbours is not None,
        "cell_box": list(cells.cell_box(view)),
        "base": cells.centres(view, view.base).tolist(),
        "positions": cells.centres(view, view.positions).tolist(),
        "moved": cells.moved(view),
        "crop": list(cells.crop_box(view, crop)),
        "tiles": tiles,
        "mask": pictures[-1],
        "limit": cells.logit_limit(view, crop),
        "scales": {"logit": cells.sampled_colours(cells.LOGIT_SCALE, 11),
                   "probability": cells.sampled_colours(cells.PROBABILITY_SCALE, 11)},
        "sentence": cells.cell_sentence(view),
        "macs": int(prediction.macs[row]),
    }  # fmt: skip


def answer_of(prediction: Prediction, weights: str) -> dict[str, Any]:
    """A prediction as the JSON object of /predict: level and cell instead of a mask size."""
    config = prediction.cells.model.config
    instances = []
    for i, coco in enumerate(prediction.to_coco(0)):
        level, cell = int(prediction.cells.level[i]), int(prediction.cells.cell[i])
        instances.append({
            "label": prediction.class_names[int(prediction.labels[i])], "category_id": coco["category_id"],
            "score": coco["score"], "box": prediction.boxes[i].tolist(), "level": level + 1, "stride": STRIDES[level],
            "cell": [cell // config.grids[level], cell % config.grids[level]], "macs": coco["macs"],
            "segmentation": coco["segmentation"],
        })  # fmt: skip
    return {
        "weights": weights,
        "family": "one-stage",
        "image_size": list(prediction.image_size),
        "grids": list(config.grids),
        "image_macs": prediction.image_macs,
        "mean_macs": float(prediction.macs.double().mean()) if len(prediction) else None,
        "instances": instances,
    }


def found_again(prediction: Prediction, instances: CellInstances, row: int) -> int | None:
    """The row of a prediction of the same picture that a kept instance is; None where it is not there."""
    found = prediction.cells
    same = (found.level == int(instances.level[row])) & (found.cell == int(instances.cell[row]))
    rows = torch.nonzero(same & (prediction.labels == int(instances.labels[row])))[:, 0].tolist()
    return rows[0] if rows else None


def _png_url(picture: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
