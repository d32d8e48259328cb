"""LVIS v1: what is read and refused, and the federated AP against an implementation written from the paper."""

import json

import numpy as np
import pytest
from helpers.coco_files import rectangle
from PIL import Image

from dynamask.data.check import check_data
from dynamask.data.coco import CocoDataset, merge_categories
from dynamask.data.coco_format import read_coco
from dynamask.engine.scoring import average_precision
from dynamask.evaluation.coco_ap import evaluate_coco
from dynamask.evaluation.lvis import evaluate_lvis
from dynamask.structures import DynaMaskError

SIDE = 140
SIZE = (SIDE, SIDE)
AREAS = {"all": (0, 1e10), "S": (0, 32**2), "M": (32**2, 96**2), "L": (96**2, 1e10)}


def random_place(rng) -> tuple[int, int, int, int]:
    width, height = (int(v) for v in rng.integers(6, 125, 2))
    return int(rng.integers(0, SIDE - width)), int(rng.integers(0, SIDE - height)), width, height


def random_set(seed: int, categories: int = 6, images: int = 5) -> tuple[dict, list[dict]]:
    """Federated annotations, and detections that are moved truths, false alarms and things on unknown categories."""
    rng = np.random.default_rng(seed)
    coco = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 10 * c, "name": f"c{c}", "frequency": "rcf"[c % 3]} for c in range(1, categories + 1)],
    }
    ids = [category["id"] for category in coco["categories"]]
    results = []
    for image_id in range(1, images + 1):
        positive = set(rng.choice(ids, 3, replace=False).tolist()) if image_id > 1 else set()
        others = [c for c in ids if c not in positive]
        negative = [c for c in others if rng.random() < 0.5]
        open_ended = [c for c in positive if rng.random() < 0.4]
        image = {"id": image_id, "file_name": f"{image_id}.png", "width": SIDE, "height": SIDE}
        federated = {"neg_category_ids": negative, "not_exhaustive_category_ids": open_ended}
        coco["images"].append(image | federated)
        for category in positive:
            for _ in range(int(rng.integers(1, 4))):
                place = random_place(rng)
                owner = {"image_id": image_id, "category_id": int(category)}
                truth = {**owner, "iscrowd": 0, "area": place[2] * place[3], **rectangle(SIZE, *place)}
                coco["annotations"].append({"id": len(coco["annotations"]) + 1, **truth})
                if rng.random() < 0.8:
                    moved = (*(max(0, v + int(rng.integers(-2, 3))) for v in place[:2]), place[2] - 1, place[3] - 1)
                    results.append({**owner, **rectangle(SIZE, *moved)})
        for category in rng.choice(ids, 6).tolist():
            results.append({"image_id": image_id, "category_id": category, **rectangle(SIZE, *random_place(rng))})
    scores = rng.permutation(len(results)) / (len(results) + 1)
    return coco, [{**result, "score": float(score)} for result, score in zip(results, scores)]


def overlap(first: dict, second: dict) -> float:
    """Box IoU of xywh boxes, which for rectangles is the mask IoU."""
    (x0, y0, w0, h0), (x1, y1, w1, h1) = first["bbox"], second["bbox"]
    both = max(0, min(x0 + w0, x1 + w1) - max(x0, x1)) * max(0, min(y0 + h0, y1 + h1) - max(y0, y1))
    return both / (w0 * h0 + w1 * h1 - both)


def naive_category(coco: dict, results: list[dict], category: int, threshold: float, area: tuple) -> float | None:
    """AP of one category at one IoU, from the paper's words and COCO's matching."""
    marks, sought = [], 0
    for image in coco["images"]:
        truths = [t for t in coco["annotations"] if (t["image_id"], t["category_id"]) == (image["id"], category)]
        outside = [not area[0] <= t["area"] <= area[1] for t in truths]
        sought += outside.count(False)
        if not truths and category not in image["neg_category_ids"]:
            continue  # unknown on this picture: its detections do not count
        found = [r for r in results if (r["image_id"], r["category_id"]) == (image["id"], category)]
        taken = set()
        for result in sorted(found, key=lambda r: -r["score"]):
            free = [i for i in range(len(truths)) if i not in taken and overlap(result, truths[i]) >= threshold]
            free.sort(key=lambda i: (outside[i], -overlap(result, truths[i])))
            if free:
                taken.add(free[0])
                if not outside[free[0]]:
                    marks.append((result["score"], True))
                continue
            size = result["bbox"][2] * result["bbox"][3]
            if category not in image["not_exhaustive_category_ids"] and area[0] <= size <= area[1]:
                marks.append((result["score"], False))
    if not sought:
        return None
    right = np.cumsum([hit for _, hit in sorted(marks, key=lambda m: -m[0])]) if marks else np.zeros(0)
    precision = right / np.arange(1, len(right) + 1)
    recall = right / sought
    return float(np.mean([max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)]))


def naive(coco: dict, results: list[dict]) -> dict[str, float | None]:
    """The nine figures."""
    kept = []
    for image in coco["images"]:
        own = [r for r in results if r["image_id"] == image["id"]]
        kept += sorted(own, key=lambda r: -r["score"])[:300]

    def mean(thresholds, area="all", letters="rcf"):
        values = [
            naive_category(coco, kept, c["id"], t, AREAS[area])
            for t in thresholds
            for c in coco["categories"]
            if c["frequency"] in letters
        ]
        values = [value for value in values if value is not None]
        return float(np.mean(values)) if values else None

    every = np.linspace(0.5, 0.95, 10)
    return {
        "AP": mean(every),
        "AP50": mean([0.5]),
        "AP75": mean([0.75]),
        **{f"AP{area}": mean(every, area) for area in "SML"},
        **{f"AP{letter}": mean(every, letters=letter) for letter in "rcf"},
    }


def assert_same(ours: dict, theirs: dict) -> None:
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert ours[key] == (None if value is None else pytest.approx(value, abs=1e-9)), key


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_rules_of_the_paper(seed):
    coco, results = random_set(seed)
    before = json.dumps([coco, results])
    found = evaluate_lvis(coco, results, ("bbox", "segm"))
    expected = naive(coco, results)
    assert_same(found["segm"], expected)
    assert_same(found["bbox"], expected)  # of rectangles
    assert json.dumps([coco, results]) == before
    assert found["segm"]["AP"] != evaluate_coco(coco, results, ("segm",))["segm"]["AP"], "COCO's rule is another"


def test_no_detection_and_no_annotation():
    coco, results = random_set(1)
    none = evaluate_lvis(coco, [], ("segm",))["segm"]
    assert none["AP"] == 0.0
    assert_same(none, naive(coco, []))
    coco["annotations"] = []
    assert all(value is None for value in evaluate_lvis(coco, results, ("segm", "boundary"))["segm"].values())
    assert all(value is None for value in evaluate_lvis(coco, [])["boundary"].values())


def test_three_hundred_detections_an_image_over_all_categories():
    coco, _ = random_set(2, images=2)
    coco["images"][1]["neg_category_ids"] = [10, 20, 30, 40, 50, 60]
    truth = next(t for t in coco["annotations"] if t["image_id"] == 2)
    right = {
        "image_id": 2,
        "category_id": truth["category_id"],
        "score": 0.1,
        "bbox": truth["bbox"],
        "segmentation": truth["segmentation"],
    }
    other = next(c["id"] for c in coco["categories"] if c["id"] != truth["category_id"])
    many = [{"image_id": 2, "category_id": other, "score": 0.9, **rectangle(SIZE, 1, 1, 9, 9)} for _ in range(300)]
    assert evaluate_lvis(coco, [right, *many[:299]], ("segm",))["segm"]["AP"] > 0
    assert evaluate_lvis(coco, [right, *many], ("segm",))["segm"]["AP"] == 0
    crowd = [{**entry, "category_id": truth["category_id"]} for entry in many[:150]]
    assert_same(evaluate_lvis(coco, [right, *crowd], ("segm",))["segm"], naive(coco, [right, *crowd]))


def test_subset_of_images_and_the_choice_of_rule():
    coco, results = random_set(3)
    some = {**coco, "images": coco["images"][2:4]}
    some["annotations"] = [a for a in coco["annotations"] if a["image_id"] in (3, 4)]
    mine = [r for r in results if r["image_id"] in (3, 4)]
    found = average_precision(coco, results, [3, 4])
    assert found["protocol"] == "lvis"
    assert_same(found["segm"], naive(some, mine))
    assert "protocol" not in average_precision(merge_categories(coco), [], [3]), "merged classes are not federated"


@pytest.fixture
def lvis(tmp_path):
    """A small LVIS root: pictures of both of COCO's folders, named by their address alone."""
    coco, _ = random_set(0, images=2)
    for image, folder in zip(coco["images"], ("train2017", "val2017")):
        del image["file_name"]
        image["coco_url"] = f"http://images.cocodataset.org/{folder}/{image['id']:012d}.jpg"
        (tmp_path / folder).mkdir()
        Image.new("RGB", SIZE).save(tmp_path / folder / f"{image['id']:012d}.jpg")
    for annotation in coco["annotations"]:
        del annotation["iscrowd"]

    def write(content: dict):
        (tmp_path / "lvis_v1_val.json").write_text(json.dumps(content))
        return tmp_path, tmp_path / "lvis_v1_val.json"

    return coco, write


def test_pictures_are_found_by_their_address_and_classes_come_from_the_file(lvis):
    coco, write = lvis
    dataset = CocoDataset(*write(coco))
    assert [file.parent.name for file in dataset.files] == ["train2017", "val2017"]
    assert dataset.class_names[1:] == tuple(f"c{c}" for c in range(1, 7)) and dataset.category_ids[0] == 10
    image, target = dataset[1]
    assert image.shape == (3, SIDE, SIDE) and len(target["boxes"]) == len(target["masks"]) > 0
    assert dataset.coco["images"][1]["neg_category_ids"] == coco["images"][1]["neg_category_ids"]


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda c: c["images"][0].pop("neg_category_ids"), "image 1 has no list neg_category_ids"),
        (lambda c: c["images"][1].pop("not_exhaustive_category_ids"), "image 2 has no list not_exhaustive"),
        (lambda c: c["images"][1].update(neg_category_ids=[999]), "image 2 has in neg_category_ids a category"),
        (lambda c: c["categories"][2].pop("frequency"), "category 30 has no frequency"),
        (lambda c: c["images"][0].pop("coco_url"), "image 1 has no file_name"),
    ],
)
def test_files_without_what_lvis_needs_are_refused_and_found_by_the_check(lvis, change, sentence):
    coco, write = lvis
    change(coco)
    folder, path = write(coco)
    with pytest.raises(DynaMaskError, match=sentence) as caught:
        read_coco(path)
    assert str(path) in str(caught.value)
    findings = check_data(path, folder)["findings"]
    assert any(f"{f['where']} {f['problem']}".startswith(sentence) for f in findings)
    assert all(f["severity"] == "error" for f in findings if f["kind"] in ("image_entry", "category_entry"))
