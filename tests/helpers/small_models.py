"""Small models and pictures for tests: everything a real preset has, at a fraction of its width."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dynamask.config import AggregationConfig, ModelConfig
from dynamask.models.build import build_mask_branch, build_solo, create_model
from dynamask.models.dynamask import DynaMask
from dynamask.models.masks.branch import MaskBranch
from dynamask.models.solo.condinst import CondInst
from dynamask.models.solo.model import SoloNet
from dynamask.presets import model_config
from dynamask.training_config import LossConfig

torch.set_num_threads(1)

LOSS_NAMES = {
    "loss_mask_quality",
    "loss_objectness",
    "loss_rpn_box_reg",
    "loss_classifier",
    "loss_box_reg",
    "loss_mask",
    "loss_edge",
    "loss_budget",
    "loss_entropy",
}
TINY = {
    "fpn_channels": 16,
    "region_channels": 16,
    "switch_channels": 4,
    "switch_hidden": 8,
    "box_head_channels": 32,
    "min_sizes": (64,),
    "test_min_size": 64,
    "max_size": 128,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "rpn_pre_nms_train": 50,
    "rpn_pre_nms_test": 50,
    "rpn_post_nms_train": 30,
    "rpn_post_nms_test": 20,
    "box_samples": 16,
    "mask_rois": 3,
    "detections_per_img": 5,
}
TINY_SOLO = dataclasses.replace(
    model_config("solov2_mobilenetv2_fpn_small"),
    fpn_channels=16,
    tower_channels=16,
    tower_depth=1,
    mask_feature_channels=8,
    kernel_channels=8,
    groups=4,
    grids=(8, 6, 4, 3, 2),
    scale_ranges=((1, 24), (12, 48), (24, 96), (48, 192), (96, 1024)),
    class_names=("__background__", "a", "b", "c"),
    min_sizes=(64,),
    test_min_size=64,
    max_size=128,
)


def tiny_model(seed: int = 0, num_classes: int = 4, loss_config: LossConfig | None = None, **overrides) -> DynaMask:
    """A whole model with random weights, on 64-px pictures; it detects five objects in anything."""
    torch.manual_seed(seed)
    return create_model("dynamask_mobilenetv2_fpn_small", num_classes, loss_config=loss_config, **{**TINY, **overrides})


def tiny_nanodet(seed: int = 0, num_classes: int = 4, size: str = "m", **overrides) -> DynaMask:
    """A model on NanoDet-Plus with random weights, on 64-px pictures; the detector has its full width.

    Args:
        size: "m" or "m_1.5x".
    """
    torch.manual_seed(seed)
    tiny = {key: TINY[key] for key in ("fpn_channels", "region_channels", "switch_channels", "switch_hidden")}
    tiny |= {"min_sizes": (64,), "test_min_size": 64, "max_size": 64, "mask_rois": 3, "detections_per_img": 5}
    return create_model(f"dynamask_nanodet_plus_{size}", num_classes, **{**tiny, **overrides})


def tiny_solo(
    aggregation: AggregationConfig | None = None, kind: str = "solov2", seed: int = 0, **overrides
) -> SoloNet:
    """A one-stage model with random weights, on 64-px pictures."""
    torch.manual_seed(seed)
    return build_solo(dataclasses.replace(TINY_SOLO, kind=kind, aggregation=aggregation, **overrides))


def finding_solo(aggregation: AggregationConfig | None = None, seed: int = 0, **overrides) -> SoloNet:
    """A :func:`tiny_solo`, in evaluation mode, that finds up to eight objects in anything; moved neighbours do move."""
    some = {"score_threshold": 0.0, "update_threshold": 0.0, "detections_per_img": 8}
    model = tiny_solo(aggregation, seed=seed, **{**some, **overrides}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "category" in name and parameter.ndim == 1 and len(parameter) == 3:
                parameter.zero_()
            elif "offset" in name and parameter.ndim == 1:
                parameter.uniform_(-1.5, 1.5)
            elif name.startswith("head.masks"):
                parameter.normal_()
    return model


def tiny_condinst(aggregation: AggregationConfig | None = None, seed: int = 0, **overrides) -> CondInst:
    """CondInst with random weights, on 64-px pictures."""
    torch.manual_seed(seed)
    same = ("fpn_channels", "tower_channels", "tower_depth", "mask_feature_channels", "groups", "class_names")
    tiny = {name: getattr(TINY_SOLO, name) for name in (*same, "min_sizes", "test_min_size", "max_size")}
    return build_solo(
        model_config("condinst_mobilenetv2_fpn_small", **{**tiny, "aggregation": aggregation, **overrides})
    )


def finding_condinst(aggregation: AggregationConfig | None = None, seed: int = 0, **overrides) -> CondInst:
    """A :func:`tiny_condinst`, in evaluation mode, that finds up to eight objects in anything."""
    some = {"score_threshold": 0.0, "update_threshold": 0.0, "detections_per_img": 8}
    model = tiny_condinst(aggregation, seed, **{**some, **overrides}).eval()
    torch.nn.init.zeros_(model.head.fcos.classification_head.cls_logits.bias)
    torch.nn.init.normal_(model.head.controller.weight, std=0.5)
    return model


def branch_of(config: ModelConfig, loss_config: LossConfig | None = None, seed: int = 0) -> MaskBranch:
    """The mask branch alone, as the factory builds it."""
    torch.manual_seed(seed)
    return build_mask_branch(config, loss_config)


def tiny_branch(
    classes: int = 3,
    loss_config: LossConfig | None = None,
    agnostic: bool = False,
    refine: tuple[float, float, float] | None = None,
    quality: bool = False,
) -> MaskBranch:
    """A mask branch of 16, 8, 4 and 2 channels, its predictors and offsets far from their starting values."""
    names = ("__background__", *(f"class_{i}" for i in range(classes)))
    config = ModelConfig(
        class_names=names,
        fpn_channels=8,
        region_channels=16,
        offset_groups=(2, 2, 1),
        switch_channels=4,
        switch_hidden=8,
        quality_channels=4 if quality else 0,
        class_agnostic=agnostic,
        refine=refine,
    )
    branch = branch_of(config, loss_config)
    fpn = branch.region_fpn
    with torch.no_grad():
        for predictor in (*fpn.mask_predictors, *fpn.edge_predictors):
            predictor.weight.normal_()
            predictor.bias.normal_()
        for stage in fpn.stages:
            stage.aggregate.align_offsets.weight.normal_(std=0.1)
            stage.aggregate.attend_offsets.weight.normal_(std=0.1)
        branch.switch.fc[2].weight.normal_()
    return branch


def pyramid(channels: int = 8, batch: int = 2, side: int = 128, seed: int = 1) -> dict[str, Tensor]:
    """Random feature maps {"0": P2, …, "3": P5} of square pictures of ``side`` pixels."""
    generator = torch.Generator().manual_seed(seed)
    return {
        str(i): torch.randn(batch, channels, side // stride, side // stride, generator=generator)
        for i, stride in enumerate((4, 8, 16, 32))
    }


def ramp(side: int, channels: int) -> dict[str, Tensor]:
    """Feature maps of a square picture whose values are the x coordinate, in pixels, of the centres of their cells."""
    return {
        str(i): ((torch.arange(side // stride) + 0.5) * stride).expand(1, channels, side // stride, -1).clone()
        for i, stride in enumerate((4, 8, 16, 32))
    }


def some_rois(count: int = 5, batch: int = 2, side: int = 128, seed: int = 2) -> Tensor:
    """Random rois (R, 5) inside square pictures of ``side`` pixels, the batch index alternating."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * side * 0.4
    high = low + 12 + torch.rand(count, 2, generator=generator) * side * 0.4
    return torch.cat([(torch.arange(count) % batch)[:, None].float(), low, high], dim=1)


def picture(height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """(3, H, W) float in [0, 1], noise."""
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def target(height: int = 64, width: int = 64, objects: int = 2, image_id: int = 0) -> dict[str, Tensor | int]:
    """Rectangles side by side with their exact boxes and masks; none for ``objects`` 0."""
    boxes, masks = torch.zeros(objects, 4), torch.zeros(objects, height, width, dtype=torch.uint8)
    for i in range(objects):
        x0, x1, y0, y1 = 4 + i * width // 2, width // 2 - 4 + i * width // 2, 6, height - 10 - 8 * i
        boxes[i] = torch.tensor([x0, y0, x1, y1])
        masks[i, y0:y1, x0:x1] = 1
    labels = torch.arange(objects) % 3 + 1
    return {"boxes": boxes, "labels": labels, "masks": masks, "image_id": image_id}


def count_rows(modules, calls: list) -> list:
    """Hook modules so that each call appends (position, rows of the first input) to ``calls``; returns the handles."""

    def hook(position: int):
        return lambda module, inputs, output: calls.append((position, len(inputs[0])))

    return [module.register_forward_hook(hook(i)) for i, module in enumerate(modules)]
