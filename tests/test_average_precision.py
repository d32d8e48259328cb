"""Average precision against pycocotools, and boundary AP against the definition of Cheng et al."""

import copy
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.coco_files import uncompressed
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dynamask.data.coco_format import read_coco, read_results
from dynamask.data.segmentation import segmentation_to_rle
from dynamask.engine.evaluate import class_differences
from dynamask.evaluation.coco_ap import AP_KEYS, evaluate_coco
from dynamask.ops.rle import decode_rle
from dynamask.structures import DynaMaskError

SIZES = [(120, 160), (260, 240), (97, 131)]  # height, width


def compressed(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def ellipse(shape, centre, radii):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1


def blob(rng, shape):
    centre = rng.uniform(0.1, 0.9, 2) * shape
    radii = np.exp(rng.uniform(np.log(3), np.log(90), 2))
    return centre, radii


def polygon_of(centre, radii):
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = np.stack([centre[1] + radii[1] * np.cos(angle), centre[0] + radii[0] * np.sin(angle)], axis=1)
    return [round(float(v), 2) for v in points.ravel()]


def rasterised(segmentation, shape):
    return decode_rle(segmentation_to_rle(segmentation, shape))


def generated(seed):
    """Truths with crowds, polygons, both RLE forms and an empty image; detections near them, with tied scores."""
    rng = np.random.default_rng(seed)
    images = [{"id": 10 + i, "height": SIZES[i % 3][0], "width": SIZES[i % 3][1]} for i in range(12)]
    categories = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}, {"id": 90, "name": "never there"}]
    annotations, results = [], []

    def detect(image, category, centre, radii):
        shape = (image["height"], image["width"])
        mask = ellipse(shape, centre + rng.normal(0, 0.08, 2) * radii, radii * rng.uniform(0.8, 1.2, 2))
        if mask.any():
            box = coco_mask.toBbox(compressed(mask)) + rng.normal(0, 0.5, 4)
            box[2:] = np.maximum(box[2:], 1)
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": category,
                    "score": round(float(rng.uniform()), 1),
                    "bbox": box.tolist(),
                    "segmentation": compressed(mask),
                }
            )

    for position, image in enumerate(images):
        shape = (image["height"], image["width"])
        for j in range(0 if position % 4 == 3 else 7):
            centre, radii = blob(rng, shape)
            mask, category, crowd = ellipse(shape, centre, radii), [3, 7][j % 2], int(j == 5)
            if not mask.any():
                continue
            outline = [polygon_of(centre, radii)] if j % 3 else compressed(mask)
            segmentation = uncompressed(mask) if crowd else outline
            pixels = rasterised(segmentation, shape)
            if not pixels.any():
                continue
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": image["id"],
                    "category_id": category,
                    "iscrowd": crowd,
                    "area": float(pixels.sum()),
                    "bbox": coco_mask.toBbox(compressed(pixels)).tolist(),
                    "segmentation": segmentation,
                }
            )
            for _ in range(rng.integers(0, 4) if not crowd else 6):
                detect(image, category, centre, radii)
        detect(image, 7, *blob(rng, shape))  # a false alarm, in the empty images too
    return {"images": images, "annotations": annotations, "categories": categories}, results


def reference(annotations, results, iou_type):
    """pycocotools' figures; masks are judged without the box, so that its area is the mask's."""
    truth = COCO()
    truth.dataset = copy.deepcopy(annotations)
    truth.createIndex()
    results = copy.deepcopy(results)
    if iou_type == "segm":
        for result in results:
            result.pop("bbox", None)
    evaluator = COCOeval(truth, truth.loadRes(results), iou_type)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return {key: None if value == -1 else value for key, value in zip(AP_KEYS, evaluator.stats[:6].tolist())}


def assert_same(ours, theirs):
    assert list(ours) == list(AP_KEYS)
    for key in AP_KEYS:
        assert ours[key] == (None if theirs[key] is None else pytest.approx(theirs[key], abs=1e-12)), key


@pytest.mark.parametrize("seed", range(1, 5))
def test_equals_pycocotools(seed):
    annotations, results = generated(seed)
    assert any(a["iscrowd"] for a in annotations["annotations"])
    before = copy.deepcopy((annotations, results))
    found = evaluate_coco(annotations, results, ("bbox", "segm"))
    assert_same(found["bbox"], reference(annotations, results, "bbox"))
    assert_same(found["segm"], reference(annotations, results, "segm"))
    assert all(found[iou_type][key] > 0 for iou_type in found for key in AP_KEYS)
    assert all(found[iou_type]["AP"] < 0.9 for iou_type in found)
    assert (annotations, results) == before


def test_equals_pycocotools_without_boxes_and_with_masks_in_every_form(tmp_path):
    annotations, results = generated(5)
    sizes = {image["id"]: (image["height"], image["width"]) for image in annotations["images"]}
    rng = np.random.default_rng(0)
    for i, result in enumerate(results):
        del result["bbox"]
        shape = sizes[result["image_id"]]
        if i % 3 == 1:
            result["segmentation"] = uncompressed(rasterised(result["segmentation"], shape))
        elif i % 3 == 2:
            result["segmentation"] = [polygon_of(*blob(rng, shape)), polygon_of(*blob(rng, shape))]
    as_rle = [{**r, "segmentation": compressed(rasterised(r["segmentation"], sizes[r["image_id"]]))} for r in results]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    for given in (results, read_results(path, read_coco(annotations, need_files=False).listing)):
        found = evaluate_coco(annotations, given, ("bbox", "segm"))
        assert_same(found["bbox"], reference(annotations, as_rle, "bbox"))
        assert_same(found["segm"], reference(annotations, as_rle, "segm"))


def test_more_than_a_hundred_detections_in_an_image():
    annotations, results = generated(6)
    rng = np.random.default_rng(1)
    results = [{**r, "score": float(rng.uniform())} for r in results for _ in range(40)]
    found = evaluate_coco(annotations, results, ("segm",))
    assert_same(found["segm"], reference(annotations, results, "segm"))


def test_image_ids_restrict_truths_and_results():
    annotations, results = generated(7)
    chosen = [10, 13, 15]
    found = evaluate_coco(annotations, results, ("segm",), image_ids=chosen)
    part = {
        **annotations,
        "images": [i for i in annotations["images"] if i["id"] in chosen],
        "annotations": [a for a in annotations["annotations"] if a["image_id"] in chosen],
    }
    assert_same(found["segm"], reference(part, [r for r in results if r["image_id"] in chosen], "segm"))
    with pytest.raises(DynaMaskError, match="999"):
        evaluate_coco(annotations, results, image_ids=[10, 999])


def test_no_results_is_zero_and_no_truth_is_undefined():
    annotations, results = generated(1)
    found = evaluate_coco(annotations, [])
    assert list(found) == ["bbox", "segm", "boundary"]
    assert all(found[iou_type][key] == 0.0 for iou_type in found for key in AP_KEYS)
    found = evaluate_coco({**annotations, "annotations": []}, results)
    assert all(found[iou_type][key] is None for iou_type in found for key in AP_KEYS)
    crowds = [a for a in annotations["annotations"] if a["iscrowd"]]
    found = evaluate_coco({**annotations, "annotations": crowds}, results)
    assert crowds and all(found[iou_type]["AP"] is None for iou_type in found)
    only_small = [a for a in annotations["annotations"] if a["area"] < 32**2]
    found = evaluate_coco({**annotations, "annotations": only_small}, results)
    assert found["segm"]["APS"] is not None and found["segm"]["APL"] is None


def test_truth_with_id_zero_can_be_found():
    annotations, _ = generated(10)
    truths = [{**a, "id": i} for i, a in enumerate(a for a in annotations["annotations"] if not a["iscrowd"])]
    perfect = [{key: a[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 0.9} for a in truths]
    found = evaluate_coco({**annotations, "annotations": truths}, perfect)
    assert all(found[iou_type]["AP"] == pytest.approx(1) for iou_type in found)


def cheng_boundary(mask, ratio=0.02):
    """Mask minus its erosion by repeated 3x3 minima, zeros outside the image (Cheng et al., CVPR 2021)."""
    height, width = mask.shape
    eroded = mask
    for _ in range(max(1, round(ratio * float(np.hypot(height, width))))):
        padded = np.pad(eroded, 1)
        eroded = np.all([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    return mask & ~eroded


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4, 6])
def test_boundary_ap_follows_the_definition(shift):
    shape = (120, 160)  # diagonal 200: 4 pixels
    truth = np.zeros(shape, bool)
    truth[0:60, 20:90] = True  # cut off by the upper border of the image
    found = np.roll(truth, shift, axis=1)
    rim_a, rim_b = cheng_boundary(truth), cheng_boundary(found)
    iou = min((rim_a & rim_b).sum() / (rim_a | rim_b).sum(), (truth & found).sum() / (truth | found).sum())
    annotations = {
        "images": [{"id": 1, "height": 120, "width": 160}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": compressed(truth)}],
    }
    results = [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": compressed(found)}]
    passed = sum(iou >= threshold for threshold in np.linspace(0.5, 0.95, 10))
    assert evaluate_coco(annotations, results, ("boundary",))["boundary"]["AP"] == pytest.approx(passed / 10)


def test_truths_without_area_are_skipped_with_one_warning():
    annotations, results = generated(12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = evaluate_coco(annotations, results)
    extra = [
        {"id": 1, "image_id": 10, "category_id": 3, "bbox": [5, 5, 0, 9], "area": 0, "segmentation": [[5, 5, 5, 14]]},
        {"id": 2, "image_id": 10, "category_id": 3, "bbox": [5, 5, 2, 2], "area": 4, "segmentation": []},
        {"id": 3, "image_id": 11, "category_id": 7, "segmentation": compressed(np.zeros((260, 240), bool))},
    ]
    with pytest.warns(UserWarning, match="skipped 3 annotations") as caught:
        after = evaluate_coco({**annotations, "annotations": annotations["annotations"] + extra}, results)
    assert len(caught) == 1 and after == before


def good_set():
    mask = np.zeros((20, 30), bool)
    mask[5:15, 5:20] = True
    annotations = {
        "images": [{"id": 1, "height": 20, "width": 30}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": compressed(mask)}],
    }
    return annotations, {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": compressed(mask)}


def test_unknown_iou_type_and_foreign_annotations_are_refused():
    annotations, result = good_set()
    with pytest.raises(DynaMaskError, match="keypoints"):
        evaluate_coco(annotations, [result], ("keypoints",))
    for broken in ({}, [], {**annotations, "images": [3]}, {**annotations, "categories": None}):
        with pytest.raises(DynaMaskError):
            evaluate_coco(broken, [result])
    lost = {**annotations, "annotations": [{**annotations["annotations"][0], "image_id": 4}]}
    with pytest.raises(DynaMaskError, match="annotation 1 "):
        evaluate_coco(lost, [result])
    boxes_only = [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [5, 5, 15, 10]}]
    assert evaluate_coco(annotations, boxes_only, ("bbox",))["bbox"]["AP"] == pytest.approx(1)
    with pytest.raises(DynaMaskError, match="segmentation"):
        evaluate_coco(annotations, boxes_only, ("bbox", "segm"))


def test_images_with_more_objects_than_are_counted_are_named():
    square = {"image_id": 1, "category_id": 1}
    truths = [{**square, "segmentation": [[4 * i, 0, 4 * i + 3, 0, 4 * i + 3, 9, 4 * i, 9]]} for i in range(101)]
    coco = {
        "images": [{"id": 1, "width": 420, "height": 10}],
        "annotations": truths,
        "categories": [{"id": 1, "name": "cell"}],
    }
    with pytest.warns(UserWarning, match=r"at most 100 detections .* \(image 1 has 101\)"):
        evaluate_coco(coco, [], ["segm"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_coco({**coco, "annotations": truths[:100]}, [], ["segm"])


def test_differences_between_the_classes_of_weights_and_data_are_said():
    def sides(ours, theirs):
        return SimpleNamespace(class_names=("bg", *ours)), SimpleNamespace(class_names=("bg", *theirs))

    assert class_differences(*sides("ab", "ba")) is None
    said = class_differences(*sides(["box", "Disc"], ["box", "disc", "star"]))
    assert "the weights lack disc, star" in said and "lack Disc of the weights" in said and "'Disc' and 'disc'" in said
    assert "lack b, c, d, e, f and 2 more classes" in class_differences(*sides("abcdefgh", "a"))
