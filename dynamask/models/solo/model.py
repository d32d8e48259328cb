"""The one-stage model: backbone → FPN → categories and vectors of cells → masks, without boxes and proposals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import masks_to_boxes

from dynamask.config import STRIDES, SoloConfig
from dynamask.models.backbone import BackboneWithFPN
from dynamask.models.hub import PretrainedModel
from dynamask.models.solo.aggregation import NeighbourAggregation, linear_decoder, sample_vectors
from dynamask.models.solo.heads import CellGrid, SoloHead, SoloV2Head
from dynamask.models.solo.losses import category_loss, dice_loss
from dynamask.models.solo.suppression import mask_ious, matrix_nms, points_nms, voting_weights
from dynamask.models.solo.targets import Assignment, assign, centres_of_mass, joined
from dynamask.ops.means import LOCAL_MEANS, Means

MOST_DECODED = 1000
"""Candidates of a picture that are decoded, the best by class score."""
CHUNK = 32
"""Masks brought to a common size at a time."""
_HELD_VALUES = 8_000_000
"""Values of candidates' masks that stay in memory for the masks in full; more are decoded again where needed."""


@dataclass
class EncodedGrids:
    """Pictures as the heads see them.

    Attributes:
        grids: of the five levels.
        network_sizes: (H, W) of each picture inside the padded batch.
        original_sizes: (H, W) of each picture as given.
        frame: (H, W) of the padded batch.
    """

    grids: list[CellGrid]
    network_sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    frame: tuple[int, int]


@dataclass
class Candidates:
    """Cells of one picture that may show an object, best score first.

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


class SoloNet(PretrainedModel):
    """SOLO or SOLOv2, with or without SODAR's aggregation.

    Args:
        transform: torchvision's resizing and normalisation.
        backbone, head: built modules.
        aggregation: None for the plain models.
        config: kept for the checkpoint, and for the thresholds of inference.

    Attributes:
        means: over whose positive cells the losses are means; the trainer replaces it where a step has several parts.
    """

    def __init__(
        self,
        transform: GeneralizedRCNNTransform,
        backbone: BackboneWithFPN,
        head: SoloHead | SoloV2Head,
        aggregation: NeighbourAggregation | None,
        config: SoloConfig,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.head = head
        self.aggregation = aggregation
        self.config = config
        self.means: Means = LOCAL_MEANS

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            images: (3, H, W) float in [0, 1] each.
            targets: per image ``boxes`` (G, 4) xyxy, ``labels`` (G,) ≥ 1, ``masks`` (G, H, W); not changed.

        Returns:
            Training: ``loss_category``, ``loss_dice`` and, where the representations are supervised themselves,
            ``loss_direct``, unweighted; an empty dict in a counting pass, which computes no layer.
            Evaluation: see :meth:`predict`.
        """
        if not self.training:
            return self.predict(images)
        if targets is None:
            raise ValueError("training needs targets")
        batch, placed = self._place(images, targets)
        config = self.config
        cells = assign(placed, _frame(batch), config.grids, config.scale_ranges, config.centre_share)
        if self.means.counting:
            self.means.add(sum(len(own) for own in cells))
            return {}
        encoded = self._encode(batch, images)
        return {"loss_category": self._category_loss(encoded, cells), **self._mask_losses(encoded, cells, targets)}

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each training loss: 1 and 3 as in SOLO; SODAR's two-stage loss has its share of the dice loss."""
        direct = self.config.aggregation.direct_weight if self.config.aggregation else 0.0
        return {"loss_category": 1.0, "loss_dice": 3.0, "loss_direct": 3.0 * direct}

    def encode(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[EncodedGrids, list[dict[str, Tensor]]]:
        """Resize, normalise, pad, run backbone and head; boxes and centres of mass come in network-input pixels."""
        batch, placed = self._place(images, targets)
        return self._encode(batch, images), placed

    def _place(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[ImageList, list[dict[str, Tensor]]]:
        """Resize, normalise and pad; boxes, labels and centres of mass in network-input pixels."""
        plain = None if targets is None else [{"boxes": t["boxes"], "labels": t["labels"]} for t in targets]
        batch, resized = self.transform(images, plain)
        for given, placed, image, network in zip(targets or [], resized or [], images, batch.image_sizes):
            ratio = torch.tensor([network[1] / image.shape[-1], network[0] / image.shape[-2]], dtype=torch.float64)
            placed["centres"] = centres_of_mass(given["masks"]) * ratio.to(given["masks"].device)
        return batch, resized or []

    def _encode(self, batch: ImageList, images: list[Tensor]) -> EncodedGrids:
        """Run backbone and head on pictures that are placed."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        return EncodedGrids(self.head(self.backbone(batch.tensors)), batch.image_sizes, sizes, _frame(batch))

    def card_paragraphs(self) -> tuple[str, str]:
        """See :meth:`PretrainedModel.card_paragraphs`."""
        kind = {"solo": "SOLO", "solov2": "SOLOv2"}[self.config.kind]
        with_sodar = "" if self.aggregation is None else " with SODAR's aggregation of neighbouring masks"
        return f"One-stage instance segmentation, model `{self.config.name}`: {kind}{with_sodar}.", ""

    @property
    def level_groups(self) -> tuple[tuple[int, ...], ...]:
        """Levels that are decoded together: all of SOLOv2's have one mask feature, each of SOLO's its own."""
        levels = tuple(range(len(self.config.grids)))
        return (levels,) if self.config.kind == "solov2" else tuple((level,) for level in levels)

    def mask_logits(self, encoded: EncodedGrids, level: int | Tensor, image: Tensor, cell: Tensor) -> Tensor:
        """Masks (N, h, w) of cells at their mask stride; only these cells are decoded.

        Args:
            level: (N,) int64 of one of :attr:`level_groups`, or one level for all.
            image: (N,) int64, in rising order.
            cell: (N,) int64, row · G + column.
        """
        level = torch.as_tensor(level, device=cell.device).expand(len(cell))
        theta = None
        if self.aggregation is None:
            vectors = self._gathered(encoded, level, image, cell, self._own_vectors)
        else:
            vectors = self._gathered(encoded, level, image, cell, self._vectors_around)
            if self.aggregation.theta is None:
                theta = self._gathered(encoded, level, image, cell, _theta_of)
        grid = encoded.grids[int(level[0]) if len(level) else 0]
        decoder = linear_decoder(vectors, image, grid.features)
        if self.aggregation is None:
            return decoder(slice(None))[:, 0]
        size = (grid.features.shape[-2], grid.features.shape[-1])
        return self.aggregation(decoder, image, size, grid.context, theta)

    def _gathered(
        self, encoded: EncodedGrids, level: Tensor, image: Tensor, cell: Tensor, of_level: Callable[..., Tensor]
    ) -> Tensor:
        """``of_level(grid, level, image, cell)`` of every level's cells, in the order of the cells."""
        parts, places = [], []
        for number in level.unique().tolist() or [0]:
            rows = torch.nonzero(level == number)[:, 0]
            parts.append(of_level(encoded.grids[number], number, image[rows], cell[rows]))
            places.append(rows)
        return parts[0] if len(parts) == 1 else torch.cat(parts)[torch.cat(places).argsort()]

    def _own_vectors(self, grid: CellGrid, level: int, image: Tensor, cell: Tensor) -> Tensor:
        """(N, 1, V): the cells' own."""
        side = self.config.grids[level]
        positions = torch.stack([cell // side, cell % side], dim=1)[:, None].to(torch.float64)
        return sample_vectors(grid.vectors, image, positions, "clamp")

    def _vectors_around(self, grid: CellGrid, level: int, image: Tensor, cell: Tensor) -> Tensor:
        """(N, S, V): those that the aggregation takes."""
        side, mask_side = self.config.grids[level], self.config.representation_grids[level]
        offsets = None if grid.offsets is None else grid.offsets.flatten(2)[image, :, cell]
        positions = self.aggregation.positions(cell, side, mask_side, offsets)
        return sample_vectors(grid.vectors, image, positions, self.aggregation.config.border)

    def _centre_vectors(self, grid: CellGrid, level: int, image: Tensor, cell: Tensor) -> Tensor:
        """(N, 1, V): those of the representation that plain SOLO would use."""
        positions = self.aggregation.positions(cell, self.config.grids[level], self.config.representation_grids[level])
        return sample_vectors(grid.vectors, image, positions.mean(1, keepdim=True), "clamp")

    def _category_loss(self, encoded: EncodedGrids, assigned: Sequence[Assignment]) -> Tensor:
        logits, labels = [], []
        for grid, own in zip(encoded.grids, assigned):
            flat = grid.category.flatten(2).transpose(1, 2)  # (B, G², C)
            truth = torch.zeros(flat.shape[:2], dtype=torch.int64, device=flat.device)
            truth[own.image, own.cell] = own.label.to(flat.device)
            logits.append(flat.flatten(0, 1))
            labels.append(truth.flatten())
        return category_loss(torch.cat(logits), torch.cat(labels), self.means)

    def _mask_losses(
        self, encoded: EncodedGrids, assigned: Sequence[Assignment], targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Dice losses, means over all positive cells of all levels and images; a connected zero without any."""
        total, direct, count = [], [], 0
        supervised = self.aggregation is not None and self.aggregation.config.direct_weight > 0
        for group in self.level_groups:
            own, level = joined([assigned[number] for number in group])
            if len(own) == 0:
                continue
            features = encoded.grids[group[0]].features
            truth = level_masks(targets, own, encoded, tuple(features.shape[-2:]))
            level, image, cell = (x.to(truth.device) for x in (level + group[0], own.image, own.cell))
            total.append(dice_loss(self.mask_logits(encoded, level, image, cell), truth).sum())
            if supervised:
                centres = self._gathered(encoded, level, image, cell, self._centre_vectors)
                direct.append(dice_loss(linear_decoder(centres, image, features)(slice(None))[:, 0], truth).sum())
            count += len(own)
        idle = connected(encoded.grids, self)
        named = {"loss_dice": self.means.per_positive(torch.stack([*total, idle]).sum(), count)}
        if supervised:
            named["loss_direct"] = self.means.per_positive(torch.stack([*direct, idle]).sum(), count)
        return named

    @torch.no_grad()
    def predict(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of each picture.

        Returns:
            Per image ``boxes`` (R, 4) around the masks, ``labels``, ``scores``, ``masks`` (R, H, W) bool in the
            picture's pixels, and ``level`` and ``cell`` (R,) that each instance comes from.
        """
        encoded, _ = self.encode(images)
        return [self.predict_one(encoded, index) for index in range(len(images))]

    def predict_one(self, encoded: EncodedGrids, index: int) -> dict[str, Tensor]:
        """The detections of one picture of an encoded batch, see :meth:`predict`."""
        candidates = self.candidates(encoded, index)
        found, soft = self.suppress(encoded, index, candidates)
        if self.config.voting == "none":
            masks = self.full_masks(encoded, index, found, soft)
        else:
            masks = self.voted_masks(encoded, index, candidates, found)
        there = masks.flatten(1).any(1)
        found, masks = found.take(there), masks[there]
        boxes = masks_to_boxes(masks) if len(masks) else masks.new_zeros((0, 4), dtype=torch.float32)
        boxes = boxes.float() + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])  # pixels are inclusive there
        return {
            "boxes": boxes,
            "labels": found.label,
            "scores": found.score,
            "masks": masks,
            "level": found.level,
            "cell": found.cell,
        }

    def candidates(self, encoded: EncodedGrids, index: int) -> Candidates:
        """Cells whose class score is above the threshold after points NMS."""
        rows: list[Tensor] = []
        for level, grid in enumerate(encoded.grids):
            scores = points_nms(grid.category[index : index + 1].sigmoid())[0].flatten(1)  # (C, G²)
            label, cell = torch.nonzero(scores > self.config.score_threshold).unbind(1)
            rows.append(torch.stack([torch.full_like(cell, level), cell, label + 1, scores[label, cell]]).double())
        level, cell, label, score = torch.cat(rows, dim=1)
        order = score.argsort(descending=True, stable=True)[:MOST_DECODED]
        return Candidates(level.long()[order], cell.long()[order], label.long()[order], score.float()[order])

    def holds(self, encoded: EncodedGrids, candidates: Candidates) -> bool:
        """Whether so few masks are decoded for suppression that they are kept for the masks in full."""
        return len(candidates) * (encoded.frame[0] // 4) * (encoded.frame[1] // 4) <= _HELD_VALUES

    def suppress(self, encoded: EncodedGrids, index: int, found: Candidates) -> tuple[Candidates, Tensor | None]:
        """Maskness, area filter and matrix NMS at a quarter of the frame; at most ``detections_per_img`` stay.

        Returns:
            Those that stay, and their masks (N, H/4, W/4) in [0, 1]; None of too many candidates, see :meth:`holds`.
        """
        config, size = self.config, (encoded.frame[0] // 4, encoded.frame[1] // 4)
        binary = torch.zeros((len(found), *size), dtype=torch.bool, device=found.cell.device)
        soft = torch.zeros_like(binary, dtype=torch.float32) if self.holds(encoded, found) else None
        maskness = found.score.new_zeros(len(found))
        for rows, probs in self._decoded(encoded, index, found):
            probs = self._quarter(encoded, probs)
            inside = probs > 0.5
            binary[rows] = inside
            maskness[rows] = (probs * inside).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)
            if soft is not None:
                soft[rows] = probs
        strides = torch.tensor(STRIDES, device=found.level.device)
        score = found.score * maskness * (binary.sum((1, 2)) > strides[found.level])
        order = score.argsort(descending=True, stable=True)[: config.candidates]
        order = order[score[order] > 0]
        decayed = matrix_nms(
            mask_ious(binary[order]), found.label[order], score[order], config.nms_kernel, config.nms_sigma
        )
        best = decayed.argsort(descending=True, stable=True)[: config.detections_per_img]
        best = best[decayed[best] >= config.update_threshold]
        kept = found.take(order[best])
        found = Candidates(kept.level, kept.cell, kept.label, decayed[best])
        return found, None if soft is None else soft[order[best]]

    def full_masks(self, encoded: EncodedGrids, index: int, found: Candidates, soft: Tensor | None = None) -> Tensor:
        """(N, H, W) bool in the picture's own pixels, of masks at a quarter of the frame where they are at hand."""
        size = encoded.original_sizes[index]
        masks = torch.zeros((len(found), *size), dtype=torch.bool, device=found.cell.device)
        if soft is None:
            for rows, probs in self._decoded(encoded, index, found):
                masks[rows] = self._enlarged(encoded, index, self._quarter(encoded, probs))
            return masks
        for start in range(0, len(found), CHUNK):
            part = slice(start, start + CHUNK)
            masks[part] = self._enlarged(encoded, index, soft[part])
        return masks

    def voted_masks(self, encoded: EncodedGrids, index: int, candidates: Candidates, found: Candidates) -> Tensor:
        """:meth:`full_masks` of ``found``, each the weighted mean of the candidates that overlap it."""
        soft = torch.zeros((len(candidates), encoded.frame[0] // 4, encoded.frame[1] // 4), device=found.cell.device)
        for rows, probs in self._decoded(encoded, index, candidates):
            soft[rows] = self._quarter(encoded, probs)
        keys = torch.stack([candidates.level, candidates.cell, candidates.label], dim=1)
        own = torch.stack([found.level, found.cell, found.label], dim=1)
        position = (own[:, None] == keys[None]).all(2).float().argmax(1) if len(own) else found.cell
        ious = mask_ious(soft > 0.5)[position]
        same = found.label[:, None] == candidates.label[None]
        weights = voting_weights(ious, same, candidates.score, self.config.voting, self.config.voting_iou)
        out = torch.zeros((len(found), *encoded.original_sizes[index]), dtype=torch.bool, device=found.cell.device)
        for start in range(0, len(found), CHUNK):
            part = slice(start, start + CHUNK)
            out[part] = self._enlarged(encoded, index, torch.einsum("rn,nhw->rhw", weights[part], soft))
        return out

    def _quarter(self, encoded: EncodedGrids, probs: Tensor) -> Tensor:
        """(n, h, w) at a level's mask stride → (n, H/4, W/4) of the frame."""
        size = (encoded.frame[0] // 4, encoded.frame[1] // 4)
        return F.interpolate(probs[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]

    def _enlarged(self, encoded: EncodedGrids, index: int, quarter: Tensor) -> Tensor:
        """(n, H/4, W/4) probabilities → (n, H, W) bool of the picture: ×4, padding cut, resized, > 0.5."""
        height, width = encoded.network_sizes[index]
        large = F.interpolate(quarter[:, None], size=encoded.frame, mode="bilinear", align_corners=False)
        large = large[..., :height, :width]
        size = encoded.original_sizes[index]
        return F.interpolate(large, size=size, mode="bilinear", align_corners=False)[:, 0] > 0.5

    def _decoded(self, encoded: EncodedGrids, index: int, found: Candidates) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows, probabilities (n, h, w)) of the candidates in chunks, each cell decoded once."""
        for group in self.level_groups:
            own = torch.nonzero((found.level >= group[0]) & (found.level <= group[-1]))[:, 0]
            cells, inverse = torch.stack([found.level[own], found.cell[own]], dim=1).unique(dim=0, return_inverse=True)
            for start in range(0, len(cells), CHUNK):
                level, cell = cells[start : start + CHUNK].unbind(1)
                probs = self.mask_logits(encoded, level, torch.full_like(cell, index), cell).float().sigmoid()
                here = (inverse >= start) & (inverse < start + CHUNK)
                yield own[here], probs[inverse[here] - start]


def _theta_of(grid: CellGrid, level: int, image: Tensor, cell: Tensor) -> Tensor:
    """θ (N, D) of the cells."""
    return grid.theta.flatten(2)[image, :, cell]


def _frame(batch: ImageList) -> tuple[int, int]:
    """(H, W) of the padded batch."""
    return int(batch.tensors.shape[-2]), int(batch.tensors.shape[-1])


def level_masks(
    targets: Sequence[dict[str, Tensor]], assigned: Assignment, encoded: EncodedGrids, size: tuple[int, int]
) -> Tensor:
    """Target masks (P, h, w) of 0 and 1 of a level's cells: shrunk by the mask stride, at the top left of the frame.

    Args:
        size: (h, w) of the level's mask feature, the whole padded frame.
    """
    out = []
    for image, target in enumerate(targets):
        rows = assigned.instance[assigned.image == image].to(target["masks"].device)
        if len(rows) == 0:
            continue
        used, inverse = rows.unique(return_inverse=True)
        network = encoded.network_sizes[image]
        inner = [max(1, round(n * s / f)) for n, s, f in zip(network, size, encoded.frame)]
        masks = target["masks"][used][:, None].float()
        shrunk = F.interpolate(masks, size=inner, mode="bilinear", align_corners=False, antialias=True)
        padded = F.pad(shrunk, (0, size[1] - inner[1], 0, size[0] - inner[0]))[:, 0]
        out.append((padded >= 0.5).float()[inverse])
    return torch.cat(out)


def connected(grids: Sequence[CellGrid], module: nn.Module) -> Tensor:
    """A zero whose backward reaches every trainable parameter, so that ranks agree on which gradients there are."""
    zeros = [parameter.flatten()[:0].sum() for parameter in module.parameters() if parameter.requires_grad]
    return torch.stack([grids[0].category.flatten()[:0].sum(), *zeros]).sum()
