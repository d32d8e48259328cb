"""COCO files of all shapes: what is read, what is skipped, what is refused."""

import copy
import hashlib
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from dynamask.data import CocoDataset, read_coco, split_by_image_id
from dynamask.data.segmentation import segmentation_to_rle
from dynamask.structures import DynaMaskError

SQUARE = [[2, 1, 6, 1, 6, 5, 2, 5]]  # rows 1-4, columns 2-5


def runs(mask: np.ndarray) -> list[int]:
    """Uncompressed COCO run lengths of a 0/1 mask, written from the format's definition."""
    flat = mask.flatten(order="F").tolist()
    counts, value = [0], 0
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def annotation(number: int, image_id: int = 7, category_id: int = 3, **fields) -> dict:
    entry = {"id": number, "image_id": image_id, "category_id": category_id, "iscrowd": 0, "area": 16.0,
             "bbox": [2, 1, 4, 4], "segmentation": SQUARE}  # fmt: skip
    return {**entry, **fields}


@pytest.fixture
def coco() -> dict:
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 10, "height": 8},
            {"id": 2, "file_name": "sub/b.png", "width": 5, "height": 6},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        "annotations": [annotation(1), annotation(2, category_id=90)],
    }


@pytest.fixture
def write(tmp_path):
    """Write pictures and a COCO dict; returns the arguments of `CocoDataset`."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (10, 8), (9, 8, 7)).save(tmp_path / "images" / "a.png")
    Image.new("RGB", (5, 6)).save(tmp_path / "images" / "sub" / "b.png")

    def put(content) -> tuple[Path, Path]:
        path = tmp_path / "annotations.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / "images", path

    return put


def test_item_has_the_promised_shapes_and_values(coco, write):
    dataset = CocoDataset(*write(coco))
    image, target = dataset[0]
    assert image.shape == (3, 8, 10) and image.dtype == torch.uint8 and image[:, 0, 0].tolist() == [9, 8, 7]
    assert target["boxes"].tolist() == [[2, 1, 6, 5]] * 2 and target["boxes"].dtype == torch.float32
    expected = torch.zeros(8, 10, dtype=torch.uint8)
    expected[1:5, 2:6] = 1
    assert torch.equal(target["masks"], torch.stack([expected] * 2)) and target["masks"].dtype == torch.uint8
    assert target["image_id"] == 7 and target["area"].tolist() == [16, 16] and target["iscrowd"].tolist() == [0, 0]


def test_labels_are_contiguous_in_order_of_the_category_ids(coco, write):
    dataset = CocoDataset(*write(coco))
    assert dataset.class_names == ("__background__", "car", "toothbrush") and dataset.category_ids == (3, 90)
    assert dataset[0][1]["labels"].tolist() == [1, 2]
    assert dataset.image_ids == [7, 2] and len(dataset) == 2


def test_picture_without_objects(coco, write):
    image, target = CocoDataset(*write(coco))[1]
    assert image.shape == (3, 6, 5) and target["image_id"] == 2
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 6, 5) and target["labels"].shape == (0,)
    assert target["masks"].dtype == torch.uint8 and target["labels"].dtype == torch.int64


def test_polygons_and_both_run_length_forms_agree():
    mask = np.zeros((8, 10), np.uint8)
    mask[1:5, 2:6] = 1
    compressed = coco_mask.encode(np.asfortranarray(mask))["counts"]
    compressed = compressed.decode() if isinstance(compressed, bytes) else compressed
    for segmentation in (
        SQUARE, {"size": [8, 10], "counts": runs(mask)}, {"size": [8, 10], "counts": compressed},
        [*SQUARE, [3, 2, 5, 2, 5, 4]],
    ):  # fmt: skip
        assert np.array_equal(coco_mask.decode(segmentation_to_rle(segmentation, (8, 10))), mask)


def test_crowds_are_for_evaluation_only(coco, write):
    crowd = {"size": [8, 10], "counts": [0, 80]}
    coco["annotations"].append(annotation(3, iscrowd=1, segmentation=crowd, bbox=[0, 0, 10, 8], area=80))
    paths = write(coco)
    assert CocoDataset(*paths)[0][1]["iscrowd"].tolist() == [0, 0]
    dataset = CocoDataset(*paths, include_crowd=True)
    assert dataset[0][1]["iscrowd"].tolist() == [0, 0, 1] and dataset[0][1]["masks"][2].all()
    assert len(CocoDataset(*paths).coco["annotations"]) == 3


def test_zero_area_is_skipped_and_counted_in_one_warning(coco, write):
    coco["annotations"] += [
        annotation(3, bbox=[2, 1, 0, 4]),
        annotation(4, bbox=[12, 1, 3, 3]),  # outside the picture
        annotation(5, segmentation=[]),
        annotation(6, segmentation=[[1, 1, 2, 2]]),  # two points
        annotation(7, segmentation=[[1, 1, 1, 1, 1, 1]]),
        annotation(8, segmentation={"size": [8, 10], "counts": [80]}),
    ]
    before = copy.deepcopy(coco)
    with pytest.warns(UserWarning, match="skipped 6 annotations") as caught:
        dataset = CocoDataset(*write(coco))
    assert len(caught) == 1 and dataset.skipped == 6
    assert len(dataset[0][1]["labels"]) == 2 and [a["id"] for a in dataset.coco["annotations"]] == [1, 2]
    with pytest.warns(UserWarning, match="skipped 6"):
        read_coco(coco)
    assert coco == before


def test_boxes_are_clipped_to_the_picture(coco, write):
    coco["annotations"] = [annotation(1, bbox=[-3, -2, 20, 5])]
    assert CocoDataset(*write(coco))[0][1]["boxes"].tolist() == [[0, 0, 10, 3]]


def test_missing_id_box_area_and_iscrowd_are_derived(coco, write):
    coco["annotations"] = [
        annotation(5),
        {"image_id": 7, "category_id": 3, "segmentation": SQUARE},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = CocoDataset(*write(coco))
    derived = dataset.coco["annotations"][1]
    assert derived["id"] == 6 and derived["bbox"] == [2, 1, 4, 4] and derived["area"] == 16 and not derived["iscrowd"]


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "must be an object"),
        ({"annotations": []}, "'images' is missing"),
        ({"images": [1], "annotations": [], "categories": [{"id": 1, "name": "a"}]}, "is no JSON object"),
        ({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}, "no images"),
    ],
)
def test_what_is_not_coco_is_refused_by_name(content, sentence, write):
    folder, path = write(content)
    with pytest.raises(DynaMaskError, match=sentence) as caught:
        CocoDataset(folder, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda c: c.update(categories=[]), "no categories"),
        (lambda c: c["images"][1].update(id=7), "has the id 7, which another image has; .*different integers"),
        (lambda c: c["images"][1].update(id=True), "which is no integer"),
        (lambda c: c["images"][1].pop("width"), "width and height"),
        (lambda c: c["images"][0].pop("file_name"), "no file_name"),
        (lambda c: c["categories"][0].pop("name"), "no name"),
        (lambda c: c["annotations"][0].update(image_id=99), "image 99, which the file does not list"),
        (lambda c: c["annotations"][0].update(image_id=[7]), "does not list"),
        (lambda c: c["annotations"][0].update(category_id=1), "category 1, which"),
        (lambda c: c["annotations"][1].update(id=1), "different integers"),
        (lambda c: c["annotations"][1].update(iscrowd=2), "iscrowd"),
        (lambda c: c["annotations"][1].update(bbox=[0, 0, float("nan"), 1]), "four finite numbers"),
        (lambda c: c["annotations"][1].update(bbox=[0, 0, 10**400, 1]), "four finite numbers"),
        (lambda c: c["annotations"][1].update(area="16"), "area"),
        (lambda c: c["annotations"][1].pop("segmentation"), "no segmentation"),
        (lambda c: c["annotations"][1].update(segmentation="x"), "neither polygons nor run lengths"),
        (lambda c: c["annotations"][1].update(segmentation=[[1, 2, 3, 4, 5]]), "x, y pairs"),
        (lambda c: c["annotations"][1].update(segmentation=[[0, 0, 1e9, 0, 1e9, 5]]), "far outside"),
        (lambda c: c["annotations"][1].update(segmentation={"size": [4, 4], "counts": [16]}), "another size"),
        (lambda c: c["annotations"][1].update(segmentation={"size": [8, 10], "counts": [3, 4]}), "do not add up"),
        (lambda c: c["annotations"][1].update(segmentation={"size": [8, 10], "counts": "04"}), "do not add up"),
        (lambda c: c["annotations"][1].update(segmentation={"size": [8, 10], "counts": "ooo"}), "cannot be read"),
        (lambda c: c["annotations"][1].update(segmentation={"size": [8, 10], "counts": "\t"}), "cannot be read"),
    ],
)
def test_faults_inside_the_file_are_refused(change, sentence, coco, write):
    change(coco)
    folder, path = write(coco)
    with pytest.raises(DynaMaskError, match=sentence) as caught:
        CocoDataset(folder, path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["../a.png", "sub/../../images/a.png", "{folder}/a.png"])
def test_file_names_that_leave_the_folder_are_refused(name, coco, write):
    folder, path = write(coco)
    coco["images"][0]["file_name"] = name.format(folder=folder)
    with pytest.raises(DynaMaskError, match="outside the folder"):
        CocoDataset(*write(coco))


def test_missing_pictures_and_folders_are_refused(coco, write):
    folder, path = write(coco)
    (folder / "a.png").unlink()
    with pytest.raises(DynaMaskError, match=r"a\.png .* does not exist \(1 of 2"):
        CocoDataset(folder, path)
    with pytest.raises(DynaMaskError, match="picture folder"):
        CocoDataset(folder / "none", path)
    with pytest.raises(DynaMaskError, match="does not exist"):
        read_coco(path.with_name("none.json"))


def test_picture_of_another_size_is_refused_and_exif_is_followed(coco, write):
    folder, path = write(coco)
    Image.new("RGB", (11, 8)).save(folder / "a.png")
    dataset = CocoDataset(folder, path)
    with pytest.raises(DynaMaskError, match="11 x 8 pixels and not 10 x 8"):
        dataset[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    for stored in ((10, 8), (8, 10)):  # annotated as stored, annotated upright
        Image.new("RGB", stored).save(folder / "a.png", exif=exif)
        assert dataset[0][0].shape == (3, 8, 10)


def test_transforms_are_called_on_the_pair(coco, write):
    dataset = CocoDataset(*write(coco), transforms=lambda image, target: (image + 1, {**target, "seen": True}))
    image, target = dataset[0]
    assert image[0, 0, 0] == 10 and target["seen"]


def test_split_follows_the_published_rule(coco, write):
    coco["images"] = [{"id": i, "file_name": "a.png", "width": 10, "height": 8} for i in range(200)]
    coco["annotations"] = []
    dataset = CocoDataset(*write(coco))
    validation, training = split_by_image_id(dataset, True), split_by_image_id(dataset, False)
    assert sorted(validation + training) == list(range(200)) and 10 < len(validation) < 45
    # The last three bits of the digest are those of its last hexadecimal digit.
    expected = [i for i in range(200) if hashlib.sha256(str(i).encode()).hexdigest()[-1] in "08"]
    assert validation == expected


@pytest.mark.skipif(not os.environ.get("DYNAMASK_DATA"), reason="DYNAMASK_DATA is not set")
@pytest.mark.parametrize(
    "name, file, pictures, instances, classes",
    [("people-416", "instances_train.json", 1187, 1509, 1), ("coco-mini", "instances.json", 337, 2838, 80)],
)
def test_real_annotations(name, file, pictures, instances, classes):
    folder = Path(os.environ["DYNAMASK_DATA"]) / name
    dataset = CocoDataset(folder / "images", folder / "annotations" / file)
    assert len(dataset) == pictures and len(dataset.class_names) == classes + 1
    assert len(dataset.coco["annotations"]) + dataset.skipped == instances
    for index in range(0, pictures, 61):
        image, target = dataset[index]
        assert target["masks"].shape[1:] == image.shape[1:]
        for box, mask, area in zip(target["boxes"], target["masks"], target["area"]):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            tight = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            assert (tight - box).abs().max() < 3
            assert abs(int(mask.sum()) - area) < 0.1 * area + 40
