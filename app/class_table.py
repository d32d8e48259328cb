"""Tables of the Classes tab: which mask sizes each class gets, and which it needs.

A table is a JSON object. For bundled weights it travels beside them as `checkpoints/NAME.classes.json` (written by
`tools/class_shares.py`):

    format              "dynamask-classes-1"
    weights, data       names of the weights and of the data
    pictures, instances number of each
    boxes               "gt" (true boxes), "detected", or null where no weights took part
    score               minimum score of detections, or null
    macs                mean MACs per instance, or null
    classes             [{name, instances, mean_size, shares, quality, needs}, …]

`shares` are shares of the four sizes (0–1, coarse to fine) and `quality` the mean boundary IoU of the predicted masks
at each size; `needs` holds `instances`, `mask_iou` and `boundary_iou` of ideal masks by size, and the smallest size
that reaches 0.95: `needed_size_mask`, `needed_size_boundary` (null: none does). Unknown values are null.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.downloads import spreadsheet_text
from dynamask.data.coco_format import read_coco
from dynamask.data.pictures import PictureSource
from dynamask.data.sources import Data
from dynamask.engine.evaluate import Collector, EvaluationOptions
from dynamask.evaluation.ideal_masks import METRICS, NEEDS, IdealQuality, ideal_quality, summarise
from dynamask.models.weights import checkpoint_dir, list_bundled
from dynamask.predict import Predictor
from dynamask.reports.classes import class_names_of, class_rows
from dynamask.structures import MASK_SIZES, DynaMaskError

FORMAT = "dynamask-classes-1"


def table_path(name: str) -> Path:
    """Path of the table of bundled weights."""
    return checkpoint_dir() / f"{name}.classes.json"


def bundled_tables() -> dict[str, dict[str, Any]]:
    """The tables of the bundled weights that have one, by name; unreadable ones are left out."""
    found = {}
    for name in list_bundled():
        try:
            table = json.loads(table_path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(table, dict) and table.get("format") == FORMAT:
            found[name] = table
    return found


def rows_in_true_boxes(
    predictor: Predictor, dataset: Data, indices: Sequence[int]
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Predict masks in true boxes; yields (pictures done, rows of the classes as `class_rows` makes them).

    The rows are those of all pictures, and empty before the last one is done.

    Raises:
        DynaMaskError: weights and data have no class in common, or a picture cannot be read.
    """
    collector = Collector(predictor, dataset, EvaluationOptions(boxes="gt"), every_size=True)
    found = collector.instances
    for done, index in enumerate(indices, start=1):
        collector.add(*dataset[index])
        found.rles.clear()  # masks of every size are not needed any more
        if done < len(indices):
            yield done, []
    names = class_names_of(found, dataset)
    known = [i for i, name in enumerate(names) if name is not None]
    choice = np.array(found.choice, dtype=np.int64)[known]
    yield len(indices), class_rows([str(names[i]) for i in known], choice, found.quality("boundary_iou")[known])


def rows_of_detections(
    predictor: Predictor, pictures: Iterable[PictureSource], count: int
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Detect objects at the default score of the weights; yields as `rows_in_true_boxes`, without quality.

    Args:
        pictures: `count` pictures, which are read one after the other.
    """
    names: list[str] = []
    sizes: list[int] = []
    for done, picture in enumerate(pictures, start=1):
        prediction = predictor(picture)
        names += [predictor.class_names[label] for label in prediction.labels.tolist()]
        sizes += [MASK_SIZES.index(size) for size in prediction.mask_size.tolist()]
        if done < count:
            yield done, []
    unknown = np.full((len(names), len(MASK_SIZES)), np.nan)
    yield count, class_rows(names, np.array(sizes, dtype=np.int64), unknown)


def ideal(coco: dict[str, Any], min_area: float = 0.0) -> Iterator[tuple[int, IdealQuality]]:
    """Quality of ideal masks, picture by picture; yields (pictures done, quality of the picture, at the end of all).

    Args:
        coco: a checked COCO dict.
        min_area: of counted instances, in pixels².
    """
    content = read_coco(coco)
    by_image: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {image["id"]: [] for image in coco["images"]}
    for annotation, rle in zip(content.coco["annotations"], content.rles, strict=True):
        by_image[annotation["image_id"]].append((annotation, rle))
    parts: list[IdealQuality] = []
    for done, pairs in enumerate(by_image.values(), start=1):
        part = {**coco, "annotations": [annotation for annotation, _ in pairs]}
        parts.append(ideal_quality(part, [rle for _, rle in pairs], min_area))
        yield done, _joined(parts) if done == len(by_image) else parts[-1]


def _joined(parts: Sequence[IdealQuality]) -> IdealQuality:
    """Several pictures' quality as one."""
    names = tuple(name for part in parts for name in part.class_names)
    return IdealQuality(names, *(np.concatenate([getattr(part, key) for part in parts]) for key in ("areas", *METRICS)))


def make_table(
    rows: Sequence[dict[str, Any]],
    needs: IdealQuality | None,
    weights: str,
    data: str,
    pictures: int,
    boxes: str | None,
    macs: Sequence[int] | None = None,
    score: float | None = None,
) -> dict[str, Any]:
    """The table of a data set, see the module's docstring.

    Args:
        rows: of the classes, from `class_rows`; empty without weights.
        needs: quality of ideal masks; None without annotations.
        weights: their name.
        data: name of the data.
        pictures: their number.
        boxes: "gt", "detected" or None.
        macs: (4,) MACs of an instance at each size.
        score: minimum score of detections.

    Raises:
        DynaMaskError: there is no instance at all.
    """
    summary = {} if needs is None else summarise(needs)["classes"]
    by_name = {row["class"]: row for row in rows}
    names = [*by_name, *(name for name in summary if name not in by_name)]
    if not names:
        raise DynaMaskError("no object was found in these pictures; upload others")
    classes = [_entry(name, by_name.get(name), summary.get(name)) for name in names]
    counted = [entry for entry in classes if entry["shares"] is not None]
    total = sum(entry["instances"] for entry in counted)
    mean = None
    if macs is not None and total:
        spent = (entry["instances"] * float(np.dot(entry["shares"], macs)) for entry in counted)
        mean = sum(spent) / total
    return {
        "format": FORMAT,
        "weights": weights,
        "data": data,
        "pictures": pictures,
        "instances": total or sum(entry["instances"] for entry in classes),
        "boxes": boxes,
        "score": score,
        "macs": mean,
        "full_macs": None if macs is None else int(macs[-1]),
        "classes": classes,
    }


def _entry(name: str, row: dict[str, Any] | None, needs: dict[str, Any] | None) -> dict[str, Any]:
    """One class of a table."""
    entry: dict[str, Any] = {"name": name, "instances": 0, "mean_size": None, "shares": None, "quality": None}
    if row is not None:
        quality = [row[f"boundary_iou_{size}"] for size in MASK_SIZES]
        entry |= {
            "instances": row["instances"],
            "mean_size": row["mean_size"],
            "shares": [row[f"share_{size}"] for size in MASK_SIZES],
            "quality": None if None in quality else quality,
        }
    kept = None
    if needs is not None and needs["instances"]:
        kept = {"instances": needs["instances"]}
        kept |= {metric: [needs[metric][str(size)] for size in MASK_SIZES] for metric in METRICS}
        kept |= {key: needs[key] for key in NEEDS.values()}
        entry["instances"] = entry["instances"] or needs["instances"]
    return {**entry, "needs": kept}


def csv_text(table: dict[str, Any]) -> str:
    """A table as CSV: one row per class, empty cells for unknown values."""
    text = io.StringIO()
    kinds = ("share", "boundary_iou", *(f"ideal_{metric}" for metric in METRICS))
    sized = [f"{kind}_{size}" for kind in kinds for size in MASK_SIZES]
    writer = csv.DictWriter(text, ["class", "instances", "mean_size", *sized, *NEEDS.values()], lineterminator="\n")
    writer.writeheader()
    for entry in table["classes"]:
        needs = entry["needs"] or {}
        row = {"class": spreadsheet_text(entry["name"]), **{key: entry[key] for key in ("instances", "mean_size")}}
        columns = {"share": entry["shares"], "boundary_iou": entry["quality"]}
        columns |= {f"ideal_{metric}": needs.get(metric) for metric in METRICS}
        for what, values in columns.items():
            row |= {f"{what}_{size}": values[k] for k, size in enumerate(MASK_SIZES)} if values else {}
        writer.writerow({**row, **{key: needs.get(key) for key in NEEDS.values()}})
    return text.getvalue()
