"""Lesson 06's pieces: AP by hand is the evaluator's, rims are those of boundary IoU, baselines spend alike."""

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from lessons import judging

from dynamask.data.shapes import ShapesDataset
from dynamask.engine.evaluate import Instances
from dynamask.evaluation.bootstrap import PictureBootstrap
from dynamask.evaluation.coco_ap import evaluate_coco
from dynamask.evaluation.mask_quality import boundary_iou, mask_iou
from dynamask.evaluation.resampled_ap import ResampledAP
from dynamask.reports.collect import Collected
from dynamask.reports.options import CurveOptions
from dynamask.structures import MASK_SIZES, Interval
from dynamask.viz.style import POLICY_STYLES

MACS = (10, 20, 40, 80)


@pytest.fixture(scope="module")
def scenes() -> ShapesDataset:
    return ShapesDataset(6, 31)


def encoded(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def instances(scenes: ShapesDataset, spurious: int, seed: int = 0) -> Instances:
    """True masks moved by less the finer the size, in random order of scores, and some detections of nothing."""
    rng, found = np.random.default_rng(seed), Instances()
    for index, image_id in enumerate(scenes.image_ids):
        target = scenes.target(index)
        count = len(target["boxes"])
        rows = [*range(count), *(rng.integers(0, count, spurious).tolist() if count else [])]
        for number, row in enumerate(rows):
            truth = target["masks"][row].numpy().astype(bool)
            far = 60 if number >= count else 0
            moves = [far + int(rng.integers(0, reach)) for reach in (24, 14, 8, 3)]
            masks = [np.roll(truth, move, axis=1) for move in moves]
            box = target["boxes"][row].tolist()
            found.results.append(
                {
                    "image_id": image_id,
                    "category_id": int(target["labels"][row]),
                    "score": float(rng.random()),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                }
            )
            found.rles.append({k: encoded(mask) for k, mask in enumerate(masks)})
            found.switch_logits.append(torch.from_numpy(rng.normal(size=4)).float())
            found.choice.append(int(found.switch_logits[-1].argmax()))
            known = number < count
            found.truth.append(row if known else None)
            found.mask_iou.append({k: mask_iou(m, truth) for k, m in enumerate(masks)} if known else {})
            found.boundary_iou.append({k: boundary_iou(m, truth) for k, m in enumerate(masks)} if known else {})
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_curve_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    scores, hit = rng.random(30), rng.random(30) < 0.5
    positives = int(hit.sum()) + 3
    curve = judging.precision_recall(scores, hit, positives)
    order = sorted(range(30), key=lambda i: -scores[i])
    points = []
    for seen in range(1, 31):
        found = sum(hit[i] for i in order[:seen])
        points.append((found / positives, found / seen))
    by_hand = [max((p for r, p in points if r >= want), default=0.0) for want in np.linspace(0, 1, 101)]
    assert curve.sampled == pytest.approx(by_hand)
    assert curve.ap == pytest.approx(np.mean(by_hand))
    assert list(curve.scores) == sorted(scores, reverse=True)


def test_nothing_detected_is_zero_and_everything_is_one():
    assert judging.precision_recall([], [], 3).ap == 0
    assert judging.precision_recall([0.2, 0.9], [True, True], 2).ap == 1


@pytest.mark.parametrize("size_index", [0, 3])
def test_ap_by_hand_is_the_evaluators(scenes, size_index):
    found = instances(scenes, spurious=2)
    choice = np.full(len(found.results), size_index)
    labels = {result["category_id"] for result in found.results}
    assert len(labels) > 3
    for label in labels:
        name = scenes.class_names[label]
        detections = judging.detections_of_class(found, choice, scenes, name)
        coco, results = judging.coco_of_class(found, choice, scenes, name)
        theirs = evaluate_coco(coco, results, ("segm",))["segm"]
        ours = [detections.curve(t).ap for t in np.linspace(0.5, 0.95, 10)]
        assert ours[0] == pytest.approx(theirs["AP50"]) and np.mean(ours) == pytest.approx(theirs["AP"])


def test_rims_are_what_boundary_iou_compares(scenes):
    truth = scenes.target(1)["masks"][0].numpy().astype(bool)
    moved = np.roll(truth, 3, axis=0)
    assert mask_iou(judging.rim(truth), judging.rim(moved)) == pytest.approx(boundary_iou(truth, moved))
    assert not (judging.rim(truth) & ~truth).any()


def test_baselines_spend_alike_and_the_oracle_is_best_in_iou(scenes):
    found = instances(scenes, spurious=1)
    judge = ResampledAP(scenes.coco, found.results, found.rles, scenes.image_ids)
    rows = judging.baselines(found, MACS, scenes, judge)
    assert list(rows) == [*judging.FIXED, "size", "random", "learned", "oracle"]
    assert rows["random"]["gmacs"] == pytest.approx(rows["learned"]["gmacs"])
    assert rows["oracle"]["gmacs"] <= rows["learned"]["gmacs"] + 1e-12
    assert sorted(rows["random"]["choice"]) == sorted(rows["learned"]["choice"])
    quality = found.quality("mask_iou")
    known = ~np.isnan(quality).any(axis=1)
    means = {p: quality[known, row["choice"][known]].mean() for p, row in rows.items()}
    assert means["oracle"] >= max(means["learned"], means["random"])
    assert rows["fixed:14"]["shares"].tolist() == [1, 0, 0, 0]
    results = [{**r, "segmentation": m[3]} for r, m in zip(found.results, found.rles)]
    evaluated = evaluate_coco(scenes.coco, results, ("segm", "boundary"))
    assert rows["fixed:112"]["segm"] == pytest.approx(evaluated["segm"]["AP"])
    assert rows["fixed:112"]["boundary"] == pytest.approx(evaluated["boundary"]["AP"])


def test_a_budget_is_drawn_with_what_it_spends(scenes):
    given = instances(scenes, spurious=0)
    bootstrap = PictureBootstrap(scenes.image_ids, samples=50)
    figure = judging.budget_figure(given, MACS, bootstrap, 0.4)
    shares, quality = figure.data[0].y, figure.data[1:]
    assert sum(shares) == pytest.approx(1)
    spent = sum(share * cost / MACS[-1] for share, cost in zip(shares, MACS))
    assert spent <= 0.4 and f"{spent:.0%} of the full MACs" in figure.layout.annotations[0].text
    random, learned, oracle, finest = (point.y[0] for point in quality)
    assert all(point.error_y.array[0] >= 0 and point.error_y.arrayminus[0] >= 0 for point in quality)
    assert quality[1].x[0] == f"learned<br>{learned:.3f}"
    assert oracle >= max(random, learned) and finest == pytest.approx(given.quality("mask_iou")[:, 3].mean())


def test_curves_tables_and_points_come_from_the_rows(scenes):
    given = instances(scenes, spurious=0)
    options = CurveOptions(budgets=3, views=0, permutations=1)
    kept = Collected(given, instances(scenes, spurious=1))
    result = judging.curves(kept, MACS, scenes, options, samples=20, ap_samples=5)
    figure = judging.curves_figure(result.points, "gt", ("mask_iou",), "title")
    drawn = {trace.name: trace for trace in figure.data if trace.name}
    finest = drawn["all at 112"]
    assert finest.y[0] == pytest.approx(given.quality("mask_iou")[:, 3].mean())
    assert finest.x[0] == pytest.approx(MACS[-1] / 1e9)
    assert drawn["oracle"].line.color == POLICY_STYLES["oracle"].colour
    assert judging.share_rows(result.points) == []  # without other views there is no noise-aware oracle


def test_figures_hold_their_data(scenes):
    given = instances(scenes, spurious=0)
    scatter = judging.iou_scatter(given.quality("mask_iou"), given.quality("boundary_iou"), sizes=(14, 112))
    assert [trace.name for trace in scatter.data] == ["14×14", "112×112", "equal"]
    assert list(scatter.data[1].x) == pytest.approx(given.quality("mask_iou")[:, 3].tolist())
    curve = judging.precision_recall([0.9, 0.5, 0.1], [True, False, True], 2)
    drawn = judging.precision_recall_figure(curve)
    assert len(drawn.data[2].x) == 2 and len(drawn.data[3].x) == 1
    assert f"{curve.ap:.3f}" in drawn.layout.annotations[0].text
    bars = judging.classes_figure(given, scenes, np.full(len(given.results), 3)).data
    assert [bar.name for bar in bars] == [f"{s}×{s}" for s in MASK_SIZES] and set(bars[3].x) == {1.0}
    histogram = judging.bootstrap_figure(np.arange(10.0), Interval(4.5, 1.0, 9.0), "title")
    assert len(histogram.data[0].x) == 10 and [shape.x0 for shape in histogram.layout.shapes] == [1.0, 4.5, 9.0, 0]


def test_the_papers_tables_are_in_order():
    assert list(judging.PAPER_TABLE_7) == list(MASK_SIZES)
    assert list(judging.PAPER_TABLE_7.values()) == sorted(judging.PAPER_TABLE_7.values())
    for shares, _, _ in judging.PAPER_SHARES.values():
        assert sum(shares) == pytest.approx(1, abs=0.02)
