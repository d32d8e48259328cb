"""What the canvas is sent: one JSON string with the picture, the masks and what the switch thinks.

The browser gets everything it needs to answer every control by itself: the picture, the switch's probabilities and the
four masks of each instance (M×M bytes, compressed), and what each size costs.
"""

from __future__ import annotations

import base64
import io
import json
import math
import zlib
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from app import cells
from app.session import Instances, Session
from dynamask.structures import MASK_SIZES
from dynamask.viz.style import SIZE_COLOURS, SIZE_OUTLINES, contrast_colour

LOWEST_SCORE = 0.05
"""Detections below this score are not sent to the browser."""

FIRST_SCORE = 0.5
"""Score threshold that the page starts with."""

VIEW_SIDE = 1600
"""Longest side, in pixels, of the picture that is sent to the browser."""

THUMBNAIL_SIDE = 144
"""Longest side of an example's thumbnail in pixels."""

PAPER_COLOURS: dict[int, str] = {14: "#FFFF00", 28: "#00B050", 56: "#0000FF", 112: "#FF0000"}
"""The paper's four colours, hard to tell apart for colour-blind eyes: offered, not the default."""

UInt8Array = npt.NDArray[np.uint8]


def as_json(value: Any) -> str:
    """JSON text without NaN, inert inside a page: `<` is escaped."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def jpeg_url(image: UInt8Array, longest_side: int, quality: int = 88) -> tuple[str, tuple[int, int]]:
    """The picture as a `data:` URL, shrunk to a longest side, and its (width, height) in pixels.

    Args:
        image: (H, W, 3) RGB.
        longest_side: in pixels; smaller pictures keep their size.
        quality: of the JPEG, 1-95.
    """
    picture = Image.fromarray(image)
    scale = min(1.0, longest_side / max(picture.size))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), picture.size


def encode_masks(instances: Instances) -> str:
    """All masks of all instances, as base64 of deflated bytes.

    Per instance the M×M masks from coarse to fine, row by row; a byte is the probability × 255, rounded.
    """
    grids = [grid.tobytes() for masks in instances.masks for grid in masks]
    return base64.b64encode(zlib.compress(b"".join(grids), 6)).decode("ascii")


def size_styles(colours: dict[int, str] = SIZE_COLOURS) -> list[dict[str, Any]]:
    """Colour, text colour and outline of each mask size, coarse to fine, as `dynamask.viz.overlay` draws them."""
    styles = []
    for size in MASK_SIZES:
        red, green, blue = contrast_colour(colours[size])
        text = f"#{red:02x}{green:02x}{blue:02x}"
        styles.append({"size": size, "colour": colours[size], "text": text, **asdict(SIZE_OUTLINES[size])})
    return styles


def encode_instances(instances: Instances, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Class, score, box (xyxy, pixels of the picture), switch probabilities and, where known, true quality of each."""
    rows = []
    for i, label in enumerate(instances.labels.tolist()):
        row = {
            "label": class_names[label] if label < len(class_names) else f"class {label}",
            "score": float(instances.scores[i]),
            "box": instances.boxes[i].tolist(),
            "probs": instances.switch_probs[i].tolist(),
            "drawn": bool(instances.drawn[i]),
        }
        if not math.isnan(instances.mask_iou[i, 0]):
            row["iou"] = instances.mask_iou[i].tolist()
            row["boundary"] = instances.boundary_iou[i].tolist()
        rows.append(row)
    return rows


def _shared(session: Session, image: UInt8Array) -> dict[str, Any]:
    """What a view says of either family: the picture, where it comes from, and the weights."""
    url, (width, height) = jpeg_url(image, VIEW_SIDE)
    return {
        "type": "view",
        "token": session.token,
        "weights": session.weights,
        "kind": session.kind,
        "key": session.key,
        "title": session.title,
        "credit": session.credit,
        "picture": url,
        "view": [width, height],
        "size": [int(image.shape[1]), int(image.shape[0])],
        "macs": list(session.macs),
        "truths": None if session.truth is None else len(session.truth),
        "timings": session.timings,
        "lowest_score": LOWEST_SCORE,
    }


def encode_view(session: Session, image: UInt8Array, switch_macs: int, image_macs: int) -> str:
    """Everything the canvas shows of a session, as one JSON string.

    Args:
        session: the picture and its instances.
        image: (H, W, 3) RGB, the decoded picture.
        switch_macs: of the switch, per instance.
        image_macs: of the whole picture, the switch left out.
    """
    view = {
        **_shared(session, image),
        "styles": size_styles(),
        "paper_styles": size_styles(PAPER_COLOURS),
        "switch_macs": switch_macs,
        "image_macs": image_macs,
        "instances": encode_instances(session.instances, session.class_names),
        "masks": encode_masks(session.instances),
        "score": FIRST_SCORE,
    }
    return as_json(view)


def encode_cell_view(session: Session, image: UInt8Array, image_macs: dict[str, int]) -> str:
    """Everything the canvas shows of a session of one-stage weights, as one JSON string.

    Args:
        session: the picture and its instances.
        image: (H, W, 3) RGB, the decoded picture.
        image_macs: of the network by part, once a picture.
    """
    shapes, masks = cells.encode_masks(session.instances, session.image_size)
    levels = session.levels or {}
    view = {
        **_shared(session, image),
        "family": "one-stage",
        "styles": cells.level_styles(),
        "levels": levels,
        "image_macs": sum(image_macs.values()),
        "instances": cells.encode_instances(session.instances, session.class_names, levels, shapes),
        "masks": base64.b64encode(zlib.compress(masks, 6)).decode("ascii"),
        "score": cells.FIRST_SCORE,
    }
    return as_json(view)


def encode_more(session: Session, added: Instances) -> str:
    """Instances that a visitor's box brought, as one JSON string."""
    return as_json({
        "type": "more",
        "token": session.token,
        "instances": encode_instances(added, session.class_names),
        "masks": encode_masks(added),
    })  # fmt: skip
