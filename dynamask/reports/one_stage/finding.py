"""What weights of either family find in pictures, with the MACs of every picture by part, and a cache of it."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dynamask.data.sources import Data
from dynamask.engine.evaluate import category_map
from dynamask.files import replacing
from dynamask.models.solo.inference import find_candidates
from dynamask.ops.rle import encode_rle
from dynamask.predict import Prediction, Predictor
from dynamask.reports.cache import cache_file
from dynamask.structures import MASK_SIZES, DynaMaskError

VERSION = 1
"""Of what is kept; counts in the key of the cache."""


@dataclass
class Found:
    """The detections of a data set.

    Attributes:
        results: COCO results without masks.
        rles: per result {index of the mask size: RLE}; one-stage models have the index 0 alone.
        choice: per result the index that the weights choose themselves.
        logits: per result (4,) of the switch; empty for one-stage models.
        pictures: MACs by part and counts of every judged picture, in their order.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    rles: list[dict[int, dict[str, Any]]] = field(default_factory=list)
    choice: list[int] = field(default_factory=list)
    logits: list[list[float]] = field(default_factory=list)
    pictures: list[dict[str, int]] = field(default_factory=list)


def collect(predictor: Predictor, dataset: Data, indices: Sequence[int], score: float, progress: bool) -> Found:
    """Predict every picture, two-stage models at every mask size, and count what it takes."""
    found, categories = Found(), category_map(predictor, dataset)
    one_stage = predictor.family == "one-stage"
    pictures: Iterable[int] = tqdm(indices, unit="picture", disable=not progress, dynamic_ncols=True)
    for index in pictures:
        image, target = dataset[index]
        add = _add_one_stage if one_stage else _add_two_stage
        add(found, predictor, image, int(target["image_id"]), categories, score)
    return found


def _add_one_stage(
    found: Found, predictor: Predictor, image: torch.Tensor, image_id: int, categories: dict[int, int], score: float
) -> None:
    prediction = predictor(image, score=score)
    _append(found, prediction.to_coco(image_id), prediction.labels.tolist(), categories, lambda r, _: {0: r}, None)
    found.pictures.append(one_stage_macs(prediction))


def _add_two_stage(
    found: Found, predictor: Predictor, image: torch.Tensor, image_id: int, categories: dict[int, int], score: float
) -> None:
    model = predictor.model
    parts = {"backbone": model.backbone, "detector": nn.ModuleList([model.detector.rpn, model.detector.roi_heads])}
    with counted(parts) as counts:
        prediction = predictor(image, score=score, all_sizes=True)

    def masks(_: dict[str, Any], row: int) -> dict[int, Any]:
        sizes = prediction.mask_sizes
        return {MASK_SIZES.index(size): encode_rle(prediction.mask_at(row, size)) for size in sizes}

    own = prediction.to_coco(image_id)
    logits = None if prediction.switch_logits is None else prediction.switch_logits.tolist()
    _append(found, own, prediction.labels.tolist(), categories, masks, logits)
    shared = sum(macs for name, macs in prediction.image_macs.items() if name != "switch")
    switch = predictor.costs.switch_macs if predictor.has_switch else 0
    found.pictures.append({**counts, "projections": shared, "switch": switch * len(prediction)})


def _append(
    found: Found,
    results: Sequence[dict[str, Any]],
    labels: Sequence[int],
    categories: dict[int, int],
    masks: Callable[[dict[str, Any], int], dict[int, Any]],
    logits: Sequence[list[float]] | None,
) -> None:
    """The results of one picture whose class the data set has."""
    for row, (result, label) in enumerate(zip(results, labels)):
        if label not in categories:
            continue
        plain = {key: result[key] for key in ("image_id", "score", "bbox")}
        found.results.append({**plain, "category_id": categories[label]})
        found.rles.append(masks(result["segmentation"], row))
        found.choice.append(MASK_SIZES.index(result["mask_size"]) if "mask_size" in result else 0)
        if logits is not None:
            found.logits.append(logits[row])


def one_stage_macs(prediction: Prediction) -> dict[str, int]:
    """MACs of a one-stage prediction by part.

    Every cell above the score threshold is decoded once for suppression; of too many to hold, the cells that stay are
    decoded once more for their masks in full, and with voting all candidates are.

    Returns:
        "backbone" (with the FPN), "head", "decode", "suppress" (the mask IoUs of matrix NMS, at most), and the counts
        "candidates" and "decoded" (cells, each as often as it is decoded).
    """
    cells = prediction.cells
    model, encoded = cells.model, cells.encoded
    config = model.config
    candidates = find_candidates(encoded, 0, config.score_threshold)
    decoded = _cells(candidates.level, candidates.cell)
    if config.voting != "none":
        decoded += decoded
    elif not candidates.fit_in_memory(encoded):
        decoded += _cells(cells.level, cells.cell)
    each = cells.level_macs
    kept = min(len(candidates), config.candidates)
    quarter = (encoded.frame[0] // 4) * (encoded.frame[1] // 4)
    parts = prediction.image_macs
    return {
        "backbone": parts["body"] + parts["fpn"],
        "head": parts["head"],
        "decode": sum(each[level] * count for level, count in decoded.items()),
        "suppress": kept * kept * quarter,
        "candidates": len(candidates),
        "decoded": sum(decoded.values()),
    }


def _cells(level: torch.Tensor, cell: torch.Tensor) -> Counter:
    """Different cells by level."""
    return Counter(level for level, _ in set(zip(level.tolist(), cell.tolist())))


@contextmanager
def counted(parts: dict[str, nn.Module]) -> Iterator[dict[str, int]]:
    """MACs of the convolutions and matrix products that run in modules meanwhile, by the parts' names."""
    counts, hooks = dict.fromkeys(parts, 0), []

    def hook(name: str) -> Callable:
        def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
            counts[name] += output.numel() * module.weight[0].numel()

        return count

    for name, part in parts.items():
        layers = [module for module in part.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        hooks += [layer.register_forward_hook(hook(name)) for layer in layers]
    try:
        yield counts
    finally:
        for handle in hooks:
            handle.remove()


def found_once(folder: Path | None, key: dict[str, Any], find: Callable[[], Found]) -> Found:
    """What an earlier run found under the same key, or ``find()``, which is then kept.

    Args:
        folder: of the cache; None keeps nothing.
        key: JSON values that name weights, data and settings beyond doubt.

    Raises:
        DynaMaskError: the cache is no folder, holds something else under that name, or cannot be written.
    """
    if folder is None:
        return find()
    key = json.loads(json.dumps({**key, "version": VERSION}))
    path = cache_file(folder, key, ".json.gz")
    if path.exists():
        return _read(path, key)
    found = find()
    with replacing(path) as file:
        file.write(gzip.compress(json.dumps({"key": key, "found": asdict(found)}).encode(), mtime=0))
    return found


def _read(path: Path, key: dict[str, Any]) -> Found:
    try:
        stored = json.loads(gzip.decompress(path.read_bytes()))
        same, found = stored["key"] == key, Found(**stored["found"])
        found.rles = [{int(k): rle for k, rle in rles.items()} for rles in found.rles]
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DynaMaskError(f"--cache {path} is no cache of a report; delete it") from error
    if not same:
        raise DynaMaskError(f"--cache {path} was found with other weights, data or settings; delete it")
    return found
