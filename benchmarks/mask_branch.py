"""Speed of the mask branch alone on the boxes of one picture, and of its deformable convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from benchmarks.inputs import PHOTO, mixed_boxes
from dynamask.config import ModelConfig
from dynamask.evaluation.efficiency import Case, interleave, rows_of
from dynamask.models.masks import policies
from dynamask.ops.deform import sampled_deform_conv2d
from dynamask.predict import Predictor
from dynamask.structures import MASK_SIZES

REFERENCE = "mask_rcnn"
Row = dict[str, Any]


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
