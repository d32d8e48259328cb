"""Cityscapes: labels to instances, and the benchmark's AP on cases whose answer is known by hand."""

import json

import numpy as np
import pytest
import torch
from helpers.cityscapes_world import add_picture, labels, make_cityscapes
from helpers.coco_files import rectangle
from PIL import Image

from dynamask.data.cityscapes import THINGS, CityscapesDataset
from dynamask.data.coco import CocoDataset
from dynamask.evaluation.cityscapes import OVERLAPS, area_under_curve, evaluate_cityscapes
from dynamask.evaluation.coco_ap import evaluate_coco
from dynamask.ops.rle import decode_rle
from dynamask.structures import DynaMaskError

CAR, PERSON = 26, 24


@pytest.fixture
def root(tmp_path):
    return make_cityscapes(tmp_path)


def test_items_and_attributes_are_those_of_a_coco_data_set(root, tmp_path):
    dataset = CityscapesDataset(root, "val")
    assert [file.name.split("_")[0] for file in dataset.files] == ["aachen", "ulm"] and dataset.image_ids == [1, 2]
    assert dataset.category_ids == (24, 25, 26, 27, 28, 31, 32, 33)
    assert dataset.class_names == ("__background__", *THINGS.values()) and dataset.skipped == 0
    image, target = dataset[1]
    assert image.shape == (3, 60, 80) and image.dtype == torch.uint8 and target["image_id"] == 2
    assert target["labels"].tolist() == [1, 3, 3] and target["iscrowd"].tolist() == [0, 0, 0]
    assert target["boxes"].tolist() == [[40, 8, 52, 38], [4, 12, 34, 32], [50, 40, 59, 49]]
    values = dataset.instance_ids(1)
    for mask, value in zip(target["masks"], (24000, 26000, 26001)):
        assert np.array_equal(mask.numpy(), values == value)
    assert target["area"].tolist() == [360, 600, 81]
    (tmp_path / "coco.json").write_text(json.dumps(dataset.coco))
    read = CocoDataset(root / "leftImg8bit" / "val", tmp_path / "coco.json")
    for index in range(2):
        (image, target), (other, same) = dataset[index], read[index]
        assert torch.equal(image, other)
        assert all(torch.equal(target[key], same[key]) for key in ("boxes", "labels", "masks", "area", "iscrowd"))


def test_groups_are_crowds_and_covered_things_keep_what_is_seen(root):
    dataset = CityscapesDataset(root, "val", include_crowd=True)
    target = dataset.target(1)
    assert target["iscrowd"].tolist() == [1, 0, 0, 0] and target["labels"][0] == 3, "a group of cars"
    bicycle = CityscapesDataset(root, "val").target(0)
    assert bicycle["labels"].tolist() == [2, 8] and bicycle["area"].tolist() == [100, 400 - 40]
    assert sum(annotation["iscrowd"] for annotation in CityscapesDataset(root, "val").coco["annotations"]) == 1


def test_a_picture_without_a_thing_and_merged_classes(root):
    dataset = CityscapesDataset(root, "train")
    assert dataset.target(0)["masks"].shape == (0, 60, 80) and len(dataset.target(1)["boxes"]) == 2
    one = CityscapesDataset(root, "train", merge_classes=True)
    assert one.class_names == ("__background__", "object") and one.category_ids == (1,)
    assert one.target(1)["labels"].tolist() == [1, 1]


def test_labels_are_read_when_they_are_needed(root):
    dataset = CityscapesDataset(root, "val")
    dataset.labels[0].write_bytes(b"")
    assert len(dataset[1][1]["boxes"]) == 3
    with pytest.raises(DynaMaskError, match="labels .*aachen.* cannot be read"):
        _ = dataset.coco


def test_what_is_wrong_is_one_sentence(root):
    with pytest.raises(DynaMaskError, match="holds no CITY/"):
        CityscapesDataset(root, "test")
    dataset = CityscapesDataset(root, "val")
    add_picture(root, "val", "ulm_000000_000019", labels((99001, 0, 0, 5, 5)).clip(0, 65000))
    with pytest.raises(DynaMaskError, match="hold ids that Cityscapes does not have: 65000"):
        dataset.target(1)
    Image.new("RGB", (80, 60)).save(dataset.labels[0])
    with pytest.raises(DynaMaskError, match="no grey picture of integers"):
        dataset.target(0)
    Image.fromarray(labels(size=(10, 10)).astype(np.uint16)).save(dataset.labels[0])
    with pytest.raises(DynaMaskError, match="is 80 x 60 pixels and not 10 x 10"):
        dataset[0]
    dataset.labels[1].unlink()
    with pytest.raises(DynaMaskError, match=r"labels .*ulm.* do not exist \(1 of 2 are missing\): unpack gtFine"):
        CityscapesDataset(root, "val")


def result(category: int, score: float, *place: int) -> dict:
    """A rectangle (x, y, width, height) in a picture of 60 x 80 pixels."""
    return {"image_id": 1, "category_id": category, "score": score, **rectangle((60, 80), *place)}


def average_precision(values: np.ndarray, results: list[dict]) -> dict:
    return evaluate_cityscapes(lambda _: values, [1], results, THINGS)


SQUARE, OTHER = (4, 4, 20, 20), (40, 4, 20, 20)
HIT = (CAR, 0.5, *SQUARE)
ONE, TWO = ((26000, *SQUARE),), ((26000, *SQUARE), (26001, *OTHER))
SMALL = ((26000, *SQUARE), (26001, 50, 40, 9, 11))  # 99 pixels
STAIR = 0.5 + 0.5 * (0.5 + 2 / 3) / 2
"""AP of a hit, a miss and a hit of two instances, in the order of their scores."""


def beside(value: int) -> tuple:
    """One car, and a block of 40 x 40 pixels with another id."""
    return (26000, *SQUARE), (value, 40, 0, 40, 40)


@pytest.mark.parametrize(
    ("blocks", "results", "ap", "ap50"),
    [
        (ONE, [HIT], 1.0, 1.0),
        (ONE, [(CAR, 0.9, 4, 4, 20, 10)], 0.0, 0.0),  # an IoU of exactly .5
        (ONE, [(CAR, 0.9, 4, 4, 20, 15)], 0.5, 1.0),  # exactly .75: a hit below
        (ONE, [(PERSON, 0.9, *SQUARE)], 0.0, 0.0),
        # a second prediction of an instance is a miss; the better score counts, whatever its overlap
        (TWO, [(CAR, 0.9, *SQUARE), (CAR, 0.8, 4, 4, 20, 19), (CAR, 0.7, *OTHER)], None, STAIR),
        (TWO, [(CAR, 0.8, *SQUARE), (CAR, 0.9, 4, 4, 20, 19), (CAR, 0.7, *OTHER)], None, STAIR),
        # small instances need not be found, and predictions on them do not count
        (SMALL, [HIT], 1.0, 1.0),
        (SMALL, [HIT, (CAR, 0.9, 50, 40, 9, 11)], 1.0, 1.0),
        (SMALL, [HIT, (CAR, 0.9, 50, 40, 18, 8)], None, 0.25),  # at most half on it
        ((*ONE, (26001, 50, 40, 10, 10)), [HIT], 0.5, 0.5),  # 100 pixels count
        # groups and void take false positives: all of it, exactly half, 70 %
        *((beside(value), [HIT, (CAR, 0.9, 45, 5, 20, 20)], 1.0, 1.0) for value in (26, 0, 4, 29, 30)),
        *((beside(value), [HIT, (CAR, 0.9, 35, 5, 10, 20)], None, 0.25) for value in (26, 0, 4, 29, 30)),
        *((beside(value), [HIT, (CAR, 0.9, 34, 5, 20, 20)], 0.4 + 0.6 * 0.25, 1.0) for value in (26, 0, 4, 29, 30)),
        # other classes and numbered caravans take none
        *((beside(value), [HIT, (CAR, 0.9, 45, 5, 20, 20)], None, 0.25) for value in (7, 24, 29001, 24001)),
    ],
)
def test_rules_of_the_benchmark(blocks, results, ap, ap50):
    found = average_precision(labels(*blocks), [result(*values) for values in results])["classes"]["car"]
    assert found["AP50"] == pytest.approx(ap50)
    assert ap is None or found["AP"] == pytest.approx(ap)


def test_no_prediction_is_zero_and_nothing_to_find_is_undefined():
    values = labels((26000, *SQUARE))
    none = average_precision(values, [])
    assert none["AP"] == 0.0 and none["classes"]["person"]["AP"] is None
    found = average_precision(labels(), [result(*HIT)])
    assert found["AP"] is None and found["AP50"] is None
    assert evaluate_cityscapes(lambda _: values, [], [], THINGS)["AP"] is None
    assert len(OVERLAPS) == 10 and OVERLAPS[0] == 0.5 and OVERLAPS[-1] == 0.95


def test_the_curve_is_integrated_by_trapezoids():
    assert area_under_curve([0.9], [], 0) == 1.0
    assert area_under_curve([0.9], [], 1) == 0.5  # one of two found
    assert area_under_curve([0.8], [0.9], 0) == pytest.approx(0.25)  # from (0, 0) to (1, 1/2)
    assert area_under_curve([0.9], [0.8], 0) == pytest.approx(1.0)  # the miss comes after full recall
    assert area_under_curve([0.9], [0.9], 0) == pytest.approx(0.75)  # equal scores are one point, (1, 1/2)
    assert area_under_curve([0.9], [0.9], 1) == pytest.approx(0.375)  # from (0, 1) to (1/2, 1/2)
    assert area_under_curve([0.9, 0.7], [0.8], 0) == pytest.approx(STAIR)
    assert area_under_curve([], [], 3) == 0.0 and area_under_curve([], [0.4], 3) == 0.0


def test_classes_are_averaged_and_empty_masks_left_out():
    values = labels((26000, *SQUARE), (24000, *OTHER))
    found = average_precision(values, [result(*HIT), result(PERSON, 0.9, 0, 0, 0, 0)])
    assert found["AP"] == 0.5 and found["classes"]["person"] == {"AP": 0.0, "AP50": 0.0}


def reference(pictures: list[tuple[np.ndarray, list[dict]]], label: int, overlap: float) -> float | None:
    """AP of one class at one overlap, picture by picture and mask by mask, from the benchmark's words."""
    points, instances, any_prediction = [], 0, False
    for values, results in pictures:
        masks = [(r["score"], decode_rle(r["segmentation"])) for r in results if r["category_id"] == label]
        any_prediction |= bool(masks)
        things = [values == v for v in np.unique(values) if v == label or v // 1000 == label]
        single = [m.sum() >= 100 and values[m][0] >= 1000 for m in things]
        instances += sum(single)

        def iou(a, b):
            return (a & b).sum() / (a | b).sum()

        for thing, counts in zip(things, single):
            scores = sorted((s for s, m in masks if iou(m, thing) > overlap), reverse=True)
            if counts and scores:
                points += [(scores[0], 1), *((s, 0) for s in scores[1:])]
        background = np.isin(values, [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30])
        for score, mask in masks:
            if not any(iou(mask, thing) > overlap for thing in things):
                excused = background | np.any([t for t, c in zip(things, single) if not c] or [background], axis=0)
                if (mask & excused).sum() / mask.sum() <= overlap:
                    points.append((score, 0))
    if not instances:
        return None
    if not any_prediction or not points:
        return 0.0
    curve = []
    for threshold in sorted({score for score, _ in points}):
        kept = [hit for score, hit in points if score >= threshold]
        curve.append((sum(kept) / len(kept), sum(kept) / instances))
    curve.append((1.0, 0.0))
    return sum((p + q) / 2 * (r - s) for (p, r), (q, s) in zip(curve, curve[1:]))


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_rules_on_random_scenes(seed):
    rng = np.random.default_rng(seed)
    pictures, everything = [], []
    for picture in range(3):
        blocks = []
        for number in range(7):
            value = int(rng.choice([26000 + number, 24000 + number, 26, 24, 4, 26100 + number]))
            width, height = (int(v) for v in rng.integers(10, 30, 2))
            blocks.append((value, int(rng.integers(0, 80 - width)), int(rng.integers(0, 60 - height)), width, height))
        values, results = labels(*blocks), []
        if picture:
            for value, x, y, width, height in blocks:
                category = int(rng.choice([CAR, PERSON])) if value < 1000 else value // 1000
                score = float(rng.integers(1, 20)) / 20
                for shift in rng.integers(0, 4, int(rng.integers(0, 3))):
                    results.append(result(category, score, x + int(shift), y, width, height))
        pictures.append((values, results))
        everything += [{**r, "image_id": picture} for r in results]
    found = evaluate_cityscapes(lambda i: pictures[i][0], range(3), everything, THINGS)
    for label in (CAR, PERSON):
        expected = [reference(pictures, label, overlap) for overlap in OVERLAPS]
        assert found["classes"][THINGS[label]]["AP"] == pytest.approx(np.mean(expected), abs=1e-9)
        assert found["classes"][THINGS[label]]["AP50"] == pytest.approx(expected[0], abs=1e-9)


def test_coco_keys_stand_beside_it(root):
    dataset = CityscapesDataset(root, "val")
    results = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")}, "score": 0.9}
        for a in dataset.coco["annotations"]
        if not a["iscrowd"]
    ]
    assert evaluate_coco(dataset.coco, results)["segm"]["AP"] == pytest.approx(1.0)
    own = evaluate_cityscapes(lambda i: dataset.instance_ids(i - 1), [1, 2], results, THINGS)
    assert own["AP"] == 1.0 and own["classes"]["truck"]["AP"] is None
