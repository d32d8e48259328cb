"""Detector weights from torchvision's `maskrcnn_resnet50_fpn`: the same network under slightly other names.

torchvision's detector has one output per COCO category_id, the gaps included: 91 with the background, output i is
category_id i. Ours has contiguous labels, so rows of the box predictor are picked by class. Its mask head is left
behind.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.ops import FrozenBatchNorm2d

from dynamask.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from dynamask.models.dynamask import DynaMask
from dynamask.structures import DynaMaskError, first_sentence

TORCHVISION = "torchvision"
"""What stands for torchvision's own COCO weights, which are then downloaded."""
COCO_V1 = MaskRCNN_ResNet50_FPN_Weights.COCO_V1
CLASSIFIER = "roi_heads.box_predictor.cls_score"
REGRESSOR = "roi_heads.box_predictor.bbox_pred"
_LEFT_BEHIND = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")
_RENAMED = (
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
)
"""torchvision's names before its version 0.13, which its published file still has."""
_ONLY_IN_V2 = ("roi_heads.box_head.0.0.weight", "rpn.head.conv.1.0.weight", "backbone.fpn.inner_blocks.0.1.weight")


def load_torchvision_detector(model: DynaMask, source: str | Path, batch_norm_eps: float | None = None) -> list[str]:
    """Copy backbone, FPN, RPN and box head of torchvision's Mask R-CNN (or Faster R-CNN) into a model, strictly.

    Boxes and scores then equal torchvision's on the same picture; where the model lacks some of torchvision's classes,
    the scores are those of a softmax over the classes that it has. The mask branch stays as it is.

    Args:
        model: with torchvision's backbone (`resnet50` for its COCO weights), 256 channels and the ImageNet
            normalisation, as `dynamask_resnet50_fpn` has them; changed in place.
        source: "torchvision" (torchvision's COCO weights, downloaded once), or a .pth or .safetensors file with a
            state dict. A file of 91 outputs is one of COCO; any other must have as many outputs as the model, in the
            same order.
        batch_norm_eps: of the source's frozen BatchNorm; by default 0 for torchvision's published file, as torchvision
            sets it there, and 1e-5 for all others.

    Returns:
        Names of the model's classes that COCO does not have; their rows of the box predictor stay as they are.

    Raises:
        DynaMaskError: the source cannot be had or read, is of another architecture (`maskrcnn_resnet50_fpn_v2` too),
            or does not fit; then the keys are named, and the model is unchanged.
    """
    _check_settings(model.config)
    stored = read_torchvision_state(source)
    eps = batch_norm_eps if batch_norm_eps is not None else (0.0 if _is_published(source) else 1e-5)
    own = model.detector.state_dict()
    picked, unknown = _pick_classes(stored, own, model.config, source)
    _check_fit(picked, own, source)
    _fold_eps(picked, model.detector, eps, source)
    model.detector.load_state_dict(picked)
    return unknown


def is_torchvision_source(source: str | Path) -> bool:
    """Whether a name or path means torchvision's weights: its name, a file of torch.save, or a foreign .safetensors."""
    path = Path(source)
    if str(source) == TORCHVISION or path.suffix in (".pth", ".pt"):
        return True
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as stored:
            ours = (stored.metadata() or {}).get("format", "").startswith("dynamask")
            return not ours and f"{CLASSIFIER}.weight" in stored.keys()  # noqa: SIM118
    except (SafetensorError, OSError):
        return False  # whoever reads it says what is wrong


def read_torchvision_state(source: str | Path) -> dict[str, Tensor]:
    """Tensors of torchvision's detector under its present names, without its mask head; raises as its caller."""
    if str(source) == TORCHVISION:
        stored = _download()
    else:
        stored = _read_file(Path(source))
    if any(key in stored for key in _ONLY_IN_V2):
        raise DynaMaskError(
            f"weights {source} are torchvision's maskrcnn_resnet50_fpn_v2, whose FPN, RPN and box head are others; "
            "give weights of maskrcnn_resnet50_fpn"
        )
    kept = {}
    for key, value in stored.items():
        if key.startswith(_LEFT_BEHIND) or key.endswith("num_batches_tracked"):
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


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DynaMaskError(
            f"weights {path} do not exist; give torchvision, or the path of a .pth or .safetensors file"
        )
    try:
        if path.suffix == ".safetensors":
            stored = load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise DynaMaskError(
            f"weights {path} cannot be read as a file of tensors alone ({first_sentence(error)}); give a state dict"
        ) from error
    if isinstance(stored, dict) and isinstance(stored.get("model"), dict):
        stored = stored["model"]
    if not isinstance(stored, dict) or not stored or not all(isinstance(value, Tensor) for value in stored.values()):
        raise DynaMaskError(f"weights {path} hold no state dict; give one of torchvision's maskrcnn_resnet50_fpn")
    return stored


def _is_published(source: str | Path) -> bool:
    """Whether this is the file that torchvision publishes, by the start of its SHA-256, which its name carries."""
    if str(source) == TORCHVISION:
        return True
    wanted = re.search(r"-([0-9a-f]{8})\.pth$", COCO_V1.url)[1]
    if wanted in Path(source).name:
        return True
    with Path(source).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest().startswith(wanted)


def _check_settings(config: ModelConfig) -> None:
    """Refuse a model that would read the same weights otherwise: its input or its anchors are others."""
    paper = ModelConfig()
    if config.FAMILY != paper.FAMILY:
        raise DynaMaskError("torchvision's detector fits the two-stage models alone; give --backbone-weights instead")
    if (config.image_mean, config.image_std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise DynaMaskError("torchvision's weights need the ImageNet mean and std; leave image_mean and image_std away")
    if config.anchor_sizes != paper.anchor_sizes:
        raise DynaMaskError(f"torchvision's weights need anchors of {paper.anchor_sizes}; leave anchor_sizes away")


def coco_rows(config: ModelConfig) -> list[int | None]:
    """The output of torchvision's 91 for each label of a model, the background first; None for a class COCO lacks.

    A class is found by its name; one without a name of its own ("class_7", "N/A") by its category_id.
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
    """The stored tensors with the box predictor's rows in the model's order, and the classes that were not found."""
    weight, count = stored.get(f"{CLASSIFIER}.weight"), len(config.class_names)
    if weight is None:
        return stored, []  # the check of the keys will name it
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


def _check_fit(picked: dict[str, Tensor], own: dict[str, Tensor], source: str | Path) -> None:
    """Every tensor of the source has its place in the model's detector, with the same shape, and the reverse."""
    missing, foreign = sorted(set(own) - set(picked)), sorted(set(picked) - set(own))
    shapes = sorted(key for key in set(own) & set(picked) if own[key].shape != picked[key].shape)
    told = [
        f"{len(keys)} {what}: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}"
        for what, keys in (("missing", missing), ("too many", foreign), ("of another shape", shapes))
        if keys
    ]
    if told:
        raise DynaMaskError(f"weights {source} do not fit this model's detector ({'; '.join(told)})")


def _fold_eps(picked: dict[str, Tensor], detector: nn.Module, eps: float, source: str | Path) -> None:
    """Move the difference between the two eps of w·(x − mean) / √(var + eps) into the frozen weight w, in place."""
    for name, module in detector.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and module.eps != eps:
            variance = picked[f"{name}.running_var"].double()
            if bool((variance + eps <= 0).any()):
                raise DynaMaskError(f"weights {source} have a variance of zero in {name}; they cannot be used")
            scale = torch.sqrt((variance + module.eps) / (variance + eps))
            picked[f"{name}.weight"] = (picked[f"{name}.weight"].double() * scale).float()
