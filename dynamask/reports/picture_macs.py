"""MACs of a whole picture by part, counted while it is predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dynamask.models.solo.inference import find_candidates
from dynamask.predict import Prediction, Predictor


@contextmanager
def count_detector_macs(predictor: Predictor) -> Iterator[dict[str, int]]:
    """Count the MACs of the convolutions and matrix products of a two-stage model's detector in the meantime.

    Yields:
        "backbone" (with its pyramids) and "detector" (the rest of it); empty for one-stage models.
    """
    counts: dict[str, int] = {}
    hooks = []
    if predictor.family == "two-stage":
        detector = predictor.model.detector
        heads = nn.ModuleList(part for part in detector.children() if part is not detector.backbone)
        for name, part in {"backbone": detector.backbone, "detector": heads}.items():
            counts[name] = 0
            layers = [module for module in part.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
            hooks += [layer.register_forward_hook(_add_macs(counts, name)) for layer in layers]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _add_macs(counts: dict[str, int], name: str) -> Callable:
    def add(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        counts[name] += output.numel() * layer.weight[0].numel()

    return add


def picture_macs(prediction: Prediction, detector: dict[str, int]) -> dict[str, int]:
    """MACs of one prediction by part.

    Args:
        detector: counts of :func:`count_detector_macs`.

    Returns:
        "backbone" (with its pyramids) and "head" (of a two-stage model the rest of the detector); of a two-stage model
        "projections" (with the masks of duplicates) and "switch"; of a one-stage model "decode" and "suppress" (the
        mask IoUs of matrix NMS, at most).
    """
    if prediction.cells is None:
        projections = sum(macs for name, macs in prediction.image_macs.items() if name != "switch")
        shared = {"backbone": detector["backbone"], "head": detector["detector"]}
        return {**shared, "projections": projections, "switch": prediction.image_macs["switch"]}
    parts, cells = prediction.image_macs, prediction.cells
    encoded, config = cells.encoded, cells.model.config
    shared = {"backbone": parts["body"] + parts["fpn"], "head": parts["head"]}
    if config.kind == "condinst":  # box NMS comes before decoding
        return {**shared, "decode": int(prediction.macs.sum()), "suppress": 0}
    candidates = find_candidates(encoded, 0, config.score_threshold)
    # Every candidate is decoded once for suppression. With voting all are decoded again; without it, if their masks
    # are too many to hold, those that are kept.
    decoded = _cells_by_level(candidates.level, candidates.cell)
    if config.voting != "none":
        decoded += decoded
    elif not candidates.fit_in_memory(encoded):
        decoded += _cells_by_level(cells.level, cells.cell)
    kept = min(len(candidates), config.candidates)
    return {
        **shared,
        "decode": sum(cells.level_macs[level] * count for level, count in decoded.items()),
        "suppress": kept * kept * (encoded.frame[0] // 4) * (encoded.frame[1] // 4),
    }


def _cells_by_level(level: torch.Tensor, cell: torch.Tensor) -> Counter[int]:
    """Number of different cells on each level."""
    return Counter(level for level, _ in set(zip(level.tolist(), cell.tolist())))
