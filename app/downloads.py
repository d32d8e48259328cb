"""Files that a visitor can download: pictures, COCO results and a table. Made in memory; nothing is written to disk."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from app.images import decoded, png_bytes
from app.mask_encoding import mask_work
from app.session import Session, SessionInstances
from app.work import check_request
from dynamask.ops.rle import encode_rle
from dynamask.structures import MASK_SIZES
from dynamask.viz.overlay import draw_instances, draw_overlay
from dynamask.viz.style import LEVEL_COLOURS

Picks = Sequence[tuple[int, int]]
"""(row of the instance, index of its size) of the shown instances, best score first."""


def file_name(title: str, ending: str) -> str:
    """`dynamask-<title>-<ending>` with nothing but plain letters, digits and dashes in the title."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", title.rsplit(".", 1)[0]).strip("-").lower()[:48].strip("-")
    return f"dynamask-{words or 'picture'}-{ending}"


def spreadsheet_text(text: str) -> str:
    """A text that no spreadsheet runs as a formula: an apostrophe stands before what would be one."""
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text


def overlay(session: Session, picks: Picks, opacity: float, boxes: bool) -> bytes:
    """PNG of the picture with fills, outlines and printed sizes, or for one-stage weights class, score and level.

    Args:
        session: the picture and its instances.
        picks: the shown instances and their sizes.
        opacity: of the fills, 0–1.
        boxes: draw boxes.
    """
    image, found, rows = decoded(session.picture.source), session.instances, [row for row, _ in picks]
    masks = _masks(session, picks)
    if session.levels is None:
        sizes = [MASK_SIZES[k] for _, k in picks]
        drawn = draw_overlay(image, masks, sizes, found.boxes[rows] if boxes else None, opacity=opacity)
        return png_bytes(drawn)
    levels = found.level[rows].tolist()
    texts = [f"{found.names[row]} {found.scores[row]:.2f} L{level + 1}" for row, level in zip(rows, levels)]
    drawn = draw_instances(
        image,
        torch.from_numpy(masks),
        torch.from_numpy(found.boxes[rows]),
        torch.arange(len(rows)),
        texts,
        opacity,
        [LEVEL_COLOURS[level] for level in levels],
        boxes,
    )
    return png_bytes(drawn)


def _masks(session: Session, picks: Picks) -> np.ndarray:
    """(P, H, W) bool masks of the picks."""
    masks = np.zeros((len(picks), *session.image_size), dtype=bool)
    for i, (row, k) in enumerate(picks):
        check_request()
        masks[i] = session.instances.pasted(row, k, session.image_size)
    return masks


def instance_map(session: Session, picks: Picks) -> bytes:
    """PNG (16-bit grey): 0 for the background, else the number of the instance on the page, the best score on top."""
    ids = np.zeros(session.image_size, dtype=np.uint16)
    for row, k in reversed(picks):
        check_request()
        ids[session.instances.pasted(row, k, session.image_size)] = row + 1
    return png_bytes(ids)


def coco_results(session: Session, picks: Picks) -> bytes:
    """JSON list of COCO results (RLE) with `macs` and `mask_size`, or `level` (from 1) and `cell`; image_id 1.

    With a quality head `quality` is [mask IoU, boundary IoU] predicted for the mask.
    """
    results = []
    for row, k in picks:
        check_request()
        x0, y0, x1, y1 = session.instances.boxes[row].tolist()
        result = {
            "image_id": 1,
            "category_id": int(session.category_ids[session.instances.labels[row] - 1]),
            "score": float(session.instances.scores[row]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": encode_rle(session.instances.pasted(row, k, session.image_size)),
            "macs": session.macs[k],
        }
        if session.levels is None:
            result["mask_size"] = MASK_SIZES[k]
            if session.instances.quality is not None:
                result["quality"] = [round(value, 4) for value in session.instances.quality[row, k].tolist()]
        else:
            level, *cell = session.cell_of(row)
            result |= {"level": level + 1, "cell": cell}
        results.append(result)
    return (json.dumps(results, indent=1) + "\n").encode()


def instance_table(session: Session, picks: Picks) -> bytes:
    """CSV with one row for each shown instance; empty where no ground truth is known and no quality is predicted."""
    metrics, sizes = ("mask_iou", "boundary_iou"), MASK_SIZES
    columns = ["instance", "class", "score", "x0", "y0", "x1", "y1"]
    if session.levels is None:
        columns += ["mask_size", "macs", *(f"switch_{size}" for size in sizes)]
        columns += [f"{kind}{metric}_{size}" for kind in ("", "predicted_") for metric in metrics for size in sizes]
    else:
        columns += ["level", "stride", "cell_row", "cell_column", "macs", *metrics]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    found = session.instances
    for row, k in picks:
        cells: list[Any] = [
            row + 1,
            spreadsheet_text(found.names[row]),
            f"{found.scores[row]:.4f}",
        ]
        cells += [f"{side:.2f}" for side in found.boxes[row]]
        if session.levels is None:
            cells += [sizes[k], session.macs[k], *(f"{value:.4f}" for value in found.switch_probs[row])]
        else:
            level, down, across = session.cell_of(row)
            cells += [level + 1, session.levels["strides"][level], down, across, session.macs[k]]
        quality = [*found.mask_iou[row], *found.boundary_iou[row]]
        if session.levels is None:
            quality += _predicted(found, row)
        writer.writerow([*cells, *("" if math.isnan(value) else f"{value:.4f}" for value in quality)])
    return buffer.getvalue().encode()


def _predicted(found: SessionInstances, row: int) -> list[float]:
    """Predicted mask IoU of every size, then boundary IoU; NaN without a quality head."""
    if found.quality is None:
        return [math.nan] * (2 * len(MASK_SIZES))
    return found.quality[row].T.ravel().tolist()


FILES: dict[str, tuple[str, str]] = {
    "overlay": ("overlay.png", "image/png"),
    "ids": ("ids.png", "image/png"),
    "coco": ("results.json", "application/json"),
    "csv": ("instances.csv", "text/csv"),
}
"""The end of the file name and the media type of each file."""


def download(session: Session, what: str, picks: Picks, opacity: float, boxes: bool) -> dict[str, str]:
    """A file of `FILES` as `name`, `media` type and base64 `data`; see :func:`overlay` for the other arguments.

    Raises:
        DynaMaskError: masks above the limit of a request, or the current request has ended.
    """
    with mask_work(0 if what == "csv" else len(picks) * math.prod(session.image_size)):
        if what == "overlay":
            data = overlay(session, picks, opacity, boxes)
        else:
            data = {"ids": instance_map, "coco": coco_results, "csv": instance_table}[what](session, picks)
    name, media = FILES[what]
    text = base64.b64encode(data).decode("ascii")
    return {"type": "file", "name": file_name(session.picture.title, name), "media": media, "data": text}
