"""CondInst (Tian et al. 2020), with or without SODAR's aggregation.

FCOS predicts boxes at the locations of P3 … P6. A controller predicts for every location the weights of a mask network,
which runs on a shared mask feature and coordinates relative to the location. Its representations are not linear in the
weights, so they are decoded at the (bilinearly sampled) neighbours before they are aggregated.

As in the paper: FCOS with its ranges, centre sampling and three losses, a mask network of 169 weights on eight channels
at stride 8 and two relative coordinates, dice loss of weight 1, and box NMS, after which only the remaining locations
are decoded. Different here: four levels instead of P3 … P7, a tower of its own for the controller instead of that of
the boxes, masks that are trained at stride 8 instead of upsampled, and at most ``MASK_LOCATIONS`` masks per picture in
training. SODAR gives no details of its aggregation on CondInst: θ is predicted from the controller's tower, and the
context is fused from P3 … P6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import batched_nms, clip_boxes_to_image

from dynamask.config import MASK_NETWORK_WIDTHS, SoloConfig
from dynamask.models.backbone import BackboneWithFPN
from dynamask.models.solo.aggregation import (
    NeighbourAggregation,
    neighbour_positions,
    sample_vectors,
    split_theta,
)
from dynamask.models.solo.heads import AggregationHead, CellGrid, build_context, conv_norm, resized, tower
from dynamask.models.solo.inference import CHUNK, EncodedGrids
from dynamask.models.solo.losses import dice_loss
from dynamask.models.solo.model import SoloNet
from dynamask.models.solo.targets import shrunk_masks
from dynamask.models.tensor_functions import TensorFunction, picture_function
from dynamask.ops.means import connected_zero
from dynamask.structures import DynaMaskError

LEVELS = ("1", "2", "3", "pool")
STRIDES = (8, 16, 32, 64)
RANGES = ((0.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 1e8))
"""Range of the largest distance to a side of the boxes of each level, network-input pixels (FCOS)."""
MASK_STRIDE = 8
CENTRE_RADIUS = 1.5
"""Largest distance of positive locations from the centre of the box, in strides."""
MASK_LOCATIONS = 64
"""Largest number of positive locations per picture that train masks, drawn at random."""
BOX_NMS = 0.6
"""IoU of boxes of one class above which the one with the lower score is suppressed."""
_UNUSED = (
    "kernel_channels",
    "grids",
    "mask_grids",
    "scale_ranges",
    "centre_share",
    "nms_kernel",
    "nms_sigma",
    "voting",
)
"""Settings of SOLO and SOLOv2 that CondInst does not have."""


@dataclass
class LocationGrid(CellGrid):
    """The output of :class:`CondInstHead` for one level, whose cells are the h × w locations of the map.

    ``vectors`` (B, 169, h, w) are the weights of the mask network, and ``features`` (B, 8, H, W) is at ``MASK_STRIDE``.

    Attributes:
        distances: (B, h · w, 4) to the sides of the boxes, as FCOS encodes them.
        centreness: (B, h · w, 1) logits.
    """

    distances: Tensor | None = None
    centreness: Tensor | None = None


class CondInstHead(nn.Module):
    """FCOS, the controller, the mask feature and, with an aggregation, θ and the context.

    Args:
        config: of the model.
    """

    def __init__(self, config: SoloConfig) -> None:
        super().__init__()
        width, channels, depth, groups = config.fpn_channels, config.tower_channels, config.tower_depth, config.groups
        classes, masks = len(config.class_names) - 1, config.mask_feature_channels
        norm = partial(nn.GroupNorm, groups)
        self.fcos = FCOSHead(32, 1, classes, 1)  # its branches, whose GroupNorms have 32 groups, are replaced
        self.fcos.classification_head = FCOSClassificationHead(width, 1, classes, depth, norm_layer=norm)
        self.fcos.regression_head = FCOSRegressionHead(width, 1, depth, norm_layer=norm)
        self.controller_tower = tower(width, channels, depth, groups)
        weights = sum(a * b + b for a, b in zip(MASK_NETWORK_WIDTHS, MASK_NETWORK_WIDTHS[1:]))
        self.controller = nn.Conv2d(channels, weights, 3, padding=1)
        nn.init.normal_(self.controller.weight, std=0.01)
        nn.init.zeros_(self.controller.bias)
        self.refine = nn.ModuleList(conv_norm(width, masks, groups) for _ in LEVELS[:3])
        mask_tower = tower(masks, masks, depth, groups)
        self.mask_feature = nn.Sequential(mask_tower, nn.Conv2d(masks, MASK_NETWORK_WIDTHS[0] - 2, 1))
        self.aggregation = None
        if config.aggregation is not None:
            self.aggregation = AggregationHead(channels, config.aggregation, squash=False)
        self.context = build_context(config.aggregation, width, groups, len(LEVELS))

    def forward(self, features: dict[str, Tensor]) -> list[LocationGrid]:
        """{"1": P3, …, "pool": P6} → four grids that share one mask feature."""
        levels = [features[key] for key in LEVELS]
        found = self.fcos(levels)
        sizes = [level.shape[-2] * level.shape[-1] for level in levels]
        category, distances, centreness = (
            found[name].split(sizes, dim=1) for name in ("cls_logits", "bbox_regression", "bbox_ctrness")
        )
        size = levels[0].shape[-2:]
        maps = self.mask_feature(sum(resized(conv(level), size) for conv, level in zip(self.refine, levels)))
        context = None if self.context is None else self.context(levels)
        grids = []
        for index, level in enumerate(levels):
            cells = self.controller_tower(level)
            theta, offsets = (None, None) if self.aggregation is None else self.aggregation(cells)
            logits = category[index].transpose(1, 2).unflatten(2, tuple(level.shape[-2:]))
            shared = (self.controller(cells), maps, theta, offsets, context)
            grids.append(LocationGrid(logits, *shared, distances[index], centreness[index]))
        return grids


class CondInst(SoloNet):
    """FCOS with conditional convolutions for masks, and optional neighbour aggregation.

    Args:
        transform: resizes, normalises and pads a list of pictures.
        backbone: maps (B, 3, H, W) to the feature pyramid.
        config: of kind "condinst"; ``aggregation`` None is plain CondInst.

    Raises:
        DynaMaskError: the configuration sets something that CondInst does not have.
    """

    def __init__(self, transform: GeneralizedRCNNTransform, backbone: BackboneWithFPN, config: SoloConfig) -> None:
        _check_settings(config)
        aggregation = None if config.aggregation is None else NeighbourAggregation(config.aggregation)
        super().__init__(transform, backbone, CondInstHead(config), aggregation, config)

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each training loss, 1 as in the paper."""
        return dict.fromkeys(("loss_category", "loss_box_reg", "loss_centerness", "loss_dice"), 1.0)

    @property
    def level_groups(self) -> tuple[tuple[int, ...], ...]:
        """Levels that are decoded together: each alone, since the scale of the coordinates is that of the level."""
        return tuple((level,) for level in range(len(LEVELS)))

    def tensor_functions(self) -> Iterator[TensorFunction]:
        """The functions that a back end of inference can replace."""
        yield picture_function("backbone", self.backbone)
        for name in ("controller_tower", "mask_feature"):
            part = getattr(self.head, name)
            first = next(module for module in part.modules() if isinstance(module, nn.Conv2d))
            yield picture_function(name, part, first.in_channels, stride=8)

    def card_paragraphs(self) -> tuple[str, str]:
        """See :meth:`PretrainedModel.card_paragraphs`."""
        more = "" if self.aggregation is None else " with SODAR's aggregation of neighbouring masks"
        return f"One-stage instance segmentation, model `{self.config.name}`: CondInst{more}.", ""

    def mask_logits(self, encoded: EncodedGrids, level: int | Tensor, image: Tensor, cell: Tensor) -> Tensor:
        """Mask logits (N, H, W) at ``MASK_STRIDE`` of locations (N,) of one level, row · columns + column.

        Arguments are those of :meth:`SoloNet.mask_logits`.
        """
        level = int(torch.as_tensor(level).flatten()[0])
        grid, stride = encoded.grids[level], STRIDES[level]
        columns = grid.vectors.shape[-1]
        base = torch.stack([cell // columns, cell % columns], dim=1).to(torch.float64)
        if self.aggregation is None:
            return conditional_masks(grid.vectors, image, base[:, None], grid.features, stride)[:, 0]
        config = self.aggregation.config
        positions = neighbour_positions(base, config.neighbours, grid.vectors.shape[-2])
        if grid.offsets is not None:
            moved = grid.offsets.flatten(2)[image, :, cell]
            positions = positions + moved.reshape(len(cell), -1, 2).to(positions.dtype)

        def decoder(part: slice) -> Tensor:
            return conditional_masks(grid.vectors, image[part], positions[part], grid.features, stride, config.border)

        theta = None if grid.theta is None else grid.theta.flatten(2)[image, :, cell]
        return self.aggregation(decoder, image, tuple(grid.features.shape[-2:]), grid.context, theta)

    def _assign(self, batch: ImageList, placed: list[dict[str, Tensor]]) -> Locations:
        """The box that each location of each picture learns."""
        frame = tuple(batch.tensors.shape[-2:])
        anchors = torch.cat([anchors_of(_sides(frame, stride), stride) for stride in STRIDES]).to(batch.tensors.device)
        return Locations(anchors, placed, [match_locations(anchors, target["boxes"]) for target in placed])

    def _count(self, assigned: Locations) -> None:
        """Record the positive locations, and how many of them train masks."""
        self.means.add(sum(assigned.positives), "locations")
        self.means.add(sum(count.clamp_max(MASK_LOCATIONS) for count in assigned.positives))

    def _losses(
        self, encoded: EncodedGrids, assigned: Locations, targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """``loss_category``, ``loss_box_reg``, ``loss_centerness`` and ``loss_dice``."""
        outputs = {
            "cls_logits": torch.cat([grid.category.flatten(2).transpose(1, 2) for grid in encoded.grids], dim=1),
            "bbox_regression": torch.cat([grid.distances for grid in encoded.grids], dim=1),
            "bbox_ctrness": torch.cat([grid.centreness for grid in encoded.grids], dim=1),
        }
        boxes = [{"boxes": t["boxes"], "labels": t["labels"] - 1} for t in assigned.placed]  # FCOS counts from 0
        anchors = [assigned.anchors] * len(boxes)
        named = self.head.fcos.compute_loss(boxes, outputs, anchors, assigned.matched)
        here = sum(assigned.positives)
        joint = {  # torchvision divides by the number of positive locations, at least 1
            name: self.means.per_positive(loss * here.clamp_min(1), here, kind="locations")
            for name, loss in named.items()
        }
        return {
            "loss_category": joint["classification"],
            "loss_box_reg": joint["bbox_regression"],
            "loss_centerness": joint["bbox_ctrness"],
            "loss_dice": self._mask_loss(encoded, assigned.matched, targets),
        }

    def _mask_loss(
        self, encoded: EncodedGrids, matched: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> Tensor:
        """Mean dice loss of sampled positive locations; a connected zero without positive locations."""
        total, count = [connected_zero(self.parameters())], 0
        size = tuple(encoded.grids[0].features.shape[-2:])
        for image, (match, target) in enumerate(zip(matched, targets)):
            positive = torch.nonzero(match >= 0)[:, 0]
            if len(positive) > MASK_LOCATIONS:
                positive = positive[torch.randperm(len(positive))[:MASK_LOCATIONS].to(positive.device)]
            if len(positive) == 0:
                continue
            truth = shrunk_masks(target["masks"], encoded.network_sizes[image], encoded.frame, size, match.device)
            for level, rows, cell in _by_level(encoded, positive):
                logits = self.mask_logits(encoded, level, torch.full_like(cell, image), cell)
                total.append(dice_loss(logits, truth[match[positive[rows]]]).sum())
            count += len(positive)
        return self.means.per_positive(torch.stack(total).sum(), count)

    @torch.no_grad()
    def detect(self, encoded: EncodedGrids, index: int) -> dict[str, Tensor]:
        """Detections of one picture of a batch, see :meth:`SoloNet.predict`; boxes are those of FCOS.

        A score is the square root of the class score times the centreness. Of the ``candidates`` best locations above
        ``score_threshold``, ``detections_per_img`` are kept after box NMS, and only these are decoded.
        """
        config, grids = self.config, encoded.grids
        network, size = encoded.network_sizes[index], encoded.original_sizes[index]
        category = torch.cat([grid.category[index].flatten(1).T for grid in grids]).sigmoid()  # (M, C)
        centreness = torch.cat([grid.centreness[index] for grid in grids]).sigmoid()
        scores = (category * centreness).sqrt()
        row, label = torch.nonzero(scores > config.score_threshold).unbind(1)
        score = scores[row, label]
        best = score.argsort(descending=True, stable=True)[: config.candidates]
        row, label, score = row[best], label[best], score[best]
        anchors = [anchors_of(tuple(grid.category.shape[-2:]), s) for grid, s in zip(grids, STRIDES)]
        anchors = torch.cat(anchors).to(scores.device)[row]
        distances = torch.cat([grid.distances[index] for grid in grids])[row]
        boxes = clip_boxes_to_image(self.head.fcos.box_coder.decode(distances, anchors), network)
        kept = batched_nms(boxes, score, label, BOX_NMS)[: config.detections_per_img]
        row = row[kept]
        found = {
            "boxes": resize_boxes(boxes[kept], network, size),
            "labels": label[kept] + 1,
            "scores": score[kept],
            "masks": torch.zeros((len(row), *size), dtype=torch.bool, device=row.device),
            "level": torch.zeros_like(row),
            "cell": torch.zeros_like(row),
        }
        for level, own, cell in _by_level(encoded, row):
            found["level"][own], found["cell"][own] = level, cell
            for rows, cells in zip(own.split(CHUNK), cell.split(CHUNK)):
                probs = self.mask_logits(encoded, level, torch.full_like(cells, index), cells).float().sigmoid()
                large = resized(probs[:, None], encoded.frame)[..., : network[0], : network[1]]
                found["masks"][rows] = resized(large, size)[:, 0] > 0.5
        return found


@dataclass
class Locations:
    """What the locations of a batch learn.

    Attributes:
        anchors: (M, 4) squares of one stride around the locations of all levels, network-input pixels.
        placed: targets of each picture in network-input pixels.
        matched: (M,) int64 for each picture, see :func:`match_locations`.
    """

    anchors: Tensor
    placed: list[dict[str, Tensor]]
    matched: list[Tensor]

    @property
    def positives(self) -> list[Tensor]:
        """Number of positive locations of each picture."""
        return [(match >= 0).sum() for match in self.matched]


def _check_settings(config: SoloConfig) -> None:
    """Refuse settings without an effect."""
    usual = {field.name: field.default for field in dataclasses.fields(SoloConfig)}
    for name in _UNUSED:
        if getattr(config, name) != usual[name]:
            raise DynaMaskError(f"CondInst has no {name}; leave it out or choose another model")
    if config.aggregation is None:
        return
    for name in ("direct_weight", "tower_channels"):
        if getattr(config.aggregation, name):
            raise DynaMaskError(f"the aggregation of CondInst has no {name}; leave it out or choose another model")


def _sides(frame: tuple[int, int], stride: int) -> tuple[int, int]:
    """Sides (h, w) of the map of a stride."""
    return -(-frame[0] // stride), -(-frame[1] // stride)


def _by_level(encoded: EncodedGrids, location: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Of locations (N,), counted over all levels: each level that has some, their rows in (N,), and their cells."""
    first = 0
    for level, grid in enumerate(encoded.grids):
        count = grid.category.shape[-2] * grid.category.shape[-1]
        rows = torch.nonzero((location >= first) & (location < first + count))[:, 0]
        if len(rows):
            yield level, rows, location[rows] - first
        first += count


def conditional_masks(
    controllers: Tensor, image: Tensor, positions: Tensor, feature: Tensor, stride: int, border: str = "clamp"
) -> Tensor:
    """Representations (N, S, H, W): the mask network of each position on the feature and relative coordinates.

    Args:
        controllers: (B, 169, h, w) of a level of the given stride; sampled bilinearly.
        image: (N,) int64.
        positions: (N, S, 2) (row, column) on that map.
        feature: (B, 8, H, W) at ``MASK_STRIDE``.
        border: "clamp" moves positions outside the map to its border; "zero" decodes them to zeros.
    """
    if border == "clamp":
        last = positions.new_tensor([controllers.shape[-2] - 1, controllers.shape[-1] - 1])
        positions = torch.minimum(positions.clamp_min(0), last)
    count, samples = positions.shape[:2]
    theta = sample_vectors(controllers, image, positions, border).flatten(0, 1)  # (N·S, 169)
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
    layers = split_theta(theta, MASK_NETWORK_WIDTHS, 1)
    for number, (weight, bias) in enumerate(layers):
        hidden = torch.baddbmm(bias[..., None], weight[..., 0, 0], hidden)
        hidden = F.relu(hidden) if number < len(layers) - 1 else hidden
    return hidden.reshape(count, samples, height, width)


def anchors_of(sides: tuple[int, int], stride: int) -> Tensor:
    """(h · w, 4) squares of one stride around each location of an (h, w) map, network-input pixels."""
    y, x = ((torch.arange(side) + 0.5) * stride for side in sides)
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
