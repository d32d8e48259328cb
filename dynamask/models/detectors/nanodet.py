"""NanoDet-Plus: a small one-stage detector, with a feature pyramid for the mask branch.

RangiLyu's NanoDet-Plus (Apache-2.0): ShuffleNetV2, Ghost-PAN and the head of Generalized Focal Loss. Pictures are
stretched to a square, whatever their aspect ratio.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from dynamask.models.detectors.base import Detector, EncodedImages, PositiveRegions, Target
from dynamask.models.detectors.gfl_head import STRIDES, CellPredictions, GFLHead
from dynamask.models.detectors.gfl_losses import detection_losses, teacher_losses
from dynamask.models.detectors.ghost_pan import GhostPAN
from dynamask.models.detectors.mask_pyramid import MaskPyramid
from dynamask.models.detectors.shufflenet import ShuffleNetBody
from dynamask.models.tensor_functions import MAP_SIDES, TensorFunction

NECK_CHANNELS = {"shufflenet_v2_x1_0": 96, "shufflenet_v2_x1_5": 128}
"""Channels of the neck by backbone: NanoDet-Plus-m and m-1.5x."""
NECK_LEVELS = ("p8", "p16", "p32", "p64")
"""Keys of the neck's maps among the features; "0" to "3" are those of the mask branch."""
NMS_IOU = 0.6
CANDIDATES = 4000
"""Pairs of cell and class that go into NMS, at most, best scores first."""
MATCH_IOU = 0.5
"""IoU with an object from which a detection trains the mask branch."""
JITTER = 0.05
"""Standard deviation of the shift of each side of a true box in training, as a share of the box's width or height;
three standard deviations at most."""
LOSS_WEIGHTS = {
    "loss_quality": 1.0,
    "loss_distribution": 0.25,
    "loss_giou": 2.0,
    "loss_teacher_scores": 1.0,
    "loss_teacher_boxes": 1.0,
}


class StretchTransform(GeneralizedRCNNTransform):
    """Normalises pictures and stretches them to a square, bilinearly with anti-aliasing.

    Args:
        sides: of the square, pixels; the last one is used in evaluation, training draws from the others.
        mean, std: of the channels of RGB in [0, 1].
    """

    def __init__(self, sides: tuple[int, ...], mean: list[float], std: list[float]) -> None:
        super().__init__(sides, max(sides), mean, std)

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        """(3, H, W) float, and a target with ``boxes`` → (3, side, side), and the target with its boxes stretched."""
        side = self.torch_choice(list(self.min_size[:-1])) if self.training else self.min_size[-1]
        old = tuple(image.shape[-2:])
        image = F.interpolate(image[None], (side, side), mode="bilinear", antialias=True)[0]
        if target is None:
            return image, None
        return image, {**target, "boxes": resize_boxes(target["boxes"], old, (side, side))}


class NanoDetBackbone(nn.Module):
    """ShuffleNetV2, Ghost-PAN and the pyramid of the mask branch.

    Args:
        name: a key of ``NECK_CHANNELS``.
        out_channels: of the mask branch's pyramid.
        norm: keep the batch norms.
        top_down, corner_cells: see :class:`MaskPyramid`.
    """

    def __init__(
        self, name: str, out_channels: int, norm: bool = False, top_down: bool = True, corner_cells: bool = False
    ) -> None:
        super().__init__()
        self.body = ShuffleNetBody(name, norm)
        self.neck_channels = NECK_CHANNELS[name]
        self.neck = GhostPAN(self.body.channels[2:], self.neck_channels, norm)
        self.mask_pyramid = MaskPyramid(self.body.channels, self.neck_channels, out_channels, top_down, corner_cells)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised, sides multiples of 32 → maps by ``NECK_LEVELS`` and "0" to "3" (strides 4 to 32)."""
        maps = self.body(images)
        neck = self.neck(maps[2:])
        pyramid = self.mask_pyramid(maps, neck[:3])
        return {**{str(i): x for i, x in enumerate(pyramid)}, **dict(zip(NECK_LEVELS, neck, strict=True))}


class NanoDetDetector(Detector):
    """NanoDet-Plus.

    Args:
        transform, backbone: see :class:`Detector`.
        head: predicts classes and boxes of cells.
        score_threshold: detections below it are dropped, 0–1.
        detections_per_img: detections kept per picture, at most.
    """

    MASK_MODULES = ("backbone.mask_pyramid.",)
    PRETRAINED_MODULES = ("backbone.body.", "backbone.neck.", "head.")

    def __init__(
        self,
        transform: StretchTransform,
        backbone: NanoDetBackbone,
        head: GFLHead,
        score_threshold: float = 0.05,
        detections_per_img: int = 100,
    ) -> None:
        super().__init__(transform, backbone)
        self.head = head
        self.score_threshold = score_threshold
        self.detections_per_img = detections_per_img
        self._teacher: tuple[NanoDetDetector, ...] = ()  # not registered as a submodule, because it is in a tuple
        self.to(memory_format=torch.channels_last)  # depthwise convolutions take two thirds of the time on a CPU

    def learn_from(self, teacher: NanoDetDetector) -> None:
        """Train boxes and scores towards those of another detector instead of annotations.

        Args:
            teacher: with the same classes; it does not become part of this module's state.
        """
        self._teacher = (teacher.eval().requires_grad_(False),)

    def cells(self, features: dict[str, Tensor]) -> CellPredictions:
        """Predictions of all cells from the backbone's features."""
        return self.head([features[level] for level in NECK_LEVELS])

    def detect(self, encoded: EncodedImages) -> list[dict[str, Tensor]]:
        """See :meth:`Detector.detect`; every pair of cell and class above the threshold is a candidate."""
        return self.select(self.cells(encoded.features), encoded.image_sizes)

    def select(self, cells: CellPredictions, sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Threshold and class-wise NMS on each picture of the given (height, width)."""
        found = []
        for boxes, scores, size in zip(cells.boxes, cells.class_logits.sigmoid(), sizes):
            cell, label = torch.nonzero(scores > self.score_threshold, as_tuple=True)
            values = scores[cell, label]
            if len(values) > CANDIDATES:
                values, best = values.topk(CANDIDATES)
                cell, label = cell[best], label[best]
            boxes = clip_boxes_to_image(boxes[cell], size)
            keep = batched_nms(boxes, values, label, NMS_IOU)[: self.detections_per_img]
            found.append({"boxes": boxes[keep], "labels": label[keep] + 1, "scores": values[keep]})
        return found

    def classify(self, encoded: EncodedImages, boxes: list[Tensor]) -> Tensor:
        """See :meth:`Detector.classify`: the class with the largest score times IoU with the box over all cells."""
        cells = self.cells(encoded.features)
        labels = []
        for own, scores, given in zip(cells.boxes, cells.class_logits.sigmoid(), boxes):
            best, label = scores.max(dim=1)  # (N,)
            cell = (box_iou(given, own) * best).argmax(dim=1)
            labels.append(label[cell] + 1)
        return torch.cat(labels)

    def match_classes(
        self, stored: dict[str, Tensor], theirs: Sequence[str], own: Sequence[str]
    ) -> tuple[dict[str, Tensor], list[str]]:
        """See :meth:`Detector.match_classes`: classes of the same name keep their scores, whatever their order."""
        rows = {name: row for row, name in enumerate(theirs)}
        matched = dict(stored)
        for name, value in self.head.state_dict().items():
            key = f"head.{name}"
            if name.startswith("gfl_cls.") and key in stored and stored[key].shape[1:] == value.shape[1:]:
                scores = [stored[key][rows[c]] if c in rows else value[i].cpu() for i, c in enumerate(own)]
                matched[key] = torch.cat([torch.stack(scores).float(), stored[key][len(theirs) :].float()])
        return matched, [name for name in own if name not in rows]

    def tensor_functions(self) -> Iterator[TensorFunction]:
        """See :meth:`Detector.tensor_functions`."""
        yield from super().tensor_functions()
        maps = [torch.zeros(1, self.backbone.neck_channels, *(side // s for side in MAP_SIDES)) for s in STRIDES]
        yield TensorFunction("cells", self.head, (maps,), "rows")

    @property
    def loss_weights(self) -> dict[str, float]:
        """See :meth:`Detector.loss_weights`."""
        return LOSS_WEIGHTS

    def losses(self, encoded: EncodedImages, targets: list[Target]) -> tuple[dict[str, Tensor], list[PositiveRegions]]:
        """``loss_quality``, ``loss_distribution`` and ``loss_giou``; with a teacher its two losses instead; none if the
        head is frozen.

        The positive regions are the true boxes with jittered sides, and for each object the best detection of any
        class that overlaps it by at least ``MATCH_IOU``.
        """
        cells = self.cells(encoded.features)
        losses: dict[str, Tensor] = {}
        if self._teacher:
            losses = teacher_losses(cells, self._taught(encoded.images.tensors))
        elif any(parameter.requires_grad for parameter in self.head.parameters()):
            losses = detection_losses(cells, targets)
        with torch.no_grad():
            found = self.select(cells, encoded.image_sizes)
        regions = [positive_regions(t, f["boxes"], s) for t, f, s in zip(targets, found, encoded.image_sizes)]
        return losses, regions

    @torch.no_grad()
    def _taught(self, images: Tensor) -> CellPredictions:
        """The teacher's predictions on the network input."""
        teacher = self._teacher[0].to(images.device)
        maps = teacher.backbone.body(images)
        return teacher.head(teacher.backbone.neck(maps[2:]))


def positive_regions(target: Target, found: Tensor, size: tuple[int, int]) -> PositiveRegions:
    """The regions of one picture that train the mask branch.

    Args:
        target: with ``boxes`` (G, 4) and ``labels`` (G,).
        found: (R, 4) detected boxes, best first.
        size: (height, width) of the picture in the network input.
    """
    truth = target["boxes"]
    shifts = (torch.randn_like(truth) * JITTER).clamp(-3 * JITTER, 3 * JITTER)
    sides = (truth[:, 2:] - truth[:, :2]).repeat(1, 2)
    jittered = clip_boxes_to_image(truth + shifts * sides, size)
    matched = torch.arange(len(truth), device=truth.device)
    if len(truth) and len(found):
        iou, best = box_iou(truth, found).max(dim=1)
        hit = iou >= MATCH_IOU
        jittered = torch.cat([jittered, found[best[hit]]])
        matched = torch.cat([matched, matched[hit]])
    large = ((jittered[:, 2:] - jittered[:, :2]) >= 1.0).all(dim=1)
    matched = matched[large]
    return PositiveRegions(jittered[large].detach(), target["labels"][matched], matched)
