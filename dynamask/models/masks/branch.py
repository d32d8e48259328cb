"""RoI heads: torchvision's box branch unchanged, the mask branch ours."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss

from dynamask.config import LossConfig
from dynamask.models.masks import losses
from dynamask.models.masks.costs import MaskBranchCosts, mask_branch_costs
from dynamask.models.masks.heads.base import MaskHead, RegionState
from dynamask.models.masks.switch import MaskSwitchModule
from dynamask.ops.masks import crop_mask_pyramid, grid_boundary_iou
from dynamask.ops.means import AT_HAND, RegionMeans
from dynamask.structures import MASK_SIZES

BOUNDARY_WIDTH_RATIO = 0.02
"""Width of the boundary whose error can guide the switch, of the image's diagonal, as the boundary IoU has it."""


class MaskBranch(nn.Module):
    """Mask head, switch and their losses: everything that turns regions into masks.

    The head is registered under its own name, ``region_fpn`` for the r-FPN, so that weights say what they hold;
    :attr:`head` is the head whatever it is.

    Args:
        head: the r-FPN, or a baseline in its place.
        switch: the mask switch module, which reads the head's first feature; None gives every region the head's
            finest size.
        loss_config: weights are applied by the trainer; the branch reads all else.

    Attributes:
        switch_enabled: off in phase one, where every size is trained and none is chosen.
        means: over whose regions the losses are means; the trainer replaces it where a step has several parts.
        tally: (2 + K,) of the last :meth:`losses`, without gradient: regions, Σ_i Σ_k p_i^k C_k as a fraction of the
            full branch, and regions by the size that the switch finds best.
    """

    def __init__(
        self, head: MaskHead, switch: MaskSwitchModule | None = None, loss_config: LossConfig | None = None
    ) -> None:
        super().__init__()
        self.add_module(head.NAME, head)
        self.head_name = head.NAME
        self.switch = switch
        self.loss_config = loss_config or LossConfig()
        self.switch_enabled = True
        self.means: RegionMeans = AT_HAND
        self.tally = torch.zeros(2 + len(MASK_SIZES))

    @property
    def head(self) -> MaskHead:
        """What turns regions into mask logits."""
        return getattr(self, self.head_name)

    @property
    def mask_sizes(self) -> tuple[int, ...]:
        """The sizes that it can give, coarse to fine, of ``MASK_SIZES``."""
        return self.head.mask_sizes

    @property
    def costs(self) -> MaskBranchCosts:
        """MACs, derived from the layers."""
        return mask_branch_costs(self.head, self.switch)

    def begin(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> RegionState:
        """Shared work of R regions: what the head begins with and the switch logits.

        Without a switch all probability lies on the finest size.

        Args:
            features: the image-level pyramid.
            rois: (R, 5) batch index and xyxy in network-input pixels.
            labels: (R,) int64 ≥ 1.
        """
        state = self.head.begin(features, rois, labels)
        if self.switch is None:
            state.switch_logits = rois.new_full((len(rois), len(MASK_SIZES)), -math.inf)
            state.switch_logits[:, MASK_SIZES.index(self.mask_sizes[-1])] = 0.0
        else:
            tiny = state.features[0]
            state.switch_logits = self.switch(tiny.detach() if self.loss_config.detach_switch else tiny)
        return state

    def masks(self, state: RegionState, size_index: Tensor) -> list[Tensor]:
        """Mask probabilities of each region at its chosen size; no other size is computed.

        Args:
            state: of :meth:`begin`.
            size_index: (R,) int64 in 0–3.

        Returns:
            R tensors (S_i, S_i) in [0, 1].
        """
        out: list[Tensor] = [torch.empty(0)] * len(state)
        for k in range(len(MASK_SIZES) - 1, -1, -1):
            rows = torch.nonzero(size_index == k)[:, 0]
            if len(rows):
                for row, probs in zip(rows.tolist(), self.head.mask_logits(state, k, rows).sigmoid()):
                    out[row] = probs
        return out

    def losses(
        self,
        state: RegionState,
        target_masks: list[Tensor],
        noise: Tensor | None = None,
        boundary_width: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Named losses of N positive RoIs (Eq. 3–6), unweighted, in float32 whatever the features' precision.

        Args:
            state: of :meth:`begin` on the positive RoIs.
            target_masks: K tensors (N, S_k, S_k) in {0, 1}.
            noise: (N, K) Gumbel noise, drawn when absent.
            boundary_width: (N,) in network-input pixels; needed for the switch signal "boundary".

        Returns:
            As :func:`dynamask.models.masks.losses.switch_losses`; nothing in a pass that only records means.
        """
        logits = state.switch_logits.float()
        fractions = logits.new_tensor(self.costs.fractions)
        self.tally = _tally(logits.detach(), fractions)
        chosen = self.switch is not None and self.switch_enabled
        if self.means.recording:
            self.means.add(len(logits))
            if chosen:
                selection = losses.drawn_selection(logits, self.loss_config, noise)
                losses.balance_losses(logits, selection, fractions, self.loss_config, self.means)
            return {}
        if chosen:
            named = self._of_choice(state, logits, fractions, target_masks, noise, boundary_width)
        else:
            named = self._of_every_size(state, target_masks)
        if len(state):
            return named
        zero = losses.connected_zero(self.parameters())  # every process has a gradient for every parameter
        return {name: loss + zero for name, loss in named.items()}

    def _of_choice(
        self,
        state: RegionState,
        logits: Tensor,
        fractions: Tensor,
        target_masks: list[Tensor],
        noise: Tensor | None,
        boundary_width: Tensor | None,
    ) -> dict[str, Tensor]:
        """Losses that the switch's selection takes part in."""
        config, error = self.loss_config, None
        if config.switch_signal == "boundary":
            every = torch.arange(len(state), device=state.rois.device)
            sizes = range(len(MASK_SIZES) if len(state) else 0)
            mask_logits = [self.head.mask_logits(state, k, every).float() for k in sizes]
            error = self.size_error(state, mask_logits, target_masks[-1], boundary_width)
        per_size = self.head.mask_losses(state, target_masks), self.head.edge_losses(state, target_masks)
        return losses.switch_losses(logits, fractions, *per_size, error, config, noise, self.means)

    def _of_every_size(self, state: RegionState, target_masks: list[Tensor]) -> dict[str, Tensor]:
        """Losses without a choice (phase one): all sizes of the head, equally; those of an idle switch are 0."""
        found = {"loss_mask": losses.mask_loss(self.head.mask_losses(state, target_masks), None, self.means)}
        if self.head.has_edges:
            found["loss_edge"] = losses.edge_loss(self.head.edge_losses(state, target_masks), None, self.means)
        names = []
        if self.switch is not None:
            names += ["loss_boundary"] if self.loss_config.switch_signal == "boundary" else []
            names += ["loss_budget", "loss_entropy"]
        return {**found, **dict.fromkeys(names, state.switch_logits.sum() * 0)}

    @torch.no_grad()
    def size_error(
        self, state: RegionState, mask_logits: list[Tensor], truth: Tensor, boundary_width: Tensor
    ) -> Tensor:
        """What the signal "boundary" weighs: the error (N, K) in [0, 1] of each size's mask, no gradient.

        1 − boundary IoU at the finest grid, mixed by the configuration's ``overlap_share`` with 1 − mask IoU.

        Args:
            mask_logits: K tensors (N, S_k, S_k).
            truth: (N, S, S) in {0, 1} at the finest size.
            boundary_width: (N,) in network-input pixels.
        """
        return torch.lerp(*self.errors_at(state, mask_logits, truth, boundary_width), self.loss_config.overlap_share)

    @torch.no_grad()
    def boundary_error(
        self, state: RegionState, mask_logits: list[Tensor], truth: Tensor, boundary_width: Tensor
    ) -> Tensor:
        """1 − boundary IoU of each size's mask alone, arguments as of :meth:`size_error`: (N, K) in [0, 1]."""
        return self.errors_at(state, mask_logits, truth, boundary_width)[0]

    def errors_at(
        self, state: RegionState, mask_logits: list[Tensor], truth: Tensor, boundary_width: Tensor
    ) -> tuple[Tensor, Tensor]:
        """1 − boundary IoU and 1 − mask IoU at the finest grid, (N, K) each; arguments as of :meth:`size_error`."""
        if len(state) == 0:
            return (truth.new_zeros((0, len(MASK_SIZES))),) * 2
        masks = losses.at_finest_grid([x.sigmoid() for x in mask_logits], truth.shape[-1])  # (N, K, S, S)
        boundary = 1.0 - grid_boundary_iou(masks.to(truth.dtype), truth, state.rois[:, 1:], boundary_width)
        return boundary, losses.overlap_error(masks, truth)


def _tally(logits: Tensor, fractions: Tensor) -> Tensor:
    """(2 + K,): how many regions, the sum of their expected costs, and how many each size would be chosen for."""
    chosen = F.one_hot(logits.argmax(dim=1), logits.shape[1]).sum(0)  # (K,)
    expected = (logits.softmax(dim=1) * fractions).sum()
    return torch.cat([expected.new_tensor([float(len(logits))]), expected[None], chosen.to(expected.dtype)])


class DynaMaskRoIHeads(RoIHeads):
    """torchvision's RoIHeads with the mask branch replaced.

    Args:
        mask_branch: ours.
        mask_rois: positive RoIs per image that train the mask branch, at most.
        kwargs: torchvision's arguments of the box branch.
    """

    def __init__(self, mask_branch: MaskBranch, mask_rois: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.mask_branch = mask_branch
        self.mask_rois = mask_rois

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections (evaluation) or losses (training). Targets carry ``masks`` at any scale, see ``mask_losses``."""
        if not self.training:
            return self.detect(features, proposals, image_shapes), {}
        proposals, matched, labels, regression_targets = self.select_training_samples(proposals, targets)
        logits, regression = self._boxes(features, proposals, image_shapes)
        loss_classifier, loss_box_reg = fastrcnn_loss(logits, regression, labels, regression_targets)
        losses_of_boxes = {"loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg}
        return [], {**losses_of_boxes, **self.mask_losses(features, proposals, matched, labels, targets, image_shapes)}

    def _boxes(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        logits, regression = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        return logits.float(), regression.float()  # boxes and losses are float32 under autocast too

    def detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Boxes (R, 4) xyxy in network-input pixels, labels (R,), scores (R,) of each image."""
        logits, regression = self._boxes(features, proposals, image_shapes)
        boxes, scores, labels = self.postprocess_detections(logits, regression, proposals, image_shapes)
        return [{"boxes": b, "labels": y, "scores": s} for b, y, s in zip(boxes, labels, scores)]

    def classify(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """The best foreground label (R,) int64 of given boxes, in network-input pixels."""
        logits, _ = self._boxes(features, boxes, image_shapes)
        return logits[:, 1:].argmax(dim=1) + 1

    def mask_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        targets: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Losses of the mask branch on at most ``mask_rois`` positive RoIs per image.

        ``targets[i]["masks"]`` are (G, H, W) in the picture's own pixels and ``targets[i]["mask_scale"]`` (4,) turns
        a box of the network input into those pixels.
        """
        rois, roi_labels, crops = [], [], []
        for image, (boxes, match, label, target) in enumerate(zip(proposals, matched, labels, targets)):
            positive = torch.nonzero(label > 0)[:, 0]
            if len(positive) > self.mask_rois:
                positive = positive[torch.randperm(len(positive), device=positive.device)[: self.mask_rois]]
            kept = boxes[positive].detach()
            rois.append(torch.cat([kept.new_full((len(kept), 1), image), kept], dim=1))
            roi_labels.append(label[positive])
            crops.append(crop_mask_pyramid(target["masks"], kept * target["mask_scale"], MASK_SIZES, match[positive]))
        state = self.mask_branch.begin(features, torch.cat(rois), torch.cat(roi_labels))
        target_masks = [(torch.cat([crop[k] for crop in crops]) >= 0.5).float() for k in range(len(MASK_SIZES))]
        diagonals = state.rois.new_tensor([math.hypot(*shape) for shape in image_shapes])
        width = BOUNDARY_WIDTH_RATIO * diagonals[state.rois[:, 0].long()]
        return self.mask_branch.losses(state, target_masks, boundary_width=width)
