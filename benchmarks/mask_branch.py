"""Speed of the mask branch alone: its operators, one picture by size, and 100 regions with mixed sizes by stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from benchmarks.inputs import PHOTO, mixed_boxes, smooth_features
from dynamask.config import ModelConfig
from dynamask.evaluation.efficiency import Case, interleave, rows_of
from dynamask.models.build import build_mask_branch
from dynamask.models.masks import policies
from dynamask.models.masks.branch import MaskBranch
from dynamask.ops.deform import sampled_deform_conv2d
from dynamask.predict import Predictor
from dynamask.presets import model_config
from dynamask.structures import MASK_SIZES

REFERENCE = "mask_rcnn"
Row = dict[str, Any]
Refine = tuple[float, float, float] | None
SHARES = (0.35, 0.34, 0.21, 0.10)
"""Shares of the instances at 14, 28, 56 and 112 with the cheapest switch of the paper (Tab. 8)."""
FCN = "FCN head, 28"


def measure_deform(config: ModelConfig, regions: int, rounds: int) -> list[Row]:
    """Our sampled deformable convolution against torchvision's operator on the stages of a preset."""
    rows = []
    for stage, (size, groups) in enumerate(zip(MASK_SIZES[1:], config.offset_groups), start=1):
        channels = config.region_channels // 2**stage
        generator = torch.Generator().manual_seed(0)
        shapes = [(regions, channels, size, size), (regions, 18 * groups, size, size), (channels, channels, 3, 3)]
        tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        operators = {
            "torchvision": lambda *t: torchvision_deform_conv2d(*t, padding=1),
            "sampled": sampled_deform_conv2d,
        }
        with torch.inference_mode():
            ours, theirs = (operator(*tensors) for operator in operators.values())
            if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
                raise RuntimeError(f"the operators disagree at {size} by {float((ours - theirs).abs().max()):.1e}")
        for training in (False, True):
            cases = {name: _deform_case(operator, tensors, training) for name, operator in operators.items()}
            part = f"deform {channels}x{size}x{size} {'forward+backward' if training else 'forward'}"
            rows += rows_of(
                part, interleave(cases, rounds, 1), "torchvision", dict.fromkeys(cases, {"regions": regions})
            )
    return rows


def _deform_case(operator: Callable[..., Tensor], tensors: list[Tensor], training: bool) -> Case:
    """One pass of an operator, with all gradients in training."""

    def once(_: int) -> None:
        if training:
            torch.autograd.grad(operator(*tensors).sum(), tensors)
        else:
            with torch.inference_mode():
                operator(*tensors)

    return once


@torch.inference_mode()
def measure_branch(predictor: Predictor, baseline: MaskRCNN, pixels: np.ndarray, count: int, rounds: int) -> list[Row]:
    """The mask branch alone on the same boxes: learned sizes, one size for all, and torchvision's FCN head."""
    model = predictor.model
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255.0
    encoded, _ = model.detector.encode([image])
    boxes = resize_boxes(mixed_boxes(count, PHOTO), PHOTO, encoded.images.image_sizes[0])
    labels = torch.ones(count, dtype=torch.int64)
    macs = np.array(predictor.costs.macs_per_instance, dtype=np.float64)
    learned = policies.learned(model.regions(encoded, [boxes], [labels]).switch_logits)

    def branch(size: int | None) -> Case:
        def once(_: int) -> None:
            state = model.regions(encoded, [boxes], [labels])
            model.mask_branch.masks(
                state, policies.learned(state.switch_logits) if size is None else policies.fixed(count, size)
            )

        return once

    heads = baseline.roi_heads
    batch, _ = baseline.transform([image])
    features = baseline.backbone(batch.tensors)

    def fcn(_: int) -> None:
        pooled = heads.mask_roi_pool(features, [boxes], batch.image_sizes)
        heads.mask_predictor(heads.mask_head(pooled)).sigmoid()

    cases = {"fixed:112": branch(112), "learned": branch(None)}
    cases |= {f"fixed:{size}": branch(size) for size in MASK_SIZES[:-1]} | {REFERENCE: fcn}
    extra = {f"fixed:{size}": {"mean_macs": float(macs[k])} for k, size in enumerate(MASK_SIZES)}
    extra["learned"] = {"mean_macs": float(macs[learned.numpy()].mean())}
    return rows_of("mask branch", interleave(cases, rounds), "fixed:112", extra)


def mixed_sizes(count: int) -> Tensor:
    """(count,) int64 size indices with the shares ``SHARES``, the sizes in turns over the regions."""
    bounds = torch.tensor(SHARES, dtype=torch.float64).cumsum(0)[:-1]
    position = (torch.arange(count) * 37 % count + 0.5) / count  # 37 has no divisor in common with round counts
    return torch.searchsorted(bounds, position.double())


def random_branch(config: ModelConfig, refine: Refine = None) -> MaskBranch:
    """A mask branch with random weights, the same for every refinement, whose offsets are about one pixel."""
    torch.manual_seed(0)
    settings = config if refine is None else dataclasses.replace(config, refine=refine)
    branch = build_mask_branch(settings).eval()
    for stage in branch.region_fpn.stages:
        for conv in (stage.aggregate.align_offsets, stage.aggregate.attend_offsets):
            nn.init.normal_(conv.weight, std=0.3 / conv.weight[0].numel() ** 0.5)
            nn.init.normal_(conv.bias, std=1.0)
    return branch


class FCNBranch(nn.Module):
    """torchvision's mask branch with the widths of a configuration: RoIAlign, four convolutions, masks of 28×28."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.region_channels
        self.pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2)
        self.head = nn.Sequential(
            MaskRCNNHeads(config.fpn_channels, (width,) * 4, 1),
            MaskRCNNPredictor(width, width, len(config.class_names)),
        )

    def forward(self, features: dict[str, Tensor], boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Boxes (R, 4) in network-input pixels → mask probabilities (R, classes, 28, 28)."""
        return self.head(self.pool(features, [boxes], [image_size])).sigmoid()


def measure_regions(
    name: str, refine: Refine, count: int, rounds: int, device: str = "cpu"
) -> tuple[list[Row], list[Row]]:
    """The mask branch of a preset on regions of mixed sizes, dense and refined, against an FCN head of its width.

    Args:
        name: the preset; 80 classes with the paper's widths, otherwise one.
        refine: shares of the cells that the stages compute; None measures dense stages alone.

    Returns:
        Rows of the table, and for each stage the median over rounds of its time: that of all regions up to its size,
        less the time up to the size before in the same round. The first one, to 14, includes the projections and the
        switch.
    """
    classes = tuple(map(str, range(81 if name == "dynamask_resnet50_fpn" else 2)))
    config = model_config(name, class_names=("__background__", *classes[1:]))
    scale = config.test_min_size / PHOTO[0]
    image_size = tuple(round(side * scale) for side in PHOTO)
    features = {k: v.to(device) for k, v in smooth_features(config.fpn_channels, image_size).items()}
    boxes = (mixed_boxes(count, PHOTO) * scale).to(device)
    rois = torch.cat([boxes.new_zeros(count, 1), boxes], dim=1)
    labels, choice = torch.ones(count, dtype=torch.int64, device=device), mixed_sizes(count).to(device)
    fcn = FCNBranch(config).eval().to(device)
    branches = {"dense": random_branch(config).to(device)}
    if refine is not None:
        branches["refined"] = random_branch(config, refine).to(device)

    def up_to(branch: MaskBranch, limit: int) -> Case:
        def run(_: int) -> None:
            branch.masks(branch.begin(features, rois, labels), choice.clamp(max=limit))

        return torch.inference_mode()(run)

    cases: dict[str, Case] = {FCN: torch.inference_mode()(lambda _: fcn(features, boxes, image_size))}
    for kind, branch in branches.items():
        cases |= {f"{kind}, at most {size}": up_to(branch, k) for k, size in enumerate(MASK_SIZES)}
    times = interleave(cases, rounds, device=torch.device(device))
    finest = MASK_SIZES[-1]
    totals = {FCN: times[FCN], **{kind: times[f"{kind}, at most {finest}"] for kind in branches}}
    extra = {kind: {"mean_macs": _mean_macs(branch, choice)} for kind, branch in branches.items()}
    rows = rows_of(f"regions {name}", totals, FCN, extra)
    stages = [row for kind in branches for row in _stage_rows(name, kind, times, choice)]
    return rows, stages


def _mean_macs(branch: MaskBranch, choice: Tensor) -> float:
    """Mean MACs of the regions."""
    return float(torch.tensor(branch.costs.macs_per_instance)[choice.cpu()].double().mean())


def _stage_rows(name: str, kind: str, times: dict[str, np.ndarray], choice: Tensor) -> list[Row]:
    """The time of each stage, and the number of regions that run it."""
    totals = [times[f"{kind}, at most {size}"] for size in MASK_SIZES]
    spent = [totals[0], *(after - before for before, after in zip(totals, totals[1:]))]
    return [
        {
            "model": name,
            "case": kind,
            "stage": size,
            "regions": int((choice >= k).sum()),
            "median_ms": float(np.median(taken)),
        }
        for k, (size, taken) in enumerate(zip(MASK_SIZES, spent))
    ]
