"""Quality of single masks against the truth, and how much of the possible gain a choice of mask sizes reaches."""

from collections.abc import Sequence

import cv2
import numpy as np

from dynamask.structures import DynaMaskError


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks.

    Args:
        a: (H, W) bool, or 0 and 1.
        b: (H, W), likewise.

    Returns:
        IoU in 0–1; 0 if both masks are empty, as in COCO.

    Raises:
        ValueError: if the shapes differ.
    """
    a, b, _ = _cropped_pair(a, b)
    return _iou(a, b)


def boundary_iou(a: np.ndarray, b: np.ndarray, width_ratio: float = 0.02) -> float:
    """Boundary IoU of two masks (Cheng et al., CVPR 2021): the IoU of their inner rims.

    The rim of a mask is what an erosion by ``boundary_width`` pixels (square structuring element) takes away. Outside
    the image there is no object, so a mask that the image border cuts off has a rim along that border.

    Args:
        a: (H, W) bool, or 0 and 1; the size of the whole image, because the width derives from it.
        b: (H, W), likewise.
        width_ratio: width of the rim as a fraction of the image diagonal.

    Returns:
        IoU in 0–1; 0 if both masks are empty.

    Raises:
        ValueError: if the shapes differ.
    """
    a, b, image_size = _cropped_pair(a, b)
    width = boundary_width(image_size, width_ratio)
    return _iou(_rim(a, width), _rim(b, width))


def boundary_width(image_size: tuple[int, int], width_ratio: float = 0.02) -> int:
    """Width in pixels, at least 1, of the rim that boundary IoU compares in an image of (height, width)."""
    return max(1, int(round(width_ratio * float(np.hypot(*image_size)))))


def quality_by_size(
    gt_masks: np.ndarray, pasted_masks_by_size: Sequence[np.ndarray], width_ratio: float = 0.02
) -> tuple[np.ndarray, np.ndarray]:
    """Mask IoU and boundary IoU of every instance of one image at every mask size.

    Args:
        gt_masks: (N, H, W) bool, the true masks.
        pasted_masks_by_size: K arrays (N, H, W) bool, the same instances predicted at each size.
        width_ratio: width of the boundary as a fraction of the image diagonal.

    Returns:
        Mask IoU (N, K) and boundary IoU (N, K), float64 in 0–1.

    Raises:
        ValueError: if the shapes differ.
    """
    gt_masks = np.asarray(gt_masks)
    by_size = [np.asarray(masks) for masks in pasted_masks_by_size]
    if any(masks.shape != gt_masks.shape for masks in by_size):
        raise ValueError(f"masks of shapes {[m.shape for m in by_size]} cannot be compared to {gt_masks.shape}")
    mask_ious = np.zeros((len(gt_masks), len(by_size)))
    boundary_ious = np.zeros_like(mask_ious)
    for i, truth in enumerate(gt_masks):
        for k, masks in enumerate(by_size):
            a, b, image_size = _cropped_pair(truth, masks[i])
            width = boundary_width(image_size, width_ratio)
            mask_ious[i, k] = _iou(a, b)
            boundary_ious[i, k] = _iou(_rim(a, width), _rim(b, width))
    return mask_ious, boundary_ious


def paired_bootstrap(differences: np.ndarray, samples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of paired differences with its bootstrap 95 % percentile interval.

    Args:
        differences: (N,) one number per instance, for example IoU of method A minus IoU of method B.
        samples: how many times N instances are drawn with replacement.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        ``(mean, low, high)``, in the unit of the differences.

    Raises:
        DynaMaskError: if there is nothing to compare.
        ValueError: if a difference is not finite.
    """
    differences = np.asarray(differences, dtype=np.float64).reshape(-1)
    if differences.size == 0:
        raise DynaMaskError("there are no instances to compare; give data with at least one annotated instance")
    if not np.isfinite(differences).all():
        raise ValueError("a difference is not finite")
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    for s in range(samples):
        means[s] = differences[rng.integers(0, differences.size, differences.size)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def oracle_sizes(quality: np.ndarray, macs: Sequence[int] | np.ndarray, budget: float) -> np.ndarray:
    """The sizes with the best total quality under a mean budget: an exact multiple-choice knapsack.

    A Lagrangian price turns the budget into an upper bound and says for every choice how much it gives away against
    that bound. Dynamic programming over Pareto-optimal (cost, loss) pairs then runs on the choices that give away
    little, and on more of them until no choice left out could be part of a better solution. Exact up to the rounding
    of float64 sums. Hundreds of instances take some ten milliseconds, thousands about a second.

    Args:
        quality: (N, K) finite, higher is better; for example the mask IoU of every instance at every size.
        macs: (K,) MACs of an instance at each size.
        budget: mean MACs per instance, in the unit of ``macs``.

    Returns:
        (N,) int64 indices into the K sizes; their mean cost is at most ``budget``.

    Raises:
        DynaMaskError: if the budget is not finite or below the cheapest size.
        ValueError: if the shapes disagree or a quality is not finite.
    """
    quality, macs = np.asarray(quality, dtype=np.float64), np.asarray(macs, dtype=np.float64)
    if quality.ndim != 2 or macs.shape != quality.shape[1:] or not np.isfinite(quality).all():
        raise ValueError(f"quality {quality.shape} must be finite and (N, K), with macs {macs.shape} of (K,)")
    if not np.isfinite(budget) or budget < macs.min():
        raise DynaMaskError(
            f"a budget of {budget:g} MACs per instance cannot be kept, the cheapest size costs {macs.min():g}: raise it"
        )
    n = len(quality)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    capacity = n * float(budget) * (1 + 1e-15)  # a budget taken from a mean cost must admit that very assignment
    price, choice = _price(quality, macs, capacity)
    priced = quality - price * macs
    loss = priced.max(axis=1, keepdims=True) - priced  # (N, K), >= 0: what a choice gives away against the bound
    worst = price * (capacity - macs[choice].sum()) + loss[np.arange(n), choice].sum()
    runner_up = np.partition(loss, 1, axis=1)[:, 1] if len(macs) > 1 else np.zeros(n)
    order = np.argsort(runner_up, kind="stable")
    size = min(n, 32)
    while True:
        core, rest = order[:size], order[size:]
        best = loss[rest].argmin(axis=1)
        free = capacity - macs[best].sum()
        found, gap = _best_in_core(loss[core], macs, free, price, worst)
        if gap < worst:
            worst, choice = gap, np.empty(n, dtype=np.int64)
            choice[core], choice[rest] = found, best
        if size == n or runner_up[order[size]] >= worst:  # no other choice outside the core can improve
            return choice.astype(np.int64)
        size = min(n, 2 * size)


def share_of_oracle_gain(policy: float, random: float, oracle: float) -> float | None:
    """How much of the gain of a perfect choice over a random one a policy reaches.

    That is (policy - random) / (oracle - random).

    Args:
        policy: mean quality, for example mask IoU, under the policy.
        random: mean quality with the policy's sizes permuted among the instances.
        oracle: mean quality of the oracle at the same mean MACs.

    Returns:
        1 for the oracle, 0 for chance, negative for worse than chance; None where the oracle gains nothing.
    """
    gain = oracle - random
    return float((policy - random) / gain) if gain > 0 else None


def _price(quality: np.ndarray, macs: np.ndarray, capacity: float) -> tuple[float, np.ndarray]:
    """Smallest price per MAC (to float precision) at which the best choices keep the capacity, and those choices."""
    by_cost = np.argsort(macs, kind="stable")  # ties go to the cheaper size
    quality, macs = quality[:, by_cost], macs[by_cost]

    def choose(price: float) -> np.ndarray:
        return (quality - price * macs).argmax(axis=1)

    steps = np.diff(np.unique(macs))
    high = 2 * float(np.ptp(quality)) / float(steps.min()) + 1e-300 if steps.size else 0.0
    low, choice = 0.0, choose(0.0)
    if macs[choice].sum() <= capacity:
        return 0.0, by_cost[choice]
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if macs[choose(middle)].sum() <= capacity else (middle, high)
    return high, by_cost[choose(high)]


def _best_in_core(
    loss: np.ndarray, macs: np.ndarray, free: float, price: float, worst: float
) -> tuple[np.ndarray, float]:
    """Choices (M,) with the least loss plus priced slack within ``free`` MACs, and that sum.

    States are pairs (cost, loss) sorted by cost; none costs as much as another and is worth no more. A state that
    cannot keep within ``free`` or cannot end below ``worst`` is dropped. An infinite sum means that no state is left.
    """
    costs, losses = np.zeros(1), np.zeros(1)
    allowed = loss <= worst
    least_ahead, most_ahead = (
        np.append(np.cumsum(extreme[::-1])[::-1][1:], 0.0)  # (M,) cost of the instances after each one
        for extreme in (np.where(allowed, macs, np.inf).min(axis=1), np.where(allowed, macs, -np.inf).max(axis=1))
    )
    history: list[tuple[np.ndarray, np.ndarray]] = []  # parent state and choice of every state, per instance
    for i, row in enumerate(loss):
        options = np.flatnonzero(allowed[i])
        new_costs = (costs[None, :] + macs[options, None]).ravel()
        new_losses = (losses[None, :] + row[options, None]).ravel()
        parents = np.tile(np.arange(costs.size, dtype=np.int32), options.size)
        choices = np.repeat(options.astype(np.int16), costs.size)
        values = price * new_costs - new_losses  # total quality but for a constant
        bound = new_losses + price * np.maximum(free - new_costs - most_ahead[i], 0)
        kept = np.flatnonzero((bound <= worst) & (new_costs + least_ahead[i] <= free))
        if kept.size == 0:
            return np.zeros(0, dtype=np.int64), np.inf
        kept = kept[np.argsort(new_costs[kept], kind="stable")]  # a few sorted runs: merged in linear time
        best_before = np.concatenate([[-np.inf], np.maximum.accumulate(values[kept])[:-1]])
        kept = kept[values[kept] > best_before]
        kept = kept[np.append(np.diff(new_costs[kept]) > 0, True)]  # of equal costs the last is worth most
        costs, losses = new_costs[kept], new_losses[kept]
        history.append((parents[kept], choices[kept]))
    totals = losses + price * (free - costs)
    state = int(totals.argmin())
    gap = float(totals[state])
    found = np.empty(len(loss), dtype=np.int64)
    for i in range(len(loss) - 1, -1, -1):
        parents, choices = history[i]
        found[i], state = choices[state], parents[state]
    return found, gap


def _cropped_pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Both masks as uint8 0 or 1, cropped to the box around their union, and the size of the image."""
    a, b = np.asarray(a).astype(bool, copy=False), np.asarray(b).astype(bool, copy=False)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"masks of shapes {a.shape} and {b.shape} cannot be compared")
    corners = [_bounding_box(mask) for mask in (a, b)]
    top, left = (min(c[i] for c in corners) for i in (0, 1))
    bottom, right = (max(c[i] for c in corners) for i in (2, 3))
    crop = slice(top, max(top, bottom)), slice(left, max(left, right))
    return _as_uint8(a[crop]), _as_uint8(b[crop]), a.shape


def _bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom, right (exclusive) of a mask; a box that widens no other if it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return mask.shape[0], mask.shape[1], 0, 0
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _as_uint8(mask: np.ndarray) -> np.ndarray:
    """A contiguous uint8 0/1 copy or view of a bool mask."""
    return np.ascontiguousarray(mask).view(np.uint8)


def _rim(mask: np.ndarray, width: int) -> np.ndarray:
    """What erosion by a square of ``2 width + 1`` takes from a (H, W) uint8 0/1 mask; outside of it all is zero."""
    if mask.size == 0:
        return mask
    kernel = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    return mask - cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two uint8 0/1 arrays of one shape, 0 if both are empty."""
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 0.0
