"""What a visitor can take away: pictures, COCO results and a table. Made in memory; no file is written."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from app.session import Session
from dynamask.data.pictures import read_picture
from dynamask.ops.rle import encode_rle
from dynamask.structures import MASK_SIZES
from dynamask.viz.overlay import draw_overlay

Picks = Sequence[tuple[int, int]]
"""(row of the instance, index of its size) of the shown instances, best score first."""


def safe_name(title: str, what: str) -> str:
    """A file name of plain letters, digits and dashes: `dynamask-<title>-<what>`."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", title.rsplit(".", 1)[0]).strip("-").lower()[:48].strip("-")
    return f"dynamask-{words or 'picture'}-{what}"


def _pasted(session: Session, picks: Picks) -> np.ndarray:
    """(P, H, W) bool masks of the picks."""
    masks = [session.instances.pasted(row, k, session.image_size) for row, k in picks]
    return np.stack(masks) if masks else np.zeros((0, *session.image_size), dtype=bool)


def _class_name(session: Session, row: int) -> str:
    label = int(session.instances.labels[row])
    return session.class_names[label] if label < len(session.class_names) else f"class {label}"


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def overlay(session: Session, picks: Picks, opacity: float, boxes: bool) -> bytes:
    """PNG of the picture at its own size with fills, outlines and printed sizes."""
    rows = [row for row, _ in picks]
    return _png(
        draw_overlay(
            read_picture(session.source),
            _pasted(session, picks),
            [MASK_SIZES[k] for _, k in picks],
            session.instances.boxes[rows] if boxes else None,
            opacity=opacity,
        )
    )


def id_map(session: Session, picks: Picks) -> bytes:
    """PNG (16-bit grey) of the picture's size: 0 background, else the instance's number on the page; best on top."""
    ids = np.zeros(session.image_size, dtype=np.uint16)
    for (row, _), mask in zip(reversed(picks), reversed(_pasted(session, picks)), strict=True):
        ids[mask] = row + 1
    return _png(ids)


def coco_results(session: Session, picks: Picks) -> bytes:
    """JSON list of COCO results (RLE) with `mask_size` and `macs`; image_id 1."""
    results = []
    for row, k in picks:
        x0, y0, x1, y1 = session.instances.boxes[row].tolist()
        label = int(session.instances.labels[row])
        known = 1 <= label <= len(session.category_ids)
        results.append({
            "image_id": 1,
            "category_id": int(session.category_ids[label - 1]) if known else label,
            "score": float(session.instances.scores[row]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": encode_rle(torch.from_numpy(session.instances.pasted(row, k, session.image_size))),
            "mask_size": MASK_SIZES[k],
            "macs": int(session.macs[k]),
        })  # fmt: skip
    return (json.dumps(results, indent=1) + "\n").encode()


def table(session: Session, picks: Picks) -> bytes:
    """CSV, one row for each shown instance; text that a spreadsheet would run as a formula is quoted away."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    odds = [f"switch_{size}" for size in MASK_SIZES]
    truth = [f"{kind}_{size}" for kind in ("mask_iou", "boundary_iou") for size in MASK_SIZES]
    writer.writerow(["instance", "class", "score", "x0", "y0", "x1", "y1", "mask_size", "macs", *odds, *truth])
    found = session.instances
    for row, k in picks:
        name = _class_name(session, row)
        quality = [*found.mask_iou[row].tolist(), *found.boundary_iou[row].tolist()]
        writer.writerow([
            row + 1, "'" + name if name[:1] in tuple("=+-@\t\r") else name, f"{found.scores[row]:.4f}",
            *(f"{value:.2f}" for value in found.boxes[row]), MASK_SIZES[k], session.macs[k],
            *(f"{value:.4f}" for value in found.switch_probs[row]),
            *("" if math.isnan(value) else f"{value:.4f}" for value in quality),
        ])  # fmt: skip
    return buffer.getvalue().encode()


KINDS: dict[str, tuple[str, str]] = {
    "overlay": ("overlay.png", "image/png"),
    "ids": ("ids.png", "image/png"),
    "coco": ("results.json", "application/json"),
    "csv": ("instances.csv", "text/csv"),
}
"""What can be exported: the end of its file name and its media type."""


def export(session: Session, what: str, picks: Picks, opacity: float, boxes: bool) -> dict[str, str]:
    """One export as `name`, `media` type and base64 `data`; `what` is a key of ``KINDS``."""
    makers: dict[str, Callable[[], bytes]] = {
        "overlay": lambda: overlay(session, picks, opacity, boxes),
        "ids": lambda: id_map(session, picks),
        "coco": lambda: coco_results(session, picks),
        "csv": lambda: table(session, picks),
    }
    ending, media = KINDS[what]
    data = base64.b64encode(makers[what]()).decode("ascii")
    return {"type": "file", "name": safe_name(session.title, ending), "media": media, "data": data}
