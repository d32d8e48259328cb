"""The one-stage model: backbone → FPN → category and mask vector of every grid cell → masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dynamask.config import SoloConfig
from dynamask.models.backbone import BackboneWithFPN
from dynamask.models.hub import PretrainedModel
from dynamask.models.solo.aggregation import NeighbourAggregation, base_positions, linear_decoder, sample_vectors
from dynamask.models.solo.heads import CellGrid, SoloHead, SoloV2Head
from dynamask.models.solo.inference import EncodedGrids, detect
from dynamask.models.solo.losses import category_loss, dice_loss
from dynamask.models.solo.targets import Assignment, assign, centres_of_mass, joined, level_masks
from dynamask.models.tensor_functions import TensorFunction, picture_function
from dynamask.ops.means import LOCAL_MEANS, Means, connected_zero


class SoloNet(PretrainedModel):
    """SOLO or SOLOv2, with or without SODAR's aggregation, and base class of CondInst.

    Args:
        transform: resizes, normalises and pads a list of pictures.
        backbone: maps (B, 3, H, W) to the feature pyramid.
        head: predicts category and mask vector of every cell.
        aggregation: SODAR's; None for the plain models.
        config: thresholds of inference; stored with the weights.

    Attributes:
        means: takes the means over positive cells; the trainer replaces it while a batch is spread over several parts.
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
        assigned = self._assign(batch, placed)
        if self.means.counting:
            self._count(assigned)
            return {}
        return self._losses(self._encode(batch, images), assigned, targets)

    def _assign(self, batch: ImageList, placed: list[dict[str, Tensor]]) -> Any:
        """What every cell learns: here the cells of each level that learn an object."""
        config = self.config
        return assign(placed, _frame(batch), config.grids, config.scale_ranges, config.centre_share)

    def _count(self, assigned: Any) -> None:
        """Record the number of positive cells."""
        self.means.add(sum(len(own) for own in assigned))

    def _losses(self, encoded: EncodedGrids, assigned: Any, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses of what :meth:`_assign` returned."""
        category = self._category_loss(encoded, assigned)
        return {"loss_category": category, **self._mask_losses(encoded, assigned, targets)}

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each training loss: 1 and 3 as in SOLO; SODAR's two-stage loss has its share of the dice loss."""
        direct = self.config.aggregation.direct_weight if self.config.aggregation else 0.0
        return {"loss_category": 1.0, "loss_dice": 3.0, "loss_direct": 3.0 * direct}

    def encode(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[EncodedGrids, list[dict[str, Tensor]]]:
        """Resize, normalise and pad pictures, and run backbone and head.

        Returns:
            The grids, and the targets with ``boxes`` and ``centres`` of mass in network-input pixels.
        """
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
            centres = centres_of_mass(given["masks"])
            placed["centres"] = (centres * ratio.to(centres.device)).to(image.device)
        return batch, resized or []

    def _encode(self, batch: ImageList, images: list[Tensor]) -> EncodedGrids:
        """Run backbone and head on a padded batch."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        return EncodedGrids(self.head(self.backbone(batch.tensors)), batch.image_sizes, sizes, _frame(batch))

    def tensor_functions(self) -> Iterator[TensorFunction]:
        """The functions that a back end of inference can replace."""
        yield picture_function("backbone", self.backbone)
        for name in ("category_tower", "mask_tower", "kernel_tower", "aggregation_tower"):
            tower = getattr(self.head, name, None)
            if tower is not None:
                yield picture_function(name, tower, tower[0][0].in_channels, stride=4)

    @torch.no_grad()
    def probe(self, image: Tensor) -> dict[str, Tensor]:
        """Outputs of the head, and mask logits of two cells of a level; see :meth:`PretrainedModel.probe`."""
        encoded, _ = self.encode([image])
        names = ("category", "vectors", "features")
        outputs = {name: torch.cat([getattr(grid, name).flatten() for grid in encoded.grids]) for name in names}
        rows, columns = encoded.grids[2].category.shape[-2:]
        cells = [columns * (rows // 3) + columns // 2, columns * (rows // 2) + columns // 3]
        cells = torch.tensor(cells, device=image.device)
        outputs["masks"] = self.mask_logits(encoded, 2, torch.zeros_like(cells), cells)
        return outputs

    def card_paragraphs(self) -> tuple[str, str]:
        """See :meth:`PretrainedModel.card_paragraphs`."""
        kind = {"solo": "SOLO", "solov2": "SOLOv2"}[self.config.kind]
        with_sodar = "" if self.aggregation is None else " with SODAR's aggregation of neighbouring masks"
        return f"One-stage instance segmentation, model `{self.config.name}`: {kind}{with_sodar}.", ""

    @property
    def level_groups(self) -> tuple[tuple[int, ...], ...]:
        """Levels that are decoded together: SOLOv2 has one mask feature for all levels, SOLO one for each."""
        levels = tuple(range(len(self.config.grids)))
        return (levels,) if self.config.kind == "solov2" else tuple((level,) for level in levels)

    def mask_logits(self, encoded: EncodedGrids, level: int | Tensor, image: Tensor, cell: Tensor) -> Tensor:
        """Mask logits (N, h, w) of cells at their mask stride; only these cells are decoded.

        Args:
            encoded: of :meth:`encode`.
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
        """``of_level(grid, level, image, cell)`` of the cells of all levels, in the order of the cells."""
        parts, places = [], []
        for number in level.unique().tolist() or [0]:
            rows = torch.nonzero(level == number)[:, 0]
            parts.append(of_level(encoded.grids[number], number, image[rows], cell[rows]))
            places.append(rows)
        return parts[0] if len(parts) == 1 else torch.cat(parts)[torch.cat(places).argsort()]

    def _own_vectors(self, grid: CellGrid, level: int, image: Tensor, cell: Tensor) -> Tensor:
        """(N, 1, V) of the cells themselves."""
        side = self.config.grids[level]
        return sample_vectors(grid.vectors, image, base_positions(cell, side, side)[:, None], "clamp")

    def _vectors_around(self, grid: CellGrid, level: int, image: Tensor, cell: Tensor) -> Tensor:
        """(N, S, V) of the neighbours that are aggregated."""
        side, mask_side = self.config.grids[level], self.config.representation_grids[level]
        offsets = None if grid.offsets is None else grid.offsets.flatten(2)[image, :, cell]
        positions = self.aggregation.positions(cell, side, mask_side, offsets)
        return sample_vectors(grid.vectors, image, positions, self.aggregation.config.border)

    def _centre_vectors(self, grid: CellGrid, level: int, image: Tensor, cell: Tensor) -> Tensor:
        """(N, 1, V) of the representation that plain SOLO would use."""
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
        """Mean dice losses over the positive cells of all levels and images; connected zeros without positive cells."""
        total, direct, count = [], [], 0
        supervised = self.aggregation is not None and self.aggregation.config.direct_weight > 0
        for group in self.level_groups:
            own, level = joined([assigned[number] for number in group])
            if len(own) == 0:
                continue
            features = encoded.grids[group[0]].features
            truth = level_masks(targets, own, encoded.network_sizes, encoded.frame, tuple(features.shape[-2:]))
            level, image, cell = (x.to(truth.device) for x in (level + group[0], own.image, own.cell))
            total.append(dice_loss(self.mask_logits(encoded, level, image, cell), truth).sum())
            if supervised:
                centres = self._gathered(encoded, level, image, cell, self._centre_vectors)
                direct.append(dice_loss(linear_decoder(centres, image, features)(slice(None))[:, 0], truth).sum())
            count += len(own)
        idle = connected_zero(self.parameters())  # every process has a gradient for every parameter
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
        return [self.detect(encoded, index) for index in range(len(images))]

    def detect(self, encoded: EncodedGrids, index: int) -> dict[str, Tensor]:
        """Detections of one picture of a batch, see :meth:`predict`."""
        return detect(self, encoded, index)


def _theta_of(grid: CellGrid, level: int, image: Tensor, cell: Tensor) -> Tensor:
    """θ (N, D) of the cells."""
    return grid.theta.flatten(2)[image, :, cell]


def _frame(batch: ImageList) -> tuple[int, int]:
    """(H, W) of the padded batch."""
    return int(batch.tensors.shape[-2]), int(batch.tensors.shape[-1])
