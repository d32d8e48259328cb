"""Settings of losses and training: frozen dataclasses that check their values."""

from __future__ import annotations

from dataclasses import dataclass

from dynamask.config import LONGEST_SIDE, check_choices, check_ranges, check_shares
from dynamask.structures import DynaMaskError

MOST_PICTURES, MOST_STEPS, MOST_WORKERS = 65_536, 10**9, 1024
"""Upper limits of pictures per step, of steps, and of processes that read pictures."""


@dataclass(frozen=True)
class LossConfig:
    """Settings of the mask branch's losses (Eq. 3–7)."""

    mask_supervision: str = "all"
    """"all": every RoI trains all resolutions; "selected": only the sampled one, as Eq. 3 is written."""
    loss_reduction: str = "mean"
    """Reduction of L_mask and L_edge over the N positive regions of a batch: "mean", or "sum" as Eq. 3-4 are written.
    L_budget and L_entropy are means either way, so "sum" makes the losses of masks and edges N times as strong."""
    mask_weight: float = 1.0
    """Weight of L_mask relative to the losses of the detector; 1 in Eq. 7."""
    dice_weight: float = 0.0
    """Weight of the Dice loss that is added to the cross-entropy of every mask (ours; 0 in the paper)."""
    edge_weight: float = 0.1
    """λ1 of Eq. 7."""
    switch_weight: float = 0.4
    """λ2 of Eq. 7, the weight of the budget and entropy terms."""
    budget_target: float = 0.3
    """C_t as a fraction of the full branch's MACs, in (0, 1]."""
    temperature: float = 0.5
    """τ of the Gumbel-softmax (Eq. 2)."""
    switch_signal: str = "edge"
    """Loss that teaches the switch which size an instance needs: "edge", L_edge as in Eq. 4, or "boundary", the
    boundary error 1 − boundary IoU of the mask of each size, all compared on the finest grid."""
    boundary_weight: float = 0.0
    """Weight of the boundary error under the signal "boundary"."""
    overlap_share: float = 0.0
    """Share (0–1) of 1 − mask IoU in that error; the rest is 1 − boundary IoU."""
    quality_weight: float = 1.0
    """Weight of the quality head's loss; its gradient reaches no other module."""
    switch_gradient: float = 1.0
    """Factor on the gradient of the edge and mask losses with respect to y."""
    detach_switch: bool = True
    """Stop the gradient of the switch at the region feature."""
    switch_selection: str = "drawn"
    """Weights of the sizes in the losses: "drawn", the sampled one-hot y of Eq. 2, or "expected", the probabilities p,
    which give the expected loss without sampling noise."""
    entropy_on: str = "probs"
    """Distribution of Eq. 6: "probs", f is the mean of p; "selection", f is the mean of y; "instances", the mean of the
    entropies of the instances' p, which keeps p smooth where one size is only slightly better."""

    def __post_init__(self) -> None:
        check_choices(
            self,
            mask_supervision=("all", "selected"),
            loss_reduction=("mean", "sum"),
            switch_signal=("edge", "boundary"),
            switch_selection=("drawn", "expected"),
            entropy_on=("probs", "selection", "instances"),
        )
        check_shares(self, "overlap_share")
        weights = ("mask_weight", "dice_weight", "edge_weight", "switch_weight", "boundary_weight", "switch_gradient")
        check_ranges(self, 0, 1e6, *weights, "temperature")
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
            "loss_mask_quality": self.quality_weight,
        }


@dataclass(frozen=True)
class TrainConfig:
    """The training schedule; the defaults are the paper's COCO 1× recipe."""

    batch_size: int = 16
    """Images per step."""
    iterations: int = 90_000
    """Total number of steps."""
    stop_at: int = 0
    """Stop after this step without changing the schedule; 0 runs all steps."""
    warm_start: float = 1 / 12
    """Share of the steps (0–1), at the start, that train masks at all resolutions without the switch (phase one)."""
    offset_start: float = 0.0
    """Share of the steps (0–1), at the start, in which the r-FPN's convolutions are not deformed; their offsets stay
    zero, and steps are several times faster on a CPU."""
    coarse_start: float = 0.0
    """Share of the steps (0–1), at the start, that train masks at 14 and 28 only; the stages to 56 and 112 take most of
    the time of a step. The warm start must be as long."""
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
    """Largest gradient norm; 0 disables clipping."""
    ema_decay: float = 0.0
    """Decay per step of the exponential moving average of the weights, which is saved; 0 saves the last weights."""
    jitter: bool = False
    """Photometric jitter."""
    hue: float = 0.0
    """Largest shift of the hue by the photometric jitter, as a share of the colour circle, 0–0.5."""
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest factor by which a picture is scaled before it is cropped or padded; (0.1, 2.0) is the
    large-scale jitter of Ghiasi et al. (CVPR 2021)."""
    jitter_size: int = 0
    """Side of the square that the scaled picture is cropped or padded to, pixels; 0 keeps the size of each picture."""
    crop: float = 0.0
    """Probability of cropping a picture to a random window."""
    copy_paste: float = 0.0
    """Probability that objects of another picture are pasted over a picture."""
    cut_outs: float = 0.0
    """Probability that one or two outlines of the shapes world, filled with texture of another picture, are put over a
    picture; they train the masks only."""
    seed: int = 0
    workers: int = 2
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Number of the latest checkpoints that are kept."""
    log_every: int = 20
    """Steps between log lines."""
    device: str = "auto"
    """A device of torch, or "auto" for the best one of the machine; each of several processes uses the GPU of its local
    rank."""
    precision: str = "fp32"
    """Precision of convolutions and matrix products: "fp32", or "bf16" or "fp16" under autocast; weights, losses, boxes
    and sampling positions stay float32. "fp16" scales the loss."""
    accumulate: int = 1
    """Number of micro-batches that the batch is divided into to save memory."""
    checkpoint_stages: bool = False
    """Recompute the stages of the r-FPN in the backward pass instead of storing their activations."""
    compile: bool = False
    """Compile the body of the backbone with torch.compile."""
    val_every: int = 0
    """Steps between evaluations on the validation pictures; 0 evaluates only at the end."""
    overlay_every: int = 0
    """Steps between overlays of a few pictures in TensorBoard; 0 draws none."""

    def __post_init__(self) -> None:
        check_choices(self, optimizer=("sgd", "adamw"), schedule=("step", "cosine"), precision=("fp32", "bf16", "fp16"))
        check_ranges(self, 1, MOST_PICTURES, "batch_size", "accumulate")
        check_ranges(self, 1, MOST_STEPS, "iterations", "save_every", "log_every", "keep")
        check_ranges(self, 0, MOST_STEPS, "stop_at", "warmup", "val_every", "overlay_every")
        check_ranges(self, 0, MOST_WORKERS, "workers")
        check_ranges(self, 0, 2**32 - 1, "seed")
        check_ranges(self, 0, LONGEST_SIDE, "jitter_size")
        check_ranges(self, 0, 1e6, "lr", "backbone_lr_factor", "weight_decay", "clip_norm")
        check_ranges(self, 0, 1, "milestones")
        check_shares(self, "momentum", "ema_decay", "warm_start", "offset_start", "coarse_start")
        check_shares(self, "crop", "copy_paste", "cut_outs")
        if self.coarse_start > self.warm_start:
            raise DynaMaskError(
                f"coarse_start is {self.coarse_start}, but the switch needs all sizes; give at most warm_start, "
                f"{self.warm_start}"
            )
        if not 0 <= self.hue <= 0.5 or (self.hue and not self.jitter):
            raise DynaMaskError(f"hue is {self.hue}; give a share of the colour circle from 0 to 0.5, with jitter")
        if len(self.scale_jitter) != 2 or not 0 < self.scale_jitter[0] <= self.scale_jitter[1] <= 8:
            raise DynaMaskError(f"scale_jitter is {self.scale_jitter}; give two ascending factors, above 0, up to 8")
        if self.batch_size % self.accumulate:
            raise DynaMaskError(
                f"a batch of {self.batch_size} pictures cannot be divided into {self.accumulate} micro-batches; give a "
                f"batch size that is a multiple of {self.accumulate}"
            )
