"""The mask branch: RoI features, the switch, and the mask head's stages up to the chosen size (Fig. 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamask.models.detectors.base import PositiveRegions, Target, boxes_to_rois
from dynamask.models.masks import losses
from dynamask.models.masks.costs import MaskBranchCosts, mask_branch_costs
from dynamask.models.masks.heads.base import MaskHead, RegionState
from dynamask.models.masks.quality_head import QualityHead, quality_loss
from dynamask.models.masks.switch import MaskSwitchModule
from dynamask.models.tensor_functions import TensorFunction, region_function
from dynamask.ops.masks import BOUNDARY_WIDTH_RATIO, crop_mask_pyramid, enlarge_boxes
from dynamask.ops.means import LOCAL_MEANS, Means, connected_zero
from dynamask.structures import MASK_SIZES
from dynamask.training_config import LossConfig


class MaskBranch(nn.Module):
    """Mask head, switch and their losses: maps the feature pyramid and boxes to masks.

    The head is registered under its own name, ``region_fpn`` for the r-FPN, so that the names of tensors in weights
    files tell the kind of head; :attr:`head` is the head of any kind.

    Args:
        head: the r-FPN, or one of the baselines.
        switch: the mask switch module, which reads the head's first feature; without it every region gets the head's
            finest size.
        quality: the quality head, which reads the same feature; without it no quality is predicted.
        loss_config: the branch reads everything but the weights, which the trainer applies.
        mask_rois: positive regions per picture that :meth:`training_losses` uses, at most.
        region_margin: share of a box's width and height by which its region is enlarged on every side; masks cover the
            enlarged region.

    Attributes:
        switch_enabled: False in phase one, which trains all sizes and chooses none.
        means: takes the means over regions; the trainer replaces it while a batch is spread over several parts.
        tally: (2 + K,) of the last :meth:`losses`, without gradient: number of regions, Σ_i Σ_k p_i^k C_k as a fraction
            of the full branch, and number of regions by the size that the switch prefers.
    """

    def __init__(
        self,
        head: MaskHead,
        switch: MaskSwitchModule | None = None,
        loss_config: LossConfig | None = None,
        mask_rois: int = 128,
        region_margin: float = 0.0,
        quality: QualityHead | None = None,
    ) -> None:
        super().__init__()
        self.add_module(head.NAME, head)
        self.head_name = head.NAME
        self.switch = switch
        self.quality = quality
        self.loss_config = loss_config or LossConfig()
        head.dice_weight = self.loss_config.dice_weight
        self.mask_rois = mask_rois
        self.region_margin = region_margin
        self.switch_enabled = True
        self.means: Means = LOCAL_MEANS
        self.tally = torch.zeros(2 + len(MASK_SIZES))

    @property
    def head(self) -> MaskHead:
        """The mask head, of any kind."""
        return getattr(self, self.head_name)

    @property
    def mask_sizes(self) -> tuple[int, ...]:
        """The mask sizes of the head, coarse to fine, a subset of ``MASK_SIZES``."""
        return self.head.mask_sizes

    @property
    def costs(self) -> MaskBranchCosts:
        """The MACs of the branch, derived from its layers."""
        return mask_branch_costs(self.head, self.switch, self.quality)

    def forward(
        self, features: dict[str, Tensor], rois: Tensor, labels: Tensor, size_index: Tensor | None = None
    ) -> tuple[RegionState, Tensor, list[Tensor]]:
        """RoI features → switch → stages up to the chosen size → mask logits.

        Args:
            features: the image-level pyramid {"0": P2, …}.
            rois: (R, 5) batch index and boxes xyxy in network-input pixels, without the margin.
            labels: (R,) int64 ≥ 1.
            size_index: (R,) int64 in 0–3; by default the switch chooses.

        Returns:
            The features computed on the way, the size indices (R,), and R tensors (S_i, S_i) of mask logits.
        """
        state = self.begin(features, rois, labels)  # 14×14 RoI features and switch logits (R, 4)
        if size_index is None:
            size_index = state.switch_logits.argmax(dim=1)
        return state, size_index, by_region(self._mask_logits(state, size_index), len(state))

    def begin(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> RegionState:
        """Compute the head's first features of R regions, and the logits of switch and quality head from them.

        The ``rois`` of the state are the given boxes enlarged by the margin. Without a switch all probability lies on
        the finest size. Arguments as of :meth:`forward`.
        """
        state = self.head.begin(features, enlarge_boxes(rois, self.region_margin), labels)
        if self.switch is None:
            state.switch_logits = rois.new_full((len(rois), len(MASK_SIZES)), -math.inf)
            state.switch_logits[:, MASK_SIZES.index(self.mask_sizes[-1])] = 0.0
        else:
            tiny = state.features[0]
            state.switch_logits = self.switch(tiny.detach() if self.loss_config.detach_switch else tiny)
        if self.quality is not None:
            state.quality_logits = self.quality(state.features[0].detach(), state.rois, labels)
        return state

    def tensor_functions(self) -> Iterator[TensorFunction]:
        """The functions that a back end of inference can replace."""
        yield from self.head.tensor_functions()
        if self.switch is not None:
            channels = self.switch.convs[0].in_channels
            yield region_function("switch", self.switch, (channels, MASK_SIZES[0], MASK_SIZES[0]))

    def _mask_logits(self, state: RegionState, size_index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each size that occurs, finest first: the regions that have it (n,), and their mask logits (n, S, S)."""
        for k in range(len(MASK_SIZES) - 1, -1, -1):
            rows = torch.nonzero(size_index == k)[:, 0]
            if len(rows):
                yield rows, self.head.mask_logits(state, k, rows)

    def masks(self, state: RegionState, size_index: Tensor) -> list[Tensor]:
        """Mask probabilities of each region at its chosen size; no other size is computed.

        Args:
            state: of :meth:`begin`.
            size_index: (R,) int64 in 0–3.

        Returns:
            R tensors (S_i, S_i) in [0, 1].
        """
        groups = ((rows, logits.sigmoid()) for rows, logits in self._mask_logits(state, size_index))
        return by_region(groups, len(state))

    def training_losses(
        self,
        features: dict[str, Tensor],
        positives: list[PositiveRegions],
        targets: list[Target],
        image_sizes: list[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Losses on at most ``mask_rois`` positive regions of each picture, drawn at random.

        Args:
            features: the image-level pyramid of B pictures.
            positives: B sets of regions that the detector matched to objects.
            targets: B dicts with ``masks`` (G, H, W) in pixels of the original picture, and ``mask_scale`` (4,), the
                factors from a network-input box to those pixels.
            image_sizes: (height, width) of each picture in the network input.
        """
        regions = [_sample(p, self.mask_rois) for p in positives]
        crops = []
        for r, target in zip(regions, targets):
            covered = enlarge_boxes(r.boxes, self.region_margin) * target["mask_scale"]
            crops.append(crop_mask_pyramid(target["masks"], covered, MASK_SIZES, r.matched))
        target_masks = [(torch.cat(crop) >= 0.5).float() for crop in zip(*crops)]  # (N, S, S) of each size
        rois = boxes_to_rois([r.boxes for r in regions])
        state = self.begin(features, rois, torch.cat([r.labels for r in regions]))
        diagonals = rois.new_tensor([math.hypot(*size) for size in image_sizes])
        width = BOUNDARY_WIDTH_RATIO * diagonals[rois[:, 0].long()]
        return self.losses(state, target_masks, boundary_width=width)

    def losses(
        self,
        state: RegionState,
        target_masks: list[Tensor],
        noise: Tensor | None = None,
        boundary_width: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Named, unweighted losses of N positive RoIs (Eq. 3–6), float32 under autocast, too.

        Args:
            state: of :meth:`begin` on the positive RoIs.
            target_masks: K tensors (N, S_k, S_k) in {0, 1}.
            noise: (N, K) Gumbel noise, drawn by default.
            boundary_width: (N,) in network-input pixels; required by the switch signal "boundary" and the quality head.

        Returns:
            See :func:`dynamask.models.masks.losses.switch_losses`; with a quality head also ``loss_mask_quality``. In
            phase one the losses of the switch and the quality head are 0. Empty in a counting pass.
        """
        logits = state.switch_logits.float()
        fractions = logits.new_tensor(self.costs.fractions)
        self.tally = _tally(logits.detach(), fractions)
        config, choosing = self.loss_config, self.switch is not None and self.switch_enabled
        if self.means.counting:
            self.means.add(len(logits))
            if choosing:
                losses.balance_losses(
                    logits, losses.drawn_selection(logits, config, noise), fractions, config, self.means
                )
            return {}
        mask_losses = self.head.mask_losses(state, target_masks)  # (N, K)
        edge_losses = self.head.edge_losses(state, target_masks) if self.head.has_edges else None
        if choosing:
            error = None
            if config.switch_signal == "boundary" or self.quality is not None:
                errors = self._size_errors(state, target_masks[-1], boundary_width)
                error = torch.lerp(*errors, config.overlap_share)
            named = losses.switch_losses(logits, fractions, mask_losses, edge_losses, error, config, noise, self.means)
            if self.quality is not None:
                measured = 1.0 - torch.stack(errors[::-1], dim=2)  # (N, K, 2) mask IoU, boundary IoU
                named["loss_mask_quality"] = self.means.share(quality_loss(state.quality_logits.float(), measured))
        else:  # phase one: all sizes equally
            reduction = config.loss_reduction
            named = {"loss_mask": losses.selected_loss(mask_losses, None, self.means, reduction)}
            if edge_losses is not None:
                named["loss_edge"] = losses.selected_loss(edge_losses, None, self.means, reduction)
            if self.switch is not None:
                idle = ["loss_boundary"] if config.switch_signal == "boundary" else []
                named |= dict.fromkeys([*idle, "loss_budget", "loss_entropy"], logits.sum() * 0)
            if self.quality is not None:
                named["loss_mask_quality"] = state.quality_logits.sum() * 0
        if len(state) and self.head.trained_sizes is None:
            return named
        zero = connected_zero(self.parameters())  # every process has a gradient for every parameter
        return {name: loss + zero for name, loss in named.items()}

    @torch.no_grad()
    def _size_errors(self, state: RegionState, truth: Tensor, boundary_width: Tensor | None) -> tuple[Tensor, Tensor]:
        """Boundary error and overlap error (N, K) of the mask of each size; truth (N, S, S) at the finest size."""
        if boundary_width is None:
            raise ValueError("the signal 'boundary' and the quality head need the width of the boundary")
        every = torch.arange(len(state), device=state.rois.device)
        mask_logits = [self.head.mask_logits(state, k, every).float() for k in range(len(MASK_SIZES))]
        return losses.size_errors(mask_logits, truth, state.rois[:, 1:], boundary_width)

    def size_figures(self, tally: Tensor) -> dict[str, float]:
        """Mask sizes and their cost in a training step, from the sum of :attr:`tally` over its parts.

        Returns:
            ``share_14`` … of the regions by the size that the switch prefers, ``mean_macs`` per region of these sizes,
            ``expected_macs`` under the switch's probabilities, and ``target_macs``, the C_t of Eq. 5. Without a region
            all but the target are 0.
        """
        macs = self.costs.macs_per_instance
        regions, expected, *chosen = tally.tolist()
        shares = [number / max(regions, 1.0) for number in chosen]
        return {
            **{f"share_{size}": share for size, share in zip(MASK_SIZES, shares)},
            "mean_macs": sum(share * cost for share, cost in zip(shares, macs)),
            "expected_macs": expected / max(regions, 1.0) * macs[-1],
            "target_macs": self.loss_config.budget_target * macs[-1],
        }


def _tally(logits: Tensor, fractions: Tensor) -> Tensor:
    """(2 + K,): number of regions, sum of their expected costs, and number of regions by preferred size."""
    chosen = F.one_hot(logits.argmax(dim=1), logits.shape[1]).sum(0)  # (K,)
    expected = (logits.softmax(dim=1) * fractions).sum()
    return torch.cat([expected.new_tensor([float(len(logits))]), expected[None], chosen.to(expected.dtype)])


def by_region(groups: Iterable[tuple[Tensor, Tensor]], count: int) -> list[Tensor]:
    """Values of groups of regions, each (rows (n,), values (n, …)), as a list with one entry for each region."""
    out: list[Tensor] = [torch.empty(0)] * count
    for rows, values in groups:
        for row, value in zip(rows.tolist(), values):
            out[row] = value
    return out


def _sample(regions: PositiveRegions, limit: int) -> PositiveRegions:
    """At most ``limit`` of the regions, drawn with torch's global generator."""
    if len(regions) <= limit:
        return regions
    return regions.take(torch.randperm(len(regions), device=regions.boxes.device)[:limit])
