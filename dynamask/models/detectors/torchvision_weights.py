"""Detector weights from torchvision's `maskrcnn_resnet50_fpn`, whose detector is the same network.

torchvision's box predictor has one output per COCO category_id, including the unused ones: 91 with the background. The
labels here are contiguous, so its rows are selected by class. The mask head is not used.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.ops import FrozenBatchNorm2d

from dynamask.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from dynamask.models.detectors.state_dicts import check_fit, has_foreign_tensor, read_state_dict
from dynamask.models.dynamask import DynaMask
from dynamask.structures import DynaMaskError, first_sentence

TORCHVISION = "torchvision"
"""Name of torchvision's COCO weights, which are downloaded."""
COCO_V1 = MaskRCNN_ResNet50_FPN_Weights.COCO_V1
CLASSIFIER = "roi_heads.box_predictor.cls_score"
REGRESSOR = "roi_heads.box_predictor.bbox_pred"
_MASK_HEAD = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")
_RENAMED = (
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
)
"""Names before torchvision 0.13, which are still used in the published file → present names."""
_ONLY_IN_V2 = ("roi_heads.box_head.0.0.weight", "rpn.head.conv.1.0.weight", "backbone.fpn.inner_blocks.0.1.weight")


def load_torchvision_detector(model: DynaMask, source: str | Path) -> list[str]:
    """Copy backbone, FPN, RPN and box head of torchvision's Mask R-CNN (or Faster R-CNN) into a model, strictly.

    Boxes and scores then equal torchvision's on the same picture, with a softmax over the classes of the model. The
    mask branch is not changed.

    Args:
        model: with torchvision's backbone (`resnet50` for its COCO weights), 256 channels and the ImageNet
            normalisation, such as `dynamask_resnet50_fpn`; changed in place.
        source: "torchvision" (torchvision's COCO weights, downloaded once), or a .pth or .safetensors file with a
            state dict. A file with 91 outputs is taken as one of COCO; any other must have the outputs of the model, in
            the same order.

    Returns:
        Names of the model's classes that COCO does not have; their rows of the box predictor are not changed.

    Raises:
        DynaMaskError: the source cannot be downloaded or read, is of another architecture (such as
            `maskrcnn_resnet50_fpn_v2`), or does not fit; the message names the keys, and the model is not changed.
    """
    _check_settings(model.config)
    stored = read_torchvision_state(source)
    own = model.detector.state_dict()
    picked, unknown = _pick_classes(stored, own, model.config, source)
    check_fit(picked, own, source)
    eps = 0.0 if _is_published(source) else 1e-5  # of the source's BatchNorm, as torchvision sets it
    _fold_eps(picked, model.detector, eps, source)
    model.detector.load_state_dict(picked)
    return unknown


def is_torchvision_source(source: str | Path) -> bool:
    """Whether a name or path means weights of torchvision's detector, and not a weights file of dynamask."""
    path = Path(source)
    return (
        str(source) == TORCHVISION or path.suffix in (".pth", ".pt") or has_foreign_tensor(path, f"{CLASSIFIER}.weight")
    )


def read_torchvision_state(source: str | Path) -> dict[str, Tensor]:
    """Tensors of torchvision's detector under its present names, without the mask head.

    Raises:
        DynaMaskError: see :func:`load_torchvision_detector`.
    """
    stored = (
        _download()
        if str(source) == TORCHVISION
        else read_state_dict(Path(source), "torchvision's maskrcnn_resnet50_fpn")
    )
    if any(key in stored for key in _ONLY_IN_V2):
        raise DynaMaskError(
            f"weights {source} are torchvision's maskrcnn_resnet50_fpn_v2, whose FPN, RPN and box head differ; "
            "give weights of maskrcnn_resnet50_fpn"
        )
    kept = {}
    for key, value in stored.items():
        if key.startswith(_MASK_HEAD) or key.endswith("num_batches_tracked"):
            continue
        for pattern, replacement in _RENAMED:
            key = pattern.sub(replacement, key)
        kept[key] = value.float()
    return kept


def _download() -> dict[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(
            COCO_V1.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (URLError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise DynaMaskError(
            f"torchvision's COCO weights cannot be downloaded from {COCO_V1.url} ({first_sentence(error)}); fetch "
            "that file on a machine with internet and give its path"
        ) from error


def _is_published(source: str | Path) -> bool:
    """Whether this is the file that torchvision publishes, by the start of its SHA-256, which is part of its name."""
    if str(source) == TORCHVISION:
        return True
    wanted = re.search(r"-([0-9a-f]{8})\.pth$", COCO_V1.url)[1]
    if wanted in Path(source).name:
        return True
    with Path(source).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest().startswith(wanted)


def _check_settings(config: ModelConfig) -> None:
    """Refuse a model whose input normalisation or anchors differ from torchvision's."""
    paper = ModelConfig()
    if config.detector_kind != paper.detector_kind:
        raise DynaMaskError(
            "torchvision's detector is a Faster R-CNN, but this model has another; give weights of the same detector"
        )
    if (config.image_mean, config.image_std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise DynaMaskError("torchvision's weights need the ImageNet mean and std; omit image_mean and image_std")
    if config.anchor_sizes != paper.anchor_sizes:
        raise DynaMaskError(f"torchvision's weights need anchors of {paper.anchor_sizes}; omit anchor_sizes")


def coco_rows(config: ModelConfig) -> list[int | None]:
    """Index among torchvision's 91 outputs of each label of a model, background first; None for a class not in COCO.

    A class is found by its name, or by its category_id if it has only a placeholder name ("class_7", "N/A").
    """
    names = {name: row for row, name in enumerate(COCO_V1.meta["categories"]) if name not in ("N/A", "__background__")}
    ids = config.category_ids or tuple(range(1, len(config.class_names)))
    rows: list[int | None] = [0]
    for name, category_id in zip(config.class_names[1:], ids, strict=True):
        row = names.get(name)
        if row is None and re.fullmatch(r"class_\d+|N/A", name) and 0 < category_id < len(COCO_V1.meta["categories"]):
            row = category_id
        rows.append(row)
    return rows


def _pick_classes(
    stored: dict[str, Tensor], own: dict[str, Tensor], config: ModelConfig, source: str | Path
) -> tuple[dict[str, Tensor], list[str]]:
    """The stored tensors with the rows of the box predictor in the order of the model, and the classes not found."""
    weight, count = stored.get(f"{CLASSIFIER}.weight"), len(config.class_names)
    if weight is None:
        return stored, []  # the check of the keys names it
    if len(weight) == len(COCO_V1.meta["categories"]):
        rows = coco_rows(config)
    elif len(weight) == count:
        rows = list(range(count))
    else:
        raise DynaMaskError(
            f"weights {source} have {len(weight)} outputs and the model has {count}; give COCO's 91 or as many as the "
            "data have classes, and the background"
        )
    picked = dict(stored)
    known = [label for label, row in enumerate(rows) if row is not None]
    source_rows = torch.tensor([rows[label] for label in known])
    for key, per_class in ((CLASSIFIER, 1), (REGRESSOR, 4)):
        for name in (f"{key}.weight", f"{key}.bias"):
            if name in stored and stored[name].shape == (len(weight) * per_class, *own[name].shape[1:]):
                target = own[name].detach().cpu().clone().unflatten(0, (count, per_class))
                target[known] = stored[name].unflatten(0, (len(weight), per_class))[source_rows]
                picked[name] = target.flatten(0, 1)
    return picked, [name for name, row in zip(config.class_names, rows) if row is None]


def _fold_eps(picked: dict[str, Tensor], detector: nn.Module, eps: float, source: str | Path) -> None:
    """Fold the difference between the two eps of w·(x − mean) / √(var + eps) into the frozen weight w, in place."""
    for name, module in detector.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and module.eps != eps:
            variance = picked[f"{name}.running_var"].double()
            if bool((variance + eps <= 0).any()):
                raise DynaMaskError(f"weights {source} have a variance of zero in {name}; they cannot be used")
            scale = torch.sqrt((variance + module.eps) / (variance + eps))
            picked[f"{name}.weight"] = (picked[f"{name}.weight"].double() * scale).float()
