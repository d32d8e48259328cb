"""What a visitor can take away: pictures, COCO results and a table. Made in memory; no file is written."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from app.cells import CellInstances
from app.session import Session
from dynamask.data.pictures import read_picture
from dynamask.ops.rle import encode_rle
from dynamask.structures import MASK_SIZES
from dynamask.viz.overlay import draw_instances, draw_overlay
from dynamask.viz.style import LEVEL_COLOURS

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
    """PNG of the picture at its own size with fills, outlines and printed sizes; of one-stage weights with classes."""
    rows = [row for row, _ in picks]
    if isinstance(session.instances, CellInstances):
        return _png(_level_overlay(session, picks, opacity, boxes))
    return _png(
        draw_overlay(
            read_picture(session.source),
            _pasted(session, picks),
            [MASK_SIZES[k] for _, k in picks],
            session.instances.boxes[rows] if boxes else None,
            opacity=opacity,
        )
    )


def _level_overlay(session: Session, picks: Picks, opacity: float, boxes: bool) -> np.ndarray:
    """The picture (H, W, 3) with every mask in the colour of its level, class, score and level printed."""
    found, rows = session.instances, [row for row, _ in picks]
    texts = [f"{_class_name(session, row)} {found.scores[row]:.2f} L{found.level[row] + 1}" for row in rows]
    return draw_instances(
        read_picture(session.source),
        torch.from_numpy(_pasted(session, picks)),
        torch.from_numpy(found.boxes[rows]).reshape(-1, 4),
        torch.arange(len(rows)),
        texts,
        opacity,
        [LEVEL_COLOURS[found.level[row]] for row in rows],
        boxes,
    )


def _cell(session: Session, row: int) -> tuple[int, int, int]:
    """Level from 0, row and column of the cell that an instance of one-stage weights comes from."""
    level = int(session.instances.level[row])
    return level, *divmod(int(session.instances.cell[row]), session.levels["grids"][level])


def id_map(session: Session, picks: Picks) -> bytes:
    """PNG (16-bit grey) of the picture's size: 0 background, else the instance's number on the page; best on top."""
    ids = np.zeros(session.image_size, dtype=np.uint16)
    for (row, _), mask in zip(reversed(picks), reversed(_pasted(session, picks)), strict=True):
        ids[mask] = row + 1
    return _png(ids)


def coco_results(session: Session, picks: Picks) -> bytes:
    """JSON list of COCO results (RLE) with `macs` and `mask_size`, or `level` and `cell`; image_id 1."""
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
            "macs": int(session.macs[k]),
            **_origin(session, row, k),
        })  # fmt: skip
    return (json.dumps(results, indent=1) + "\n").encode()


def _origin(session: Session, row: int, k: int) -> dict[str, Any]:
    """What a result says about the resolution of its mask: its size, or the level (from 1) and the cell."""
    if session.levels is None:
        return {"mask_size": MASK_SIZES[k]}
    level, *cell = _cell(session, row)
    return {"level": level + 1, "cell": cell}


def table(session: Session, picks: Picks) -> bytes:
    """CSV, one row for each shown instance; text that a spreadsheet would run as a formula is quoted away."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if session.levels is not None:
        _level_table(session, picks, writer)
        return buffer.getvalue().encode()
    odds = [f"switch_{size}" for size in MASK_SIZES]
    truth = [f"{kind}_{size}" for kind in ("mask_iou", "boundary_iou") for size in MASK_SIZES]
    writer.writerow([*_START, "mask_size", "macs", *odds, *truth])
    found = session.instances
    for row, k in picks:
        quality = [*found.mask_iou[row].tolist(), *found.boundary_iou[row].tolist()]
        writer.writerow([
            *_start(session, row), MASK_SIZES[k], session.macs[k],
            *(f"{value:.4f}" for value in found.switch_probs[row]),
            *("" if math.isnan(value) else f"{value:.4f}" for value in quality),
        ])  # fmt: skip
    return buffer.getvalue().encode()


_START = ("instance", "class", "score", "x0", "y0", "x1", "y1")


def _start(session: Session, row: int) -> list[Any]:
    """The columns that every table begins with."""
    name, found = _class_name(session, row), session.instances
    return [row + 1, "'" + name if name[:1] in tuple("=+-@\t\r") else name, f"{found.scores[row]:.4f}",
            *(f"{value:.2f}" for value in found.boxes[row])]  # fmt: skip


def _level_table(session: Session, picks: Picks, writer: Any) -> None:
    """The rows of one-stage weights: level from 1, stride and cell in the place of size and switch."""
    writer.writerow([*_START, "level", "stride", "cell_row", "cell_column", "macs", "mask_iou", "boundary_iou"])
    for row, k in picks:
        level, down, across = _cell(session, row)
        quality = (float(session.instances.mask_iou[row, 0]), float(session.instances.boundary_iou[row, 0]))
        writer.writerow([
            *_start(session, row), level + 1, session.levels["strides"][level], down, across, session.macs[k],
            *("" if math.isnan(value) else f"{value:.4f}" for value in quality),
        ])  # fmt: skip


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
