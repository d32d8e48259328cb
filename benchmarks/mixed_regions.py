"""Speed of the mask branch on made-up regions of mixed sizes: dense and refined, by stage, against an FCN head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.inputs import PHOTO, mixed_boxes, smooth_features
from benchmarks.mask_branch import Row
from dynamask.config import ModelConfig
from dynamask.evaluation.efficiency import interleave, rows_of
from dynamask.models.build import build_mask_branch
from dynamask.models.masks.branch import MaskBranch
from dynamask.models.openvino import accelerate
from dynamask.models.tensor_functions import TensorFunction, region_function
from dynamask.presets import model_config
from dynamask.structures import MASK_SIZES

Refine = tuple[float, float, float] | None
PAPER = "dynamask_resnet50_fpn"
SHARES = (0.35, 0.34, 0.21, 0.10)
"""Shares of the instances at 14, 28, 56 and 112 with the cheapest switch of the paper (Tab. 8)."""
FCN = "FCN head, 28"
PROFILED = 10
"""Number of operators in a profile."""


def mixed_sizes(count: int) -> Tensor:
    """(count,) int64 size indices with the shares ``SHARES``, mixed over the regions."""
    bounds = torch.tensor(SHARES, dtype=torch.float64).cumsum(0)[:-1]
    position = (torch.arange(count) * 37 % count + 0.5) / count  # 37 has no divisor in common with round counts
    return torch.searchsorted(bounds, position.double())


def random_branch(config: ModelConfig, refine: Refine = None) -> MaskBranch:
    """A mask branch with random weights, the same for every refinement, whose offsets are about one pixel."""
    torch.manual_seed(0)
    settings = config if refine is None else dataclasses.replace(config, refine=refine)
    branch = build_mask_branch(settings).eval()
    branch.config = settings
    for stage in branch.region_fpn.stages:
        for conv in (stage.aggregate.align_offsets, stage.aggregate.attend_offsets):
            nn.init.normal_(conv.weight, std=0.3 / conv.weight[0].numel() ** 0.5)
            nn.init.normal_(conv.bias, std=1.0)
    return branch


class FCNBranch(nn.Module):
    """torchvision's mask branch with the widths of a configuration: RoIAlign, four convolutions, masks of 28×28."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.region_channels
        self.pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2)
        self.head = nn.Sequential(
            MaskRCNNHeads(config.fpn_channels, (width,) * 4, 1),
            MaskRCNNPredictor(width, width, len(config.class_names)),
        )

    def forward(self, features: dict[str, Tensor], boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Boxes (R, 4) in network-input pixels → mask probabilities (R, classes, 28, 28)."""
        return self.head(self.pool(features, [boxes], [image_size])).sigmoid()

    def tensor_functions(self) -> Iterator[TensorFunction]:
        """The functions that a back end of inference can replace."""
        yield region_function("fcn", self.head, (self.config.fpn_channels, *self.pool.output_size))


class MixedRegions:
    """The regions of one made-up picture with the sizes of :func:`mixed_sizes`, and the models that mask them.

    Args:
        name: the preset; 80 classes with the paper's widths, otherwise one.
        refine: shares of the cells that the stages of the case "refined" compute; None leaves it out.
        count: number of regions.
        device: of torch.
        backend: "torch" or "openvino".
    """

    def __init__(self, name: str, refine: Refine, count: int, device: str = "cpu", backend: str = "torch") -> None:
        classes = ("__background__", *map(str, range(1, 81 if name == PAPER else 2)))
        self.name, self.backend, self.config = name, backend, model_config(name, class_names=classes)
        scale = self.config.test_min_size / PHOTO[0]
        self.image_size = tuple(round(side * scale) for side in PHOTO)
        maps = smooth_features(self.config.fpn_channels, self.image_size)
        self.features = {key: value.to(device) for key, value in maps.items()}
        self.boxes = (mixed_boxes(count, PHOTO) * scale).to(device)
        self.rois = torch.cat([self.boxes.new_zeros(count, 1), self.boxes], dim=1)
        self.labels = torch.ones(count, dtype=torch.int64, device=device)
        self.choice = mixed_sizes(count).to(device)
        self.fcn = FCNBranch(self.config).eval().to(device)
        kinds = {"dense": None} if refine is None else {"dense": None, "refined": refine}
        self.branches = {kind: random_branch(self.config, shares).to(device) for kind, shares in kinds.items()}
        if backend == "openvino":
            for model in (self.fcn, *self.branches.values()):
                accelerate(model)

    @property
    def part(self) -> str:
        """Name of the part of the table."""
        return f"regions {self.name}" + ("" if self.backend == "torch" else f", {self.backend}")

    @torch.inference_mode()
    def run_fcn(self) -> Tensor:
        """Masks of the FCN head."""
        return self.fcn(self.features, self.boxes, self.image_size)

    @torch.inference_mode()
    def run(self, kind: str, limit: int = len(MASK_SIZES) - 1) -> list[Tensor]:
        """Masks of a mask branch, at most at the size of index ``limit``."""
        branch = self.branches[kind]
        return branch.masks(branch.begin(self.features, self.rois, self.labels), self.choice.clamp(max=limit))

    def case(self, kind: str) -> str:
        """Name of a kind of stages on this back end."""
        return kind if self.backend == "torch" else f"{kind}, {self.backend}"

    def mean_macs(self, kind: str) -> float:
        """Mean MACs of the regions."""
        return float(torch.tensor(self.branches[kind].costs.macs_per_instance)[self.choice.cpu()].double().mean())

    def time(self, rounds: int) -> tuple[list[Row], list[Row]]:
        """Rows of the table, and the median over rounds of the time of each stage.

        The time of a stage is that of all regions up to its size, less the time up to the size before in the same
        round. The first one, to 14, includes the projections and the switch.
        """
        cases: dict[str, Callable[[int], Any]] = {FCN: lambda _: self.run_fcn()}
        for kind in self.branches:
            cases |= {f"{kind} {k}": lambda _, kind=kind, k=k: self.run(kind, k) for k in range(len(MASK_SIZES))}
        times = interleave(cases, rounds, device=self.rois.device)
        upto = {kind: [times[f"{kind} {k}"] for k in range(len(MASK_SIZES))] for kind in self.branches}
        totals = {FCN: times[FCN], **{kind: found[-1] for kind, found in upto.items()}}
        extra = {kind: {"mean_macs": self.mean_macs(kind)} for kind in self.branches}
        stages = [row for kind, found in upto.items() for row in self._stage_rows(kind, found)]
        return rows_of(self.part, totals, FCN, extra), stages

    def _stage_rows(self, kind: str, upto: list[np.ndarray]) -> list[Row]:
        """The time of each stage, and the number of regions that run it."""
        spent = [upto[0], *(after - before for before, after in zip(upto, upto[1:]))]
        regions = [int((self.choice >= k).sum()) for k in range(len(MASK_SIZES))]
        return [
            {
                "model": self.name,
                "case": self.case(kind),
                "stage": size,
                "regions": n,
                "median_ms": float(np.median(taken)),
            }
            for size, n, taken in zip(MASK_SIZES, regions, spent)
        ]

    def profile(self, kind: str) -> list[Row]:
        """The operators that take most of the CPU time of a mask branch, with their share."""
        self.run(kind)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            self.run(kind)
        found = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
        total, largest = sum(found.values()), sorted(found, key=lambda name: -found[name])[:PROFILED]
        return [{"model": self.name, "case": kind, "operator": name, "share": found[name] / total} for name in largest]
