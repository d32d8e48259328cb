"""Export of the mask branch as a `torch.export` program with a dynamic number of instances.

The program for a fixed size runs all stages up to it for every region; the routed program runs each stage only for the
regions whose size needs it. The format is torch's `.pt2`, because the ONNX exporter supports no deformable convolution.
Loading a program needs only torch and torchvision (`import torchvision` registers RoIAlign).
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dynamask.files import replacing
from dynamask.models.dynamask import DynaMask
from dynamask.models.masks.branch import MaskBranch
from dynamask.models.masks.heads.base import class_logits
from dynamask.models.masks.region_fpn import LEVEL_STRIDES, RegionFPN, crop_assigned_level
from dynamask.ops.masks import enlarge_boxes
from dynamask.structures import MASK_SIZES, DynaMaskError

METADATA = "dynamask.json"
"""Name of the file inside a .pt2 that describes the program."""


class _Traceable(nn.Module):
    """Base class of the programs, without branches on the number of regions."""

    def __init__(self, branch: MaskBranch) -> None:
        super().__init__()
        if not isinstance(getattr(branch, "region_fpn", None), RegionFPN):
            raise DynaMaskError("only a model with DynaMask's own region pyramid can be exported")
        self.region_fpn = branch.region_fpn
        self.switch = branch.switch
        self.region_margin = branch.region_margin

    def begin(self, maps: Sequence[Tensor], boxes: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """P2 … P5 and boxes as rois (R, 5) → projected maps, 14×14 features (R, C, 14, 14), and the rois enlarged."""
        features, rois = dict(zip("0123", maps)), enlarge_boxes(boxes, self.region_margin)
        crops = crop_assigned_level(features, rois, MASK_SIZES[0], self.region_fpn.corner_cells)
        return self.region_fpn.project(features), self.region_fpn.base(crops), rois

    def masks(self, size_index: int, feature: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities (n, S, S) of the class of each region from features (n, C, S, S) or kept logits."""
        if not self.region_fpn.keeps_logits(size_index):
            logits = class_logits(self.region_fpn.mask_predictors[size_index], feature, labels)
        return logits.sigmoid()


class FixedSizeMasks(_Traceable):
    """All regions at one size of ``MASK_SIZES``; another size raises :class:`DynaMaskError`."""

    def __init__(self, branch: MaskBranch, size: int) -> None:
        super().__init__(branch)
        if size not in MASK_SIZES:
            raise DynaMaskError(f"mask size {size} does not exist; choose one of {', '.join(map(str, MASK_SIZES))}")
        self.size_index = MASK_SIZES.index(size)

    def forward(self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, rois: Tensor, labels: Tensor) -> Tensor:
        """Maps (B, C, H_l, W_l), boxes (R, 5), labels (R,) int64 ≥ 1 → mask probabilities (R, S, S)."""
        maps, feature, rois = self.begin((p2, p3, p4, p5), rois)
        logits = self.region_fpn.kept_logits(0, feature, labels)
        for k in range(1, self.size_index + 1):
            feature, logits, _ = self.region_fpn.next_size(k, feature, logits, maps[k - 1], rois, labels)
        return self.masks(self.size_index, feature, logits, labels)


class RoutedMasks(_Traceable):
    """Every region at its own size; a stage runs only for the regions that need it."""

    def forward(
        self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, rois: Tensor, labels: Tensor, size_index: Tensor
    ) -> dict[str, Tensor]:
        """Masks by size.

        Args:
            p2, p3, p4, p5: the image-level pyramid, (B, C, H_l, W_l) at strides 4, 8, 16, 32.
            rois: (R, 5) batch index and boxes xyxy in network-input pixels, without the margin.
            labels: (R,) int64 ≥ 1.
            size_index: (R,) int64 index into (14, 28, 56, 112); −1 selects the choice of the switch.

        Returns:
            ``switch_logits`` (R, 4), ``size_index`` (R,) as used, and for each size S ``rows_S`` (n_S,), the ascending
            indices of the regions of this size, with their mask probabilities ``masks_S`` (n_S, S, S).
        """
        maps, feature, rois = self.begin((p2, p3, p4, p5), rois)
        switch_logits = self.switch(feature)
        chosen = torch.where(size_index < 0, switch_logits.argmax(dim=1), size_index)
        out = {"switch_logits": switch_logits, "size_index": chosen}
        alive = torch.arange(rois.shape[0], device=rois.device)  # regions that reach this size
        logits = self.region_fpn.kept_logits(0, feature, labels)
        for k, size in enumerate(MASK_SIZES):
            if k:
                further = torch.nonzero(chosen[alive] >= k)[:, 0]
                alive = alive[further]
                coarse = (feature[further], logits[further])
                feature, logits, _ = self.region_fpn.next_size(k, *coarse, maps[k - 1], rois[alive], labels[alive])
            here = torch.nonzero(chosen[alive] == k)[:, 0]
            out[f"rows_{size}"] = alive[here]
            out[f"masks_{size}"] = self.masks(k, feature[here], logits[here], labels[alive[here]])
        return out


def export_mask_branch(model: DynaMask, size: int | None = None) -> ExportedProgram:
    """Export the mask branch; the number of pictures, the map sizes and the number of regions (≥ 0) stay dynamic.

    Args:
        model: its weights become part of the program, which runs on its device.
        size: one of ``MASK_SIZES`` for :class:`FixedSizeMasks`, None for :class:`RoutedMasks`.
    """
    branch, device = model.mask_branch, next(model.parameters()).device
    module = (RoutedMasks(branch) if size is None else FixedSizeMasks(branch, size)).eval()
    channels, side = branch.region_fpn.base[0].in_channels, 160
    maps = tuple(torch.zeros(2, channels, side // s, side // s + 1, device=device) for s in LEVEL_STRIDES)
    rois = torch.tensor([[i % 2, 8.0, 8.0, 24.0 * (i + 1), 30.0 * (i + 1)] for i in range(4)], device=device)
    labels = torch.ones(4, dtype=torch.int64, device=device)
    pictures, count = Dim("pictures", min=1), Dim("regions", min=0)
    shapes: list[Any] = [{0: pictures, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC} for _ in LEVEL_STRIDES]
    shapes += [{0: count}, {0: count}]
    arguments = (*maps, rois, labels)
    if size is None:
        arguments, shapes = (*arguments, torch.arange(4, device=device)), [*shapes, {0: count}]
    with torch.no_grad():
        return torch.export.export(module, arguments, dynamic_shapes=tuple(shapes))


def save_exported(program: ExportedProgram, path: str | Path, model: DynaMask, size: int | None = None) -> Path:
    """Write a program and its description (``dynamask.json``) to a .pt2 file, atomically.

    Raises:
        DynaMaskError: the path does not end in .pt2, or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise DynaMaskError(f"{path} does not end in .pt2; ONNX and other formats cannot hold the mask branch")
    config = model.config
    about = {
        "format": "dynamask-mask-branch-1",
        "model": config.name,
        "class_names": list(config.class_names),
        "category_ids": list(config.category_ids) or list(range(1, len(config.class_names))),
        "mask_sizes": list(MASK_SIZES),
        "size": size,
        "strides": list(LEVEL_STRIDES),
        "channels": config.fpn_channels,
        "region_margin": model.mask_branch.region_margin,
        "device": next(model.parameters()).device.type,
        "inputs": ["p2", "p3", "p4", "p5", "rois", "labels", *(["size_index"] if size is None else [])],
        "torch": torch.__version__,
    }
    buffer = io.BytesIO()  # the writer of the archive needs a seekable stream
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(about)})
    with replacing(path) as stream:
        stream.write(buffer.getbuffer())
    return path


def load_exported(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The callable program of a .pt2 file, and its description.

    Raises:
        DynaMaskError: the file does not exist, or holds no exported mask branch.
    """
    path = Path(path)
    if not path.is_file():
        raise DynaMaskError(f"{path} does not exist; write it with `dynamask weights export`")
    extra = {METADATA: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
        about = json.loads(extra[METADATA])
    except Exception as error:  # the reader of the archive raises many types of errors
        raise DynaMaskError(f"{path} holds no exported mask branch; write it with `dynamask weights export`") from error
    return program.module(), about
