"""Configuration: frozen dataclasses with checks. Only the assembling code reads them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

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
"""The paper's r-FPN, and the mask branches that stand beside it (:mod:`dynamask.models.masks.heads`)."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build a model again from its weights."""

    name: str = "dynamask_resnet50_fpn"
    backbone: str = "resnet50"
    class_names: tuple[str, ...] = ("__background__", "object")
    """Names by contiguous label; index 0 is the background."""
    category_ids: tuple[int, ...] = ()
    """COCO category_id of labels 1, 2, …; empty means 1, 2, …"""
    mask_branch: str = "region_fpn"
    """What turns regions into masks, one of ``MASK_BRANCHES``; only the r-FPN has a switch."""
    fpn_channels: int = 256
    region_channels: int = 256
    """Channels of the 14×14 region feature; each stage halves them. Baselines: of the convolutions of "fcn" and
    "pointrend"; the other pyramids are as wide as makes them cost what the r-FPN costs."""
    offset_groups: tuple[int, int, int] = (4, 2, 1)
    """Offset groups of the deformable convs at 28, 56, 112."""
    switch_channels: int = 64
    switch_hidden: int = 256
    box_head_channels: int = 1024
    class_agnostic: bool = False
    """One mask logit for all classes."""
    class_agnostic_last: bool = False
    """One mask logit for all classes at 112, as in the authors' code, and a logit per class at the other sizes."""
    frozen_stride: int = 4
    """Backbone parameters up to this stride do not train."""
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD
    """Input normalisation of RGB scaled to 0–1."""
    min_sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Shorter sides drawn in training, pixels."""
    test_min_size: int = 800
    max_size: int = 1333
    """Longest side, pixels."""
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Anchor sides at strides 4 … 64, pixels."""
    rpn_pre_nms_train: int = 2000
    rpn_pre_nms_test: int = 1000
    rpn_post_nms_train: int = 2000
    rpn_post_nms_test: int = 1000
    """Proposals per image (before NMS also per level)."""
    box_samples: int = 512
    """RoIs sampled per image in training, a quarter of them positive."""
    mask_rois: int = 128
    """Positive RoIs per image that train the mask branch, at most."""
    score_threshold: float = 0.05
    detections_per_img: int = 100

    def __post_init__(self) -> None:
        if self.mask_branch not in MASK_BRANCHES:
            raise DynaMaskError(
                f"mask branch {self.mask_branch!r} is unknown; choose one of {', '.join(MASK_BRANCHES)}"
            )
        if self.region_channels % 8:
            raise DynaMaskError(f"region_channels={self.region_channels} must be divisible by 8: three stages halve it")
        if self.category_ids and len(self.category_ids) != len(self.class_names) - 1:
            raise DynaMaskError("category_ids and class_names disagree; give one id per class besides the background")

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> ModelConfig:
        """The inverse of :meth:`to_dict`; unknown keys raise :class:`DynaMaskError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise DynaMaskError(
                f"the stored model configuration has unknown keys {unknown}; it is from another version"
            )
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


@dataclass(frozen=True)
class LossConfig:
    """Weights and switches of the mask branch's losses (Eq. 3–7)."""

    mask_supervision: str = "all"
    """"all": every resolution learns from every RoI; "selected": Eq. 3 read literally, only the drawn one."""
    mask_weight: float = 1.0
    """Weight of L_mask beside the detector's losses; Eq. 7 has 1."""
    edge_weight: float = 0.1
    """λ1 of Eq. 7."""
    switch_weight: float = 0.4
    """λ2 of Eq. 7, the weight of the budget and entropy terms."""
    budget_target: float = 0.3
    """C_t as a fraction of the full branch's MACs, in (0, 1]."""
    temperature: float = 0.5
    """τ of the Gumbel-softmax (Eq. 2)."""
    switch_signal: str = "edge"
    """What tells the switch which size an instance needs: "edge", L_edge as in Eq. 4, or "boundary", the boundary error
    1 − IoU of each size's mask at one common grid, its width in picture pixels."""
    boundary_weight: float = 0.0
    """Weight of the boundary error under the signal "boundary"."""
    overlap_share: float = 0.0
    """Share, 0–1, of 1 − mask IoU in that error; the rest is 1 − boundary IoU."""
    switch_gradient: float = 1.0
    """Factor on the gradient that the edge and mask losses send into the switch through y."""
    detach_switch: bool = True
    """The switch reads the region feature without sending gradients into it."""
    switch_selection: str = "drawn"
    """What weighs the sizes in the losses: "drawn", the one-hot y of Eq. 2, or "expected", p itself: the mean of every
    draw, without its noise."""
    entropy_on: str = "probs"
    """Whose entropy Eq. 6 takes: "probs", f is the mean of p; "selection", f is the mean of y; "instances", the mean of
    the entropy of each instance's own p, which keeps p graded where one size is only a little better."""

    def __post_init__(self) -> None:
        if self.mask_supervision not in ("all", "selected"):
            raise DynaMaskError(f"mask_supervision is {self.mask_supervision!r}; choose 'all' or 'selected'")
        if self.switch_signal not in ("edge", "boundary"):
            raise DynaMaskError(f"switch_signal is {self.switch_signal!r}; choose 'edge' or 'boundary'")
        if self.switch_selection not in ("drawn", "expected"):
            raise DynaMaskError(f"switch_selection is {self.switch_selection!r}; choose 'drawn' or 'expected'")
        if self.entropy_on not in ("probs", "selection", "instances"):
            raise DynaMaskError(f"entropy_on is {self.entropy_on!r}; choose 'probs', 'selection' or 'instances'")
        if not 0 <= self.overlap_share <= 1:
            raise DynaMaskError(f"overlap_share is {self.overlap_share}; give a share from 0 to 1")
        if not 0 < self.budget_target <= 1:
            raise DynaMaskError(f"budget_target is {self.budget_target}; give a fraction of the full branch in (0, 1]")
        if self.temperature <= 0:
            raise DynaMaskError(f"temperature is {self.temperature}; give a positive number")

    @property
    def weights(self) -> dict[str, float]:
        """Factor of each named loss in the total loss (Eq. 7)."""
        return {
            "loss_mask": self.mask_weight,
            "loss_edge": self.edge_weight,
            "loss_boundary": self.boundary_weight,
            "loss_budget": self.switch_weight,
            "loss_entropy": self.switch_weight,
        }


@dataclass(frozen=True)
class TrainConfig:
    """The training schedule; the defaults are the paper's COCO 1× recipe."""

    batch_size: int = 16
    """Images per step."""
    iterations: int = 90_000
    """Steps in all."""
    stop_at: int = 0
    """Stop after this step, the schedule unchanged; 0 runs all steps."""
    warm_start: float = 1 / 12
    """Share of the steps, at the start, without the switch: masks at all resolutions (phase one; an epoch of 12)."""
    optimizer: str = "sgd"
    lr: float = 0.02
    backbone_lr_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: int = 500
    """Steps of linear warm-up."""
    schedule: str = "step"
    milestones: tuple[float, ...] = (8 / 12, 11 / 12)
    """Shares of the steps at which the step schedule multiplies lr by 0.1."""
    clip_norm: float = 35.0
    """Largest gradient norm; 0 does not clip."""
    ema_decay: float = 0.0
    """Decay per step of the moving average of the weights that is saved; 0 saves the last weights."""
    jitter: bool = False
    """Photometric jitter."""
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest factor by which a picture is scaled before it is cut or padded to its frame; 0.1 2.0 is the
    large-scale jitter of Ghiasi et al. (CVPR 2021)."""
    jitter_size: int = 0
    """Side of that frame, square, in pixels; 0 keeps the size of each picture."""
    crop: float = 0.0
    """Probability of cutting a random window out of a picture."""
    copy_paste: float = 0.0
    """Probability that objects of another picture are pasted over a picture."""
    seed: int = 0
    workers: int = 2
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept, the last ones."""
    log_every: int = 20
    """Steps between log lines."""
    device: str = "cpu"
    """"cpu" or "cuda"; of several processes on CUDA, each takes the GPU of its number on its machine."""
    precision: str = "fp32"
    """Of the convolutions and matrix products: "fp32", or "bf16" or "fp16" under autocast; weights, losses, boxes and
    sampling positions stay float32. "fp16" scales the loss."""
    accumulate: int = 1
    """Micro-batches that a step's batch is divided into, one after another on each process, to save memory."""
    checkpoint_stages: bool = False
    """Compute the region stages again in the backward pass instead of keeping what is inside them."""
    compile: bool = False
    """torch.compile of the backbone's body."""
    val_every: int = 0
    """Steps between evaluations on the validation pictures; 0 evaluates at the end alone."""
    overlay_every: int = 0
    """Steps between overlays of a few pictures in TensorBoard; 0 draws none."""

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adamw"):
            raise DynaMaskError(f"optimizer is {self.optimizer!r}; choose 'sgd' or 'adamw'")
        if self.schedule not in ("step", "cosine"):
            raise DynaMaskError(f"schedule is {self.schedule!r}; choose 'step' or 'cosine'")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise DynaMaskError(f"precision is {self.precision!r}; choose 'fp32', 'bf16' or 'fp16'")
        for name in ("batch_size", "iterations", "save_every", "log_every", "keep", "accumulate"):
            if getattr(self, name) < 1:
                raise DynaMaskError(f"{name} is {getattr(self, name)}; give a whole number of at least 1")
        for name in ("crop", "copy_paste"):
            if not 0 <= getattr(self, name) <= 1:
                raise DynaMaskError(f"{name} is {getattr(self, name)}; give a probability from 0 to 1")
        if len(self.scale_jitter) != 2 or not 0 < self.scale_jitter[0] <= self.scale_jitter[1] <= 8:
            raise DynaMaskError(f"scale_jitter is {self.scale_jitter}; give two ascending factors, above 0, up to 8")
        if self.jitter_size < 0:
            raise DynaMaskError(f"jitter_size is {self.jitter_size}; give a side in pixels, or 0 for each picture's")
        for name in ("val_every", "overlay_every"):
            if getattr(self, name) < 0:
                raise DynaMaskError(f"{name} is {getattr(self, name)}; give a number of steps, or 0 for never")
        if self.batch_size % self.accumulate:
            raise DynaMaskError(
                f"a batch of {self.batch_size} pictures cannot be divided into {self.accumulate} micro-batches; give a "
                f"batch size that is a multiple of {self.accumulate}"
            )


_SMALL_TRAINING = TrainConfig(
    batch_size=4,
    iterations=3000,
    warm_start=0.25,
    optimizer="adamw",
    lr=6e-4,
    backbone_lr_factor=0.25,
    weight_decay=0.02,
    warmup=150,
    schedule="cosine",
    clip_norm=10.0,
    ema_decay=0.998,
    jitter=True,
    workers=0,
)


_SMALL_LOSSES = LossConfig(
    mask_weight=2.0,
    switch_signal="boundary",
    overlap_share=0.9,
    boundary_weight=6.0,
    switch_selection="expected",
    entropy_on="instances",
    budget_target=0.35,
)
"""The switch's losses as `docs/decisions.md` found them on scenes of known difficulty."""


def recipe(model_name: str) -> tuple[TrainConfig, LossConfig]:
    """Schedule and losses that a model is trained with by default: the paper's, or the small presets' own."""
    if model_name.endswith("_small"):
        return _SMALL_TRAINING, _SMALL_LOSSES
    return TrainConfig(), LossConfig()
