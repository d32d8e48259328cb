"""What the frozen model says of every instance, computed once: the switch alone then trains in seconds.

A cache holds, for every instance of a data set in its true box and in other views of it (shifted and stretched boxes,
every other one in the flipped picture), the 14×14 feature that the switch reads, and how good the mask of each size is:
as the losses see it (cross-entropies, errors at the finest grid) and as the evaluation does (IoU in picture pixels).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes

from dynamask.config import ModelConfig
from dynamask.data.sources import Data
from dynamask.engine.evaluate import category_map, known_instances
from dynamask.engine.train import as_float
from dynamask.evaluation.mask_quality import quality_by_size
from dynamask.files import replacing
from dynamask.models.dynamask import DynaMaskRCNN
from dynamask.models.masks import losses
from dynamask.models.masks.branch import BOUNDARY_WIDTH_RATIO
from dynamask.models.masks.costs import MaskBranchCosts
from dynamask.models.masks.heads.base import RegionState
from dynamask.models.masks.switch import MaskSwitchModule
from dynamask.ops.masks import crop_mask_pyramid, mask_edges, paste_masks
from dynamask.structures import MASK_SIZES, DynaMaskError

FORMAT = "dynamask-switch-cache-1"
SHIFT, STRETCH = 0.05, 0.10
"""Largest shift of a box (of its sides) and stretch (of each side) in another view."""


class HoldsModel(Protocol):
    """What a cache needs of a predictor; see :class:`dynamask.predict.Predictor`."""

    model: DynaMaskRCNN
    class_names: tuple[str, ...]
    costs: MaskBranchCosts


@dataclass
class Cache:
    """N views of instances; ``view`` 0 is the picture as it is with the true box.

    Attributes:
        feature: (N, C, 14, 14) float16, what the switch reads.
        mask_loss, edge_loss: (N, 4) cross-entropies, each size on its own grid.
        boundary_error, overlap_error: (N, 4) 1 − boundary IoU and 1 − mask IoU at the finest grid, what the signal
            "boundary" is made of.
        mask_iou, boundary_iou: (N, 4) of the pasted masks in picture pixels.
        switch_logits: (N, 4) of the weights' own switch.
        box: (N, 4) xyxy in picture pixels.
        image_size: (N, 2) height and width in pixels.
        label, image_id, instance, view: (N,) int64; views of one instance share its number.
        complexity: (N,) in 0–1, NaN where the data do not know it.
        about: JSON values: "config" of the weights, "macs_per_instance", and what the cache was made of.
    """

    feature: Tensor
    mask_loss: Tensor
    edge_loss: Tensor
    boundary_error: Tensor
    overlap_error: Tensor
    mask_iou: Tensor
    boundary_iou: Tensor
    switch_logits: Tensor
    box: Tensor
    image_size: Tensor
    label: Tensor
    image_id: Tensor
    instance: Tensor
    view: Tensor
    complexity: Tensor
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.view)

    @property
    def macs(self) -> np.ndarray:
        """(4,) float64 MACs of an instance at each size."""
        return np.array(self.about["macs_per_instance"], dtype=np.float64)

    @property
    def side(self) -> Tensor:
        """(N,) root of the box's area, pixels."""
        return (self.box[:, 2:] - self.box[:, :2]).prod(1).sqrt()

    def take(self, rows: Tensor) -> Cache:
        """The same cache with some of its rows."""
        return Cache(**{name: tensor[rows] for name, tensor in self.tensors().items()}, about=self.about)

    def true_boxes(self) -> Cache:
        """The rows of view 0."""
        return self.take(torch.nonzero(self.view == 0)[:, 0])

    def other_views(self, measure: str) -> np.ndarray | None:
        """(M, 4) mean quality of each instance over its other views, in the order of :meth:`true_boxes`, if any."""
        views = int(self.view.max()) if len(self) else 0
        if not views:
            return None
        quality = getattr(self, measure).double()
        mean = quality.new_zeros(int(self.instance.max()) + 1, len(MASK_SIZES))
        rows = self.view > 0
        mean.index_add_(0, self.instance[rows], quality[rows] / views)
        return mean[self.instance[self.view == 0]].numpy()

    def new_switch(self) -> MaskSwitchModule:
        """An untrained switch as the weights' configuration has it."""
        config = ModelConfig.from_dict(self.about["config"])
        return MaskSwitchModule(config.region_channels, config.switch_channels, config.switch_hidden)

    def tensors(self) -> dict[str, Tensor]:
        """The columns by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


@torch.inference_mode()
def build_cache(
    predictor: HoldsModel, dataset: Data, indices: Iterable[int], views: int, seed: int, about: dict[str, Any]
) -> Cache:
    """Run the frozen model over the pictures; each instance in its true box and in ``views`` other views.

    Args:
        predictor: the model.
        dataset: pictures with true masks; instances of classes that the weights do not know are left out.
        indices: into the data set.
        views: 0 or more.
        seed: of the shifts, together with the image id.
        about: what is stored beside the columns.

    Raises:
        DynaMaskError: no instance at all.
    """
    categories, complexities = category_map(predictor, dataset), _complexities(dataset)
    parts: list[dict[str, Tensor]] = []
    count = 0
    for index in indices:
        image, target = dataset[index]
        rows, labels = known_instances(target, categories, dataset.category_ids)
        if not rows:
            continue
        part = _picture(predictor, image, target["boxes"][rows], target["masks"][rows], labels, views, seed, target)
        known = complexities.get(int(target["image_id"]), [])
        part["complexity"] = torch.tensor([known[row] if known else math.nan for row in rows]).repeat(views + 1)
        part["instance"] = part["instance"] + count
        count += len(rows)
        parts.append(part)
    if not parts:
        raise DynaMaskError("the pictures hold no instance of the weights' classes; give other data")
    about = {
        **about,
        "config": json.loads(json.dumps(predictor.model.config.to_dict())),
        "macs_per_instance": list(predictor.costs.macs_per_instance),
        "views": views,
        "seed": seed,
    }
    return Cache(**{name: torch.cat([part[name] for part in parts]).clone() for name in parts[0]}, about=about)


def _complexities(dataset: Data) -> dict[int, list[float]]:
    """Known complexity by image id, in the order of a target's rows; empty where annotations have none."""
    known: dict[int, list[float]] = {}
    for annotation in dataset.coco["annotations"]:
        if not annotation.get("iscrowd"):
            value = annotation.get("complexity")
            known.setdefault(annotation["image_id"], []).append(math.nan if value is None else float(value))
    return known


def _picture(
    predictor: HoldsModel,
    image: Tensor,
    boxes: Tensor,
    masks: Tensor,
    labels: Sequence[int],
    views: int,
    seed: int,
    target: dict[str, Any],
) -> dict[str, Tensor]:
    """The columns of one picture, view by view; ``instance`` counts from 0."""
    size = (int(image.shape[1]), int(image.shape[2]))
    generator = torch.Generator().manual_seed((1_000_003 * seed + int(target["image_id"])) % 2**31)
    given = [boxes, *(jittered(boxes, size, generator) for _ in range(views))]
    parts: dict[int, dict[str, Tensor]] = {}
    for flipped in (False, True):
        own = [v for v in range(views + 1) if (v % 2 == 1) == flipped]
        if not own:
            continue
        seen, truth, in_view = image, masks, torch.cat([given[v] for v in own])
        if flipped:
            seen, truth = image.flip(2), masks.flip(2)
            in_view = torch.stack([size[1] - in_view[:, 2], in_view[:, 1], size[1] - in_view[:, 0], in_view[:, 3]], 1)
        columns = _columns(predictor, seen, in_view, truth, torch.tensor(list(labels) * len(own)))
        for position, view in enumerate(own):
            rows = slice(position * len(boxes), (position + 1) * len(boxes))
            parts[view] = {name: values[rows] for name, values in columns.items()}
            parts[view]["view"] = torch.full((len(boxes),), view)
            parts[view]["instance"] = torch.arange(len(boxes))
            parts[view]["image_id"] = torch.full((len(boxes),), int(target["image_id"]))
    return {name: torch.cat([parts[view][name] for view in range(views + 1)]) for name in parts[0]}


def jittered(boxes: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Boxes (n, 4) xyxy, shifted and stretched, cut to a picture of (height, width); tiny ones stay as they are."""
    sides = boxes[:, 2:] - boxes[:, :2]
    shift, stretch = (torch.rand(sides.shape, generator=generator) * 2 - 1 for _ in range(2))
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2 + shift * SHIFT * sides
    half = sides * (1 + stretch * STRETCH) / 2
    limit = boxes.new_tensor([size[1], size[0]] * 2)
    moved = torch.minimum(torch.cat([centre - half, centre + half], 1).clamp_min(0), limit)
    usable = (moved[:, 2:] - moved[:, :2]).amin(1) >= 1
    return torch.where(usable[:, None], moved, boxes)


def _columns(predictor: HoldsModel, image: Tensor, boxes: Tensor, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The columns of boxes (R, 4) in one picture; masks (G, H, W) are repeated along the boxes."""
    model, size = predictor.model, (int(image.shape[1]), int(image.shape[2]))
    encoded, _ = model.encode([as_float(image)])
    network = encoded.images.image_sizes[0]
    state = model.regions(encoded, [resize_boxes(boxes, size, network)], [labels])
    index = torch.arange(len(masks)).repeat(len(boxes) // len(masks))
    errors, mask_logits = errors_by_size(
        predictor.model, state, masks, boxes, index, BOUNDARY_WIDTH_RATIO * math.hypot(*network)
    )
    truth = masks[index].numpy().astype(bool)
    pasted = [paste_masks(logits.sigmoid(), boxes, size).numpy() for logits in mask_logits]
    mask_iou, boundary_iou = quality_by_size(truth, pasted)
    return {
        "feature": state.features[0].half(),
        **errors,
        "mask_iou": torch.from_numpy(mask_iou).float(),
        "boundary_iou": torch.from_numpy(boundary_iou).float(),
        "switch_logits": state.switch_logits,
        "box": boxes,
        "image_size": torch.tensor([size]).repeat(len(boxes), 1),
        "label": labels,
    }


def errors_by_size(
    model: DynaMaskRCNN, state: RegionState, masks: Tensor, boxes: Tensor, index: Tensor, width: float
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The errors of each size that can guide a switch, as training has them, and the mask logits of the sizes.

    Args:
        model: that the regions are of.
        state: of R regions.
        masks: (G, H, W) true masks in picture pixels, values 0 or 1.
        boxes: (R, 4) xyxy in picture pixels.
        index: (R,) int64, which mask is each region's.
        width: of the boundary, in network-input pixels.

    Returns:
        ``mask_loss``, ``edge_loss``, ``boundary_error`` and ``overlap_error`` as :class:`Cache` has them, and four
        tensors (R, S, S).
    """
    branch, every = model.mask_branch, torch.arange(len(state))
    mask_logits = [branch.region_fpn.mask_logits(state, k, every) for k in range(len(MASK_SIZES))]
    edge_logits = [branch.region_fpn.edge_logits(state, k, every) for k in range(len(MASK_SIZES))]
    targets = [(crop >= 0.5).float() for crop in crop_mask_pyramid(masks, boxes, MASK_SIZES, index)]
    reach = torch.full((len(state),), width)
    boundary, overlap = branch.errors_at(state, mask_logits, targets[-1], reach)
    errors = {
        "mask_loss": losses.resolution_losses(mask_logits, targets),
        "edge_loss": losses.resolution_losses(edge_logits, [mask_edges(target) for target in targets]),
        "boundary_error": boundary,
        "overlap_error": overlap,
    }
    return errors, mask_logits


def save_cache(cache: Cache, path: Path) -> None:
    """Write to a .safetensors file, atomically."""
    header = {"format": FORMAT, "about": json.dumps(cache.about)}
    with replacing(path) as stream:
        stream.write(save({name: values.contiguous() for name, values in cache.tensors().items()}, metadata=header))


def load_cache(path: Path) -> Cache:
    """Read what :func:`save_cache` wrote; anything else raises :class:`DynaMaskError`."""
    try:
        with safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
            if header.get("format") != FORMAT:
                raise DynaMaskError(f"{path} is no cache of features; make one with `decisions.py cache`")
            names = [field.name for field in dataclasses.fields(Cache) if field.name != "about"]
            tensors = {name: stored.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise DynaMaskError(f"cache {path} cannot be read; make it with `decisions.py cache` ({error})") from error
    return Cache(**tensors, about=json.loads(header["about"]))
