"""Cached outputs of a frozen model for the instances of a data set, on which the switch can be trained.

With the detector and the mask branch frozen, everything the switch reads and everything its losses read is constant.
It is computed once per instance and kept in a :class:`FeatureCache`; see :mod:`dynamask.engine.frozen_switch`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dynamask.config import ModelConfig
from dynamask.data.sources import Data
from dynamask.engine.evaluate import category_map, known_instances
from dynamask.evaluation.mask_quality import quality_by_size
from dynamask.files import replacing
from dynamask.models.build import build_quality_head
from dynamask.models.masks import losses
from dynamask.models.masks.branch import MaskBranch
from dynamask.models.masks.heads.base import RegionState
from dynamask.models.masks.quality_head import QualityHead
from dynamask.models.masks.switch import MaskSwitchModule
from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO, crop_mask_pyramid, enlarge_boxes, mask_edges
from dynamask.predict import TwoStagePredictor
from dynamask.structures import MASK_SIZES, DynaMaskError

FORMAT = "dynamask-switch-cache-2"
QUALITY_CHANNELS = 8
"""Channels of a quality head that is added to a model without one."""
SHIFT, STRETCH = 0.05, 0.10
"""Largest shift of a jittered box, in units of its sides, and largest relative change of each side."""


# Box jitter and views


def jitter_boxes(
    boxes: Tensor,
    image_size: tuple[int, int],
    generator: torch.Generator,
    shift: float = SHIFT,
    stretch: float = STRETCH,
) -> Tensor:
    """Shift and stretch boxes at random and clip them to the image.

    Args:
        boxes: (N, 4) xyxy in pixels.
        image_size: (height, width) in pixels.
        generator: source of the random numbers.
        shift: largest shift along each axis, in units of the box's side.
        stretch: largest relative change of each side.

    Returns:
        (N, 4) xyxy; a box that would become narrower than one pixel is returned unchanged.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    moved, scaled = (torch.rand(sides.shape, generator=generator) * 2 - 1 for _ in range(2))
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2 + moved * shift * sides
    half = sides * (1 + scaled * stretch) / 2
    limit = boxes.new_tensor([image_size[1], image_size[0]] * 2)
    jittered = torch.minimum(torch.cat([centre - half, centre + half], 1).clamp_min(0), limit)
    usable = (jittered[:, 2:] - jittered[:, :2]).amin(1) >= 1
    return torch.where(usable[:, None], jittered, boxes)


@dataclass(frozen=True)
class Views:
    """Views of the N instances of one image that share an orientation.

    Attributes:
        numbers: of the V views.
        image: (3, H, W); flipped left to right where the numbers are odd.
        boxes: (V · N, 4) xyxy in pixels of ``image``, one view after another.
        masks: (N, H, W) true masks in ``image``.
    """

    numbers: list[int]
    image: Tensor
    boxes: Tensor
    masks: Tensor


def view_generator(seed: int, image_id: int) -> torch.Generator:
    """The random numbers for :func:`views_of` an image, the same for equal seeds and image ids."""
    return torch.Generator().manual_seed((1_000_003 * seed + image_id) % 2**31)


def views_of(
    image: Tensor, boxes: Tensor, masks: Tensor, numbers: Sequence[int], generator: torch.Generator
) -> Iterator[Views]:
    """Views of the instances of one image, grouped by orientation.

    View 0 is the image with the given boxes. All others have jittered boxes, and odd ones show the image flipped left
    to right.

    Args:
        image: (3, H, W).
        boxes: (N, 4) xyxy in pixels.
        masks: (N, H, W).
        numbers: of the wanted views, ascending.
        generator: source of the jitter.
    """
    height, width = image.shape[1:]
    given = {number: jitter_boxes(boxes, (height, width), generator) if number else boxes for number in numbers}
    for flipped in (False, True):
        group = [number for number in numbers if number % 2 == flipped]
        if not group:
            continue
        seen = torch.cat([given[number] for number in group])
        if flipped:
            seen = torch.stack([width - seen[:, 2], seen[:, 1], width - seen[:, 0], seen[:, 3]], dim=1)
        yield Views(group, image.flip(2) if flipped else image, seen, masks.flip(2) if flipped else masks)


# Logits and errors of all sizes


@dataclass(frozen=True)
class SizeLogits:
    """Logits and true masks of R regions at every mask size: K = 4 tensors (R, S_k, S_k) each.

    Attributes:
        masks: mask logits.
        edges: edge logits.
        targets: true masks in {0, 1}.
    """

    masks: list[Tensor]
    edges: list[Tensor]
    targets: list[Tensor]


def logits_of_sizes(
    branch: MaskBranch, state: RegionState, masks: Tensor, boxes: Tensor, index: Tensor | None = None
) -> SizeLogits:
    """Run the mask head on every region at every size, and crop the true masks to the same grids.

    Args:
        branch: a mask branch with an edge predictor at every size.
        state: of R regions, on the device of the branch.
        masks: (G, H, W) true masks in image pixels, values 0 or 1.
        boxes: (R, 4) xyxy in image pixels, without the margin of the branch.
        index: (R,) int64, the mask of each region; by default region i has mask i.
    """
    every, sizes = torch.arange(len(state), device=state.rois.device), range(len(MASK_SIZES))
    crops = crop_mask_pyramid(masks, enlarge_boxes(boxes, branch.region_margin), MASK_SIZES, index)
    return SizeLogits(
        [branch.head.mask_logits(state, k, every) for k in sizes],
        [branch.head.edge_logits(state, k, every) for k in sizes],
        [(crop >= 0.5).float().to(state.rois.device) for crop in crops],
    )


def errors_of_sizes(state: RegionState, logits: SizeLogits, boundary_width: float) -> dict[str, Tensor]:
    """The errors of every size that can guide a switch, as training computes them.

    Args:
        state: of R regions.
        logits: of :func:`logits_of_sizes`.
        boundary_width: in network-input pixels.

    Returns:
        ``mask_loss``, ``edge_loss``, ``boundary_error`` and ``overlap_error``, (R, 4) each; see :class:`FeatureCache`.
    """
    width = state.rois.new_full((len(state),), boundary_width)
    boundary, overlap = losses.size_errors(logits.masks, logits.targets[-1], state.rois[:, 1:], width)
    return {
        "mask_loss": losses.resolution_losses(logits.masks, logits.targets),
        "edge_loss": losses.resolution_losses(logits.edges, [mask_edges(target) for target in logits.targets]),
        "boundary_error": boundary,
        "overlap_error": overlap,
    }


# The cache


@dataclass
class FeatureCache:
    """Outputs of a frozen model for N views of instances.

    Attributes:
        feature: (N, C, 14, 14) float16, the input of the switch.
        mask_loss, edge_loss: (N, 4) binary cross-entropies, each size on its own grid.
        boundary_error, overlap_error: (N, 4) 1 − boundary IoU and 1 − mask IoU at the finest grid; the error of the
            switch signal "boundary" is a mixture of the two.
        mask_iou, boundary_iou: (N, 4) of the pasted masks in image pixels.
        switch_logits: (N, 4) of the model's own switch.
        box: (N, 4) xyxy in pixels of the view.
        roi: (N, 4) xyxy in network-input pixels, the box with the margin of the branch.
        label, image_id, instance, view: (N,) int64; all views of an instance share its number. View 0 is the image with
            the annotated box, see :func:`views_of`.
        complexity: (N,) in 0–1; NaN where the data set does not give it.
        about: JSON values: "config" of the model, "macs_per_instance", and how the cache was made.
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
    roi: Tensor
    label: Tensor
    image_id: Tensor
    instance: Tensor
    view: Tensor
    complexity: Tensor
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.view)

    @classmethod
    def joined(cls, parts: Sequence[FeatureCache], about: dict[str, Any]) -> FeatureCache:
        """The rows of several caches, whose instances are numbered consecutively."""
        count, columns = 0, []
        for part in parts:
            columns.append({**part.tensors(), "instance": part.instance + count})
            count += len(part.instance.unique())
        return cls(**{name: torch.cat([c[name] for c in columns]) for name in columns[0]}, about=about)

    @property
    def macs(self) -> np.ndarray:
        """(4,) float64 MACs of an instance at each size."""
        return np.array(self.about["macs_per_instance"], dtype=np.float64)

    def take(self, rows: Tensor) -> FeatureCache:
        """The same cache with some of its rows."""
        return FeatureCache(**{name: tensor[rows] for name, tensor in self.tensors().items()}, about=self.about)

    @property
    def quality(self) -> Tensor:
        """(N, 4, 2) measured mask IoU and boundary IoU of the pasted masks."""
        return torch.stack([self.mask_iou, self.boundary_iou], dim=2)

    def rois(self, rows: Tensor) -> Tensor:
        """(n, 5) regions of some rows as the mask branch takes them, all of the batch index 0."""
        return F.pad(self.roi[rows].float(), (1, 0))

    def true_boxes(self) -> FeatureCache:
        """The rows of view 0."""
        return self.take(torch.nonzero(self.view == 0)[:, 0])

    def new_switch(self, seed: int) -> MaskSwitchModule:
        """An untrained switch of the model's configuration; the global random state is left as it is."""
        config = ModelConfig.from_dict(self.about["config"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MaskSwitchModule(config.region_channels, config.switch_channels, config.switch_hidden)

    def new_quality_head(self, seed: int) -> QualityHead:
        """An untrained quality head of the model's configuration, or of ``QUALITY_CHANNELS`` if that has none."""
        config = ModelConfig.from_dict(self.about["config"])
        channels = config.quality_channels or QUALITY_CHANNELS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_quality_head(dataclasses.replace(config, quality_channels=channels))

    def tensors(self) -> dict[str, Tensor]:
        """The columns by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def build_cache(
    predictor: TwoStagePredictor, dataset: Data, indices: Iterable[int], views: int, seed: int, about: dict[str, Any]
) -> FeatureCache:
    """Run the frozen model on images; every instance in its annotated box and in ``views`` other views.

    Args:
        predictor: of the model.
        dataset: with true masks; instances of classes that the model does not have are left out.
        indices: into the data set.
        views: 0 or more.
        seed: of the jitter, combined with the image id.
        about: JSON values stored with the cache.

    Raises:
        DynaMaskError: the images hold no instance.
    """
    categories, complexities = category_map(predictor, dataset), _complexities(dataset)
    parts = []
    for index in indices:
        image, target = dataset[index]
        rows, labels = known_instances(target, categories, dataset.category_ids)
        if not rows:
            continue
        image_id = int(target["image_id"])
        known = complexities.get(image_id, [])
        parts.append(
            image_cache(
                predictor,
                image,
                target["boxes"][rows],
                target["masks"][rows],
                labels,
                views,
                seed,
                image_id,
                [known[row] for row in rows] if known else None,
            )
        )
    if not parts:
        raise DynaMaskError("the pictures hold no instance of the weights' classes; give other data")
    return FeatureCache.joined(parts, {**about, **parts[0].about, "views": views, "seed": seed})


def _complexities(dataset: Data) -> dict[int, list[float]]:
    """Annotated complexity by image id, in the order of a target's rows."""
    known: dict[int, list[float]] = {}
    for annotation in dataset.coco["annotations"]:
        if not annotation.get("iscrowd"):
            value = annotation.get("complexity")
            known.setdefault(annotation["image_id"], []).append(math.nan if value is None else float(value))
    return known


@torch.no_grad()
def image_cache(
    predictor: TwoStagePredictor,
    image: Tensor,
    boxes: Tensor,
    masks: Tensor,
    labels: Sequence[int] | None,
    views: int,
    seed: int,
    image_id: int = 0,
    complexity: Sequence[float] | None = None,
) -> FeatureCache:
    """The cache of one image.

    Args:
        predictor: of the frozen model.
        image: (3, H, W) uint8 RGB.
        boxes: (N, 4) xyxy in pixels, N ≥ 1.
        masks: (N, H, W) true masks, 0 or 1.
        labels: (N,) in the model's numbering; None lets the box head classify the boxes.
        views: number of views in addition to view 0.
        seed: of the jitter, combined with the image id.
        image_id: of the image.
        complexity: (N,) in 0–1, where known.
    """
    count, parts = len(boxes), []
    for group in views_of(image, boxes, masks, range(views + 1), view_generator(seed, image_id)):
        repeats = len(group.numbers)
        columns = _columns(predictor, group, None if labels is None else list(labels) * repeats)
        columns["view"] = torch.tensor(group.numbers).repeat_interleave(count)
        columns["instance"] = torch.arange(count).repeat(repeats)
        columns["image_id"] = torch.full((len(group.boxes),), image_id)
        known = torch.full((count,), math.nan) if complexity is None else torch.tensor(list(complexity))
        columns["complexity"] = known.repeat(repeats)
        parts.append(columns)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = torch.argsort(joined["view"], stable=True)
    about = {
        "config": json.loads(json.dumps(predictor.model.config.to_dict())),
        "macs_per_instance": list(predictor.costs.macs_per_instance),
    }
    return FeatureCache(**{name: values[order] for name, values in joined.items()}, about=about)


def _columns(predictor: TwoStagePredictor, views: Views, labels: Sequence[int] | None) -> dict[str, Tensor]:
    """The columns of a group of views that need the model."""
    height, width = views.image.shape[1:]
    prediction = predictor(views.image, boxes=views.boxes, labels=labels, all_sizes=True)
    branch = prediction.regions.branch
    state = prediction.regions.state.to(next(branch.parameters()).device)
    index = torch.arange(len(views.masks)).repeat(len(views.numbers))
    logits = logits_of_sizes(branch, state, views.masks, views.boxes, index)
    covered = enlarge_boxes(views.boxes, branch.region_margin)
    scale = (state.rois[:, 3:] - state.rois[:, 1:3]).cpu().sum(0) / (covered[:, 2:] - covered[:, :2]).sum(0)
    network_diagonal = math.hypot(width * float(scale[0]), height * float(scale[1]))
    errors = errors_of_sizes(state, logits, BOUNDARY_WIDTH_RATIO * network_diagonal)
    truth = views.masks[index].numpy().astype(bool)
    pasted = [np.stack([prediction.mask_at(i, s).numpy() for i in range(len(state))]) for s in MASK_SIZES]
    mask_iou, boundary_iou = quality_by_size(truth, pasted)
    return {
        "feature": state.features[0].half().cpu(),
        **{name: values.cpu() for name, values in errors.items()},
        "mask_iou": torch.from_numpy(mask_iou).float(),
        "boundary_iou": torch.from_numpy(boundary_iou).float(),
        "switch_logits": prediction.switch_logits,
        "box": views.boxes,
        "roi": state.rois[:, 1:].cpu(),
        "label": prediction.labels,
    }


def save_cache(cache: FeatureCache, path: Path) -> None:
    """Write a cache to a .safetensors file, atomically."""
    header = {"format": FORMAT, "about": json.dumps(cache.about)}
    with replacing(path) as stream:
        stream.write(save({name: values.contiguous() for name, values in cache.tensors().items()}, metadata=header))


def load_cache(path: Path) -> FeatureCache:
    """Read a file written by :func:`save_cache`.

    Raises:
        DynaMaskError: the file cannot be read, or is not a cache of features.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
            if header.get("format") != FORMAT:
                raise DynaMaskError(f"{path} is no cache of features; make one with `decisions.py cache`")
            names = [field.name for field in dataclasses.fields(FeatureCache) if field.name != "about"]
            tensors = {name: stored.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise DynaMaskError(f"cache {path} cannot be read; make it with `decisions.py cache` ({error})") from error
    return FeatureCache(**tensors, about=json.loads(header["about"]))
