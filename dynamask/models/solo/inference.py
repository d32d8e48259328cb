"""Inference of one-stage models: candidate cells, matrix NMS, mask voting, and masks at the size of the picture.

SOLOv2, § 3.4, describes points NMS and matrix NMS; SODAR, Table II, mask voting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import masks_to_boxes

from dynamask.config import STRIDES, SoloConfig
from dynamask.models.solo.heads import CellGrid
from dynamask.structures import DynaMaskError

MOST_DECODED = 1000
"""Largest number of candidates of a picture that are decoded, in the order of their class scores."""
CHUNK = 32
"""Number of masks that are decoded or resized at a time."""
_HELD_VALUES = 8_000_000
"""Largest number of mask values of the candidates that stay in memory; beyond it the final masks are decoded again."""
_PIXELS = 16_384
"""Number of mask pixels in one matrix product."""


@dataclass
class EncodedGrids:
    """The output of the head for a batch of pictures.

    Attributes:
        grids: of the five levels.
        network_sizes: (H, W) of each picture inside the padded batch.
        original_sizes: (H, W) of each picture before resizing.
        frame: (H, W) of the padded batch.
    """

    grids: list[CellGrid]
    network_sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    frame: tuple[int, int]

    @property
    def quarter(self) -> tuple[int, int]:
        """(H/4, W/4), the size at which masks are compared."""
        return self.frame[0] // 4, self.frame[1] // 4


@dataclass
class Candidates:
    """Cells of one picture that may show an object, in the order of falling scores.

    Attributes:
        level, cell, label: (N,) int64; labels ≥ 1.
        score: (N,).
    """

    level: Tensor
    cell: Tensor
    label: Tensor
    score: Tensor

    def __len__(self) -> int:
        return len(self.cell)

    def take(self, rows: Tensor) -> Candidates:
        """The candidates of an index or a bool mask."""
        return Candidates(self.level[rows], self.cell[rows], self.label[rows], self.score[rows])

    def fit_in_memory(self, encoded: EncodedGrids) -> bool:
        """Whether the masks that are decoded for suppression are kept for the final masks."""
        return len(self) * encoded.quarter[0] * encoded.quarter[1] <= _HELD_VALUES


class CellModel(Protocol):
    """Interface of the models that inference needs; see :class:`dynamask.models.solo.model.SoloNet`."""

    config: SoloConfig
    level_groups: tuple[tuple[int, ...], ...]

    def mask_logits(self, encoded: EncodedGrids, level: Tensor, image: Tensor, cell: Tensor) -> Tensor:
        """Mask logits (N, h, w) of cells."""


def detect(model: CellModel, encoded: EncodedGrids, index: int) -> dict[str, Tensor]:
    """Detections of one picture of a batch; see :meth:`dynamask.models.solo.model.SoloNet.predict`."""
    candidates = find_candidates(encoded, index, model.config.score_threshold)
    found, soft = suppress(model, encoded, index, candidates)
    if model.config.voting == "none":
        parts = _decoded(model, encoded, index, found) if soft is None else _chunks(soft)
    else:
        parts = _voted(model, encoded, index, candidates, found)
    masks = torch.zeros((len(found), *encoded.original_sizes[index]), dtype=torch.bool, device=found.cell.device)
    for rows, quarter in parts:
        masks[rows] = _enlarged(encoded, index, quarter)
    there = masks.flatten(1).any(1)
    found, masks = found.take(there), masks[there]
    boxes = masks_to_boxes(masks) if len(masks) else masks.new_zeros((0, 4), dtype=torch.float32)
    return {
        "boxes": boxes.float() + boxes.new_tensor([0.0, 0.0, 1.0, 1.0]),  # torchvision's end at the last pixel
        "labels": found.label,
        "scores": found.score,
        "masks": masks,
        "level": found.level,
        "cell": found.cell,
    }


def find_candidates(encoded: EncodedGrids, index: int, score_threshold: float) -> Candidates:
    """Cells of one picture whose class score is above the threshold after points NMS."""
    rows: list[Tensor] = []
    for level, grid in enumerate(encoded.grids):
        scores = points_nms(grid.category[index : index + 1].sigmoid())[0].flatten(1)  # (C, G²)
        label, cell = torch.nonzero(scores > score_threshold).unbind(1)
        rows.append(torch.stack([torch.full_like(cell, level), cell, label + 1, scores[label, cell]]).double())
    level, cell, label, score = torch.cat(rows, dim=1)
    order = score.argsort(descending=True, stable=True)[:MOST_DECODED]
    return Candidates(level.long()[order], cell.long()[order], label.long()[order], score.float()[order])


def suppress(
    model: CellModel, encoded: EncodedGrids, index: int, candidates: Candidates
) -> tuple[Candidates, Tensor | None]:
    """Rescore candidates with their masks, drop tiny masks, and suppress duplicates by matrix NMS.

    Masks are compared at a quarter of the frame. At most ``detections_per_img`` candidates remain.

    Returns:
        The remaining candidates, and their masks (N, H/4, W/4) in [0, 1]; None where the masks of all candidates do
        not fit in memory.
    """
    config, device = model.config, candidates.cell.device
    binary = torch.zeros((len(candidates), *encoded.quarter), dtype=torch.bool, device=device)
    soft = torch.zeros_like(binary, dtype=torch.float32) if candidates.fit_in_memory(encoded) else None
    maskness = candidates.score.new_zeros(len(candidates))
    for rows, probs in _decoded(model, encoded, index, candidates):
        inside = probs > 0.5
        binary[rows] = inside
        maskness[rows] = (probs * inside).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)
        if soft is not None:
            soft[rows] = probs
    strides = torch.tensor(STRIDES, device=device)
    score = candidates.score * maskness * (binary.sum((1, 2)) > strides[candidates.level])
    order = score.argsort(descending=True, stable=True)[: config.candidates]
    order = order[score[order] > 0]
    ious, labels = mask_ious(binary[order]), candidates.label[order]
    decayed = matrix_nms(ious, labels, score[order], config.nms_kernel, config.nms_sigma)
    best = decayed.argsort(descending=True, stable=True)[: config.detections_per_img]
    best = best[decayed[best] >= config.update_threshold]
    kept = candidates.take(order[best])
    kept.score = decayed[best]
    return kept, None if soft is None else soft[order[best]]


def _voted(
    model: CellModel, encoded: EncodedGrids, index: int, candidates: Candidates, found: Candidates
) -> Iterator[tuple[slice, Tensor]]:
    """Masks (n, H/4, W/4) of ``found``, each the weighted mean of the masks of the candidates that overlap it."""
    config = model.config
    soft = torch.zeros((len(candidates), *encoded.quarter), device=found.cell.device)
    for rows, probs in _decoded(model, encoded, index, candidates):
        soft[rows] = probs
    keys = torch.stack([candidates.level, candidates.cell, candidates.label], dim=1)
    own = torch.stack([found.level, found.cell, found.label], dim=1)
    position = (own[:, None] == keys[None]).all(2).float().argmax(1) if len(own) else found.cell
    ious = mask_ious(soft > 0.5)[position]
    same = found.label[:, None] == candidates.label[None]
    weights = voting_weights(ious, same, candidates.score, config.voting, config.voting_iou)
    return ((rows, torch.einsum("rn,nhw->rhw", part, soft)) for rows, part in _chunks(weights))


def _decoded(model: CellModel, encoded: EncodedGrids, index: int, found: Candidates) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of the candidates and their masks (n, H/4, W/4) in [0, 1], in chunks; each cell is decoded once."""
    for group in model.level_groups:
        own = torch.nonzero((found.level >= group[0]) & (found.level <= group[-1]))[:, 0]
        cells, inverse = torch.stack([found.level[own], found.cell[own]], dim=1).unique(dim=0, return_inverse=True)
        for start in range(0, len(cells), CHUNK):
            level, cell = cells[start : start + CHUNK].unbind(1)
            logits = model.mask_logits(encoded, level, torch.full_like(cell, index), cell)
            probs = _resized(logits.float().sigmoid(), encoded.quarter)
            here = (inverse >= start) & (inverse < start + CHUNK)
            yield own[here], probs[inverse[here] - start]


def _chunks(values: Tensor) -> Iterable[tuple[slice, Tensor]]:
    """Rows of a tensor, ``CHUNK`` at a time."""
    rows = (slice(start, start + CHUNK) for start in range(0, len(values), CHUNK))
    return ((part, values[part]) for part in rows)


def _resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, h, w) → (n, H, W), bilinear."""
    return F.interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _enlarged(encoded: EncodedGrids, index: int, quarter: Tensor) -> Tensor:
    """(n, H/4, W/4) probabilities → (n, H, W) bool of the picture: the frame, without its padding, resized, > 0.5."""
    height, width = encoded.network_sizes[index]
    large = _resized(quarter, encoded.frame)[..., :height, :width]
    return _resized(large, encoded.original_sizes[index]) > 0.5


def points_nms(scores: Tensor) -> Tensor:
    """Scores (B, C, G, G) in [0, 1], set to zero where the upper, left or upper-left neighbour has a higher one."""
    best = F.max_pool2d(scores, 2, stride=1, padding=1)[..., :-1, :-1]
    return scores * (best == scores).to(scores.dtype)


def mask_ious(masks: Tensor) -> Tensor:
    """Pairwise IoU (N, N) float32 of (N, H, W) masks of 0 and 1; 0 where both are empty."""
    flat = masks.flatten(1)
    overlap = flat.new_zeros((len(flat), len(flat)), dtype=torch.float32)
    for start in range(0, flat.shape[1], _PIXELS):
        part = flat[:, start : start + _PIXELS].float()
        overlap += part @ part.T
    areas = overlap.diagonal()
    union = areas[:, None] + areas[None, :] - overlap
    return torch.where(union > 0, overlap / union.clamp_min(1), overlap.new_zeros(()))


def voting_weights(ious: Tensor, same_class: Tensor, scores: Tensor, scheme: str, threshold: float) -> Tensor:
    """Mask voting (SODAR, Table II): the weight of each candidate in each remaining mask.

    Args:
        ious: (R, N) of the remaining masks with all candidates, including themselves.
        same_class: (R, N) bool.
        scores: (N,) of the candidates.
        scheme: "average", "score" (weighted by the class score) or "iou" (weighted by the overlap).
        threshold: IoU below which a candidate does not vote.

    Returns:
        (R, N), each row summing to 1, or to 0 without a vote.

    Raises:
        DynaMaskError: the scheme is unknown.
    """
    schemes = {"average": torch.ones_like(ious), "score": scores.expand_as(ious), "iou": ious}
    if scheme not in schemes:
        raise DynaMaskError(f"voting scheme {scheme!r} is unknown; choose one of {', '.join(schemes)}")
    weights = schemes[scheme] * (same_class & (ious >= threshold))
    return weights / weights.sum(1, keepdim=True).clamp_min(1e-12)


def matrix_nms(ious: Tensor, labels: Tensor, scores: Tensor, kernel: str = "gaussian", sigma: float = 2.0) -> Tensor:
    """Decayed scores (N,): decay_j = min_{i<j} f(IoU_ij) / f(max_{k<i} IoU_ki), within a class.

    Args:
        ious: (N, N), of instances sorted by falling score.
        labels: (N,) int64.
        scores: (N,).
        kernel: "gaussian", f = exp(−σ·IoU²), or "linear", f = 1 − IoU.
        sigma: σ.

    Raises:
        DynaMaskError: the kernel is unknown.
    """
    if kernel not in ("gaussian", "linear"):
        raise DynaMaskError(f"NMS kernel {kernel!r} is unknown; choose 'gaussian' or 'linear'")
    if len(scores) == 0:
        return scores
    same = labels[:, None] == labels[None, :]
    overlap = (ious * same).triu(diagonal=1)  # row i has the higher score
    compensation = overlap.max(dim=0).values[:, None]  # (N, 1): suppression of i itself
    if kernel == "gaussian":
        decay = torch.exp(-sigma * (overlap.square() - compensation.square()))
    else:
        # f of an exact duplicate is zero: what it would suppress is suppressed by its original
        decay = torch.where(
            compensation < 1, (1 - overlap) / (1 - compensation).clamp_min(1e-6), torch.ones_like(overlap)
        )
    return scores * decay.min(dim=0).values
