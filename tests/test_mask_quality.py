"""Mask and boundary IoU against their definitions, and the oracle against brute force."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from dynamask.engine.evaluate import Instances, oracle_choice
from dynamask.evaluation.mask_quality import border_share, boundary_iou, boundary_width, mask_iou, quality_by_size
from dynamask.ops import knapsack
from dynamask.ops.knapsack import best_under_budget
from dynamask.structures import DynaMaskError


def random_mask(rng, shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for _ in range(3):  # discs, some cut off by the border
        cy, cx, r = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(2, min(shape) / 2)
        mask |= (y - cy) ** 2 + (x - cx) ** 2 <= r**2
    return mask & (rng.uniform(size=shape) > 0.01)


def rim(mask, width):
    """Pixels of the mask with a pixel outside of it (or of the image) within a square of 2 width + 1."""
    padded = np.pad(mask, width)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * width + 1, 2 * width + 1))
    return mask & ~windows.all(axis=(2, 3))


@pytest.mark.parametrize("shape", [(60, 90), (150, 100), (33, 31)])
def test_ious_equal_their_definitions(shape):
    rng = np.random.default_rng(0)
    for _ in range(10):
        a, b = random_mask(rng, shape), random_mask(rng, shape)
        assert mask_iou(a, b) == pytest.approx((a & b).sum() / (a | b).sum())
        for ratio in (0.02, 0.05):
            width = max(1, round(ratio * float(np.hypot(*shape))))
            assert width == boundary_width(shape, ratio)
            rim_a, rim_b = rim(a, width), rim(b, width)
            expected = (rim_a & rim_b).sum() / (rim_a | rim_b).sum()
            assert boundary_iou(a, b, ratio) == pytest.approx(expected)


def test_boundary_equals_faster_coco_eval():
    faster = pytest.importorskip("faster_coco_eval.core.mask")
    rng = np.random.default_rng(1)
    for shape in [(480, 640), (61, 83), (100, 100)]:
        a, b = random_mask(rng, shape), random_mask(rng, shape)
        rims = [
            faster.decode(faster.rleToBoundary(faster.encode(np.asfortranarray(m.astype(np.uint8))), 0.02)).astype(bool)
            for m in (a, b)
        ]
        assert boundary_iou(a, b) == pytest.approx((rims[0] & rims[1]).sum() / (rims[0] | rims[1]).sum())


def test_ious_of_empty_full_and_disjoint_masks():
    empty, full = np.zeros((40, 50), bool), np.ones((40, 50), bool)
    corner, other = empty.copy(), empty.copy()
    corner[:4, :4], other[30:, 30:] = True, True
    for measure in (mask_iou, boundary_iou):
        assert measure(empty, empty) == 0
        assert measure(empty, full) == measure(full, empty) == measure(corner, other) == 0
        assert measure(full, full) == measure(corner, corner) == 1
    assert mask_iou(corner.astype(np.uint8) * 255, corner) == 1
    assert mask_iou(np.ones((1, 1), bool), np.ones((1, 1), bool)) == boundary_iou(full[:1, :1], full[:1, :1]) == 1
    with pytest.raises(ValueError):
        mask_iou(empty, empty[:-1])


def test_quality_by_size_equals_the_single_measures():
    rng = np.random.default_rng(2)
    truths = np.stack([random_mask(rng, (50, 70)) for _ in range(3)])
    by_size = [np.stack([random_mask(rng, (50, 70)) for _ in range(3)]) for _ in range(4)]
    mask_ious, boundary_ious = quality_by_size(truths, by_size)
    assert mask_ious.shape == boundary_ious.shape == (3, 4)
    for i, k in itertools.product(range(3), range(4)):
        assert mask_ious[i, k] == mask_iou(truths[i], by_size[k][i])
        assert boundary_ious[i, k] == boundary_iou(truths[i], by_size[k][i])
    none = np.zeros((0, 50, 70), bool)
    assert quality_by_size(none, [none] * 4)[0].shape == (0, 4)
    with pytest.raises(ValueError):
        quality_by_size(truths, [truths[:2]])


def brute_force(quality, macs, budget):
    n = len(quality)
    best = -np.inf
    for choice in itertools.product(range(len(macs)), repeat=n):
        choice = np.array(choice)
        if macs[choice].sum() <= n * budget:
            best = max(best, quality[np.arange(n), choice].sum())
    return best


@pytest.mark.parametrize("seed", range(60))
def test_oracle_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 7)), int(rng.integers(2, 5))
    macs = rng.permutation(np.cumsum(rng.integers(1, 50_000_000, k)))
    quality = [
        rng.uniform(size=(n, k)),  # any shape of curve
        np.sort(rng.uniform(size=(n, k)), axis=1),
        rng.integers(0, 3, (n, k)) / 2,  # many ties
        -rng.exponential(size=(n, k)) * 10,  # log-probabilities
    ][seed % 4]
    for budget in rng.uniform(macs.min(), macs.max() * 1.05, 5):
        sizes = best_under_budget(quality, macs, float(budget))
        assert sizes.shape == (n,) and sizes.dtype == np.int64
        assert macs[sizes].mean() <= budget
        assert quality[np.arange(n), sizes].sum() == pytest.approx(brute_force(quality, macs, budget), abs=1e-9)


def table_solution(quality, units, capacity):
    """Textbook dynamic programme over every total cost in small integer units."""
    best = np.full(capacity + 1, -np.inf)
    best[0] = 0
    for row in quality:
        new = np.full_like(best, -np.inf)
        for value, unit in zip(row, units):
            new[unit:] = np.maximum(new[unit:], best[: capacity + 1 - unit] + value)
        best = new
    return best.max()


@pytest.mark.parametrize("seed", range(12))
def test_oracle_equals_a_cost_table_on_hundreds(seed):
    rng = np.random.default_rng(seed)
    n, units = 300, np.array([3, 8, 13, 18]) if seed % 2 else np.array([2, 7, 11, 23])
    quality = rng.uniform(0.3, 0.9, (n, 1)) + np.cumsum(rng.exponential([[0, 0.05, 0.02, 0.01]], (n, 4)), axis=1)
    quality += rng.normal(0, 0.01, (n, 4))
    if seed >= 8:
        quality = quality.round(2)  # ties
    for mean in (units[0], 5.01, 9.7, 17.99):
        sizes = best_under_budget(quality, units, mean)
        assert units[sizes].sum() <= n * mean
        expected = table_solution(quality, units, int(n * mean))
        assert quality[np.arange(n), sizes].sum() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["noisy", "ties", "identical"])
def test_oracle_of_thousands_is_fast(kind):
    rng = np.random.default_rng(7)
    macs = np.array([11_303_741, 30_581_123, 49_990_871, 69_400_619])
    quality = 0.6 + np.cumsum(rng.exponential([[0, 0.05, 0.02, 0.01]], (3000, 4)), axis=1)
    quality += rng.normal(0, 0.02, (3000, 4))
    if kind == "ties":
        quality = quality.round(2)
    if kind == "identical":
        quality = np.tile([0.5, 0.6, 0.65, 0.66], (3000, 1))
    start = time.process_time()
    sizes = best_under_budget(quality, macs, 35e6)
    assert time.process_time() - start < 30
    assert macs[sizes].mean() <= 35e6
    assert macs[sizes].mean() > 35e6 - 1e5


def hard_problem(n, seed=0):
    """Qualities (N, 4) that are nearly proportional to MACs without a common step: no choice is clearly worse."""
    macs = np.array([10_071_040, 17_297_792, 24_743_712, 32_189_633])
    return macs / macs[-1] + np.random.default_rng(seed).normal(0, 1e-4, (n, 4)), macs


def test_oracle_of_a_thousand_hard_instances_needs_little_memory():
    quality, macs = hard_problem(1000)
    tracemalloc.start()
    sizes = best_under_budget(quality, macs, 20_000_100.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # exact states alone would take gigabytes
    assert 20_000_100 - 1000 < macs[sizes].mean() <= 20_000_100


@pytest.mark.parametrize("limit", [0, 20_000])
@pytest.mark.parametrize("seed", range(8))
def test_oracle_above_its_limit_of_states_is_as_near_as_it_says(seed, limit, monkeypatch):
    """At most the largest difference between two qualities of one instance below the optimum, and within the budget."""
    quality, macs = hard_problem(60, seed)
    if seed % 2:
        quality = quality.round(2)  # ties
    for budget in (10_071_041.0, 15e6, 20_000_100.0, 31e6):
        exact = best_under_budget(quality, macs, budget)
        with monkeypatch.context() as patch:
            patch.setattr(knapsack, "MAX_STATES", limit)
            patch.setattr(knapsack, "FEWEST_STATES", 16)
            sizes = best_under_budget(quality, macs, budget)
        rows = np.arange(60)
        lost = quality[rows, exact].sum() - quality[rows, sizes].sum()
        assert macs[sizes].mean() <= budget and -1e-9 <= lost <= np.ptp(quality, axis=1).max()


def test_oracle_stays_exact_where_costs_have_a_common_step(monkeypatch):
    """Sums of costs on a grid are few, so that their number alone keeps the states below the limit."""
    quality, macs = hard_problem(200)[0], np.array([3, 8, 13, 18])
    monkeypatch.setattr(knapsack, "MAX_STATES", 15 * 200**2)  # four passes over at most 200 instances
    sizes = best_under_budget(quality, macs * 1_000_003, 9.7 * 1_000_003)
    assert quality[np.arange(200), sizes].sum() == pytest.approx(table_solution(quality, macs, 1940), abs=1e-9)


def test_oracle_limits():
    macs = np.array([10, 20, 40, 80])
    quality = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.5, 0.5, 0.5, 0.5]])
    assert best_under_budget(quality, macs, 1000).tolist() == [3, 0, 0]  # of equal qualities the cheaper
    assert best_under_budget(quality, macs, 10).tolist() == [0, 0, 0]
    assert best_under_budget(np.zeros((0, 4)), macs, 10).shape == (0,)
    for budget in (9.99, float("nan"), float("inf"), -1):
        with pytest.raises(DynaMaskError):
            best_under_budget(quality, macs, budget)
    with pytest.raises(ValueError):
        best_under_budget(quality, macs[:3], 20)
    with pytest.raises(ValueError):
        best_under_budget(np.full((2, 4), np.nan), macs, 20)


def test_oracle_accepts_the_mean_cost_of_an_assignment():
    """A budget computed as a mean must admit the assignment that it was computed from."""
    rng = np.random.default_rng(8)
    macs = np.array([11_303_741, 30_581_123, 49_990_871, 69_400_619])
    for n in (3, 7, 49, 301):
        assigned = rng.integers(0, 4, n)
        quality = np.eye(4)[assigned]
        assert best_under_budget(quality, macs, float(macs[assigned].mean())).tolist() == assigned.tolist()


def test_border_share_of_shapes_in_their_boxes():
    y, x = np.mgrid[:120, :160] + 0.5
    rectangle = np.zeros((120, 160), bool)
    rectangle[20:80, 30:110] = True
    disc = (x - 80) ** 2 + (y - 60) ** 2 <= 40**2
    assert border_share(rectangle, (30, 20, 110, 80)) == 1
    assert border_share(rectangle, (20, 10, 120, 90)) == 0
    assert 0.35 < border_share(disc, (40, 20, 120, 100)) < 0.45
    cut = disc & (x < 80)
    assert border_share(cut, (40, 20, 80, 100)) > border_share(cut, (40, 20, 90, 100)) + 0.3


def test_border_share_counts_pixels_of_the_outline():
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True  # an outline of 36 pixels, 10 of them on the right
    assert border_share(mask, (5, 5, 20, 30)) == pytest.approx(10 / 36)
    assert border_share(mask, (5, 5, 20.9, 30)) == pytest.approx(0)
    assert border_share(mask, (5, 5, 20.4, 30)) == pytest.approx(10 / 36)
    assert border_share(mask, (5, 5, 220, 30)) == pytest.approx(0), "an edge beyond the image"
    wide = np.zeros((40, 400), bool)
    wide[10:20, 10:380] = True
    # 2 % of 372 pixels are 7.44: seven columns at the left edge, and five at the right one, which is two pixels away
    assert border_share(wide, (10, 5, 382, 30)) == pytest.approx((2 * 7 + 8 + 2 * 5 + 8) / (2 * 370 + 2 * 8))


def test_what_the_image_cuts_off_is_no_border():
    mask = np.zeros((40, 40), bool)
    mask[0:20, 10:20] = True
    assert border_share(mask, (5, 0, 25, 25)) == 0
    assert border_share(mask, (5, -10, 25, 20)) == pytest.approx(10 / (10 + 2 * 19))
    assert np.isnan(border_share(np.zeros((5, 5), bool), (0, 0, 5, 5)))
    assert np.isnan(border_share(np.ones((5, 5), bool), (0, 0, 5, 5)))


def test_the_oracle_keeps_its_budget_over_matched_and_unmatched_detections():
    macs, quality = (10, 30, 60, 100), {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8}
    columns = [quality, {}, quality, {}]  # every other detection matches no true instance
    found = Instances([{}] * 4, mask_iou=columns, boundary_iou=columns)
    predicted = np.array([0, 3, 1, 3])
    choice = oracle_choice(found, predicted, macs, limit=40.0)
    assert np.array(macs)[choice].mean() <= 40 and choice[[1, 3]].tolist() == [0, 0]
    assert sorted(choice[[0, 2]].tolist()) == [1, 3], "what the unmatched ones leave is spent on the matched ones"
    alone = oracle_choice(found, predicted, macs)
    assert alone[[1, 3]].tolist() == [3, 3] and np.array(macs)[alone].sum() <= np.array(macs)[predicted].sum()
