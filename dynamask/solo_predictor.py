"""From a picture to the masks of a one-stage model, and to the cells and representations behind each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dynamask.data.pictures import PictureSource, read_picture
from dynamask.models.solo.aggregation import decode, sample_vectors
from dynamask.models.solo.config import STRIDES
from dynamask.models.solo.costs import decoding_macs, network_macs
from dynamask.models.solo.model import EncodedGrids, SoloNet
from dynamask.ops.rle import encode_rle
from dynamask.structures import DynaMaskError


@dataclass(frozen=True)
class CellView:
    """Why an instance looks as it does.

    Attributes:
        level: 0 (fine) to 4 (coarse); its head sees the picture at ``stride`` pixels.
        stride: pixels.
        grid: G, cells along each side of the padded picture.
        row, column: of the cell.
        frame: (H, W) of the padded picture in the picture's own pixels: what the grid covers.
        mask_grid: G′, of the representations.
        positions: (S, 2) (row, column) on that grid, the neighbours in the order in which they enter; moved where the
            model moves them, and cut to the grid as the model cuts them. (1, 2) without aggregation: the cell itself.
        base: (S, 2), the same before they were moved.
        representations: (S, h, w) float32 logits of each neighbour alone.
        mask: (h, w) float32 in [0, 1], what came out, on the same part of the picture.
        neighbours: which were aggregated, a key of ``NEIGHBOURS``; None without aggregation. S is 0 with the context
            alone: no representation enters.
    """

    level: int
    stride: int
    grid: int
    row: int
    column: int
    frame: tuple[float, float]
    mask_grid: int
    positions: Tensor
    base: Tensor
    representations: Tensor
    mask: Tensor
    neighbours: str | None


@dataclass
class SoloPrediction:
    """The instances of one picture.

    Attributes:
        boxes: (R, 4) float32 xyxy around the masks, in pixels of the picture, best score first.
        labels: (R,) int64 ≥ 1.
        scores: (R,) float32 in [0, 1].
        masks: (R, H, W) bool.
        level, cell: (R,) int64, the cell that each comes from: row · G + column.
        class_names: names by label; index 0 is the background.
        category_ids: COCO category_id of label i at index i − 1.
        macs: (R,) int64, MACs that decode each instance's mask once.
        image_macs: MACs of the picture by part: backbone, FPN, head.
        image_size: (H, W) in pixels.
        timings: milliseconds of the steps.
        encoded: what the network knows; lives as long as the prediction.
        model: that made it.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor
    level: Tensor
    cell: Tensor
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    macs: Tensor
    image_macs: dict[str, int]
    image_size: tuple[int, int]
    timings: dict[str, float]
    encoded: EncodedGrids
    model: SoloNet

    def __len__(self) -> int:
        return len(self.boxes)

    def mask(self, index: int) -> Tensor:
        """(H, W) bool of one instance."""
        return self.masks[index]

    def paste(self) -> None:
        """Nothing: the masks are whole pictures already."""

    def to_coco(self, image_id: int) -> list[dict[str, object]]:
        """COCO results (xywh boxes, compressed RLE) with ``macs`` beside them."""
        return [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label - 1],
                "score": float(self.scores[i]),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "segmentation": encode_rle(self.masks[i]),
                "macs": int(self.macs[i]),
            }
            for i, (box, label) in enumerate(zip(self.boxes.tolist(), self.labels.tolist()))
        ]

    @torch.inference_mode()
    def explain(self, index: int) -> CellView:
        """The cell, the neighbours with their positions, their representations and the mask of one instance."""
        model, config = self.model, self.model.config
        level, cell = int(self.level[index]), self.cell[index : index + 1].to(self.encoded.grids[0].category.device)
        grid, side = self.encoded.grids[level], config.grids[level]
        mask_grid, image = config.representation_grids[level], torch.zeros_like(cell)
        if model.aggregation is None:
            base = positions = torch.stack([cell // side, cell % side], dim=1)[:, None].double()
            border = "clamp"
        else:
            offsets = None if grid.offsets is None else grid.offsets.flatten(2)[image, :, cell]
            base = model.aggregation.positions(cell, side, mask_grid)
            positions = model.aggregation.positions(cell, side, mask_grid, offsets)
            border = model.aggregation.config.border
        if border == "clamp":
            base, positions = base.clamp(0, mask_grid - 1), positions.clamp(0, mask_grid - 1)
        maps = grid.features.new_zeros((0, *grid.features.shape[-2:]))
        if model.aggregation is not None and model.aggregation.config.samples == 0:  # the context alone
            base, positions = base[:, :0], positions[:, :0]
        else:
            maps = decode(sample_vectors(grid.vectors, image, positions, border), image, grid.features)[0]
        (height, width), network = self.image_size, self.encoded.network_sizes[0]
        frame = (self.encoded.frame[0] * height / network[0], self.encoded.frame[1] * width / network[1])
        mask = model.mask_logits(self.encoded, level, image, cell)[0].sigmoid()
        return CellView(
            level,
            STRIDES[level],
            side,
            int(cell) // side,
            int(cell) % side,
            frame,
            mask_grid,
            positions[0].cpu(),
            base[0].cpu(),
            maps.float().cpu(),
            mask.float().cpu(),
            None if model.aggregation is None else model.aggregation.config.neighbours,
        )


class SoloPredictor:
    """Predicts on single pictures with a one-stage model.

    Args:
        model: in evaluation mode, on the device to use.
    """

    def __init__(self, model: SoloNet) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self._counted: dict[tuple[int, int], dict[str, int]] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label; index 0 is the background."""
        return self.model.config.class_names

    @property
    def score_threshold(self) -> float:
        """From which score the model keeps detections, after matrix NMS."""
        return self.model.config.update_threshold

    @cached_property
    def category_ids(self) -> tuple[int, ...]:
        """COCO category_id of label i at index i − 1."""
        return self.model.config.category_ids or tuple(range(1, len(self.class_names)))

    @property
    def has_switch(self) -> bool:
        """Never: a one-stage model has one mask size."""
        return False

    def check_switch(self, what: str) -> None:
        """Refuse what needs a switch, named as a sentence's subject: :class:`DynaMaskError`."""
        raise DynaMaskError(f"{what} needs a switch, and one-stage models have none; give DynaMask's weights")

    def check_choice(self, policy: str, budget: float | None) -> None:
        """Refuse a policy other than "learned" and every budget: :class:`DynaMaskError`."""
        if policy != "learned" or budget is not None:
            raise DynaMaskError("a one-stage model has one mask size; give neither a policy nor a budget")

    @torch.inference_mode()
    def __call__(
        self,
        image: PictureSource,
        policy: str = "learned",
        budget: float | None = None,
        score: float = 0.3,
        **others: object,
    ) -> SoloPrediction:
        """Predict on one picture.

        Args:
            image: (H, W, 3) uint8 RGB, a PIL image, or a path.
            policy, budget, others: what chooses mask sizes in the two-stage family; refused unless left at their
                defaults, for there is nothing to choose here.
            score: detections below it are left out, 0–1.

        Raises:
            DynaMaskError: a picture that cannot be used, a score out of range, or a policy, budget or boxes.
        """
        self.check_choice(policy, budget)
        if any(value is not None for value in others.values()):
            raise DynaMaskError(f"a one-stage model finds its own objects; leave {', '.join(others)} away")
        if not 0.0 <= score <= 1.0:
            raise DynaMaskError(f"score threshold {score} is out of range; give a number from 0 to 1")
        pixels = read_picture(image)
        start = time.perf_counter()
        tensor = torch.from_numpy(pixels).to(self.device).permute(2, 0, 1).float() / 255.0
        encoded, _ = self.model.encode([tensor])
        encoded_at = time.perf_counter()
        found = self.model.predict_one(encoded, 0)
        found = {key: value[found["scores"] >= score].cpu() for key, value in found.items()}
        timings = {"encode": (encoded_at - start) * 1e3, "masks": (time.perf_counter() - encoded_at) * 1e3}
        macs = torch.tensor(self.level_macs(encoded), dtype=torch.int64)[found["level"]]
        return SoloPrediction(
            found["boxes"],
            found["labels"],
            found["scores"],
            found["masks"],
            found["level"],
            found["cell"],
            self.class_names,
            self.category_ids,
            macs,
            self._image_macs(encoded.frame),
            (int(pixels.shape[0]), int(pixels.shape[1])),
            timings,
            encoded,
            self.model,
        )

    def _image_macs(self, frame: tuple[int, int]) -> dict[str, int]:
        """MACs of backbone, FPN and head on a frame, counted once for each size."""
        if frame not in self._counted:
            parts = network_macs(self.model, *frame)
            self._counted[frame] = {part: macs for part, macs in parts.items() if part != "dense masks"}
        return self._counted[frame]

    def level_macs(self, encoded: EncodedGrids) -> list[int]:
        """MACs that decode one instance of each level."""
        return [
            decoding_macs(*grid.features.shape[-2:], grid.features.shape[1], self.model.config.aggregation)
            for grid in encoded.grids
        ]
