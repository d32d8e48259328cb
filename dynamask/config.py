"""Settings of models: frozen dataclasses that check their values."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Self

from dynamask.structures import DynaMaskError

MASK_BRANCHES = (
    "region_fpn",
    "fcn:14",
    "fcn:28",
    "fcn:56",
    "fcn:112",
    "pointrend",
    "panet",
    "bifpn",
    "nasfpn",
)
"""The paper's r-FPN and the baselines that it is compared with (:mod:`dynamask.models.masks.heads`)."""
_OTHER = "give weights that dynamask wrote"
DETECTORS = ("faster_rcnn", "nanodet_plus")
"""Detectors of the two-stage family (:mod:`dynamask.models.detectors`)."""
MOST_CHANNELS, LONGEST_SIDE, MOST_OBJECTS = 4096, 20_000, 100_000
"""Upper limits of the widths of layers, of sides in network-input pixels, and of objects or samples per image."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRIDES = (8, 8, 16, 32, 32)
"""Strides of the five levels of a one-stage head: P2 halved, P3, P4, P5, and P6 brought to the size of P5."""
MASK_NETWORK_WIDTHS = (10, 8, 8, 1)
"""Channels of CondInst's mask network: eight of a feature and two coordinates, then 8, 8 and 1."""
NEIGHBOURS: dict[str, tuple[tuple[int, int], ...]] = {
    "none": ((0, 0),),
    "column": ((-1, 0), (0, 0), (1, 0)),
    "row": ((0, -1), (0, 0), (0, 1)),
    "4": ((-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)),
    "8": tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)),
    "corners": (),
}
"""(Δrow, Δcolumn) of the cells whose mask representations SODAR aggregates, in the order of its input channels;
"corners" are the four cells around a position between cells (§ III of SODAR: a mask grid coarser than the
classification grid)."""


@dataclass(frozen=True)
class BaseModelConfig:
    """Settings that all model families have; with those of its subclass, all that is needed to rebuild a model."""

    FAMILY: ClassVar[str]
    """Name of the model family, "two-stage" or "one-stage"."""

    name: str = ""
    backbone: str = "resnet50"
    """A timm model with feature maps at strides 4, 8, 16 and 32."""
    class_names: tuple[str, ...] = ("__background__", "object")
    """Names by contiguous label; index 0 is the background."""
    category_ids: tuple[int, ...] = ()
    """COCO category_id of labels 1, 2, …; empty means 1, 2, …"""
    fpn_channels: int = 256
    frozen_stride: int = 4
    """Backbone parameters up to the feature map of this stride are not trained."""
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD
    """Input normalisation of RGB scaled to 0–1."""
    min_sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Training: length of the shorter side, drawn from these, pixels."""
    test_min_size: int = 800
    """Evaluation: length of the shorter side, pixels."""
    max_size: int = 1333
    """Upper limit of the longer side, pixels."""
    score_threshold: float = 0.05
    """Detections with a class score below it are dropped, 0–1."""
    display_score: float = 0.5
    """Score, 0–1, from which detections are shown unless another is asked for."""
    detections_per_img: int = 100

    def __post_init__(self) -> None:
        if self.category_ids and len(self.category_ids) != len(self.class_names) - 1:
            raise DynaMaskError("category_ids and class_names disagree; give one id per class, without the background")
        check_shares(self, "display_score", "score_threshold")
        check_ranges(self, 1, MOST_CHANNELS, "fpn_channels")
        check_ranges(self, 1, LONGEST_SIDE, "min_sizes", "test_min_size", "max_size")
        check_ranges(self, 1, MOST_OBJECTS, "detections_per_img")
        check_ranges(self, -1e6, 1e6, "image_mean")
        check_ranges(self, 1e-6, 1e6, "image_std")
        if not self.min_sizes:
            raise DynaMaskError("min_sizes is empty; give at least one length of the shorter side")

    @property
    def detector_kind(self) -> str:
        """Models of the same kind can exchange the weights of everything but their mask prediction."""
        raise NotImplementedError

    @property
    def mask_kind(self) -> object:
        """Models of the same detector kind and mask kind can exchange all weights."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Called on the base class, it returns a configuration of the family that the values name.

        Raises:
            DynaMaskError: a key is unknown, or the values belong to another family than the class.
        """
        family = values.get("family", ModelConfig.FAMILY)
        kind = next((each for each in (ModelConfig, SoloConfig) if family == each.FAMILY), None)
        if kind is None or not issubclass(kind, cls):
            raise DynaMaskError(f"the stored model configuration is of the family {_short(family)}; give other weights")
        given = {key: value for key, value in values.items() if key != "family"}
        if given.get("aggregation") is not None:
            given["aggregation"] = _from_values(AggregationConfig, given["aggregation"])
        return _from_values(kind, given)


def parse_refine(text: str) -> tuple[float, ...]:
    """Shares of :attr:`ModelConfig.refine` from "A,B,C", or from "dense", which is 1,1,1.

    Raises:
        DynaMaskError: the text is neither; :class:`ModelConfig` checks the numbers.
    """
    if text == "dense":
        return (1.0, 1.0, 1.0)
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise DynaMaskError(f"refine is {text!r}; give three shares as 1,0.4,0.2, or dense") from error


def check_choices(config: Any, **choices: tuple[str, ...]) -> None:
    """Refuse a field whose value is not among its choices."""
    for name, known in choices.items():
        if getattr(config, name) not in known:
            *some, last = map(repr, known)
            raise DynaMaskError(f"{name} is {getattr(config, name)!r}; choose {', '.join(some)} or {last}")


def check_shares(config: Any, *names: str) -> None:
    """Refuse a field that is no share or probability."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise DynaMaskError(f"{name} is {getattr(config, name)}; give a number from 0 to 1")


def check_ranges(config: Any, low: float, high: float, *names: str) -> None:
    """Refuse a field that is a number, or holds numbers at any depth, outside a closed range."""
    for name in names:
        for value in _numbers(getattr(config, name)):
            if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
                text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "too large"
                raise DynaMaskError(f"{name} is {text}; give a number from {low:,} to {high:,}")


def _numbers(value: Any) -> Iterator[Any]:
    """The values in a tuple or list at any depth; a value itself if it is neither."""
    if not isinstance(value, tuple | list):
        yield value
        return
    for item in value:
        yield from _numbers(item)


def _from_values(kind: type, values: Mapping[str, Any]) -> Any:
    """A dataclass from JSON values whose types are checked, lists turned into tuples."""
    if not isinstance(values, Mapping):
        raise DynaMaskError(f"the stored model configuration is damaged: {_short(values)} is no object; {_OTHER}")
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        raise DynaMaskError(
            f"the stored model configuration has unknown keys {_short(unknown)}; it is from another version"
        )
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            wanted = str(getattr(hints[name], "__name__", "")) if isinstance(hints[name], type) else str(hints[name])
            raise DynaMaskError(
                f"the stored model configuration is damaged: {name} is {_short(value)} and not of the type {wanted}; "
                f"{_OTHER}"
            )
    return kind(**{name: _frozen(value) for name, value in values.items()})


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value, with lists for tuples, is of the type of a field; numbers have to be finite."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, hint)


def _short(value: Any) -> str:
    """A value for a message, at most 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a number that is too large"
    return text if len(text) <= 60 else text[:59] + "…"


def _frozen(value: Any) -> Any:
    """Lists, at any depth, as tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class ModelConfig(BaseModelConfig):
    """Settings of the two-stage family: DynaMask and the mask branches that it is compared with."""

    FAMILY: ClassVar[str] = "two-stage"

    name: str = "dynamask_resnet50_fpn"
    detector: str = "faster_rcnn"
    """One of ``DETECTORS``. For "nanodet_plus", ``min_sizes`` and ``test_min_size`` are sides of a square."""
    detector_norm: str = "folded"
    """NanoDet-Plus: "folded", convolutions with a bias, or "batch", with batch norm, for training from scratch."""
    pyramid_top_down: bool = True
    """NanoDet-Plus: add coarser levels of the mask branch's pyramid to finer ones."""
    corner_cells: bool = False
    """Crop regions as if cell i of a map of stride s lay at its first pixel, s·i + ½, where padded convolutions of
    stride 2 put it; otherwise at its middle, s·(i + ½), as torchvision does."""
    mask_branch: str = "region_fpn"
    """One of ``MASK_BRANCHES``; only the r-FPN has a switch."""
    region_channels: int = 256
    """Channels of the 14×14 region feature, which each stage halves. Baselines: channels of the convolutions of "fcn"
    and "pointrend"; the widths of the other pyramids follow from the MACs of the r-FPN."""
    offset_groups: tuple[int, int, int] = (4, 2, 1)
    """Offset groups of the deformable convolutions at 28, 56, 112."""
    stage_strides: tuple[int, int, int] = (16, 8, 4)
    """Strides of the maps that the r-FPN, or another pyramid on regions, reads at 28, 56 and 112, each 4, 8, 16 or 32;
    the paper's are for pictures of 800 pixels."""
    refine: tuple[float, float, float] | None = None
    """Boundary refinement: shares, in (0, 1], of the cells that the stages of the r-FPN to 28, 56 and 112 compute. They
    are the cells nearest to the outline at the coarser size; None or three ones compute all cells, as in the paper."""
    switch_channels: int = 64
    switch_hidden: int = 256
    quality_channels: int = 0
    """Channels of the quality head, which predicts mask IoU and boundary IoU of every size; 0 for none."""
    quality_hidden: int = 128
    box_head_channels: int = 1024
    class_agnostic: bool = False
    """One mask logit for all classes."""
    class_agnostic_last: bool = False
    """One mask logit for all classes at 112, as in the authors' code, and a logit per class at the other sizes."""
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Anchor sides at strides 4 … 64, pixels."""
    rpn_pre_nms_train: int = 2000
    rpn_pre_nms_test: int = 1000
    """Proposals kept per level before NMS."""
    rpn_post_nms_train: int = 2000
    rpn_post_nms_test: int = 1000
    """Proposals kept per image after NMS."""
    box_samples: int = 512
    """RoIs sampled per image in training, a quarter of them positive."""
    mask_rois: int = 128
    """Positive RoIs per image that train the mask branch, at most."""
    region_margin: float = 0.0
    """Share (0–0.5) of a box by which its region is enlarged on every side, so that masks can reach beyond the box."""
    mask_nms: float = 0.0
    """Mask IoU from which a predictor leaves out the worse-scored of two objects of one class, 0–1; 0 leaves out
    none. See :func:`dynamask.ops.mask_nms.distinct_masks`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, detector=DETECTORS, detector_norm=("folded", "batch"))
        if len(self.stage_strides) != 3 or not set(self.stage_strides) <= {4, 8, 16, 32}:
            raise DynaMaskError(f"stage_strides is {self.stage_strides}; give three of 4, 8, 16 and 32")
        if self.mask_branch not in MASK_BRANCHES:
            raise DynaMaskError(
                f"mask branch {self.mask_branch!r} is unknown; choose one of {', '.join(MASK_BRANCHES)}"
            )
        if self.refine is not None:
            self._check_refine()
        check_ranges(self, 1, MOST_CHANNELS, "region_channels", "switch_channels", "switch_hidden", "box_head_channels")
        check_ranges(self, 1, MOST_CHANNELS, "offset_groups")
        check_ranges(self, 1, LONGEST_SIDE, "anchor_sizes")
        proposals = ("rpn_pre_nms_train", "rpn_pre_nms_test", "rpn_post_nms_train", "rpn_post_nms_test")
        check_ranges(self, 1, MOST_OBJECTS, *proposals, "box_samples", "mask_rois")
        if len(self.anchor_sizes) != 5:
            raise DynaMaskError(f"anchor_sizes is {self.anchor_sizes}; give five sides, for strides 4 to 64")
        if self.region_channels % 8:
            raise DynaMaskError(f"region_channels={self.region_channels} must be divisible by 8: three stages halve it")
        widths = tuple(self.region_channels // 2**stage for stage in (1, 2, 3))
        if len(self.offset_groups) != 3 or any(width % groups for width, groups in zip(widths, self.offset_groups)):
            raise DynaMaskError(
                f"offset_groups is {self.offset_groups}; give divisors of {widths}, the channels of the stages"
            )
        if not 0 <= self.region_margin <= 0.5:
            raise DynaMaskError(f"region_margin is {self.region_margin}; give a share of the box from 0 to 0.5")
        check_shares(self, "mask_nms")

    def _check_refine(self) -> None:
        """Check the shares of the refinement, and turn three ones into None."""
        if len(self.refine) != 3 or not all(0 < share <= 1 for share in self.refine):
            raise DynaMaskError(f"refine is {self.refine}; give three shares of cells above 0 and up to 1, or dense")
        if set(self.refine) == {1}:
            object.__setattr__(self, "refine", None)
        elif self.mask_branch != "region_fpn":
            raise DynaMaskError(f"the mask branch {self.mask_branch} has no stages to refine; leave out refine")

    @property
    def detector_kind(self) -> str:
        """See :attr:`BaseModelConfig.detector_kind`."""
        return self.detector

    @property
    def mask_kind(self) -> str:
        """See :attr:`BaseModelConfig.mask_kind`."""
        return self.mask_branch


@dataclass(frozen=True)
class AggregationConfig:
    """Settings of SODAR's aggregation; each part of its Table VI varies one field."""

    neighbours: str = "4"
    """"none", "column", "row", "4", "8" around the cell, or "corners"."""
    context: str = "with"
    """Multi-level context: "with", "without", or "only" (no mask representation at all)."""
    context_channels: int = 16
    context_fusion: str = "sum"
    """"sum", as the parameter counts of the paper imply, or "concat", as in its released code."""
    weights: str = "dynamic"
    """"dynamic": θ is predicted for every cell; "static": one learned θ for all."""
    layers: int = 3
    kernel: int = 3
    hidden: int = 4
    theta_kernel: int = 1
    """Kernel of the convolution that predicts θ."""
    tower_channels: int = 0
    """SOLOv2: width of the tower that θ is predicted from; 0 means the width of the other towers."""
    deformable: bool = False
    """Learn an offset (Δrow, Δcolumn) for every neighbour."""
    interpolation: str = "rounded"
    """Position of a cell on a coarser grid of representations: "rounded" to the nearest one, "floor", or "between",
    sampled bilinearly. "corners" always surround the position between."""
    border: str = "clamp"
    """Neighbours outside the grid: "clamp" repeats the border cell, "zero" takes them as zero."""
    direct_weight: float = 0.0
    """Weight of a mask loss on the centre representation itself (the paper's two-stage loss); 0 disables it."""

    def __post_init__(self) -> None:
        check_choices(
            self,
            neighbours=tuple(NEIGHBOURS),
            context=("with", "without", "only"),
            context_fusion=("sum", "concat"),
            weights=("dynamic", "static"),
            interpolation=("rounded", "between", "floor"),
            border=("clamp", "zero"),
        )
        check_ranges(self, 1, MOST_CHANNELS, "context_channels", "hidden")
        check_ranges(self, 0, MOST_CHANNELS, "tower_channels")
        check_ranges(self, 0, 1e6, "direct_weight")
        if not 1 <= self.layers <= 4 or self.kernel not in (1, 3) or self.theta_kernel not in (1, 3):
            raise DynaMaskError("an aggregation has 1 to 4 layers and kernels of 1 or 3; choose within that")
        if self.direct_weight and self.neighbours == "corners":
            raise DynaMaskError("between cells there is no centre representation to supervise; set direct_weight to 0")

    @property
    def samples(self) -> int:
        """Number S of mask representations in the input: 1, 3, 4, 5 or 9; 0 with only the context."""
        if self.context == "only":
            return 0
        return 4 if self.neighbours == "corners" else len(NEIGHBOURS[self.neighbours])

    @property
    def in_channels(self) -> int:
        """Channels of the aggregation's input."""
        return self.samples + (0 if self.context == "without" else self.context_channels)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of all layers, from the input to the single output."""
        return (self.in_channels, *[self.hidden] * (self.layers - 1), 1)

    @property
    def parameters(self) -> int:
        """Length D of θ: weights and biases of all layers (945 with five representations and sixteen channels)."""
        return sum(a * b * self.kernel**2 + b for a, b in zip(self.widths, self.widths[1:]))


@dataclass(frozen=True)
class SoloConfig(BaseModelConfig):
    """Settings of the one-stage family: SOLO, SOLOv2 and CondInst, with or without SODAR's aggregation."""

    FAMILY: ClassVar[str] = "one-stage"

    name: str = "solo_resnet50_fpn"
    kind: str = "solo"
    """"solo": one 1×1 convolution per level; "solov2": a kernel predicted for every cell (dynamic convolution);
    "condinst": a small mask network predicted for every location of FCOS, which has no grids."""
    tower_channels: int = 256
    """Width of the category and mask (or kernel) towers."""
    tower_depth: int = 7
    mask_feature_channels: int = 128
    """SOLOv2 and CondInst: width of the branches that compute the mask feature."""
    kernel_channels: int = 256
    """SOLOv2: channels of the mask feature and of a cell's kernel."""
    groups: int = 32
    """Groups of every GroupNorm."""
    grids: tuple[int, ...] = (40, 36, 24, 16, 12)
    """Side of the classification grid of the five levels."""
    mask_grids: tuple[int, ...] = ()
    """Side of the grids of mask representations; empty means the classification grids (SODAR's mask interpolation)."""
    scale_ranges: tuple[tuple[int, int], ...] = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    """Range of √(w·h), inclusive, of the objects that each level is trained on, network-input pixels."""
    centre_share: float = 0.2
    """σ: an object trains the cells within this share of its box around its centre of mass."""
    aggregation: AggregationConfig | None = None
    """SODAR's aggregation; None is the plain model."""
    score_threshold: float = 0.1
    display_score: float = 0.3
    update_threshold: float = 0.05
    """Detections with a score below it after matrix NMS are dropped, 0–1."""
    candidates: int = 500
    """Masks that go into matrix NMS, or boxes that go into CondInst's box NMS, at most."""
    nms_kernel: str = "gaussian"
    nms_sigma: float = 2.0
    voting: str = "none"
    """Mask voting among overlapping candidates (SODAR, Table II): "none", "average", "score" or "iou"."""
    voting_iou: float = 0.7
    """IoU with the mask below which a candidate does not vote."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, kind=("solo", "solov2", "condinst"), voting=("none", "average", "score", "iou"))
        check_ranges(self, 1, MOST_CHANNELS, "tower_channels", "mask_feature_channels", "kernel_channels", "groups")
        check_ranges(self, 1, 32, "tower_depth")
        check_ranges(self, 1, 200, "grids", "mask_grids")
        check_ranges(self, 0, LONGEST_SIDE, "scale_ranges")
        check_ranges(self, 1, MOST_OBJECTS, "candidates")
        check_ranges(self, 1e-6, 1e6, "nms_sigma")
        check_shares(self, "centre_share", "update_threshold", "voting_iou")
        if len(self.grids) != len(STRIDES) or len(self.scale_ranges) != len(STRIDES):
            raise DynaMaskError(f"grids and scale_ranges need one entry for each of {len(STRIDES)} levels")
        if self.mask_grids and (len(self.mask_grids) != len(self.grids) or self.aggregation is None):
            raise DynaMaskError("mask_grids need one entry a level and an aggregation; give both or neither")
        self._check_groups()

    def _check_groups(self) -> None:
        """Refuse widths that a GroupNorm cannot divide."""
        widths = {"tower_channels": self.tower_channels}
        if self.kind == "condinst":
            widths |= {"mask_feature_channels": self.mask_feature_channels, "fpn_channels": self.fpn_channels}
        if self.kind == "solov2":
            widths |= {"mask_feature_channels": self.mask_feature_channels, "kernel_channels": self.kernel_channels}
        if self.aggregation is not None:
            widths["agg_tower_channels"] = self.aggregation.tower_channels
            if self.aggregation.context != "without":
                widths["fpn_channels"] = self.fpn_channels
        for name, width in widths.items():
            if width % self.groups:
                raise DynaMaskError(f"{name} is {width}; give a multiple of groups, {self.groups}")

    @property
    def representation_grids(self) -> tuple[int, ...]:
        """Side G′ of the grid of mask representations of every level."""
        return self.mask_grids or self.grids

    @property
    def detector_kind(self) -> str:
        """See :attr:`BaseModelConfig.detector_kind`."""
        return self.kind

    @property
    def mask_kind(self) -> AggregationConfig | None:
        """See :attr:`BaseModelConfig.mask_kind`."""
        return self.aggregation

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the family."""
        return {"family": self.FAMILY, **super().to_dict()}
