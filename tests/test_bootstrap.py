"""Bootstrap intervals, AP of resampled pictures, choices at equal cost, and the points of a budget curve."""

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
    interval_over_trainings,
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
from dynamask.ops.rle import encode_rle
from dynamask.reports.cache import collected_once
from dynamask.reports.collect import Collected, quality_in_views
from dynamask.reports.curve_points import DetectionCurve, TrueBoxCurve
from dynamask.reports.size_choices import at_budget, at_cost, budget_limits, mean_macs
from dynamask.structures import DynaMaskError, Interval

MACS = (10, 30, 50, 70)


def disc(shape, centre, radius):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def encoded(mask):
    return encode_rle(torch.from_numpy(mask))


def generated(seed, pictures=8):
    """Truths of two classes with crowds and an empty picture; detections with four different masks each."""
    rng, shape = np.random.default_rng(seed), (90, 120)
    images = [{"id": 5 + 2 * i, "height": shape[0], "width": shape[1]} for i in range(pictures)]
    annotations, results, rles = [], [], []
    for position, image in enumerate(images):
        for j in range(0 if position == 2 else 5):
            centre, radius, category = rng.uniform(0.1, 0.9, 2) * shape, rng.uniform(6, 30), 3 + j % 2
            rle = encoded(disc(shape, centre, radius))
            truth = {"id": len(annotations), "image_id": image["id"], "category_id": category, "iscrowd": int(j == 3)}
            box = {"area": int(coco_mask.area([rle])[0]), "bbox": coco_mask.toBbox([rle])[0].tolist()}
            annotations.append({**truth, **box, "segmentation": rle})
            for _ in range(rng.integers(0, 4)):
                moved = [(centre + rng.normal(0, 0.12, 2) * radius, radius * rng.uniform(0.8, 1.2)) for _ in MACS]
                rles.append({k: encoded(disc(shape, *where)) for k, where in enumerate(moved)})
                found = {"image_id": image["id"], "category_id": category, "score": float(rng.uniform())}
                results.append({**found, "bbox": [0.0, 0.0, 2 * radius, 2 * radius]})
        results.append({"image_id": image["id"], "category_id": 3, "score": 0.5, "bbox": [1.0, 1.0, 8.0, 8.0]})
        rles.append(dict.fromkeys(range(4), encoded(disc(shape, (8, 8), 6))))
    categories = [{"id": c, "name": str(c)} for c in (3, 4, 9)]
    return {"images": images, "annotations": annotations, "categories": categories}, results, rles


def resampled_ap(annotations, results, rles):
    return ResampledAP(annotations, results, rles, [image["id"] for image in annotations["images"]])


def reference(annotations, results, rles, choice):
    chosen = [{**r, "segmentation": rle[k]} for r, rle, k in zip(results, rles, choice)]
    return {kind: figures["AP"] for kind, figures in evaluate_coco(annotations, chosen, MASK_TYPES).items()}


def copied(annotations, results, weights):
    """The same data with every picture as often as its weight says, and the detections' origins."""
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
def test_without_resampling_ap_equals_that_of_the_evaluation(seed):
    annotations, results, rles = generated(seed)
    ap, choice = resampled_ap(annotations, results, rles), np.random.default_rng(seed).integers(0, 4, len(results))
    expected = reference(annotations, results, rles, choice)
    for kind in MASK_TYPES:
        found = ap.average_precision(ap.match(choice, kind))
        assert found == pytest.approx([expected[kind]], abs=1e-9) and 0 < found[0] < 1


@pytest.mark.parametrize("levels", [None, 3])
def test_resampled_ap_equals_that_of_copied_pictures(levels):
    annotations, results, rles = generated(7)
    if levels:  # many equal scores, also inside a picture
        results = [{**r, "score": np.ceil(r["score"] * levels) / levels} for r in results]
    ap, choice = resampled_ap(annotations, results, rles), np.random.default_rng(0).integers(0, 4, len(results))
    weights = np.array([[2, 0, 1, 3, 1, 0, 1, 0], [0, 1, 1, 0, 0, 4, 1, 1], [0, 0, 8, 0, 0, 0, 0, 0]])
    for kind in MASK_TYPES:
        found = ap.average_precision(ap.match(choice, kind), weights)
        for own, value in zip(weights[:2], found):
            data, detections, origin = copied(annotations, results, own)
            expected = reference(data, detections, [rles[i] for i in origin], choice[origin])
            assert value == pytest.approx(expected[kind], abs=1e-9)
        assert np.isnan(found[2])  # only the picture without a true instance


def test_bootstrap_resamples_whole_pictures():
    bootstrap = PictureBootstrap([3, 1, 2, 9], samples=400, seed=1)
    pictures, values = np.array([1, 1, 1, 2, 3, 3]), np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    rows = bootstrap.rows(pictures)
    means = bootstrap.resampled_means(values, rows)
    for weights, mean in itertools.islice(zip(bootstrap.weights, means), 20):
        bag = np.repeat(values, weights[np.searchsorted([1, 2, 3, 9], pictures)])
        assert np.isnan(mean) if bag.size == 0 else mean == pytest.approx(bag.mean())
    by_picture, by_instance = bootstrap.interval(values, rows), paired_bootstrap(values)
    assert by_picture.mean == by_instance.mean == 0.5
    assert by_picture.high - by_picture.low > by_instance.high - by_instance.low
    assert bootstrap.interval(values[:0], rows[:0]) == Interval()
    with pytest.raises(DynaMaskError, match="no pictures"):
        PictureBootstrap([])


def test_paired_bootstrap():
    differences = np.random.default_rng(4).normal(0.3, 1.0, 400)
    found = paired_bootstrap(differences)
    assert found.mean == pytest.approx(differences.mean()) and found.sign == 1
    half = 1.96 * differences.std() / 20
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.02)
    assert paired_bootstrap(differences) == found != paired_bootstrap(differences, seed=1)
    assert paired_bootstrap(-differences).sign == -1 and paired_bootstrap(differences - found.mean).sign == 0
    assert paired_bootstrap(np.full(5, 0.25)) == Interval(0.25, 0.25, 0.25)
    assert Interval(0.5).to_dict() == {"mean": 0.5, "low": None, "high": None} and Interval(0.5).sign == 0
    with pytest.raises(DynaMaskError):
        paired_bootstrap(np.zeros(0))
    with pytest.raises(ValueError):
        paired_bootstrap(np.array([1.0, np.nan]))


def test_a_bootstrap_interval_covers_the_true_mean():
    """Of 200 data sets with a true mean of zero, about 95 % of the intervals contain it."""
    rng = np.random.default_rng(5)
    covered = sum(paired_bootstrap(rng.normal(size=60), samples=400).sign == 0 for _ in range(200))
    assert 178 <= covered <= 199


def test_intervals_of_draws():
    draws = np.array([0.5, 0.52, 0.54, 0.53, np.nan])
    centred = interval_of(draws, centre=True)
    low, high = np.quantile([0.49, 0.51, 0.5], [0.025, 0.975])
    assert (centred.mean, centred.low, centred.high) == pytest.approx((0.5, low, high))
    assert interval_of(draws).low > 0.5 and interval_of(np.array([np.nan, 0.1])) == Interval()
    assert percentile_interval(0.1, np.array([np.nan])) == Interval(0.1)
    gain = np.array([0.04, 0.02, 0.06, 0.05])
    share = share_of_gain(gain / 2, gain)
    assert [share.mean, share.low, share.high] == pytest.approx([0.5] * 3)
    assert share_of_gain(gain, 0 * gain) == Interval()


def test_ap_of_resampled_pictures_is_too_high_without_centring():
    annotations, results, rles = generated(1, pictures=30)
    ap = resampled_ap(annotations, results, rles)
    precision = PrecisionBootstrap(ap, PictureBootstrap(ap.image_ids, 400).weights)
    draws = precision.draws(np.full(len(results), 3), "segm")
    assert draws[1:].mean() > draws[0] + 0.01  # pictures drawn twice
    own = interval_of(draws, centre=True)
    assert own.low < own.mean < own.high and abs((own.low + own.high) / 2 - own.mean) < 0.01


def test_the_interval_over_trainings_is_students():
    found = interval_over_trainings([0.0071, 0.0090, 0.0352])
    assert [found.mean, found.low, found.high] == pytest.approx([0.0171, -0.0218, 0.0560], abs=2e-4)
    assert interval_over_trainings([0.5]) == Interval(0.5) and interval_over_trainings([]) == Interval()
    many = interval_over_trainings(np.arange(22.0))  # 21 degrees of freedom: the quantile is 2.080
    assert many.high - many.mean == pytest.approx(2.080 * np.arange(22.0).std(ddof=1) / 22**0.5, rel=2e-3)


def test_spearman_ranks_ties_by_their_mean():
    a, b = np.array([1, 2, 2, 5, 0]), np.array([10.0, 7.0, 8.0, 30.0, 1.0])
    ranks = np.array([2, 3.5, 3.5, 5, 1]), np.array([4.0, 2.0, 3.0, 5.0, 1.0])
    assert spearman(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert spearman(a, np.exp(a)) == pytest.approx(1) and spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, np.ones(5)) is None and spearman(a[:0], b[:0]) is None
    estimate = PictureBootstrap(range(5), samples=100).spearman(a, b, np.arange(5))
    assert estimate.mean == spearman(a, b) and estimate.low <= estimate.mean <= estimate.high


def test_shares_and_mixtures():
    quality = np.array([[0.0, 0.5, 0.6, 1.0], [0.0, 0.7, 0.6, 0.6]])
    assert blind_mix(quality, np.array(MACS), 30.0) == pytest.approx([0.5, 0.7])
    assert shares(np.array([0, 3, 3, 1])).tolist() == [0.25, 0.25, 0, 0.5]
    assert blind_mix(quality, np.array(MACS), 70.0).tolist() == [1.0, 0.6]


def test_the_best_mixture_is_chosen_in_every_resampled_set():
    rng = np.random.default_rng(0)
    quality, macs = rng.random((30, 4)), np.array(MACS, dtype=np.float64)
    bags, limits = [rng.integers(0, 30, 30) for _ in range(20)], rng.uniform(MACS[0], MACS[-1], 20)
    limits[:2] = MACS[0], MACS[-1]
    found = best_mix_quality(np.stack([quality[bag].mean(0) for bag in bags], 1), macs, limits)
    assert found == pytest.approx([blind_mix(quality[bag], macs, limit).mean() for bag, limit in zip(bags, limits)])


def test_curves_are_interpolated_and_extrapolated():
    costs, values = np.array([[3.0, 1], [1, 2], [2, 2]]), np.array([[9.0, 0], [1, 5], [4, 5]])
    assert interpolate(costs, values, np.array([2.5, 1.5])) == pytest.approx([6.5, 2.5])
    assert interpolate(costs, values, np.array([4.0, 0.0])) == pytest.approx([14, -5])
    assert interpolate(costs[:1], values[:1], np.array([7.0, 7.0])) == pytest.approx([9, 0])


def test_at_equal_cost_spending_more_gains_nothing():
    cost = np.array([4.0, 5, 3, 6])
    curve = [Draws(2 * (cost - 2), cost - 2), Draws(2 * (cost + 2), cost + 2)]
    fixed = Draws(np.full(4, 8.0), np.full(4, 4.0))
    assert at_equal_cost(Draws(2 * cost + 0.5, cost), fixed, curve) == pytest.approx([0.5] * 4)
    larger = Draws(np.full(4, 14.0), np.full(4, 7.0))  # it costs more over the pictures as they are, and still does so
    assert at_equal_cost(Draws(2 * cost, cost), larger, curve) == pytest.approx([-6] * 4)


def test_budgets_end_at_the_cost_of_the_switchs_own_choice():
    logits = torch.tensor([[0.0, 0, 3, 0], [3.0, 0, 0, 0]])
    assert budget_limits(logits, MACS, 5) == [10, 15, 20, 25, 30] and budget_limits(logits[1:], MACS, 5) == [10]
    assert np.bincount(at_budget(logits, MACS, 10), minlength=4).tolist() == [2, 0, 0, 0]


def test_a_reward_reaches_costs_above_the_switchs_own_choice():
    logits, macs = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)), (1, 2, 4, 8)
    own = mean_macs(logits.argmax(1).numpy(), macs)
    for limit in (1.5, own + 0.5, 7.0, 8.0):
        assert limit - 0.1 < mean_macs(at_cost(logits, macs, limit), macs) <= limit
    assert (at_cost(logits, macs, own) == logits.argmax(1).numpy()).all()


class Annotated:
    """As much of a data set as the curves read."""

    def __init__(self, annotations):
        self.coco = annotations


def instances(logits, quality, pictures):
    results = [{"image_id": int(i), "category_id": 1, "score": 1.0, "bbox": [0.0, 0.0, 50.0, 50.0]} for i in pictures]
    rows, logits = [dict(enumerate(row)) for row in quality.tolist()], torch.as_tensor(logits, dtype=torch.float32)
    choice = logits.argmax(1).tolist()
    columns = {"switch_logits": list(logits), "mask_iou": rows, "boundary_iou": rows, "truth": [0] * len(rows)}
    return Instances(results, [{} for _ in rows], choice=choice, **columns)


def true_box_curve(logits, quality, views, budgets=4):
    pictures = np.arange(len(quality)) // 2
    dataset = Annotated({"images": [{"id": i, "height": 100, "width": 100} for i in range(pictures.max() + 1)]})
    both, bootstrap = {"mask_iou": views, "boundary_iou": views}, PictureBootstrap(pictures, 100)
    return TrueBoxCurve(instances(logits, quality, pictures), MACS, dataset, budgets, both, bootstrap)


def one(points, policy, against="", budget=None, measure="boundary_iou"):
    wanted = (policy, against, measure, budget)
    (row,) = [p.to_dict() for p in points if (p.policy, p.against, p.measure, p.budget_macs) == wanted]
    return row


def test_a_perfect_switch_gains_what_the_oracle_gains():
    quality = np.tile(np.array([[0.9, 0.9, 0.9, 0.9], [0.1, 0.2, 0.3, 0.8]]), (20, 1))
    logits = np.where(np.arange(40)[:, None] % 2, [0, 0, 0, 5.0], [5.0, 0, 0, 0])
    points = true_box_curve(logits, quality, quality[None]).points()
    learned = one(points, "learned")
    assert learned["mean"] == pytest.approx(0.85) and learned["mean_macs"] == 40 and learned["share_112"] == 0.5
    for name in ("class table", "size table", "class-size table"):  # neither class nor size tells these instances apart
        assert one(points, "learned", name)["low"] > 0
    assert one(points, "learned", "share over mix of noise-aware oracle")["mean"] == pytest.approx(1)
    for name in ("oracle", "noise-aware oracle"):
        assert one(points, "learned", f"share of {name}")["mean"] == pytest.approx(1)
    assert one(points, "learned", "random")["mean"] == pytest.approx(0.85 - (0.9 + 0.1 + 0.9 + 0.8) / 4)
    top = max(p.budget_macs for p in points if p.policy == "random")
    assert top == 40 and one(points, "random", budget=top)["mean"] == pytest.approx(0.675)
    assert one(points, "budget", budget=top)["mean"] == pytest.approx(0.85)
    assert {p.boxes for p in points} == {"gt"}


def test_the_noise_aware_oracle_does_not_gain_from_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(0.5, 0.1, (6, 300, 4))  # the sizes differ only by the noise of each view
    logits = rng.normal(0, 1, (300, 4))
    points, gains = true_box_curve(logits, noise[0], noise[1:]).points(), {}
    for name in ("oracle", "noise-aware oracle"):
        budget = max(p.budget_macs for p in points if p.policy == name)
        gains[name] = one(points, name, "random", budget)["mean"]
    assert gains["oracle"] > 0.05 and abs(gains["noise-aware oracle"]) < 0.02
    without = true_box_curve(logits, noise[0], noise[:0]).points()
    assert not [p for p in without if p.policy == "noise-aware oracle"]


def test_a_random_choice_is_permuted_in_every_resampled_set():
    rng = np.random.default_rng(3)
    quality, logits = rng.random((24, 4)), rng.normal(size=(24, 4))
    curve, choice, draws = true_box_curve(logits, quality, quality[None]), logits.argmax(1), []
    for weights in curve.bootstrap.weights:
        bag = np.repeat(np.arange(24), weights[np.arange(24) // 2])
        turned = [quality[bag, choice[bag][np.roll(np.arange(len(bag)), n)]].mean() for n in range(len(bag))]
        draws.append(quality[bag, choice[bag]].mean() - np.mean(turned))
    row = one(curve.points(), "learned", "random")
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist())


def test_known_complexity_needs_it_on_every_instance():
    quality, complexity = np.tile(np.linspace(0.1, 0.9, 20)[:, None], 4), np.linspace(0, 1, 20)
    flat = 0 * complexity
    curve = true_box_curve(np.stack([-6 * complexity, flat, flat, 6 * complexity - 3], 1), quality, quality[None])
    known = curve.known_complexity([{"complexity": c} for c in complexity])
    assert known["complexity"].mean > 0.8 and known["object_size"].mean is None and known["mean_macs"] <= 35
    assert curve.known_complexity([{}] * 20) is None and curve.known_complexity([None] * 20) is None


def test_detections_are_compared_at_equal_macs():
    annotations, results, rles = generated(3)
    choice = np.random.default_rng(1).integers(0, 4, len(results))
    logits = torch.nn.functional.one_hot(torch.from_numpy(choice), 4).float()
    unmatched = [None] * len(results)
    found = Instances(results, rles, switch_logits=list(logits), choice=choice.tolist(), truth=unmatched)
    ap = resampled_ap(annotations, results, rles)
    precision = PrecisionBootstrap(ap, PictureBootstrap(ap.image_ids, 20).weights)
    curve = DetectionCurve(found, MACS, Annotated(annotations), 3, precision, permutations=2)
    points = curve.points()
    learned = one(points, "learned", measure="segm_ap")
    assert learned["mean"] == pytest.approx(reference(annotations, results, rles, choice)["segm"])
    assert learned["low"] <= learned["mean"] <= learned["high"]
    full = one(points, "fixed:112", measure="boundary_ap")
    assert full["mean"] == pytest.approx(reference(annotations, results, rles, [3] * len(results))["boundary"])
    cheapest = one(points, "budget", "fixed:14", 10, "segm_ap")
    assert (cheapest["mean"], cheapest["low"], cheapest["high"]) == (0, 0, 0)
    operating = curve.operating_points(drop=1.0)
    assert operating["within_drop"]["mean_macs"] == 10 and operating["half"]["mean_macs"] <= 35
    assert curve.operating_points(drop=-1.0)["within_drop"] is None


class Thresholder:
    """Predicts the bright pixels around each box at every size: right only if image and boxes fit together."""

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


def test_other_views_are_compared_with_the_truth_in_the_same_view():
    shape = (60, 100)
    masks = np.stack([disc(shape, (20, 25), 12), disc(shape, (35, 75), 15)])
    image = torch.from_numpy(np.where(masks.any(0), 255, 0).astype(np.uint8)).expand(3, *shape)
    boxes = torch.tensor([[13.0, 8, 38, 33], [60, 20, 91, 51]])
    target = {"image_id": 4, "boxes": boxes, "labels": torch.tensor([1, 1]), "masks": torch.from_numpy(masks)}
    dataset = type("D", (), {"class_names": Thresholder.class_names, "category_ids": (7,)})
    predictor = Thresholder()
    quality = quality_in_views(predictor, dataset, image, target, views=3, seed=0)
    assert quality.shape == (2, 3, 2, 4) and (quality == 1).all()
    assert len(predictor.boxes) == 4  # the last call shows the views that are flipped, 1 and 3
    flipped = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([100, 0, 100, 0])
    moved = (predictor.boxes.view(2, 2, 4) - flipped).abs()
    assert moved.min(0).values.max() > 0 and moved.max() < 5
    labelled = {**target, "labels": torch.tensor([], dtype=torch.int64)}
    assert quality_in_views(predictor, dataset, image, labelled, views=3, seed=0).shape == (2, 3, 0, 4)


def test_predictions_come_back_from_the_cache(tmp_path):
    _, results, rles = generated(2)
    count = len(results)
    quality = [{} if i % 3 else dict(enumerate([0.1, 0.2, 0.3, i / count])) for i in range(count)]
    truth, choice = [None if i % 3 else i for i in range(count)], [i % 4 for i in range(count)]
    columns = {"mask_iou": quality, "boundary_iou": quality, "choice": choice, "truth": truth}
    found = Instances(results, rles, list(torch.randn(count, 4)), **columns)
    given = instances(np.eye(4), np.random.default_rng(0).random((4, 4)), [1, 1, 2, 3])
    views = {m: np.random.default_rng(1).random((2, 4, 4)) for m in ("mask_iou", "boundary_iou")}
    collected = Collected(given, found, views, {"edge_loss": np.ones((4, 4))}, [{"backbone": 7}])
    assert collected_once(tmp_path, {"weights": "a"}, lambda: collected) is collected
    again = collected_once(tmp_path, {"weights": "a"}, lambda: pytest.fail("collected again"))
    assert again.detections.results == results and again.detections.rles == rles and again.detections.truth == truth
    assert again.detections.mask_iou == quality and again.true_boxes.choice == given.choice
    assert torch.equal(again.detections.logits(), found.logits()) and again.true_boxes.rles == [{}] * 4
    assert np.array_equal(again.views["mask_iou"], views["mask_iou"]) and again.picture_macs == [{"backbone": 7}]
    assert np.array_equal(again.size_losses["edge_loss"], np.ones((4, 4)))
    (kept,) = tmp_path.iterdir()
    without = collected_once(tmp_path, {"weights": "b"}, Collected)
    assert without.detections is None and len(list(tmp_path.iterdir())) == 2
    (other,) = set(tmp_path.iterdir()) - {kept}
    other.write_bytes(kept.read_bytes())
    with pytest.raises(DynaMaskError, match="other weights"):
        collected_once(tmp_path, {"weights": "b"}, Collected)
    other.write_bytes(b"torn")
    with pytest.raises(DynaMaskError, match="no cache of a report; delete it"):
        collected_once(tmp_path, {"weights": "b"}, Collected)
