"""The check of a data set: what it holds, every broken thing by its name, and the loader's own opinion of it."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from dynamask import cli
from dynamask.data.check import check_data
from dynamask.data.coco import CocoDataset
from dynamask.data.findings import ERRORS, WARNINGS
from dynamask.structures import DynaMaskError

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


def sound():
    """Three pictures of 64 x 48, the last without an object; a square, a plate of 40 x 36 and a crowd."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in (1, 2, 3)],
        "categories": [{"id": 5, "name": "square"}, {"id": 9, "name": "plate"}, {"id": 11, "name": "never"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "segmentation": SQUARE, "bbox": [10, 10, 20, 20], "area": 400},
            {
                "id": 2, "image_id": 2, "category_id": 9, "bbox": [2, 4, 40, 36], "area": 1440.0, "iscrowd": 0,
                "segmentation": [[2, 4, 42, 4, 42, 40, 2, 40]],
            },
            {
                "id": 3, "image_id": 2, "category_id": 5, "iscrowd": 1, "bbox": [0, 0, 64, 48], "area": 40,
                "segmentation": {"size": [48, 64], "counts": [0, 48 * 64]},
            },
        ],
    }  # fmt: skip


@pytest.fixture
def world(tmp_path):
    """The pictures of `sound`, and a function that writes annotations beside them."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in (1, 2, 3):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")

    def write(coco):
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(coco), encoding="utf-8")
        return path

    return folder, write


def test_a_sound_set_and_what_it_holds(world):
    folder, write = world
    report = check_data(write(sound()), folder)
    assert report["findings"] == [] and report["usable"] and report["errors"] == report["warnings"] == 0
    assert (report["images"], report["pictures_read"], report["images_without_object"]) == (3, 3, 1)
    assert (report["annotations"], report["instances"], report["crowds"]) == (3, 2, 1)
    assert report["categories"] == 3 and report["classes"] == {"square": 1, "plate": 1, "never": 0}
    assert report["object_sizes"] == {"small": 1, "medium": 1, "large": 0}
    assert report["image_sizes"]["width"] == [64.0] * 5
    assert report["box_sizes"]["width"] == [20, 25, 30, 35, 40]
    assert report["box_sizes"]["side"][0] == 20 and report["box_sizes"]["side"][4] == pytest.approx(1440**0.5)
    assert check_data(write(sound()))["pictures_read"] is None


def test_what_may_be_left_out(world):
    folder, write = world
    coco = sound()
    for annotation in coco["annotations"]:
        for key in ("id", "bbox", "area"):
            del annotation[key]
    report = check_data(write(coco), folder)
    assert report["findings"] == [] and report["box_sizes"]["width"][0] == 20


def change(where, index, **values):
    """A breaking: put values into one entry; a value of ... deletes the key."""

    def apply(coco, folder):
        for key, value in values.items():
            if value is ...:
                del coco[where][index][key]
            else:
                coco[where][index][key] = value

    return apply


def add(where, entry):
    return lambda coco, folder: coco[where].append(entry)


def truncate(coco, folder):
    data = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(data[: len(data) // 2])


def resize(coco, folder):
    Image.new("RGB", (63, 48)).save(folder / "2.png")


NOTES, IMAGES, CLASSES = "annotations", "images", "categories"
BROKEN = {
    "image is no object": (add(IMAGES, 7), "image_entry"),
    "image without id": (change(IMAGES, 2, id=...), "image_entry"),
    "image without name": (change(IMAGES, 2, file_name=""), "image_entry"),
    "image without width": (change(IMAGES, 2, width=0), "image_entry"),
    "image id twice": (add(IMAGES, {"id": 1, "file_name": "3.png", "height": 48, "width": 64}), "duplicate_id"),
    "file twice": (change(IMAGES, 2, file_name="./1.png"), "duplicate_file_name"),
    "category without name": (change(CLASSES, 2, name=None), "category_entry"),
    "category id twice": (add(CLASSES, {"id": 5, "name": "again"}), "duplicate_id"),
    "class name twice": (change(CLASSES, 2, name="plate"), "duplicate_class_name"),
    "annotation id twice": (change(NOTES, 1, id=1), "duplicate_id"),
    "annotation id no integer": (change(NOTES, 1, id="2"), "annotation_entry"),
    "unknown image": (change(NOTES, 0, image_id=77), "unknown_image"),
    "image id is a list": (change(NOTES, 0, image_id=[1]), "unknown_image"),
    "unknown category": (change(NOTES, 0, category_id=6), "unknown_category"),
    "crowd flag": (change(NOTES, 0, iscrowd=2), "annotation_entry"),
    "box of three": (change(NOTES, 0, bbox=[1, 2, 3]), "annotation_entry"),
    "area is nan": (change(NOTES, 0, area=float("nan")), "annotation_entry"),
    "no segmentation": (change(NOTES, 0, segmentation=...), "bad_segmentation"),
    "segmentation is text": (change(NOTES, 0, segmentation="square"), "bad_segmentation"),
    "odd polygon": (change(NOTES, 0, segmentation=[SQUARE[0][:7]]), "bad_segmentation"),
    "polygon far away": (change(NOTES, 0, segmentation=[[1e6, 0, 1e6, 9, 0, 9]]), "bad_segmentation"),
    "run lengths of another size": (
        change(NOTES, 0, segmentation={"size": [4, 4], "counts": [16]}),
        "bad_segmentation",
    ),
    "run lengths too short": (change(NOTES, 0, segmentation={"size": [48, 64], "counts": [9]}), "bad_segmentation"),
    "compressed nonsense": (change(NOTES, 0, segmentation={"size": [48, 64], "counts": "~"}), "bad_segmentation"),
    "polygon of two points": (change(NOTES, 0, segmentation=[*SQUARE, [1, 1, 2, 2]]), "short_polygon"),
    "mask beside the picture": (change(NOTES, 0, segmentation=[[70, 50, 80, 50, 80, 60]]), "zero_area_mask"),
    "box without width": (change(NOTES, 0, bbox=[10, 10, 0, 20]), "zero_area_box"),
    "box beside the picture": (change(NOTES, 0, bbox=[90, 10, 20, 20]), "zero_area_box"),
    "box leaves the picture": (change(NOTES, 1, bbox=[2, 4, 70, 36]), "box_outside_picture"),
    "box too small": (change(NOTES, 0, bbox=[10, 10, 20, 12]), "box_misses_mask"),
    "area of something else": (change(NOTES, 0, area=4000), "area_mismatch"),
    "picture missing": (lambda coco, folder: (folder / "2.png").unlink(), "picture_missing"),
    "picture empty": (lambda coco, folder: (folder / "2.png").write_bytes(b""), "picture_unreadable"),
    "picture truncated": (truncate, "picture_unreadable"),
    "picture of another size": (resize, "picture_size"),
    "picture elsewhere": (change(IMAGES, 2, file_name="../3.png"), "picture_outside_folder"),
}


def loads(path, folder):
    """Whether the data set and all of its pictures can be loaded."""
    try:
        dataset = CocoDataset(folder, path)
        for index in range(len(dataset)):
            dataset[index]
    except DynaMaskError:
        return False
    return True


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("breaking", BROKEN)
def test_each_broken_thing_is_found_and_as_grave_as_the_loader_says(world, breaking):
    folder, write = world
    apply, kind = BROKEN[breaking]
    coco = copy.deepcopy(sound())
    apply(coco, folder)
    path = write(coco)
    report = check_data(path, folder)
    found = [finding["kind"] for finding in report["findings"]]
    assert kind in found and set(report["finding_counts"]) == set(found)
    assert all(finding["where"] and finding["problem"] for finding in report["findings"])
    assert loads(path, folder) == (report["errors"] == 0)
    assert report["usable"]


def test_every_kind_is_broken_here():
    labels = {"labels_missing", "labels_unreadable", "unknown_label"}  # of Cityscapes; see test_layouts.py
    assert {kind for _, kind in BROKEN.values()} == {*ERRORS, *WARNINGS} - labels - {"bad_result"}


def test_all_findings_are_listed_and_what_is_left_is_counted(world, capsys):
    folder, write = world
    coco = sound()
    coco["annotations"] += [
        {"id": 10 + i, "image_id": 99, "category_id": 99, "segmentation": SQUARE} for i in range(30)
    ]
    truncate(coco, folder)
    (folder / "3.png").unlink()
    path = write(coco)
    assert cli.main(["data", "check", "--annotations", str(path), "--images", str(folder), "--json", "-"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["finding_counts"] == {
        "unknown_image": 30, "unknown_category": 30, "picture_unreadable": 1, "picture_missing": 1,
    }  # fmt: skip
    assert report["errors"] == 62 and report["instances"] == 2 and report["pictures_read"] == 1
    assert "picture 2.png is truncated or damaged" in printed.err and "… and 10 more" in printed.err
    assert str(folder / "2.png") not in report["findings"][-2]["problem"]


def test_sound_data_say_so(world, capsys):
    folder, write = world
    path = write(sound())
    assert cli.main(["data", "check", "--data", str(path.parent)]) == 0
    lines = capsys.readouterr().out
    assert "nothing is broken" in lines and "2 instances and 1 crowd regions" in lines and "plate 1" in lines


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"images": [], "annotations": []}', '{"images": {}}', None])
def test_what_is_not_coco_is_one_line(tmp_path, capsys, text):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    assert cli.main(["data", "check", "--annotations", str(path), "--json", str(tmp_path / "out.json")]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("dynamask: error: ") and printed.err.count("\n") == 1 and "a.json" in printed.err
    assert not (tmp_path / "out.json").exists()


def test_nothing_usable_is_an_error_after_the_list(world, capsys):
    folder, write = world
    coco = sound()
    for annotation in coco["annotations"]:
        annotation["category_id"] = 1
    assert cli.main(["data", "check", "--annotations", str(write(coco))]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "nothing in" in printed.err
    assert "unknown_category (3)" in printed.out
    with pytest.raises(DynaMaskError, match="picture folder"):
        check_data(write(coco), folder / "none")
