"""Interface of detectors: pictures to a feature pyramid, and from there to boxes, labels and scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dynamask.models.tensor_functions import TensorFunction, picture_function

Target = dict[str, Tensor]


@dataclass
class EncodedImages:
    """A padded batch of pictures with its feature pyramid.

    Attributes:
        images: the network input (B, 3, H, W), with the (height, width) of each picture inside it.
        features: {"0": P2, …, "3": P5}, each (B, C, H_l, W_l) float32, and further maps that the detector reads.
        original_sizes: (height, width) of each picture before resizing.
    """

    images: ImageList
    features: dict[str, Tensor]
    original_sizes: list[tuple[int, int]]

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each picture in the network input."""
        return self.images.image_sizes


@dataclass
class PositiveRegions:
    """Regions of one picture that were matched to objects; the mask branch trains on them.

    Attributes:
        boxes: (P, 4) xyxy in network-input pixels, without gradient.
        labels: (P,) int64 ≥ 1.
        matched: (P,) int64, the row of the picture's target that each region is matched to.
    """

    boxes: Tensor
    labels: Tensor
    matched: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: Tensor) -> PositiveRegions:
        """The regions with the given (n,) int64 indices."""
        return PositiveRegions(self.boxes[rows], self.labels[rows], self.matched[rows])


class Detector(nn.Module, ABC):
    """Base class of detectors.

    A subclass implements :meth:`detect`, :meth:`classify` and :meth:`losses`. The mask branch needs nothing else: it
    reads the pyramid levels "0" to "3" (strides 4 to 32), and boxes in network-input pixels.

    Args:
        transform: resizes, normalises and pads a list of pictures; it returns an ``ImageList`` and resized targets.
        backbone: maps (B, 3, H, W) to the feature pyramid.

    Attributes:
        MASK_MODULES: prefixes of the names of modules that only the mask branch reads; freezing the detector leaves
            them to be trained with it.
        PRETRAINED_MODULES: prefixes of the names of modules that start from pretrained weights; their learning rate is
            multiplied by ``backbone_lr_factor``.
    """

    MASK_MODULES: ClassVar[tuple[str, ...]] = ()
    PRETRAINED_MODULES: ClassVar[tuple[str, ...]] = ("backbone.body.",)

    def __init__(self, transform: GeneralizedRCNNTransform, backbone: nn.Module) -> None:
        super().__init__()
        self.transform = transform
        self.backbone = backbone

    def encode(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> tuple[EncodedImages, list[Target] | None]:
        """Resize, normalise and pad pictures, and compute their feature pyramid.

        Args:
            images: (3, H, W) float in [0, 1] each.
            targets: see :meth:`dynamask.models.dynamask.DynaMask.forward`.

        Returns:
            The batch, and the targets with ``boxes`` in network-input pixels, ``masks`` unchanged in pixels of the
            original picture, ``mask_scale`` (4,), the factors from a network-input box to those pixels, and
            ``mask_only`` where it was given.
            Feature maps are float32 under autocast, too, because anchors and boxes take their type.
        """
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        plain = None if targets is None else [{"boxes": t["boxes"], "labels": t["labels"]} for t in targets]
        batch, resized = self.transform(images, plain)
        if targets is not None:
            for target, given, size, network in zip(resized, targets, sizes, batch.image_sizes):
                target.update({key: given[key] for key in ("masks", "mask_only") if key in given})
                target["mask_scale"] = target["boxes"].new_tensor([size[1] / network[1], size[0] / network[0]] * 2)
        features = {level: map_.float() for level, map_ in self.backbone(batch.tensors).items()}
        return EncodedImages(batch, features, sizes), resized

    @abstractmethod
    def detect(self, encoded: EncodedImages) -> list[dict[str, Tensor]]:
        """Detections of each picture: ``boxes`` (R, 4) xyxy in network-input pixels, ``labels`` and ``scores`` (R,)."""

    @abstractmethod
    def classify(self, encoded: EncodedImages, boxes: list[Tensor]) -> Tensor:
        """The most probable foreground label of given boxes.

        Args:
            encoded: B pictures.
            boxes: (R_i, 4) xyxy in network-input pixels of each picture.

        Returns:
            (R_1 + … + R_B,) int64 ≥ 1.
        """

    def match_classes(
        self, stored: dict[str, Tensor], theirs: Sequence[str], own: Sequence[str]
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Fit the tensors of a trained detector of the same kind to other classes.

        By default they stay as they are, so that loading refuses another number of classes.

        Args:
            stored: tensors by their names in weights files, of the whole model; not changed.
            theirs: names of its classes, without the background.
            own: names of the classes of this detector.

        Returns:
            The tensors, and the names of the classes whose scores keep this detector's weights.
        """
        return stored, []

    def tensor_functions(self) -> Iterator[TensorFunction]:
        """The functions that a back end of inference can replace."""
        yield picture_function("backbone", self.backbone)

    @property
    @abstractmethod
    def loss_weights(self) -> dict[str, float]:
        """Weight of each of the losses of :meth:`losses`."""

    @abstractmethod
    def losses(self, encoded: EncodedImages, targets: list[Target]) -> tuple[dict[str, Tensor], list[PositiveRegions]]:
        """Named, unweighted losses of the detector, and the positive regions of each picture.

        Args:
            encoded: B pictures.
            targets: of :meth:`encode`.
        """


def boxes_to_rois(boxes: list[Tensor]) -> Tensor:
    """(R_i, 4) boxes of each picture → rois (R, 5): the batch index, then the box."""
    index = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
    return torch.cat([index, torch.cat(boxes)], dim=1)
