"""Predictions in a cache folder, in files whose names follow from weights, data and options."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynamask.data.coco import CocoDataset
from dynamask.data.sources import Data
from dynamask.engine.evaluate import Instances
from dynamask.files import replacing
from dynamask.reports.collect import Collected
from dynamask.structures import DynaMaskError

VERSION = 2
"""Version of the file format; part of the keys."""


def data_digest(dataset: Data, indices: Sequence[int]) -> str:
    """SHA-256, in hex, of the pictures at some indices and of all annotations; of scenes, of their parameters."""
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
        digest.update(dataset[indices[0]][0].numpy().tobytes())  # detects a change in how scenes are painted
    return digest.hexdigest()


def _text(value: Any) -> str:
    """The JSON form of run lengths that are bytes."""
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def check_cache(folder: Path | None) -> None:
    """Refuse a ``--cache`` that is a file, or whose parent folder does not exist."""
    if folder is not None and folder.exists() and not folder.is_dir():
        raise DynaMaskError(f"--cache {folder} is a file; give a folder")
    if folder is not None and not folder.absolute().parent.is_dir():
        raise DynaMaskError(f"folder {folder.parent} of --cache does not exist; create it or choose another")


def collected_once(folder: Path | None, key: dict[str, Any], collect: Callable[[], Collected]) -> Collected:
    """Read predictions from a cache, or collect and store them.

    Args:
        folder: folder of the cache; None for no cache.
        key: JSON values that identify weights, data and options.
        collect: collects the predictions.

    Raises:
        DynaMaskError: the cache is no folder, holds something else under that name, or cannot be written.
    """
    if folder is None:
        return collect()
    check_cache(folder)
    key = json.loads(json.dumps({**key, "version": VERSION}))
    path = folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}.json.gz"
    if path.exists():
        return _read(path, key)
    collected = collect()
    text = json.dumps({"key": key, **_to_json(collected)}, default=_text)
    with replacing(path) as file:
        file.write(gzip.compress(text.encode(), compresslevel=6, mtime=0))
    return collected


def _read(path: Path, key: dict[str, Any]) -> Collected:
    try:
        stored = json.loads(gzip.decompress(path.read_bytes()))
        same, collected = stored.pop("key") == key, _from_json(stored)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DynaMaskError(f"--cache {path} is no cache of a report; delete it") from error
    if not same:
        raise DynaMaskError(f"--cache {path} was collected from other weights, data or settings; delete it")
    return collected


_BY_SIZE = ("rles", "mask_iou", "boundary_iou", "border_share")
"""Columns of instances whose cells are dicts by size index; JSON makes their keys strings."""


def _to_json(collected: Collected) -> dict[str, Any]:
    instances = {}
    for name in ("true_boxes", "detections"):
        part = getattr(collected, name)
        if part is not None:
            columns = {column.name: getattr(part, column.name) for column in fields(Instances)}
            tables = {"switch_logits": part.logits().tolist(), "predicted": part.predicted_quality().tolist()}
            instances[name] = {**columns, **tables}
    arrays = {name: {k: v.tolist() for k, v in getattr(collected, name).items()} for name in ("views", "size_losses")}
    return {**instances, **arrays, "picture_macs": collected.picture_macs}


def _from_json(stored: dict[str, Any]) -> Collected:
    instances = {}
    for name in ("true_boxes", "detections"):
        if name in stored:
            part = instances[name] = Instances(**stored[name])
            part.switch_logits = list(torch.tensor(part.switch_logits))
            part.predicted = list(torch.tensor(part.predicted))
            for column in _BY_SIZE:
                setattr(part, column, [{int(k): v for k, v in cell.items()} for cell in getattr(part, column)])
    arrays = {
        "views": {measure: np.array(views, dtype=np.float64) for measure, views in stored["views"].items()},
        "size_losses": {name: np.array(losses) for name, losses in stored["size_losses"].items()},
    }
    return Collected(**instances, **arrays, picture_macs=stored["picture_macs"])
