"""PointRend's mask head (Kirillov et al. 2020): a coarse 7×7 mask, refined at the most uncertain points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from dynamask.models.macs import conv_macs
from dynamask.models.masks.heads.base import MaskHead, RegionState, class_logits, start_small
from dynamask.structures import MASK_SIZES

STRIDE = 4
"""Stride of P2, which both parts of the head read."""
COARSE_SIDE = 7
TRAINING_POINTS = 14**2
OVERSAMPLING = 3
"""Number of candidates per training point."""
UNCERTAIN_SHARE = 0.75
"""Share of the training points that are the most uncertain candidates; the others are uniform."""
TEST_POINTS = 28**2
"""Number of points that a subdivision step predicts again, at most."""


class PointRendHead(MaskHead):
    """Coarse head and point head as published, except that the subdivision ends at 112 instead of 224.

    Coarse head: a 14×14 grid of bilinear samples of P2, a 2×2 convolution of stride 2, two hidden fully connected
    layers of four times the width, a 7×7 mask of every class. Point head: the feature of P2 and the coarse prediction
    of every class at a point, and three hidden layers, each of which also reads the coarse prediction.

    Args:
        fpn_channels: channels of the image-level pyramid.
        channels: of the strided convolution and of the point head's hidden layers.
        num_classes: foreground classes; 1 for a class-agnostic head.
    """

    NAME = "point_rend"
    mask_sizes = (MASK_SIZES[-1],)
    has_edges = False
    map_strides = (STRIDE,)

    def __init__(self, fpn_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        hidden = 4 * channels
        self.reduce = nn.Conv2d(fpn_channels, channels, 2, stride=2)
        self.coarse = nn.Sequential(
            nn.Linear(channels * COARSE_SIDE**2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes * COARSE_SIDE**2),
        )
        self.layers = nn.ModuleList(
            nn.Conv1d(inputs + num_classes, channels, 1) for inputs in (fpn_channels, channels, channels)
        )
        self.predictor = nn.Conv1d(channels + num_classes, num_classes, 1)
        for layer in (self.reduce, self.coarse[0], self.coarse[2], *self.layers):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        start_small(self.coarse[4], self.predictor)

    def begin(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> RegionState:
        """Sample R regions of P2 on grids of 14×14 points."""
        crop = roi_align(
            features["0"], self.on_map(rois, STRIDE), 2 * COARSE_SIDE, 1.0 / STRIDE, sampling_ratio=1, aligned=True
        )
        return RegionState(rois, labels, [features["0"]], [crop], [torch.arange(len(rois), device=rois.device)])

    def coarse_logits(self, crop: Tensor) -> Tensor:
        """(n, C, 14, 14) → logits (n, K, 7, 7) of every class."""
        hidden = F.relu(self.reduce(crop)).flatten(1)  # (n, C * 49)
        return self.coarse(hidden).unflatten(1, (-1, COARSE_SIDE, COARSE_SIDE))

    def point_logits(self, state: RegionState, rows: Tensor, coarse: Tensor, points: Tensor) -> Tensor:
        """Logits (n, P) of the class of each region at points (n, P, 2), xy in [0, 1] of their boxes.

        Args:
            coarse: (n, K, 7, 7) of :meth:`coarse_logits` for the regions ``rows`` (n,).
        """
        rough = sample_grid(coarse, points)  # (n, K, P)
        hidden = sample_map(state.maps[0], self.on_map(state.rois[rows], STRIDE), points)  # (n, C, P)
        for layer in self.layers:
            hidden = F.relu(layer(torch.cat([hidden, rough], dim=1)))
        return class_logits(self.predictor, torch.cat([hidden, rough], dim=1), state.labels[rows])

    def mask_logits(self, state: RegionState, size_index: int, rows: Tensor) -> Tensor:
        """Mask logits (n, 112, 112) by subdivision; ValueError for a size that the head does not predict.

        Each step doubles the side bilinearly and predicts the 28² cells whose logits are closest to 0 again, at their
        centres; up to a side of 28 these are all cells.
        """
        self.check_size(size_index)
        coarse = self.coarse_logits(state.gather(0, rows))
        logits = own_class(coarse, state.labels[rows])
        for side in MASK_SIZES:
            logits = F.interpolate(logits[:, None], size=side, mode="bilinear", align_corners=False).flatten(1)
            cells = logits.abs().topk(min(TEST_POINTS, side * side), dim=1, largest=False).indices  # (n, P)
            points = (torch.stack([cells % side, cells // side], dim=2).to(logits.dtype) + 0.5) / side
            logits = logits.scatter(1, cells, self.point_logits(state, rows, coarse, points).to(logits.dtype))
            logits = logits.reshape(len(rows), side, side)
        return logits

    def mask_losses(self, state: RegionState, target_masks: list[Tensor]) -> Tensor:
        """Loss (N, 1) of each region: mean cross-entropy of the coarse mask plus that of the training points.

        The coarse target is the majority of the finest target in each cell, the target of a point its bilinear value.
        """
        every, truth = torch.arange(len(state), device=state.rois.device), target_masks[-1]
        if len(state) == 0:
            return truth.new_zeros((0, 1))
        coarse = self.coarse_logits(state.gather(0, every))
        own = own_class(coarse, state.labels)
        rough_truth = (F.adaptive_avg_pool2d(truth, COARSE_SIDE) >= 0.5).to(truth.dtype)
        with torch.no_grad():
            points = training_points(own.detach())
            fine_truth = sample_grid(truth[:, None], points)[:, 0]
        found = self.point_logits(state, every, coarse, points)
        pairs = ((own, rough_truth), (found, fine_truth))
        raw = [F.binary_cross_entropy_with_logits(x.float(), t, reduction="none") for x, t in pairs]
        entropies = [values.flatten(1).mean(1) for values in raw]
        return torch.stack(entropies).sum(0)[:, None]

    def macs_per_instance(self) -> tuple[int, ...]:
        """MACs of the coarse head and all subdivision steps in evaluation, equal for every size."""
        coarse = conv_macs(self.reduce, COARSE_SIDE, COARSE_SIDE)
        coarse += sum(layer.weight.numel() for layer in self.coarse if isinstance(layer, nn.Linear))
        point = sum(layer.weight.numel() for layer in self.layers) + self.predictor.in_channels
        return (coarse + point * sum(min(TEST_POINTS, size * size) for size in MASK_SIZES),) * len(MASK_SIZES)


def own_class(logits: Tensor, labels: Tensor) -> Tensor:
    """(n, K, S, S) → (n, S, S), the channel of each label (n,) ≥ 1; the single channel if K is 1."""
    channel = torch.zeros_like(labels) if logits.shape[1] == 1 else labels - 1
    return logits[torch.arange(len(logits), device=logits.device), channel]


def sample_grid(grid: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (n, C, P) of grids (n, C, S, S) at points (n, P, 2), xy in [0, 1]; border cells are repeated."""
    where = points[:, :, None] * 2 - 1  # (n, P, 1, 2)
    return F.grid_sample(grid, where, mode="bilinear", padding_mode="border", align_corners=False)[..., 0]


def sample_map(feature_map: Tensor, rois: Tensor, points: Tensor) -> Tensor:
    """Bilinear features (n, C, P) of a map of stride 4 at points of boxes.

    Args:
        feature_map: (B, C, H, W).
        rois: (n, 5) batch index and xyxy in network-input pixels.
        points: (n, P, 2) xy in [0, 1] of the boxes.
    """
    pixels = rois[:, None, 1:3] + points * (rois[:, None, 3:5] - rois[:, None, 1:3])  # (n, P, 2)
    where = pixels / (pixels.new_tensor(feature_map.shape[:1:-1]) * STRIDE)  # in [0, 1] of the map
    found = feature_map.new_zeros((len(rois), feature_map.shape[1], points.shape[1]))
    for image in rois[:, 0].long().unique().tolist():
        chosen = torch.nonzero(rois[:, 0].long() == image)[:, 0]
        flat = where[chosen].reshape(1, -1, 2)  # (1, n_i * P, 2)
        values = sample_grid(feature_map[image : image + 1], flat)[0]  # (C, n_i * P)
        values = values.reshape(len(values), len(chosen), -1).transpose(0, 1)  # (n_i, C, P)
        found = found.index_copy(0, chosen, values.to(found.dtype))
    return found


def training_points(own: Tensor) -> Tensor:
    """Training points (n, 196, 2), xy in [0, 1]: 75 % are the most uncertain of 588 uniform points, the rest uniform.

    Certainty is the distance of the coarse logits ``own`` (n, 7, 7) from 0. Random numbers come from a copy of torch's
    global generator, so that a resumed run draws the same points, and that the regions drawn in training do not depend
    on the mask head.
    """
    generator = torch.Generator().set_state(torch.get_rng_state())
    uncertain = int(UNCERTAIN_SHARE * TRAINING_POINTS)
    shapes = ((len(own), OVERSAMPLING * TRAINING_POINTS, 2), (len(own), TRAINING_POINTS - uncertain, 2))
    candidates, uniform = (torch.rand(shape, generator=generator).to(own) for shape in shapes)
    certainty = sample_grid(own[:, None], candidates)[:, 0].abs()  # (n, 588)
    kept = certainty.topk(uncertain, dim=1, largest=False).indices
    return torch.cat([candidates.gather(1, kept[:, :, None].expand(-1, -1, 2)), uniform], dim=1)
