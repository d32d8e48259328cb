"""CondInst (Tian et al. 2020), with or without SODAR's aggregation.

FCOS predicts boxes at the locations of P3 … P6. A controller predicts for every location the weights of a mask network,
which runs on a shared mask feature and coordinates relative to the location. Its representations are not linear in the
weights, so they are decoded at the (bilinearly sampled) neighbours before they are aggregated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import batched_nms, clip_boxes_to_image

from dynamask.config import AggregationConfig
from dynamask.models.backbone import BackboneWithFPN
from dynamask.models.solo.aggregation import (
    NeighbourAggregation,
    neighbour_positions,
    sample_vectors,
    split_theta,
)
from dynamask.models.solo.heads import AggregationHead, build_context, conv_norm, resized, tower
from dynamask.models.solo.losses import dice_loss
from dynamask.models.solo.targets import shrunk_masks
from dynamask.ops.means import LOCAL_MEANS, Means, connected_zero

LEVELS = ("1", "2", "3", "pool")
STRIDES = (8, 16, 32, 64)
RANGES = ((0.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 1e8))
"""Range of the largest distance to a side of the boxes of each level, network-input pixels (FCOS)."""
MASK_STRIDE = 8
CENTRE_RADIUS = 1.5
"""Largest distance of positive locations from the centre of the box, in strides."""
_WIDTHS = (10, 8, 8, 1)
"""Channels of the mask network: eight of the feature and two coordinates, then 8, 8 and 1; it has 169 weights."""


@dataclass
class Locations:
    """Outputs of all locations of all levels for a batch.

    Attributes:
        outputs: of FCOS: ``cls_logits`` (B, M, C), ``bbox_regression`` (B, M, 4), ``bbox_ctrness`` (B, M, 1).
        anchors: (M, 4) boxes of one stride around each location.
        controllers, theta, offsets: per level (B, ·, h, w); the last two may be None.
        feature: (B, 8, H, W) of the masks, at ``MASK_STRIDE``.
        context: (B, K, H, W) or None.
        frame: (H, W) of the padded batch.
    """

    outputs: dict[str, Tensor]
    anchors: Tensor
    controllers: list[Tensor]
    theta: list[Tensor | None]
    offsets: list[Tensor | None]
    feature: Tensor
    context: Tensor | None
    frame: tuple[int, int]


class CondInst(nn.Module):
    """FCOS with conditional convolutions for masks, and optional neighbour aggregation.

    Args:
        transform: resizes, normalises and pads a list of pictures.
        backbone: maps (B, 3, H, W) to the feature pyramid.
        num_classes: foreground classes.
        aggregation: None for plain CondInst.
        channels, depth: of the towers.
        groups: of the GroupNorms.
        mask_cells: number of positive locations per picture that train masks, at most, drawn at random.

    Attributes:
        means: takes the means over positives; the trainer replaces it while a batch is spread over several parts.
    """

    def __init__(
        self,
        transform: GeneralizedRCNNTransform,
        backbone: BackboneWithFPN,
        num_classes: int,
        aggregation: AggregationConfig | None = None,
        channels: int = 256,
        depth: int = 4,
        groups: int = 32,
        mask_cells: int = 64,
    ) -> None:
        super().__init__()
        width = backbone.out_channels
        self.transform, self.backbone, self.mask_cells = transform, backbone, mask_cells
        self.means: Means = LOCAL_MEANS
        self.head = FCOSHead(width, 1, num_classes, depth)
        self.controller_tower = tower(width, channels, depth, groups)
        self.controller = nn.Conv2d(channels, sum(a * b + b for a, b in zip(_WIDTHS, _WIDTHS[1:])), 3, padding=1)
        nn.init.normal_(self.controller.weight, std=0.01)
        nn.init.zeros_(self.controller.bias)
        self.refine = nn.ModuleList(conv_norm(width, channels // 2, groups) for _ in LEVELS[:3])
        mask_tower = tower(channels // 2, channels // 2, 2, groups)
        self.mask_feature = nn.Sequential(mask_tower, nn.Conv2d(channels // 2, _WIDTHS[0] - 2, 1))
        self.aggregation = self.aggregation_head = None
        if aggregation is not None:
            self.aggregation = NeighbourAggregation(aggregation)
            self.aggregation_head = AggregationHead(channels, aggregation, squash=False)
        self.context = build_context(aggregation, width, groups, len(LEVELS))

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses (``loss_category``, ``loss_box_reg``, ``loss_centerness``, ``loss_dice``), or detections.

        Arguments are those of :class:`dynamask.models.solo.model.SoloNet`; detections have ``boxes``, ``labels``,
        ``scores`` and ``masks`` (R, H, W) bool.
        """
        plain = None if targets is None else [{"boxes": t["boxes"], "labels": t["labels"]} for t in targets]
        batch, placed = self.transform(images, plain)
        found = self.locate(batch.tensors)
        if not self.training:
            sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
            return [self._detect(found, i, batch.image_sizes[i], sizes[i]) for i in range(len(images))]
        matched = [match_locations(found.anchors, target["boxes"]) for target in placed]
        positives = [(match >= 0).sum() for match in matched]
        if self.means.counting:
            self.means.add(sum(positives), "locations")
            self.means.add(sum(count.clamp_max(self.mask_cells) for count in positives))
            return {}
        labels = [{**target, "labels": target["labels"] - 1} for target in placed]  # torchvision's FCOS counts from 0
        anchors = [found.anchors] * len(images)
        named = self.head.compute_loss(labels, found.outputs, anchors, matched)
        here = sum(positives)
        joint = {  # torchvision divides by the number of positive locations, at least 1
            name: self.means.per_positive(loss * here.clamp_min(1), here, kind="locations")
            for name, loss in named.items()
        }
        return {
            "loss_category": joint["classification"],
            "loss_box_reg": joint["bbox_regression"],
            "loss_centerness": joint["bbox_ctrness"],
            "loss_dice": self._mask_loss(found, matched, targets, batch.image_sizes),
        }

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each training loss."""
        return {"loss_category": 1.0, "loss_box_reg": 1.0, "loss_centerness": 1.0, "loss_dice": 3.0}

    def locate(self, batch: Tensor) -> Locations:
        """(B, 3, H, W) normalised → the outputs of every location."""
        features = self.backbone(batch)
        levels = [features[key] for key in LEVELS]
        cells = [self.controller_tower(level) for level in levels]
        extras = [(None, None) if self.aggregation_head is None else self.aggregation_head(x) for x in cells]
        size = levels[0].shape[-2:]
        refined = [resized(conv(level), size) for conv, level in zip(self.refine, levels)]
        return Locations(
            self.head(levels),
            torch.cat([anchors_of(level, stride) for level, stride in zip(levels, STRIDES)]),
            [self.controller(x) for x in cells],
            [theta for theta, _ in extras],
            [offsets for _, offsets in extras],
            self.mask_feature(sum(refined)),
            None if self.context is None else self.context(levels),
            (int(batch.shape[-2]), int(batch.shape[-1])),
        )

    def mask_logits(self, found: Locations, level: int, image: Tensor, cell: Tensor) -> Tensor:
        """Mask logits (N, H, W) at ``MASK_STRIDE`` of locations (N,) of one level, row · columns + column.

        ``image`` (N,) must be in rising order.
        """
        controllers = found.controllers[level]
        columns = controllers.shape[-1]
        base = torch.stack([cell // columns, cell % columns], dim=1).to(torch.float64)
        if self.aggregation is None:
            return conditional_masks(controllers, image, base[:, None], found.feature, STRIDES[level])[:, 0]
        theta, offsets = (
            None if x is None else x.flatten(2)[image, :, cell] for x in (found.theta[level], found.offsets[level])
        )
        positions = neighbour_positions(base, self.aggregation.config.neighbours, controllers.shape[-2])
        if offsets is not None:
            positions = positions + offsets.reshape(len(cell), -1, 2).to(positions.dtype)

        def decoder(part: slice) -> Tensor:
            return conditional_masks(controllers, image[part], positions[part], found.feature, STRIDES[level])

        size = (found.feature.shape[-2], found.feature.shape[-1])
        return self.aggregation(decoder, image, size, found.context, theta)

    def _mask_loss(
        self,
        found: Locations,
        matched: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
        network_sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Mean dice loss of sampled positive locations; a connected zero without positive locations."""
        total, count = [connected_zero(self.parameters())], 0
        counts = [c.shape[-2] * c.shape[-1] for c in found.controllers]
        for image, (match, target) in enumerate(zip(matched, targets)):
            positive = torch.nonzero(match >= 0)[:, 0]
            if len(positive) > self.mask_cells:
                positive = positive[torch.randperm(len(positive))[: self.mask_cells]]
            if len(positive) == 0:
                continue
            size = tuple(found.feature.shape[-2:])
            truth = shrunk_masks(target["masks"], network_sizes[image], found.frame, size, match.device)
            first = 0
            for level, size in enumerate(counts):
                own = positive[(positive >= first) & (positive < first + size)]
                if len(own):
                    rows = torch.full_like(own, image)
                    logits = self.mask_logits(found, level, rows, own - first)
                    total.append(dice_loss(logits, truth[match[own]]).sum())
                first += size
            count += len(positive)
        return self.means.per_positive(torch.stack(total).sum(), count)

    def _detect(
        self, found: Locations, index: int, network: tuple[int, int], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """At most 100 detections of one picture, in its pixels."""
        out = {key: value[index] for key, value in found.outputs.items()}
        scores = (out["cls_logits"].sigmoid() * out["bbox_ctrness"].sigmoid()).sqrt()
        row, label = torch.nonzero(scores > 0.2).unbind(1)
        score = scores[row, label]
        best = score.argsort(descending=True)[:1000]
        row, label, score = row[best], label[best], score[best]
        boxes = self.head.box_coder.decode(out["bbox_regression"][row], found.anchors[row])
        boxes = clip_boxes_to_image(boxes, network)
        kept = batched_nms(boxes, score, label, 0.6)[:100]
        masks = self._full_masks(found, index, row[kept], network, size)
        return {
            "boxes": resize_boxes(boxes[kept], network, size),
            "labels": label[kept] + 1,
            "scores": score[kept],
            "masks": masks,
        }

    def _full_masks(
        self, found: Locations, index: int, row: Tensor, network: tuple[int, int], size: tuple[int, int]
    ) -> Tensor:
        masks, first = torch.zeros((len(row), *size), dtype=torch.bool, device=row.device), 0
        for level, controllers in enumerate(found.controllers):
            count = controllers.shape[-2] * controllers.shape[-1]
            own = torch.nonzero((row >= first) & (row < first + count))[:, 0]
            if len(own):
                probs = self.mask_logits(found, level, torch.full_like(own, index), row[own] - first).sigmoid()
                large = resized(probs[:, None], found.frame)[..., : network[0], : network[1]]
                masks[own] = resized(large, size)[:, 0] > 0.5
            first += count
        return masks


def conditional_masks(controllers: Tensor, image: Tensor, positions: Tensor, feature: Tensor, stride: int) -> Tensor:
    """Representations (N, S, H, W): the mask network of each position on the feature and relative coordinates.

    Args:
        controllers: (B, 169, h, w) of a level of the given stride; sampled bilinearly, clamped to the map.
        image: (N,) int64.
        positions: (N, S, 2) (row, column) on that map.
        feature: (B, 8, H, W) at ``MASK_STRIDE``.
    """
    count, samples = positions.shape[:2]
    theta = sample_vectors(controllers, image, positions, "clamp").flatten(0, 1)  # (N·S, 169)
    height, width = feature.shape[-2:]
    y = (torch.arange(height, device=feature.device) + 0.5) * MASK_STRIDE
    x = (torch.arange(width, device=feature.device) + 0.5) * MASK_STRIDE
    centres = ((positions + 0.5) * stride).flatten(0, 1).to(feature.dtype)  # (N·S, 2) in network-input pixels
    scale = stride * 8.0
    relative = torch.stack(
        [
            ((x[None, None, :] - centres[:, 1, None, None]) / scale).expand(-1, height, -1),
            ((y[None, :, None] - centres[:, 0, None, None]) / scale).expand(-1, -1, width),
        ],
        dim=1,
    )
    inputs = torch.cat([relative, feature[image].repeat_interleave(samples, dim=0)], dim=1)  # (N·S, 10, H, W)
    hidden = inputs.flatten(2)
    layers = split_theta(theta, _WIDTHS, 1)
    for number, (weight, bias) in enumerate(layers):
        hidden = torch.baddbmm(bias[..., None], weight[..., 0, 0], hidden)
        hidden = F.relu(hidden) if number < len(layers) - 1 else hidden
    return hidden.reshape(count, samples, height, width)


def anchors_of(level: Tensor, stride: int) -> Tensor:
    """(h · w, 4) squares of one stride around each location of a map, network-input pixels."""
    y = (torch.arange(level.shape[-2], device=level.device) + 0.5) * stride
    x = (torch.arange(level.shape[-1], device=level.device) + 0.5) * stride
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([columns, rows, columns, rows], dim=-1).reshape(-1, 4)
    return centres + centres.new_tensor([-1.0, -1.0, 1.0, 1.0]) * (stride / 2)


def match_locations(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Index (M,) int64 of the box that each location learns, −1 for none (FCOS, § 3.2).

    A location is positive if it lies in the box, within ``CENTRE_RADIUS`` strides of its centre, and the largest
    distance to a side is in the range of its level; of several boxes it learns the smallest.
    """
    if len(boxes) == 0:
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    centres, stride = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2] - anchors[:, 0]
    distances = torch.cat([centres[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - centres[:, None]], dim=2)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = (centres[:, None] - middle[None]).abs().amax(2) < CENTRE_RADIUS * stride[:, None]
    limits = dict(zip(STRIDES, RANGES))
    low, high = (stride.new_tensor([limits[int(s)][end] for s in stride.tolist()]) for end in (0, 1))
    reach = distances.amax(2)
    fits = near & (distances.amin(2) > 0) & (reach > low[:, None]) & (reach <= high[:, None])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    best = torch.where(fits, area[None], torch.inf)
    value, index = best.min(dim=1)
    return torch.where(value.isinf(), -1, index)
