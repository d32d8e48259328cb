"""The mask branch as one `torch.export` program with a dynamic number of instances.

A program for a fixed size runs the stages up to it for every region; the routed one runs each stage for the regions
whose size needs it, gathered by `nonzero`. ONNX cannot hold it: there is no deformable convolution (nor RoIAlign of a
whole pyramid) in the exporter, so the format is torch's own `.pt2`. Whoever loads one needs torch and torchvision
(`import torchvision` registers RoIAlign), nothing of ours.
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
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from dynamask.files import replacing
from dynamask.models.dynamask import DynaMask
from dynamask.models.masks.branch import MaskBranch
from dynamask.models.masks.region_fpn import LEVEL_STRIDES, RegionFPN
from dynamask.structures import MASK_SIZES, DynaMaskError

LEVELS = ("0", "1", "2", "3")
METADATA = "dynamask.json"
"""Name of the file inside a .pt2 that says what the program is."""


class _Traceable(nn.Module):
    """What both programs share, without a branch on the number of regions."""

    def __init__(self, branch: MaskBranch) -> None:
        super().__init__()
        if not isinstance(getattr(branch, "region_fpn", None), RegionFPN):
            raise DynaMaskError("only a model with DynaMask's own region pyramid can be exported")
        self.region_fpn = branch.region_fpn
        self.switch = branch.switch

    def begin(self, features: Sequence[Tensor], rois: Tensor) -> tuple[list[Tensor], Tensor]:
        """Projected maps of the stages and the 14×14 feature (R, C, 14, 14)."""
        maps = [projection(features[2 - k]) for k, projection in enumerate(self.region_fpn.projections)]
        return maps, self.region_fpn.base(self._crop(features, rois))

    def _crop(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """RoIAlign (R, C, 14, 14) of each region from its own level; every level crops its regions, however few."""
        levels = LevelMapper(2, 5, canonical_scale=224, canonical_level=4, eps=1e-6)([rois[:, 1:]])
        out = features[0].new_zeros((rois.shape[0], features[0].shape[1], MASK_SIZES[0], MASK_SIZES[0]))
        for level, stride in enumerate(LEVEL_STRIDES):
            rows = torch.nonzero(levels == level)[:, 0]
            crop = roi_align(
                features[level], rois[rows], MASK_SIZES[0], 1.0 / stride, sampling_ratio=2, aligned=True
            )  # (n, C, 14, 14)
            out = out.index_copy(0, rows, crop)
        return out

    def masks(self, size_index: int, feature: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities (n, S, S) of regions with features (n, C, S, S), each of its own class."""
        predictor = self.region_fpn.mask_predictors[size_index]
        channel = torch.zeros_like(labels) if predictor.out_channels == 1 else labels - 1
        logits = torch.einsum("nc,nchw->nhw", predictor.weight[channel, :, 0, 0], feature)
        return (logits + predictor.bias[channel][:, None, None]).sigmoid()


class FixedSizeMasks(_Traceable):
    """Every region at one size.

    Args:
        branch: trained.
        size: a side of ``MASK_SIZES``; another raises :class:`DynaMaskError`.
    """

    def __init__(self, branch: MaskBranch, size: int) -> None:
        super().__init__(branch)
        if size not in MASK_SIZES:
            raise DynaMaskError(f"mask size {size} does not exist; choose one of {', '.join(map(str, MASK_SIZES))}")
        self.size_index = MASK_SIZES.index(size)

    def forward(self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, rois: Tensor, labels: Tensor) -> Tensor:
        """Maps (B, C, H_l, W_l), rois (R, 5), labels (R,) int64 ≥ 1 → mask probabilities (R, S, S)."""
        maps, feature = self.begin((p2, p3, p4, p5), rois)
        for k in range(1, self.size_index + 1):
            feature = self.region_fpn.stage(k, feature, maps[k - 1], rois)
        return self.masks(self.size_index, feature, labels)


class RoutedMasks(_Traceable):
    """Every region at its own size; a stage runs for the regions that need it and for no other."""

    def forward(
        self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, rois: Tensor, labels: Tensor, size_index: Tensor
    ) -> dict[str, Tensor]:
        """Masks by size.

        Args:
            p2, p3, p4, p5: the image-level pyramid, (B, C, H_l, W_l) at strides 4, 8, 16, 32.
            rois: (R, 5) batch index and xyxy in network-input pixels.
            labels: (R,) int64 ≥ 1.
            size_index: (R,) int64 index into (14, 28, 56, 112); −1 lets the switch choose.

        Returns:
            ``switch_logits`` (R, 4), ``size_index`` (R,) as used, and per size S ``rows_S`` (n_S,), the regions that
            have it, ascending, with their ``masks_S`` (n_S, S, S), probabilities.
        """
        maps, feature = self.begin((p2, p3, p4, p5), rois)
        switch_logits = self.switch(feature)
        chosen = torch.where(size_index < 0, switch_logits.argmax(dim=1), size_index)
        out = {"switch_logits": switch_logits, "size_index": chosen}
        alive = torch.arange(rois.shape[0], device=rois.device)  # regions that have come this far
        for k, size in enumerate(MASK_SIZES):
            if k:
                further = torch.nonzero(chosen[alive] >= k)[:, 0]
                alive = alive[further]
                feature = self.region_fpn.stage(k, feature[further], maps[k - 1], rois[alive])
            here = torch.nonzero(chosen[alive] == k)[:, 0]
            out[f"rows_{size}"] = alive[here]
            out[f"masks_{size}"] = self.masks(k, feature[here], labels[alive[here]])
        return out


def export_mask_branch(model: DynaMask, size: int | None = None) -> ExportedProgram:
    """Export the mask branch; pictures, map sizes and the number of regions, 0 and 1 included, stay dynamic.

    Args:
        model: its weights become part of the program, which runs on the model's device.
        size: one of ``MASK_SIZES`` for :class:`FixedSizeMasks`, None for :class:`RoutedMasks`.
    """
    branch, device = model.mask_branch, next(model.parameters()).device
    module = (RoutedMasks(branch) if size is None else FixedSizeMasks(branch, size)).eval()
    channels, side = branch.region_fpn.base[0].in_channels, 160
    maps = tuple(torch.zeros(2, channels, side // s, side // s + 1, device=device) for s in LEVEL_STRIDES)
    rois = torch.tensor([[i % 2, 8.0, 8.0, 24.0 * (i + 1), 30.0 * (i + 1)] for i in range(4)], device=device)
    labels = torch.ones(4, dtype=torch.int64, device=device)
    pictures, count = Dim("pictures", min=1), Dim("regions", min=0)
    shapes: list[Any] = [{0: pictures, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC} for _ in LEVEL_STRIDES] + [
        {0: count},
        {0: count},
    ]
    arguments = (*maps, rois, labels)
    if size is None:
        arguments, shapes = (*arguments, torch.arange(4, device=device)), [*shapes, {0: count}]
    with torch.no_grad():
        return torch.export.export(module, arguments, dynamic_shapes=tuple(shapes))


def save_exported(program: ExportedProgram, path: str | Path, model: DynaMask, size: int | None = None) -> Path:
    """Write a program to a .pt2 file, atomically, with what its user must know beside it (``dynamask.json``).

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
        "device": next(model.parameters()).device.type,
        "inputs": ["p2", "p3", "p4", "p5", "rois", "labels", *(["size_index"] if size is None else [])],
        "torch": torch.__version__,
    }
    buffer = io.BytesIO()  # the archive's writer seeks
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(about)})
    with replacing(path) as stream:
        stream.write(buffer.getbuffer())
    return path


def load_exported(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The program of a .pt2 file, callable as it was exported, and what was written beside it.

    Raises:
        DynaMaskError: there is no such file, or it holds no exported mask branch.
    """
    path = Path(path)
    if not path.is_file():
        raise DynaMaskError(f"{path} does not exist; write it with `dynamask weights export`")
    extra = {METADATA: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
        about = json.loads(extra[METADATA])
    except Exception as error:  # the archive's reader has errors of many kinds
        raise DynaMaskError(f"{path} holds no exported mask branch; write it with `dynamask weights export`") from error
    return program.module(), about
