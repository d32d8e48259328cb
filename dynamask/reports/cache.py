"""What was collected, kept in files whose names say what of, so that one that has become stale is never read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from dynamask.data.coco import CocoDataset
from dynamask.data.sources import Data
from dynamask.engine.evaluate import Instances
from dynamask.files import replacing
from dynamask.reports.collecting import MEASURES, Collected
from dynamask.reports.signals import SIGNALS
from dynamask.structures import DynaMaskError


def data_digest(dataset: Data, indices: Sequence[int]) -> str:
    """SHA-256, in hex, of the judged pictures and of all annotations; of scenes, of what they are made from."""
    digest = hashlib.sha256()
    for part in ("images", "annotations", "categories"):
        digest.update(json.dumps(dataset.coco[part], sort_keys=True, default=_text).encode())
    digest.update(json.dumps([dataset.image_ids[i] for i in indices]).encode())
    if isinstance(dataset, CocoDataset):
        for index in indices:
            with dataset.files[index].open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    elif len(indices):
        digest.update(repr((dataset.seed, dataset.scene_size, dataset.first, dataset.sides)).encode())
        digest.update(dataset[indices[0]][0].numpy().tobytes())  # another way of painting shows in any scene
    return digest.hexdigest()


def _text(value: Any) -> str:
    """Run lengths may be bytes."""
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def check_cache(folder: Path | None) -> None:
    """Refuse a ``--cache`` that is a file, or whose parent folder does not exist."""
    if folder is not None and folder.exists() and not folder.is_dir():
        raise DynaMaskError(f"--cache {folder} is a file; give a folder")
    if folder is not None and not folder.absolute().parent.is_dir():
        raise DynaMaskError(f"folder {folder.parent} of --cache does not exist; create it or choose another")


def cache_file(folder: Path, key: dict[str, Any], ending: str) -> Path:
    """Where in a cache belongs what has this key; the folder is checked, see :func:`check_cache`."""
    check_cache(folder)
    return folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}{ending}"


def collected_once(folder: Path | None, key: dict[str, Any], collect: Callable[[], Collected]) -> Collected:
    """What an earlier run collected under the same key, or ``collect()``, which is then kept.

    Args:
        folder: of the cache; None keeps nothing.
        key: JSON values that name weights, data and settings beyond doubt.

    Raises:
        DynaMaskError: the cache is no folder, holds something else under that name, or cannot be written.
    """
    if folder is None:
        return collect()
    path = cache_file(folder, key, ".npz")
    kept = load_collected(path, key)
    if kept is None:
        kept = collect()
        save_collected(kept, path, key)
    return kept


def save_collected(kept: Collected, path: Path, key: dict[str, Any]) -> None:
    """Write to an .npz file, atomically; ``key`` says what it was collected from."""
    arrays: dict[str, np.ndarray] = {"key": np.array(json.dumps(key, sort_keys=True))}
    arrays |= {f"views_{measure}": values for measure, values in kept.views.items()}
    arrays |= {f"signal_{name}": values for name, values in kept.signals.items()}
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
        raise DynaMaskError(f"--cache {path} is no cache of a report; delete it") from error
    if not same:
        raise DynaMaskError(f"--cache {path} was collected from other weights, data or settings; delete it")
    parts = {
        name: _from_arrays({k.removeprefix(f"{name}_"): v for k, v in arrays.items() if k.startswith(f"{name}_")})
        for name in ("given", "found")
        if f"{name}_score" in arrays
    }
    views = {measure: arrays[f"views_{measure}"] for measure in MEASURES}
    signals = {name: arrays[f"signal_{name}"] for name in SIGNALS if f"signal_{name}" in arrays}
    return Collected(parts["given"], parts.get("found"), views, signals)


def _to_arrays(part: Instances) -> dict[str, np.ndarray]:
    """Instances as arrays; run lengths as one stretch of bytes with the length of each."""
    every = [(i, k, rle) for i, rles in enumerate(part.rles) for k, rle in sorted(rles.items())]
    counts = [rle["counts"] for _, _, rle in every]
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
        "rle_places": np.array([(i, k, *rle["size"]) for i, k, rle in every], dtype=np.int64).reshape(-1, 4),
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
    for (row, k, *size), text in zip(arrays["rle_places"].tolist(), counts):
        rles[row][k] = {"size": size, "counts": text}
    quality = [
        [{k: v for k, v in enumerate(row) if not np.isnan(v)} for row in arrays[measure].tolist()]
        for measure in MEASURES
    ]
    truth = [None if t < 0 else t for t in arrays["truth"].tolist()]
    logits = list(torch.from_numpy(arrays["logits"]))
    return Instances(results, rles, logits, *quality, arrays["choice"].tolist(), truth)
