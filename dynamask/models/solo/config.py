"""Configuration of the one-stage family; only its factory reads it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from dynamask.config import IMAGENET_MEAN, IMAGENET_STD
from dynamask.structures import DynaMaskError

NEIGHBOURS: dict[str, tuple[tuple[int, int], ...]] = {
    "none": ((0, 0),),
    "column": ((-1, 0), (0, 0), (1, 0)),
    "row": ((0, -1), (0, 0), (0, 1)),
    "4": ((-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)),
    "8": tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)),
    "corners": (),
}
"""(Δrow, Δcolumn) of the cells whose representations are aggregated, in the order in which they enter; "corners" are
the four cells around a position between cells (§ III of SODAR: a mask grid coarser than the classification grid)."""
FAMILY = "one-stage"
"""How a weights file says that its configuration is one of these."""
STRIDES = (8, 8, 16, 32, 32)
"""Strides of the five levels that the heads see: P2 halved, P3, P4, P5, P6 brought to P5's size."""


@dataclass(frozen=True)
class AggregationConfig:
    """SODAR's aggregation; every row of its Table VI is one field."""

    neighbours: str = "4"
    """"none", "column", "row", "4", "8" around the cell, or "corners"."""
    context: str = "with"
    """Multi-level context: "with", "without", or "only" (no mask representation at all)."""
    context_channels: int = 16
    context_fusion: str = "sum"
    """"sum", which the paper's parameter counts imply, or "concat", as its released code has it."""
    weights: str = "dynamic"
    """"dynamic": θ is predicted for every cell; "static": one learned θ for all."""
    layers: int = 3
    kernel: int = 3
    hidden: int = 4
    theta_kernel: int = 1
    """Kernel of the convolution that predicts θ."""
    tower_channels: int = 0
    """Width of the tower that θ is predicted from on SOLOv2; 0 is that of the other towers."""
    deformable: bool = False
    """Learned (Δy, Δx) for every neighbour."""
    interpolation: str = "rounded"
    """Where a cell lies on a grid of representations that is not its own: "rounded" to the nearest of them, "floor", or
    "between", sampled bilinearly. "corners" always lie around the position between."""
    border: str = "clamp"
    """Neighbours beyond the grid: "clamp" repeats the border cell, "zero" counts them as zero."""
    direct_weight: float = 0.0
    """Weight of a mask loss on the centre representation itself (the paper's two-stage loss); 0 is none."""

    def __post_init__(self) -> None:
        choices = {
            "neighbours": tuple(NEIGHBOURS),
            "context": ("with", "without", "only"),
            "context_fusion": ("sum", "concat"),
            "weights": ("dynamic", "static"),
            "interpolation": ("rounded", "between", "floor"),
            "border": ("clamp", "zero"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise DynaMaskError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        if not 1 <= self.layers <= 4 or self.kernel not in (1, 3) or self.theta_kernel not in (1, 3):
            raise DynaMaskError("an aggregation has 1 to 4 layers and kernels of 1 or 3; choose within that")
        if self.direct_weight and self.neighbours == "corners":
            raise DynaMaskError("between cells there is no centre representation to supervise; set direct_weight to 0")

    @property
    def samples(self) -> int:
        """Representations that enter: 1, 3, 4, 5 or 9; 0 with the context alone."""
        if self.context == "only":
            return 0
        return 4 if self.neighbours == "corners" else len(NEIGHBOURS[self.neighbours])

    @property
    def in_channels(self) -> int:
        """Channels of the aggregation's input."""
        return self.samples + (0 if self.context == "without" else self.context_channels)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels from the input to the one output."""
        return (self.in_channels, *[self.hidden] * (self.layers - 1), 1)

    @property
    def parameters(self) -> int:
        """Length D of θ: weights and biases of all layers (945 with five representations and sixteen channels)."""
        return sum(a * b * self.kernel**2 + b for a, b in zip(self.widths, self.widths[1:]))


@dataclass(frozen=True)
class SoloConfig:
    """Everything that is needed to build a one-stage model again from its weights."""

    name: str = "solo_resnet50_fpn"
    kind: str = "solo"
    """"solo": one 1×1 convolution a level; "solov2": a kernel predicted for every cell (dynamic convolution)."""
    backbone: str = "resnet50"
    class_names: tuple[str, ...] = ("__background__", "object")
    """Names by contiguous label; index 0 is the background."""
    category_ids: tuple[int, ...] = ()
    """COCO category_id of labels 1, 2, …; empty means 1, 2, …"""
    fpn_channels: int = 256
    tower_channels: int = 256
    """Width of the category and mask (or kernel) towers."""
    tower_depth: int = 7
    mask_feature_channels: int = 128
    """SOLOv2: width of the branches that make the mask feature."""
    kernel_channels: int = 256
    """SOLOv2: channels of the mask feature and of a cell's kernel."""
    groups: int = 32
    """Of every GroupNorm."""
    grids: tuple[int, ...] = (40, 36, 24, 16, 12)
    """Classification grid of the five levels."""
    mask_grids: tuple[int, ...] = ()
    """Grid of the mask representations; empty means the classification grids (SODAR's mask interpolation)."""
    scale_ranges: tuple[tuple[int, int], ...] = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    """√(w·h) of the objects that each level learns, inclusive, in network-input pixels."""
    centre_share: float = 0.2
    """σ: the cells that learn an object lie within this share of its box around its centre of mass."""
    aggregation: AggregationConfig | None = None
    """SODAR; None is the plain model."""
    frozen_stride: int = 4
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD
    min_sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    test_min_size: int = 800
    max_size: int = 1333
    score_threshold: float = 0.1
    """Class scores below it are no candidates."""
    update_threshold: float = 0.05
    """Scores below it after matrix NMS are dropped."""
    candidates: int = 500
    """Masks that go into matrix NMS, at most."""
    detections_per_img: int = 100
    nms_kernel: str = "gaussian"
    nms_sigma: float = 2.0
    voting: str = "none"
    """Mask voting among overlapping candidates, the pilot of SODAR's Table II: "none", "average", "score" or "iou"."""
    voting_iou: float = 0.7
    """Candidates that overlap a mask less do not vote."""

    def __post_init__(self) -> None:
        if self.kind not in ("solo", "solov2"):
            raise DynaMaskError(f"kind is {self.kind!r}; choose 'solo' or 'solov2'")
        if self.voting not in ("none", "average", "score", "iou"):
            raise DynaMaskError(f"voting is {self.voting!r}; choose 'none', 'average', 'score' or 'iou'")
        if len(self.grids) != len(STRIDES) or len(self.scale_ranges) != len(STRIDES):
            raise DynaMaskError(f"grids and scale_ranges need one entry for each of {len(STRIDES)} levels")
        if self.mask_grids and (len(self.mask_grids) != len(self.grids) or self.aggregation is None):
            raise DynaMaskError("mask_grids need one entry a level and an aggregation; give both or neither")

    @property
    def representation_grids(self) -> tuple[int, ...]:
        """G′ of every level."""
        return self.mask_grids or self.grids

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values, with the family they belong to."""
        return {"family": FAMILY, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> SoloConfig:
        """The inverse of :meth:`to_dict`; unknown keys raise :class:`DynaMaskError`."""
        given = {key: value for key, value in values.items() if key != "family"}
        if given.get("aggregation") is not None:
            given["aggregation"] = _from_values(AggregationConfig, given["aggregation"])
        return _from_values(cls, given)


def _from_values(cls: type, values: dict[str, object]) -> object:
    """A configuration of JSON values, lists turned into tuples."""
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
    if unknown:
        raise DynaMaskError(f"the stored model configuration has unknown keys {unknown}; it is from another version")
    return cls(**{key: _frozen(value) for key, value in values.items()})


def _frozen(value: object) -> object:
    """Lists, at any depth, as tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
