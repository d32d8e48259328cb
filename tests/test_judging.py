"""AP of resampled pictures against explicit copies of them, intervals, rank correlation, and the noise-aware oracle."""

import itertools

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask

from dynamask.engine.evaluate import Instances
from dynamask.evaluation.bootstrap import (
    PictureBootstrap,
    PrecisionBootstrap,
    interval_of,
    paired_bootstrap,
    percentile_interval,
    share_of_gain,
)
from dynamask.evaluation.choices import (
    Draws,
    at_equal_cost,
    best_mix_quality,
    blind_mix,
    interpolate,
    shares,
    spearman,
)
from dynamask.evaluation.coco_ap import evaluate_coco
from dynamask.evaluation.resampled_ap import MASK_TYPES, ResampledAP
from dynamask.reports.cache import load_collected, save_collected
from dynamask.reports.collecting import Collected, other_views
from dynamask.reports.curve_points import DetectionCurve, TrueBoxCurve
from dynamask.reports.size_choices import at_budget, budget_limits
from dynamask.structures import MASK_SIZES, DynaMaskError, Interval

MACS = (10, 30, 50, 70)


def encoded(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def disc(shape, centre, radius):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def generated(seed, pictures=8):
    """Truths of two classes with crowds and an empty picture; detections with four different masks each."""
    rng, shape = np.random.default_rng(seed), (90, 120)
    images = [{"id": 5 + 2 * i, "height": shape[0], "width": shape[1]} for i in range(pictures)]
    annotations, results, rles = [], [], []
    for position, image in enumerate(images):
        for j in range(0 if position == 2 else 5):
            centre, radius = rng.uniform(0.1, 0.9, 2) * shape, rng.uniform(6, 30)
            mask, category = disc(shape, centre, radius), 3 + j % 2
            rle = encoded(mask)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image["id"],
                    "category_id": category,
                    "iscrowd": int(j == 3),
                    "area": int(mask.sum()),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "segmentation": {"size": list(shape), "counts": rle["counts"].decode()},
                }  # fmt: skip
            )
            for _ in range(rng.integers(0, 4)):
                masks = [
                    disc(shape, centre + rng.normal(0, 0.12, 2) * radius, radius * rng.uniform(0.8, 1.2))
                    for _ in MASK_SIZES
                ]
                score = float(rng.uniform())
                results.append({"image_id": image["id"], "category_id": category, "score": score,
                                "bbox": [0.0, 0.0, 2 * radius, 2 * radius]})  # fmt: skip
                rles.append({k: encoded(m) for k, m in enumerate(masks)})
        results.append({"image_id": image["id"], "category_id": 3, "score": 0.5, "bbox": [1.0, 1.0, 8.0, 8.0]})
        rles.append(dict.fromkeys(range(4), encoded(disc(shape, (8, 8), 6))))
    categories = [{"id": c, "name": str(c)} for c in (3, 4, 9)]
    return {"images": images, "annotations": annotations, "categories": categories}, results, rles


def reference(annotations, results, rles, choice):
    chosen = [{**r, "segmentation": rle[k]} for r, rle, k in zip(results, rles, choice)]
    return {kind: figures["AP"] for kind, figures in evaluate_coco(annotations, chosen, MASK_TYPES).items()}


def copied(annotations, results, weights):
    """The same data with every picture there as often as its weight says, and the detections' origins."""
    images, objects, found, origin = [], [], [], []
    for image, weight in zip(annotations["images"], weights):
        for _ in range(weight):
            own = len(images) + 1
            images.append({**image, "id": own})
            objects += [{**a, "image_id": own} for a in annotations["annotations"] if a["image_id"] == image["id"]]
            rows = [i for i, r in enumerate(results) if r["image_id"] == image["id"]]
            found += [{**results[i], "image_id": own} for i in rows]
            origin += rows
    objects = [{**a, "id": i} for i, a in enumerate(objects, start=1)]
    return {**annotations, "images": images, "annotations": objects}, found, origin


@pytest.mark.parametrize("seed", range(3))
def test_without_resampling_ap_is_that_of_the_evaluation(seed):
    annotations, results, rles = generated(seed)
    judge = ResampledAP(annotations, results, rles, [i["id"] for i in annotations["images"]])
    choice = np.random.default_rng(seed).integers(0, 4, len(results))
    expected = reference(annotations, results, rles, choice)
    for kind in MASK_TYPES:
        found = judge.average_precision(judge.match(choice, kind))
        assert found == pytest.approx([expected[kind]], abs=1e-9) and 0 < found[0] < 1


def test_resampled_ap_is_that_of_copied_pictures():
    annotations, results, rles = generated(7)
    judge = ResampledAP(annotations, results, rles, [i["id"] for i in annotations["images"]])
    choice = np.random.default_rng(0).integers(0, 4, len(results))
    weights = np.array([[2, 0, 1, 3, 1, 0, 1, 0], [0, 1, 1, 0, 0, 4, 1, 1], [0, 0, 8, 0, 0, 0, 0, 0]])
    for kind in MASK_TYPES:
        found = judge.average_precision(judge.match(choice, kind), weights)
        for own, value in zip(weights[:2], found):
            data, detections, origin = copied(annotations, results, own)
            expected = reference(data, detections, [rles[i] for i in origin], choice[origin])
            assert value == pytest.approx(expected[kind], abs=1e-9)
        assert np.isnan(found[2])  # only the empty picture: nothing to find


def test_bootstrap_resamples_whole_pictures():
    bootstrap = PictureBootstrap([3, 1, 2, 9], samples=400, seed=1)
    pictures = np.array([1, 1, 1, 2, 3, 3])
    rows = bootstrap.rows(pictures)
    values = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    drawn = bootstrap.resampled_means(values, rows)
    for weights, mean in itertools.islice(zip(bootstrap.weights, drawn), 20):
        bag = np.repeat(values, weights[np.searchsorted([1, 2, 3, 9], pictures)])
        assert np.isnan(mean) if bag.size == 0 else mean == pytest.approx(bag.mean())
    clustered, alone = bootstrap.interval(values, rows), paired_bootstrap(values)
    assert clustered.mean == alone.mean == 0.5
    assert clustered.high - clustered.low > alone.high - alone.low


def test_shares_of_a_gain():
    gain = np.array([0.04, 0.02, 0.06, 0.05])
    share = share_of_gain(gain / 2, gain)
    assert [share.mean, share.low, share.high] == pytest.approx([0.5] * 3)
    assert share_of_gain(gain, 0 * gain) == Interval()
    assert percentile_interval(0.1, np.array([np.nan])) == Interval(0.1)
    assert interval_of(np.array([np.nan, 0.1])) == Interval()
    with pytest.raises(DynaMaskError, match="no pictures"):
        PictureBootstrap([])


def test_spearman_ranks_ties_by_their_mean():
    a, b = np.array([1, 2, 2, 5, 0]), np.array([10.0, 7.0, 8.0, 30.0, 1.0])
    ranks = np.array([2, 3.5, 3.5, 5, 1]), np.array([4.0, 2.0, 3.0, 5.0, 1.0])
    assert spearman(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert spearman(a, np.exp(a)) == pytest.approx(1) and spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, np.ones(5)) is None and spearman(a[:0], b[:0]) is None
    bootstrap = PictureBootstrap(range(5), samples=100)
    estimate = bootstrap.spearman(a, b, np.arange(5))
    assert estimate.mean == spearman(a, b) and estimate.low <= estimate.mean <= estimate.high


class World:
    """As much of a data set as the judges read."""

    def __init__(self, annotations):
        self.coco = annotations


def instances(logits, quality, pictures):
    results = [{"image_id": int(i), "category_id": 1, "score": 1.0, "bbox": [0.0, 0.0, 50.0, 50.0]} for i in pictures]
    rows = [dict(enumerate(row)) for row in quality.tolist()]
    logits = torch.as_tensor(logits, dtype=torch.float32)
    return Instances(results, [{} for _ in rows], list(logits), rows, rows, logits.argmax(1).tolist(), [0] * len(rows))


def judged(logits, quality, views, budgets=4):
    pictures = np.arange(len(quality)) // 2
    world = World({"images": [{"id": i, "height": 100, "width": 100} for i in range(pictures.max() + 1)]})
    bootstrap = PictureBootstrap(pictures, 100)
    both = {"mask_iou": views, "boundary_iou": views}
    return TrueBoxCurve(instances(logits, quality, pictures), MACS, world, budgets, both, bootstrap)


def one(rows, policy, against="", budget=None, measure="boundary_iou"):
    wanted = (policy, against, measure, budget)
    (row,) = [r.to_dict() for r in rows if (r.policy, r.against, r.measure, r.budget_macs) == wanted]
    return row


def test_a_switch_that_knows_gains_what_the_oracle_gains():
    quality = np.tile(np.array([[0.9, 0.9, 0.9, 0.9], [0.1, 0.2, 0.3, 0.8]]), (20, 1))
    logits = np.where(np.arange(40)[:, None] % 2, [0, 0, 0, 5.0], [5.0, 0, 0, 0])
    rows = judged(logits, quality, quality[None]).points()
    learned = one(rows, "learned")
    assert learned["mean"] == pytest.approx(0.85) and learned["mean_macs"] == 40 and learned["share_112"] == 0.5
    for name in ("oracle", "noise-aware oracle"):
        assert one(rows, "learned", f"share of {name}")["mean"] == pytest.approx(1)
    assert one(rows, "learned", "random")["mean"] == pytest.approx(0.85 - (0.9 + 0.1 + 0.9 + 0.8) / 4)
    top = max(r.budget_macs for r in rows if r.policy == "random")
    assert top == 40 and one(rows, "random", budget=top)["mean"] == pytest.approx(0.675)
    assert one(rows, "budget", budget=top)["mean"] == pytest.approx(0.85)
    assert {row.boxes for row in rows} == {"gt"}


def test_the_noise_aware_oracle_does_not_gain_from_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(0.5, 0.1, (6, 300, 4))  # nothing tells the sizes apart but noise of each view
    logits = rng.normal(0, 1, (300, 4))
    rows = judged(logits, noise[0], noise[1:]).points()
    gains = {name: one(rows, name, "random", budget=b)["mean"] for name in ("oracle", "noise-aware oracle")
             for b in [max(r.budget_macs for r in rows if r.policy == name)]}  # fmt: skip
    assert gains["oracle"] > 0.05 and abs(gains["noise-aware oracle"]) < 0.02
    without = judged(logits, noise[0], noise[:0]).points()
    assert not [row for row in without if row.policy == "noise-aware oracle"]


def test_known_complexity_needs_it_on_every_instance():
    quality = np.tile(np.linspace(0.1, 0.9, 20)[:, None], 4)
    complexity = np.linspace(0, 1, 20)
    flat = 0 * complexity
    judge = judged(np.stack([-6 * complexity, flat, flat, 6 * complexity - 3], 1), quality, quality[None])
    known = judge.known_complexity([{"complexity": c} for c in complexity])
    assert known["complexity"].mean > 0.8 and known["object_size"].mean is None and known["mean_macs"] <= 35
    assert judge.known_complexity([{}] * 20) is None and judge.known_complexity([None] * 20) is None


def test_budgets_end_at_what_the_switch_spends():
    logits = torch.tensor([[0.0, 0, 3, 0], [3.0, 0, 0, 0]])
    assert budget_limits(logits, MACS, 5) == [10, 15, 20, 25, 30]
    assert budget_limits(logits[1:], MACS, 5) == [10]
    assert np.bincount(at_budget(logits, MACS, 10), minlength=4).tolist() == [2, 0, 0, 0]


def test_blind_mix_costs_its_limit():
    quality = np.array([[0.0, 0.5, 0.6, 1.0], [0.0, 0.7, 0.6, 0.6]])
    assert blind_mix(quality, np.array(MACS), 30.0) == pytest.approx([0.5, 0.7])
    assert shares(np.array([0, 3, 3, 1])).tolist() == [0.25, 0.25, 0, 0.5]


def test_detections_are_judged_at_equal_macs():
    annotations, results, rles = generated(3)
    choice = np.random.default_rng(1).integers(0, 4, len(results))
    logits = torch.nn.functional.one_hot(torch.from_numpy(choice), 4).float()
    found = Instances(results, rles, list(logits), [], [], choice.tolist(), [None] * len(results))
    ids = [i["id"] for i in annotations["images"]]
    bootstrap = PictureBootstrap(ids, 20)
    precision = PrecisionBootstrap(ResampledAP(annotations, results, rles, ids), bootstrap.weights)
    curve = DetectionCurve(found, MACS, World(annotations), 3, precision, permutations=2)
    rows = curve.points()
    learned = one(rows, "learned", measure="segm_ap")
    assert learned["mean"] == pytest.approx(reference(annotations, results, rles, choice)["segm"])
    assert learned["low"] <= learned["mean"] <= learned["high"]
    full = one(rows, "fixed:112", measure="boundary_ap")
    assert full["mean"] == pytest.approx(reference(annotations, results, rles, [3] * len(results))["boundary"])
    cheapest = one(rows, "budget", "fixed:14", 10, "segm_ap")
    assert (cheapest["mean"], cheapest["low"], cheapest["high"]) == (0, 0, 0)
    points = curve.operating_points(drop=1.0)
    assert points["within_drop"]["mean_macs"] == 10 and points["half"]["mean_macs"] <= 35
    assert curve.operating_points(drop=-1.0)["within_drop"] is None


def test_a_mixture_is_mixed_anew_in_every_draw():
    rng = np.random.default_rng(0)
    quality = rng.random((30, 4))
    macs = np.array(MACS, dtype=np.float64)
    bags = [rng.integers(0, 30, 30) for _ in range(20)]
    limits = rng.uniform(MACS[0], MACS[-1], 20)
    limits[0], limits[1] = MACS[0], MACS[-1]
    found = best_mix_quality(np.stack([quality[bag].mean(0) for bag in bags], 1), macs, limits)
    assert found == pytest.approx([blind_mix(quality[bag], macs, limit).mean() for bag, limit in zip(bags, limits)])


def test_curves_are_read_between_and_beyond_their_points():
    costs, values = np.array([[3.0, 1], [1, 2], [2, 2]]), np.array([[9.0, 0], [1, 5], [4, 5]])
    assert interpolate(costs, values, np.array([2.5, 1.5])) == pytest.approx([6.5, 2.5])
    assert interpolate(costs, values, np.array([4.0, 0.0])) == pytest.approx([14, -5])
    assert interpolate(costs[:1], values[:1], np.array([7.0, 7.0])) == pytest.approx([9, 0])


def test_at_equal_cost_what_is_only_dearer_gains_nothing():
    cost = np.array([4.0, 5, 3, 6])
    curve = [Draws(2 * (cost - 2), cost - 2), Draws(2 * (cost + 2), cost + 2)]
    fixed = Draws(np.full(4, 8.0), np.full(4, 4.0))
    assert at_equal_cost(Draws(2 * cost + 0.5, cost), fixed, curve) == pytest.approx([0.5] * 4)
    larger = Draws(np.full(4, 14.0), np.full(4, 7.0))  # it costs more over the pictures as they are, and still does so
    kept = at_equal_cost(Draws(2 * cost, cost), larger, curve)
    assert kept == pytest.approx([-6] * 4)


def test_chance_is_dealt_anew_in_every_draw():
    rng = np.random.default_rng(3)
    quality, logits = rng.random((24, 4)), rng.normal(size=(24, 4))
    judge = judged(logits, quality, quality[None])
    row, choice = one(judge.points(), "learned", "random"), logits.argmax(1)
    drawn = []
    for weights in judge.bootstrap.weights:
        bag = np.repeat(np.arange(24), weights[np.arange(24) // 2])
        dealt = [quality[bag, choice[bag][np.roll(np.arange(len(bag)), turn)]].mean() for turn in range(len(bag))]
        drawn.append(quality[bag, choice[bag]].mean() - np.mean(dealt))
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())


def test_intervals_of_ap_are_centred_on_it():
    drawn = np.array([0.5, 0.52, 0.54, 0.53, np.nan])
    centred = interval_of(drawn, centre=True)
    low, high = np.quantile([0.49, 0.51, 0.5], [0.025, 0.975])
    assert (centred.mean, centred.low, centred.high) == pytest.approx((0.5, low, high))
    assert interval_of(drawn).low > 0.5
    annotations, results, rles = generated(1, pictures=30)
    ids = [i["id"] for i in annotations["images"]]
    judge = ResampledAP(annotations, results, rles, ids)
    precision = PrecisionBootstrap(judge, PictureBootstrap(ids, 400).weights)
    values = precision.draws(np.full(len(results), 3), "segm")
    assert values[1:].mean() > values[0] + 0.01  # pictures drawn twice
    own = interval_of(values, centre=True)
    assert own.low < own.mean < own.high
    assert abs((own.low + own.high) / 2 - own.mean) < 0.01


class Seer:
    """Predicts the bright pixels around each box, whatever the size: right only if picture and boxes fit together."""

    class_names = ("__background__", "disc")

    def __call__(self, image, boxes, labels, all_sizes):
        assert all_sizes and len(boxes) == len(labels) and set(labels) == {1}
        masks = []
        for x0, y0, x1, y1 in np.asarray(boxes):
            near = np.zeros(image.shape[1:], bool)
            near[max(0, int(y0) - 4) : int(y1) + 5, max(0, int(x0) - 4) : int(x1) + 5] = True
            masks.append(torch.from_numpy(near) & (image[0] > 128))
        self.boxes = boxes
        prediction = type("P", (), {})()
        prediction.mask_at = lambda i, size: masks[i]
        return prediction


def test_other_views_are_judged_against_the_truth_seen_the_same_way():
    shape = (60, 100)
    masks = np.stack([disc(shape, (20, 25), 12), disc(shape, (35, 75), 15)])
    image = torch.from_numpy(np.where(masks.any(0), 255, 0).astype(np.uint8)).expand(3, *shape)
    boxes = torch.tensor([[13.0, 8, 38, 33], [60, 20, 91, 51]])
    target = {"image_id": 4, "boxes": boxes, "labels": torch.tensor([1, 1]), "masks": torch.from_numpy(masks)}
    quality = other_views(Seer(), image, target, {1: 7}, (7,), views=3, seed=0)
    assert quality.shape == (2, 3, 2, 4) and (quality == 1).all()
    assert np.array_equal(quality, other_views(Seer(), image, target, {1: 7}, (7,), views=3, seed=0))
    seer = Seer()
    other_views(seer, image, target, {1: 7}, (7,), views=2, seed=0)  # the last call sees the picture as it is
    assert not np.allclose(seer.boxes, boxes) and np.abs(seer.boxes - boxes.numpy()).max() < 4
    assert other_views(Seer(), image, target, {1: 9}, (7,), views=3, seed=0).shape == (2, 3, 0, 4)


def test_what_was_collected_comes_back_from_its_file(tmp_path):
    _, results, rles = generated(2)
    count = len(results)
    quality = [{} if i % 3 else dict(enumerate([0.1, 0.2, 0.3, i / count])) for i in range(count)]
    truth = [None if i % 3 else i for i in range(count)]
    choice = [i % 4 for i in range(count)]
    found = Instances(results, rles, list(torch.randn(count, 4)), quality, quality, choice, truth)
    given = instances(np.eye(4), np.random.default_rng(0).random((4, 4)), [1, 1, 2, 3])
    views = {m: np.random.default_rng(1).random((2, 4, 4)) for m in ("mask_iou", "boundary_iou")}
    path, key = tmp_path / "c.npz", {"weights": "a"}
    assert load_collected(path, key) is None
    save_collected(Collected(given, found, views), path, key)
    again = load_collected(path, key)
    assert again.found.results == results and again.found.rles == rles and again.found.truth == truth
    assert again.found.mask_iou == quality and again.given.choice == given.choice
    assert torch.equal(again.found.logits(), found.logits()) and again.given.rles == [{}] * 4
    assert np.array_equal(again.views["mask_iou"], views["mask_iou"])
    with pytest.raises(DynaMaskError, match="other weights"):
        load_collected(path, {"weights": "b"})
    path.write_bytes(b"no archive")
    with pytest.raises(DynaMaskError, match="no cache"):
        load_collected(path, key)
