"""Predict every picture once and keep what the reports need: true boxes, the same seen again, and detections."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dynamask.data.sources import Data
from dynamask.engine.evaluate import (
    EvaluationOptions,
    Instances,
    Predicts,
    add_picture,
    category_map,
    known_instances,
)
from dynamask.evaluation.mask_quality import quality_by_size
from dynamask.files import replacing
from dynamask.structures import MASK_SIZES, DynaMaskError

MEASURES = ("mask_iou", "boundary_iou")
SHIFT, STRETCH = 0.04, 0.08
"""Largest shift of a box (of its sides) and stretch (of each side) in another view."""


@dataclass
class Collected:
    """The instances of a data set with the masks of every size.

    Attributes:
        given: in their true boxes.
        found: detected; None where they were not wanted.
        views: by measure (V, N, 4) quality of ``given`` in V other views of the same pictures.
    """

    given: Instances = field(default_factory=Instances)
    found: Instances | None = None
    views: dict[str, np.ndarray] = field(
        default_factory=lambda: {m: np.zeros((0, 0, len(MASK_SIZES))) for m in MEASURES}
    )


def collect_all(
    predictor: Predicts,
    dataset: Data,
    indices: Sequence[int],
    given: bool = True,
    detected: bool = True,
    views: int = 0,
    seed: int = 0,
    progress: bool = False,
    score: float = 0.05,
) -> Collected:
    """One pass over the pictures.

    Args:
        given: predict in the true boxes.
        detected: predict with the weights' own detections, matched to true instances.
        views: how often to see each picture again, flipped every other time, with shifted and stretched true boxes.
        seed: of the shifts, together with the image id.
        score: detections below it are left out.
    """
    categories, kept = category_map(predictor, dataset), Collected(found=Instances() if detected else None)
    seen: list[np.ndarray] = []
    pictures: Iterable[int] = tqdm(indices, unit="picture", disable=not progress, dynamic_ncols=True)
    for index in pictures:
        image, target = dataset[index]
        shared = (predictor, image, target, categories, dataset.category_ids)
        if given:
            add_picture(kept.given, *shared, EvaluationOptions(boxes="gt"), True)
        if kept.found is not None:
            add_picture(kept.found, *shared, EvaluationOptions(policy="oracle", score=score), True)  # it matches
        if views:
            seen.append(other_views(*shared, views, seed))
    kept.given.rles = [{} for _ in kept.given.rles]  # only detections are judged by AP
    if views and seen:
        both = np.concatenate(seen, axis=2)  # (2, V, N, 4)
        kept.views = dict(zip(MEASURES, both))
    return kept


def other_views(
    predictor: Predicts,
    image: Tensor,
    target: dict[str, Any],
    categories: dict[int, int],
    category_ids: Sequence[int],
    views: int,
    seed: int,
) -> np.ndarray:
    """Mask and boundary IoU (2, V, n, 4) of the true instances of one picture, seen again V times.

    View 0, 2, … shows the picture flipped left to right; every view has its own shifts and stretches of the boxes.
    """
    rows, labels = known_instances(target, categories, category_ids)
    quality = np.zeros((2, views, len(rows), len(MASK_SIZES)))
    if not rows:
        return quality
    rng = np.random.default_rng([seed, abs(int(target["image_id"]))])
    size = (int(image.shape[1]), int(image.shape[2]))
    boxes = [_jittered(target["boxes"][rows].numpy(), size, rng) for _ in range(views)]
    for flipped in (True, False):
        own = list(range(0 if flipped else 1, views, 2))
        if not own:
            continue
        seen = image.flip(2) if flipped else image
        truth = target["masks"][rows].numpy().astype(bool)
        given = np.concatenate([boxes[v] for v in own])
        if flipped:
            truth = truth[:, :, ::-1]
            given = given[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [size[1], 0, size[1], 0]
        pixels = seen.permute(1, 2, 0).contiguous().numpy()
        prediction = predictor(pixels, boxes=given.astype(np.float32), labels=labels * len(own), all_sizes=True)
        for position, view in enumerate(own):
            part = range(position * len(rows), (position + 1) * len(rows))
            masks = [np.stack([prediction.mask_at(i, s).numpy() for i in part]) for s in MASK_SIZES]
            quality[:, view] = quality_by_size(truth, masks)
    return quality


def _jittered(boxes: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Boxes (n, 4) xyxy, shifted and stretched, cut to a picture of (height, width); tiny ones stay as they are."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2 + rng.uniform(-SHIFT, SHIFT, sides.shape) * sides
    half = sides * rng.uniform(1 - STRETCH, 1 + STRETCH, sides.shape) / 2
    limit = np.array([size[1], size[0], size[1], size[0]])
    moved = np.clip(np.concatenate([centre - half, centre + half], axis=1), 0, limit)
    usable = (moved[:, 2:] - moved[:, :2]).min(axis=1) >= 1
    return np.where(usable[:, None], moved, boxes)


def annotations_of(found: Instances, dataset: Data) -> list[dict[str, Any] | None]:
    """The annotation of every instance, None for a detection that matches none."""
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in dataset.coco["annotations"]:
        if not annotation.get("iscrowd"):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    return [
        None if row is None else by_image[result["image_id"]][row] for result, row in zip(found.results, found.truth)
    ]


def save_collected(kept: Collected, path: Path, key: dict[str, Any]) -> None:
    """Write to an .npz file, atomically; ``key`` says what it was collected from."""
    arrays: dict[str, np.ndarray] = {"key": np.array(json.dumps(key, sort_keys=True))}
    arrays |= {f"views_{measure}": values for measure, values in kept.views.items()}
    for name, part in (("given", kept.given), ("found", kept.found)):
        if part is not None:
            arrays |= {f"{name}_{column}": values for column, values in _to_arrays(part).items()}
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def load_collected(path: Path, key: dict[str, Any]) -> Collected | None:
    """Read what :func:`save_collected` wrote, None where there is no such file.

    Raises:
        DynaMaskError: the file is no such cache, or was collected from something else.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        same = str(arrays["key"]) == json.dumps(key, sort_keys=True)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DynaMaskError(f"--cache {path} is no cache of a report; delete it or give another file") from error
    if not same:
        raise DynaMaskError(
            f"--cache {path} was collected from other weights, data or settings; delete it or give another file"
        )
    parts = {
        name: _from_arrays({k.removeprefix(f"{name}_"): v for k, v in arrays.items() if k.startswith(f"{name}_")})
        for name in ("given", "found")
        if f"{name}_score" in arrays
    }
    views = {measure: arrays[f"views_{measure}"] for measure in MEASURES}
    return Collected(parts["given"], parts.get("found"), views)


def _to_arrays(part: Instances) -> dict[str, np.ndarray]:
    """Instances as arrays; run lengths as one stretch of bytes with the length of each."""
    counts = [rle["counts"] for rles in part.rles for _, rle in sorted(rles.items())]
    packed = [c.encode("ascii") if isinstance(c, str) else c for c in counts]
    return {
        "image_id": np.array([r["image_id"] for r in part.results], dtype=np.int64),
        "category_id": np.array([r["category_id"] for r in part.results], dtype=np.int64),
        "score": np.array([r["score"] for r in part.results], dtype=np.float64),
        "bbox": np.array([r["bbox"] for r in part.results], dtype=np.float64).reshape(-1, 4),
        "logits": part.logits().numpy(),
        "choice": np.array(part.choice, dtype=np.int64),
        "truth": np.array([-1 if t is None else t for t in part.truth], dtype=np.int64),
        "mask_iou": part.quality("mask_iou"),
        "boundary_iou": part.quality("boundary_iou"),
        "rle_sizes": np.array([next(iter(r.values()))["size"] if r else (0, 0) for r in part.rles]).reshape(-1, 2),
        "rle_lengths": np.array([len(c) for c in packed], dtype=np.int64),
        "rle_bytes": np.frombuffer(b"".join(packed), dtype=np.uint8),
    }


def _from_arrays(arrays: dict[str, np.ndarray]) -> Instances:
    """The inverse of :func:`_to_arrays`."""
    columns = (arrays[name].tolist() for name in ("image_id", "category_id", "score", "bbox"))
    results = [dict(zip(("image_id", "category_id", "score", "bbox"), row)) for row in zip(*columns)]
    ends = np.cumsum(arrays["rle_lengths"]).tolist()
    blob = arrays["rle_bytes"].tobytes()
    counts = [blob[end - length : end] for end, length in zip(ends, arrays["rle_lengths"].tolist())]
    rles: list[dict[int, Any]] = [{} for _ in results]
    if counts:
        each = len(counts) // len(results)
        for i, size in enumerate(arrays["rle_sizes"].tolist()):
            rles[i] = {k: {"size": size, "counts": counts[i * each + k]} for k in range(each)}
    quality = [
        [{} if np.isnan(row).any() else dict(enumerate(row.tolist())) for row in arrays[measure]]
        for measure in MEASURES
    ]
    truth = [None if t < 0 else t for t in arrays["truth"].tolist()]
    logits = list(torch.from_numpy(arrays["logits"]))
    return Instances(results, rles, logits, *quality, arrays["choice"].tolist(), truth)
