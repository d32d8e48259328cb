"""The data set of a COCO file: items, labels, crowds, orientation, and the published split."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from dynamask.data import CocoDataset, split_by_image_id
from dynamask.structures import DynaMaskError

SQUARE = [[2, 1, 6, 1, 6, 5, 2, 5]]  # rows 1-4, columns 2-5
CROWD = {"size": [8, 10], "counts": [0, 80]}


def annotation(number: int, category_id: int = 3, **fields) -> dict:
    entry = {"id": number, "image_id": 7, "category_id": category_id, "area": 16.0, "bbox": [2, 1, 4, 4]}
    return {**entry, "segmentation": SQUARE, **fields}


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

    def put(content: dict) -> tuple[Path, Path]:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return tmp_path / "images", path

    return put


def test_item_has_the_promised_shapes_and_values(coco, write):
    dataset = CocoDataset(*write(coco))
    assert dataset.image_ids == [7, 2] and len(dataset) == 2
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


def test_picture_without_objects(coco, write):
    image, target = CocoDataset(*write(coco))[1]
    assert image.shape == (3, 6, 5) and target["image_id"] == 2
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 6, 5) and target["labels"].shape == (0,)
    assert target["masks"].dtype == torch.uint8 and target["labels"].dtype == torch.int64


def test_crowds_are_for_evaluation_only(coco, write):
    coco["annotations"].append(annotation(3, iscrowd=1, segmentation=CROWD, bbox=[0, 0, 10, 8], area=80))
    paths = write(coco)
    assert CocoDataset(*paths)[0][1]["iscrowd"].tolist() == [0, 0]
    dataset = CocoDataset(*paths, include_crowd=True)
    assert dataset[0][1]["iscrowd"].tolist() == [0, 0, 1] and dataset[0][1]["masks"][2].all()
    assert len(CocoDataset(*paths).coco["annotations"]) == 3


def test_boxes_are_clipped_to_the_picture(coco, write):
    coco["annotations"] = [annotation(1, bbox=[-3, -2, 20, 5])]
    assert CocoDataset(*write(coco))[0][1]["boxes"].tolist() == [[0, 0, 10, 3]]


def test_picture_of_another_size_is_refused_and_exif_is_followed(coco, write):
    folder, path = write(coco)
    dataset = CocoDataset(folder, path)
    Image.new("RGB", (11, 8)).save(folder / "a.png")
    for read in (lambda: dataset[0], lambda: CocoDataset(folder, path)):
        with pytest.raises(DynaMaskError, match="11 x 8 pixels and not 10 x 8"):
            read()
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
