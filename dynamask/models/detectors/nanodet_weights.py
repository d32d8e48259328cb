"""Weights of NanoDet-Plus: public PyTorch checkpoints, and .safetensors files with folded batch norms.

Both are for BGR input; the first convolution is turned to RGB here. The files' auxiliary neck and head, which exist in
training only, are not used.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dynamask.config import IMAGENET_MEAN, IMAGENET_STD
from dynamask.models.detectors.gfl_head import BINS
from dynamask.models.detectors.nanodet import NECK_CHANNELS, NanoDetDetector
from dynamask.models.detectors.shufflenet import STAGE_WIDTHS
from dynamask.models.detectors.state_dicts import CHECKPOINTS, check_fit, has_foreign_tensor, read_state_dict
from dynamask.models.detectors.torchvision_weights import COCO_V1
from dynamask.models.hub import find_weights
from dynamask.models.weights import load_model
from dynamask.structures import DynaMaskError

EPS = 1e-5
"""Epsilon of the batch norms of public checkpoints, which do not store it."""
COCO_NAMES = tuple(name for name in COCO_V1.meta["categories"] if name not in ("__background__", "N/A"))
"""COCO's 80 classes in the order of public checkpoints."""
SIZES = {"shufflenet_v2_x1_0": "NanoDet-Plus-m", "shufflenet_v2_x1_5": "NanoDet-Plus-m-1.5x"}
"""Published sizes by the name of their backbone."""
_PARTS = NanoDetDetector.PRETRAINED_MODULES
_FIRST = "backbone.body.conv1.0.weight"
_NECK = "backbone.neck.reduce_layers.{}.conv.weight"
_PREDICTOR = "head.gfl_cls.{}.{}"
_WRAPPERS = ("module.", "avg_model.", "model.")
"""Prefixes of all names of a checkpoint; where Lightning stored the moving average as well, it is preferred."""
_UNUSED = re.compile(
    r"^aux_(fpn|head)\.|^head\.(distribution_project\.)?project$|^backbone\.(conv5|fc|stage4\.conv5)\.|num_batches_tracked$"
)
_RENAMED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^backbone\.(?=conv1|stage)", "backbone.body."),
        (r"^(?:fpn|neck)\.", "backbone.neck."),
        (r"(_blocks\.\d+)\.blocks\.0\.", r"\1."),
        (r"shortcut\.0\.", "shortcut.depthwise.conv."),
        (r"shortcut\.1\.", "shortcut.depthwise.norm."),
        (r"shortcut\.2\.", "shortcut.pointwise.conv."),
        (r"shortcut\.3\.", "shortcut.pointwise.norm."),
        (r"(primary_conv|cheap_operation)\.0\.", r"\1.conv."),
        (r"(primary_conv|cheap_operation)\.1\.", r"\1.norm."),
        (r"(reduce_layers\.\d+)\.bn\.", r"\1.norm."),
        (r"\.dwnorm\.", ".depthwise.norm."),
        (r"\.pwnorm\.", ".pointwise.norm."),
        (r"(reduce_layers\.\d+|primary_conv|cheap_operation|depthwise|pointwise)\.(weight|bias)$", r"\1.conv.\2"),
    )
)
"""Names of public checkpoints and of files with folded norms → names in the detector; applied in this order."""
_NORM = ("weight", "bias", "running_mean", "running_var")


def is_nanodet_source(model: nn.Module, source: str | Path) -> bool:
    """Return whether initial weights for a model are those of NanoDet-Plus, and not of dynamask or torchvision.

    A .safetensors file is recognised by its names. Checkpoints are taken as NanoDet-Plus's for a model with this
    detector, and .ckpt files always.
    """
    path = Path(source)
    if path.suffix in CHECKPOINTS and isinstance(getattr(model, "detector", None), NanoDetDetector):
        return True
    return path.suffix == ".ckpt" or has_foreign_tensor(path, "head.gfl_cls.0.weight")


def load_nanodet(model: nn.Module, source: str | Path, allow_other_classes: bool = False) -> str:
    """Copy backbone, neck and head of a NanoDet-Plus file into the detector of a model, strictly.

    Batch norms of the file are folded into the convolutions of a model without norms, and copied into one with norms.
    Norms of a model whose file has none become the identity.

    Args:
        model: with a :class:`NanoDetDetector` of the same size, and the ImageNet normalisation; changed in place.
        source: a .safetensors file, or a .pth or .ckpt checkpoint.
        allow_other_classes: accept a file that lacks classes of the model, see :func:`class_rows`; the scores of these
            classes stay as they are, while the boxes, which all classes share, are taken from the file.

    Returns:
        A sentence that says what was loaded.

    Raises:
        DynaMaskError: the model has another detector or normalisation, or the file cannot be read, is not of
            NanoDet-Plus, of another size or of other classes, or lacks a tensor; the model is not changed.
    """
    path, detector = Path(source), getattr(model, "detector", None)
    if not isinstance(detector, NanoDetDetector):
        raise DynaMaskError(
            f"{path} is a file of the detector NanoDet-Plus, which this model does not have; choose a model whose name "
            "contains nanodet_plus"
        )
    if (tuple(detector.transform.image_mean), tuple(detector.transform.image_std)) != (IMAGENET_MEAN, IMAGENET_STD):
        raise DynaMaskError("NanoDet-Plus's weights need the ImageNet mean and std; omit image_mean and image_std")
    stored = read_nanodet_state(path)
    size = _check_size(stored, detector, path)
    classes = len(stored[_PREDICTOR.format(0, "weight")]) - 4 * BINS
    names = model.config.class_names[1:]
    rows = class_rows(names, classes)
    unknown = [name for name, row in zip(names, rows) if row is None]
    named = f"{', '.join(unknown[:3])}{', …' if len(unknown) > 3 else ''}"
    if unknown and not allow_other_classes:
        raise DynaMaskError(
            f"weights {path} have {classes} classes and the model has {len(names)}, of which {named} cannot be found "
            "in them; give weights of these classes, or train the detector too, so that they start from random weights"
        )
    stored = _pick_classes(stored, detector, rows, classes)
    tensors, identities = _fit_norms(stored, detector)
    own = {name: value for name, value in detector.state_dict().items() if name.startswith(_PARTS)}
    own = {name: value for name, value in own.items() if not _UNUSED.search(name)}
    check_fit(tensors, own, path)
    detector.load_state_dict(tensors, strict=False)
    notes = f"; the class scores of {named} are random, too" if unknown else ""
    if identities:
        notes += "; its batch norms are identities, because those of the file are folded"
    return f"loaded the detector of {path} ({size}); everything else has random weights{notes}"


def add_teacher(model: nn.Module, source: str | Path) -> None:
    """Train the scores and boxes of a model towards those of another NanoDet-Plus detector, instead of annotations.

    Args:
        model: with a :class:`NanoDetDetector`; changed in place.
        source: of the teacher: a file for :func:`load_nanodet` of the model's own size, or weights of dynamask.

    Raises:
        DynaMaskError: one of the two has another detector, their classes differ, or the file cannot be loaded.
    """
    if not isinstance(getattr(model, "detector", None), NanoDetDetector):
        raise DynaMaskError(
            f"{model.config.name} takes no teacher; leave it out, or choose a model whose name contains nanodet_plus"
        )
    if is_nanodet_source(model, source):
        teacher = copy.deepcopy(model)
        load_nanodet(teacher, source)
    else:
        teacher = load_model(find_weights(source))
    if not isinstance(getattr(teacher, "detector", None), NanoDetDetector):
        raise DynaMaskError(f"the teacher {source} has another detector; give weights of a nanodet_plus model")
    if teacher.config.class_names != model.config.class_names:
        raise DynaMaskError(f"the teacher {source} has other classes than the data; give one trained on these classes")
    model.detector.learn_from(teacher.detector)


def read_nanodet_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a file under the names of the detector's modules, float32, with the first convolution for RGB.

    Raises:
        DynaMaskError: the file cannot be read, or is not of NanoDet-Plus.
    """
    stored = read_state_dict(path, "NanoDet-Plus")
    for prefix in _WRAPPERS:
        if any(name.startswith(prefix) for name in stored):
            stored = {name.removeprefix(prefix): v for name, v in stored.items() if name.startswith(prefix)}
    kept = {}
    for name, value in stored.items():
        if not _UNUSED.search(name):
            for pattern, replacement in _RENAMED:
                name = pattern.sub(replacement, name)
            kept[name] = value.float()
    for name in (_FIRST, _NECK.format(0), _PREDICTOR.format(0, "weight")):
        if name not in kept or kept[name].ndim != 4:
            raise DynaMaskError(
                f"weights {path} are not those of NanoDet-Plus with ShuffleNetV2: the convolution {name} is missing; "
                "give a file of NanoDet-Plus-m or NanoDet-Plus-m-1.5x"
            )
    kept[_FIRST] = kept[_FIRST].flip(1)
    return kept


def _check_size(stored: dict[str, Tensor], detector: NanoDetDetector, path: Path) -> str:
    """The name of the file's size; another size than the detector's is refused."""
    neck = stored[_NECK.format(0)]
    own = detector.backbone.neck.reduce_layers[0].conv.weight
    size, wanted = (_size_name(weight.shape[1], weight.shape[0]) for weight in (neck, own))
    if size != wanted:
        raise DynaMaskError(
            f"weights {path} seem to be of {size}, and the model's detector is {wanted}; choose one size"
        )
    return size


def _size_name(stage2: int, neck: int) -> str:
    """Name of a size by the channels of the backbone at stride 8 and of the neck."""
    for backbone, name in SIZES.items():
        if (STAGE_WIDTHS[backbone][1], NECK_CHANNELS[backbone]) == (stage2, neck):
            return name
    return f"an unknown size with {stage2} channels at stride 8 and {neck} in the neck"


def class_rows(names: Sequence[str], classes: int) -> list[int | None]:
    """The output (0-based) of a file for each class of a model, None for a class that the file does not have.

    The outputs of a file with 80 classes are COCO's, and found by name, unless the model has 80 classes with other
    names. Any other file must have the classes of the model, in the same order.

    Args:
        names: classes of the model, without background.
        classes: of the file.
    """
    known = [name in COCO_NAMES for name in names]
    if classes == len(COCO_NAMES) and (all(known) or (len(names) != classes and any(known))):
        return [COCO_NAMES.index(name) if name in COCO_NAMES else None for name in names]
    return list(range(classes)) if len(names) == classes else [None] * len(names)


def _pick_classes(
    stored: dict[str, Tensor], detector: NanoDetDetector, rows: list[int | None], classes: int
) -> dict[str, Tensor]:
    """The stored tensors with the outputs in the order of the model's classes; unknown classes keep the model's own."""
    picked, own = dict(stored), detector.head.state_dict()
    known = torch.tensor([label for label, row in enumerate(rows) if row is not None], dtype=torch.int64)
    source = torch.tensor([row for row in rows if row is not None], dtype=torch.int64)
    for level in range(len(detector.head.gfl_cls)):
        for kind in ("weight", "bias"):
            name = _PREDICTOR.format(level, kind)
            if name in stored and len(stored[name]) == classes + 4 * BINS:
                scores = own[name.removeprefix("head.")][: len(rows)].detach().cpu().clone()
                if stored[name].shape[1:] == scores.shape[1:]:
                    scores[known] = stored[name][source]
                    picked[name] = torch.cat([scores, stored[name][classes:]])
    return picked


def _fit_norms(stored: dict[str, Tensor], detector: NanoDetDetector) -> tuple[dict[str, Tensor], bool]:
    """Tensors with norms folded or added as the detector needs them, and whether norms were added."""
    tensors, identities = dict(stored), False
    for conv, norm, keeps in _convolutions(detector):
        weight, bias = tensors.get(f"{conv}.weight"), tensors.pop(f"{conv}.bias", None)
        norms = {kind: tensors.pop(f"{norm}.{kind}") for kind in _NORM if f"{norm}.{kind}" in tensors}
        complete = len(norms) == len(_NORM)
        if weight is None or (norms and not complete):
            continue  # the comparison of names reports it
        outputs = len(weight)
        if complete and bias is not None:
            norms["running_mean"] = norms["running_mean"] - bias
        if keeps and not complete and bias is not None:
            ones, zeros = torch.ones(outputs), torch.zeros(outputs)
            norms = {"weight": ones, "bias": bias, "running_mean": zeros, "running_var": ones - EPS}
            identities = True
        if keeps:
            tensors.update({f"{norm}.{kind}": value for kind, value in norms.items()})
        elif complete:
            tensors[f"{conv}.weight"], tensors[f"{conv}.bias"] = _folded(weight, norms)
        elif bias is not None:
            tensors[f"{conv}.bias"] = bias
    return tensors, identities


def _folded(weight: Tensor, norm: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The convolution that equals one followed by a norm: weight s·w and bias β − s·μ with s = γ / √(σ² + ε)."""
    values = {kind: value.double() for kind, value in norm.items()}
    scale = values["weight"] / torch.sqrt(values["running_var"] + EPS)
    bias = values["bias"] - scale * values["running_mean"]
    return (weight.double() * scale[:, None, None, None]).float(), bias.float()


def _convolutions(detector: NanoDetDetector) -> Iterator[tuple[str, str, bool]]:
    """Names of each convolution that a norm follows and of that norm, and whether the detector keeps the norm."""
    for name, module in detector.named_modules():
        children = list(module.named_children())
        for (conv, first), (norm, second) in zip(children, children[1:]):
            follows = isinstance(second, nn.BatchNorm2d | nn.Identity)
            if name.startswith(_PARTS) and isinstance(first, nn.Conv2d) and follows:
                yield f"{name}.{conv}", f"{name}.{norm}", isinstance(second, nn.BatchNorm2d)
