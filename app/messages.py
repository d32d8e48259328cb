"""Messages to the canvas as JSON text: the picture, its instances with their masks, and what the switch prefers.

The browser gets everything that it needs to answer every control by itself: the picture, the switch probabilities, the
masks of each instance at every size, and the cost of each size.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np

from app.images import UInt8Array, jpeg_url, shrunk
from app.session import Session, SessionInstances
from dynamask.structures import MASK_SIZES
from dynamask.viz.style import LEVEL_COLOURS, LEVEL_OUTLINES, SIZE_COLOURS, SIZE_OUTLINES, Outline, contrast_colour

VIEW_SIDE = 1600
"""Longest side, in pixels, of the picture that is sent to the browser."""
MASK_SIDE = 320
"""Longest side, in cells, of a one-stage mask that is sent to the browser."""
PAPER_COLOURS: dict[int, str] = {14: "#FFFF00", 28: "#00B050", 56: "#0000FF", 112: "#FF0000"}
"""The paper's colours of the sizes, which are hard to tell apart with colour blindness: an option, not the default."""


def as_json(value: Any) -> str:
    """JSON text without NaN, inert inside a page: `<` is escaped."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def size_styles(colours: dict[int, str] = SIZE_COLOURS) -> list[dict[str, Any]]:
    """Colour, text colour and outline of each mask size, coarse to fine, as `dynamask.viz.overlay` draws them."""
    return [_style(size, colours[size], SIZE_OUTLINES[size]) for size in MASK_SIZES]


def level_styles() -> list[dict[str, Any]]:
    """Name, colour, text colour and outline of each level, fine to coarse."""
    looks = zip(LEVEL_COLOURS, LEVEL_OUTLINES, strict=True)
    return [_style(f"L{level}", colour, outline) for level, (colour, outline) in enumerate(looks, start=1)]


def _style(name: int | str, colour: str, outline: Outline) -> dict[str, Any]:
    text = "#{:02x}{:02x}{:02x}".format(*contrast_colour(colour))
    return {"size": name, "colour": colour, "text": text, **asdict(outline)}


def view_message(session: Session, image: UInt8Array) -> str:
    """A picture with everything that the canvas shows of it.

    Args:
        session: the picture and its instances.
        image: (H, W, 3) RGB, the decoded picture.
    """
    shown = shrunk(image, VIEW_SIDE)
    picture = session.picture
    view = {
        "type": "view",
        "token": session.token,
        "weights": session.weights,
        "kind": picture.kind,
        "key": picture.key,
        "title": picture.title,
        "credit": picture.credit,
        "picture": jpeg_url(shown),
        "view": [shown.shape[1], shown.shape[0]],
        "size": [image.shape[1], image.shape[0]],
        "macs": list(session.macs),
        "image_macs": session.image_macs,
        "truths": None if picture.truth is None else len(picture.truth),
        "timings": session.timings,
        "lowest_score": session.lowest_score,
        "score": session.display_score,
        **_instances(session, session.instances),
    }
    if session.levels is None:
        styles = {"styles": size_styles(), "paper_styles": size_styles(PAPER_COLOURS)}
        own = {"switch_macs": session.switch_macs, "cells": list(session.cells)}
        return as_json({**view, **styles, **own, "predicts_quality": session.instances.quality is not None})
    own = {"family": "one-stage", "styles": level_styles(), "levels": session.levels}
    return as_json({**view, **own})


def more_message(session: Session, added: SessionInstances) -> str:
    """Instances for boxes that the visitor drew."""
    return as_json({"type": "more", "token": session.token, **_instances(session, added)})


def _instances(session: Session, found: SessionInstances) -> dict[str, Any]:
    """`instances`, a list of objects, and `masks`, all their masks as base64 of deflated bytes."""
    rows = [_instance(session, found, i) for i in range(len(found))]
    if session.levels is None:
        for row, choice in zip(rows, _choices(found)):
            row.update(choice)
    if found.rles is None:
        masks = [grid for grids in found.grids for grid in grids]
    else:
        masks = _cropped_masks(found, session.image_size)
        for row, mask in zip(rows, masks):
            row["shape"] = list(mask.shape)
    packed = zlib.compress(b"".join(mask.tobytes() for mask in masks), 6)
    return {"instances": rows, "masks": base64.b64encode(packed).decode("ascii")}


def _choices(found: SessionInstances) -> Iterator[dict[str, Any]]:
    """For each instance `probs` of the switch; `values`, which a budget maximises; `chosen`, the index of its size by
    policy; and with a quality head `quality`, predicted mask IoU and boundary IoU of each size.
    """
    values, chosen = found.preferences(), found.choices()
    for i in range(len(found)):
        row = {
            "probs": found.switch_probs[i].tolist(),
            "values": values[i].tolist(),
            "chosen": {policy: int(choice[i]) for policy, choice in chosen.items()},
        }
        yield row if found.quality is None else {**row, "quality": found.quality[i].tolist()}


def _cropped_masks(found: SessionInstances, image_size: tuple[int, int]) -> list[UInt8Array]:
    """Each one-stage mask inside its box (0 or 255), averaged to at most `MASK_SIDE` cells where it is large."""
    masks = []
    for row, box in enumerate(found.boxes):
        x0, y0, x1, y1 = np.rint(box).astype(int)
        mask = found.pasted(row, 0, image_size)[y0:y1, x0:x1].astype(np.uint8) * 255
        scale = MASK_SIDE / max(mask.shape)
        if scale < 1:
            size = [max(1, round(side * scale)) for side in mask.shape[::-1]]
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
        masks.append(mask)
    return masks


def _instance(session: Session, found: SessionInstances, i: int) -> dict[str, Any]:
    """Class, score and origin of an instance, its box and what its mask covers (`mask_box`), both xyxy in pixels of the
    picture, and its quality where it is known.

    For one-stage weights: `level`, `cell` (row, column) and `spot`, the cell's centre (x, y) in pixels of the picture.
    """
    row: dict[str, Any] = {
        "label": found.names[i],
        "score": float(found.scores[i]),
        "box": found.boxes[i].tolist(),
        "mask_box": found.mask_boxes[i].tolist(),
        "drawn": bool(found.drawn[i]),
    }
    if session.levels is not None:
        level, down, across = session.cell_of(i)
        (height, width), grid = session.levels["frame"], session.levels["grids"][level]
        spot = [(across + 0.5) * width / grid, (down + 0.5) * height / grid]
        row |= {"level": level, "cell": [down, across], "spot": spot}
    if not math.isnan(found.mask_iou[i, 0]):
        row |= {"iou": found.mask_iou[i].tolist(), "boundary": found.boundary_iou[i].tolist()}
    return row
