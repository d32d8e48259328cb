"""COCO files: what is read, skipped and refused, and the same findings from reading and from ``data check``."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_files import uncompressed
from PIL import Image

from dynamask import cli
from dynamask.data import CocoDataset, read_coco
from dynamask.data.check import check_data
from dynamask.data.coco_format import read_results
from dynamask.data.findings import ASSUMPTIONS, ERRORS, WARNINGS
from dynamask.data.segmentation import segmentation_to_rle
from dynamask.data.sources import require_objects
from dynamask.evaluation.coco_ap import evaluate_coco
from dynamask.ops.rle import decode_masks, decode_rle, encode_rle, rle_area, rle_box
from dynamask.structures import DynaMaskError

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
MASK = np.zeros((48, 64), dtype=bool)
MASK[10:30, 10:30] = True
COUNTS = encode_rle(MASK)["counts"]


def sound() -> dict:
    """Three pictures of 64 x 48, the last without an object; a square, a plate of 40 x 36 and a crowd."""
    plate = [[2, 4, 42, 4, 42, 40, 2, 40]]
    everything = {"size": [48, 64], "counts": [0, 48 * 64]}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in (1, 2, 3)],
        "categories": [{"id": 5, "name": "square"}, {"id": 9, "name": "plate"}, {"id": 11, "name": "never"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "segmentation": SQUARE, "bbox": [10, 10, 20, 20], "area": 400},
            {"id": 2, "image_id": 2, "category_id": 9, "segmentation": plate, "bbox": [2, 4, 40, 36], "area": 1440.0},
            {
                "id": 3,
                "image_id": 2,
                "category_id": 5,
                "segmentation": everything,
                "bbox": [0, 0, 64, 48],
                "area": 40,
                "iscrowd": 1,
            },
        ],
    }


@pytest.fixture
def world(tmp_path):
    """The pictures of `sound`, and a function that writes annotations beside them."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in (1, 2, 3):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")

    def write(content) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return folder, write


def test_polygons_and_both_run_length_forms_agree():
    rle = {"size": [48, 64], "counts": COUNTS}
    for segmentation in (SQUARE, uncompressed(MASK), rle, [*SQUARE, [12, 12, 20, 12, 20, 20]]):
        found = segmentation_to_rle(segmentation, (48, 64))
        assert np.array_equal(decode_rle(found), MASK) and rle_area(found) == 400
        assert rle_box(found) == [10, 10, 20, 20] and json.dumps(found)
    assert segmentation_to_rle([], (48, 64)) is segmentation_to_rle([[1, 1, 2, 2]], (48, 64)) is None


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_are_decoded_to_the_mask_that_was_encoded(seed):
    rng = np.random.default_rng(seed)
    masks = [rng.random((23, 31)) < share for share in (0.0, 0.02, 0.5, 0.98, 1.0)]
    masks.append(np.kron(rng.random((1, 3)) < 0.5, np.ones((23, 10))).astype(bool)[:, [*range(30), 0]])
    assert np.array_equal(decode_masks([encode_rle(mask) for mask in masks], (23, 31)), np.stack(masks))
    assert decode_masks([], (23, 31)).shape == (0, 23, 31)


def test_a_sound_set_and_what_it_holds(world, capsys):
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
    assert cli.main(["data", "check", "--data", str(folder.parent)]) == 0
    lines = capsys.readouterr().out
    assert "nothing is broken" in lines and "2 instances and 1 crowd regions" in lines and "plate 1" in lines


def test_missing_fields_of_annotations_are_filled_in(world):
    folder, write = world
    coco = sound()
    for annotation in coco["annotations"][:2]:
        for key in ("id", "bbox", "area"):
            del annotation[key]
    before = copy.deepcopy(coco)
    content = read_coco(coco)
    assert coco == before, "the given dict is not changed"
    assert [a["id"] for a in content.coco["annotations"]] == [4, 5, 3]
    derived = content.coco["annotations"][0]
    assert derived["bbox"] == [10, 10, 20, 20] and derived["area"] == 400 and derived["iscrowd"] == 0
    report = check_data(write(coco), folder)
    assert report["findings"] == [] and report["box_sizes"]["width"][0] == 20


def test_annotations_without_area_are_skipped_and_counted_in_one_warning(world):
    folder, write = world
    coco = sound()
    empty = [
        {"bbox": [20, 10, 0, 40]},
        {"bbox": [20, 10, -5, 40]},
        {"bbox": [90, 10, 30, 30]},  # outside the picture
        {"segmentation": []},
        {"segmentation": [[1, 1, 2, 2]]},  # two points
        {"segmentation": [[1, 1, 1, 1, 1, 1]]},
        {"segmentation": {"size": [48, 64], "counts": [48 * 64]}},
    ]
    coco["annotations"] += [{**coco["annotations"][0], "id": 10 + i, **fields} for i, fields in enumerate(empty)]
    with pytest.warns(UserWarning, match="skipped 7 annotations") as caught:
        dataset = CocoDataset(folder, write(coco))
    assert len(caught) == 1 and dataset.skipped == 7
    assert len(dataset[0][1]["labels"]) == 1 and [a["id"] for a in dataset.coco["annotations"]] == [1, 2, 3]


def change(part, index, **values):
    """A fault: put values into one entry; a value of ... deletes the key."""

    def apply(coco, folder):
        for key, value in values.items():
            if value is ...:
                del coco[part][index][key]
            else:
                coco[part][index][key] = value

    return apply


def segmentation(value):
    return change("annotations", 0, segmentation=value)


def add(part, entry):
    return lambda coco, folder: coco[part].append(entry)


def rewrite(name, change_bytes):
    return lambda coco, folder: (folder / name).write_bytes(change_bytes((folder / name).read_bytes()))


def normalise(coco, folder):
    for annotation in coco["annotations"][:2]:
        annotation["segmentation"] = [[v / (64, 48)[i % 2] for i, v in enumerate(annotation["segmentation"][0])]]
        annotation["bbox"] = [0.1, 0.1, 0.2, 0.2]
    del coco["annotations"][2]


def placeholder(coco, folder):
    coco["categories"] = [{"id": 0, "name": "set", "supercategory": "none"}] + [
        {**category, "supercategory": "set"} for category in coco["categories"]
    ]


def exchange_sizes(coco, folder):
    for image in coco["images"]:
        image["width"], image["height"] = image["height"], image["width"]
    coco["annotations"] = [{"image_id": 1, "category_id": 5, "segmentation": [[40, 9, 63, 9, 63, 40]]}]


def turn(name):
    def apply(coco, folder):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(folder / name).save(folder / name, exif=exif)

    return apply


def many(coco, folder):
    square = [[0, 0, 4, 0, 4, 4, 0, 4]]
    coco["annotations"] += [
        {"image_id": 3, "category_id": 5, "segmentation": [[v + i // 2 if k % 2 else v + i for k, v in enumerate(s)]]}
        for i in range(51)
        for s in (square[0], [v + 5 for v in square[0]])
    ]


def crowds_only(coco, folder):
    for annotation in coco["annotations"]:
        annotation["iscrowd"] = 1


NOTES, IMAGES, CLASSES = "annotations", "images", "categories"
TWIN = {"id": 1, "file_name": "3.png", "height": 48, "width": 64}
FAULTS = [
    (add(IMAGES, 7), "image_entry", "image at position 3 is no JSON object"),
    (change(IMAGES, 2, id=...), "image_entry", "has the id None, which is no integer"),
    (change(IMAGES, 2, id=True), "image_entry", "has the id True, which is no integer"),
    (change(IMAGES, 2, file_name=""), "image_entry", "image 3 has no file_name"),
    (change(IMAGES, 2, width=0), "image_entry", "positive integer width and height"),
    (add(IMAGES, TWIN), "duplicate_id", "has the id 1, which another image has; .*different integers"),
    (change(IMAGES, 2, file_name="./1.png"), "duplicate_file_name", None),
    (change(CLASSES, 2, name=None), "category_entry", "category 11 has no name"),
    (add(CLASSES, {"id": 5, "name": "again"}), "duplicate_id", "which another category has"),
    (change(CLASSES, 2, name="plate"), "duplicate_class_name", None),
    (change(NOTES, 1, id=1), "annotation_id", None),
    (change(NOTES, 1, id="first"), "annotation_id", None),
    (change(NOTES, 1, id="2"), "number_format", None),
    (change(IMAGES, 2, width="64"), "number_format", None),
    (change(IMAGES, 2, id=3.0), "number_format", None),
    (change(NOTES, 0, area="400"), "number_format", None),
    (change(NOTES, 0, bbox=["10", "10", 20, 20]), "number_format", None),
    (change(NOTES, 0, bbox=None, area=None, iscrowd=None), "null_field", None),
    (segmentation(SQUARE[0]), "polygon_format", None),
    (segmentation([[10, 10], [30, 10], [30, 30], [10, 30]]), "polygon_format", None),
    (segmentation([[[10, 10], [30, 10], [30, 30], [10, 30]]]), "polygon_format", None),
    (segmentation([{"x": 10, "y": 10}, {"x": 30, "y": 10}, {"x": 30, "y": 30}]), "polygon_format", None),
    (normalise, "normalised_coordinates", None),
    (change(CLASSES, 2, name="never "), "class_name_spaces", None),
    (change(CLASSES, 2, name="Plate"), "similar_class_name", None),
    (placeholder, "placeholder_class", None),
    (change(NOTES, 0, bbox=[0, 0, 0, 0]), "box_from_mask", None),
    (change(NOTES, 0, bbox=[10, 10, 30, 30]), "corner_box", None),
    (change(NOTES, 0, bbox=[0, 0, 64, 48]), "box_far_larger", None),
    (change(NOTES, 0, area=-400), "area_from_mask", None),
    (change(IMAGES, 2, file_name="images\\3.png"), "adapted_file_name", None),
    (change(IMAGES, 2, file_name="C:\\pictures\\3.png"), "adapted_file_name", None),
    (change(IMAGES, 2, file_name="/data/upload/3.PNG"), "adapted_file_name", None),
    (change(IMAGES, 2, file_name="%33.png"), "adapted_file_name", None),
    (exchange_sizes, "size_exchanged", None),
    (turn("2.png"), "exif_ignored", None),
    (add(NOTES, {"id": 4, "image_id": 1, "category_id": 5, "segmentation": SQUARE}), "identical_annotations", None),
    (many, "many_objects", None),
    (crowds_only, "no_objects", "3 are crowd regions"),
    (segmentation([]), "no_segmentation", None),
    (change(IMAGES, 2, width=2**20, height=2**20), "image_entry", "1048576 x 1048576 pixels, more than the 25 million"),
    (change(IMAGES, 2, file_name="3\0.png"), "image_entry", "image 3 has no file_name"),
    (
        segmentation([[i // 2 % 2 * 60 for i in range(200_000)]]),
        "bad_segmentation",
        "100000 points whose outline",
    ),
    (change(NOTES, 0, image_id=77), "unknown_image", "image 77, which the file does not list"),
    (change(NOTES, 0, image_id=[1]), "unknown_image", r"image \[1\], which the file does not list"),
    (change(NOTES, 0, image_id=...), "unknown_image", "annotation 1 has no image_id"),
    (change(NOTES, 0, category_id=6), "unknown_category", "category 6, which the file does not list"),
    (change(NOTES, 0, iscrowd=2), "annotation_entry", "iscrowd that is neither 0 nor 1"),
    (change(NOTES, 0, bbox=[1, 2, 3]), "annotation_entry", "four finite numbers"),
    (change(NOTES, 0, bbox=[0, 0, float("nan"), 1]), "annotation_entry", "four finite numbers"),
    (change(NOTES, 0, bbox=[0, 0, 10**400, 1]), "annotation_entry", "four finite numbers"),
    (change(NOTES, 0, area=float("nan")), "annotation_entry", "has the area nan, which is no finite number"),
    (change(NOTES, 0, area="large"), "annotation_entry", "has the area 'large'"),
    (segmentation(...), "bad_segmentation", "has no segmentation; give polygons"),
    (segmentation("square"), "bad_segmentation", "neither polygons nor run lengths"),
    (segmentation([SQUARE[0][:7]]), "bad_segmentation", "flat list of finite x, y pairs"),
    (segmentation([[1e6, 0, 1e6, 9, 0, 9]]), "bad_segmentation", "far outside its picture of 64 x 48"),
    (segmentation({"size": [4, 4], "counts": [16]}), "bad_segmentation", "run lengths of another size"),
    (segmentation({"size": [48, 64], "counts": [9]}), "bad_segmentation", "do not add up"),
    (segmentation({"size": [48, 64], "counts": "04"}), "bad_segmentation", "do not add up"),
    (segmentation({"size": [48, 64], "counts": COUNTS + "0N4"}), "bad_segmentation", "do not add up"),
    (segmentation({"size": [48, 64], "counts": "ooo"}), "bad_segmentation", "cannot be read"),
    (segmentation({"size": [48, 64], "counts": "~"}), "bad_segmentation", "cannot be read"),
    (segmentation([*SQUARE, [1, 1, 2, 2]]), "short_polygon", None),
    (segmentation([[70, 50, 80, 50, 80, 60]]), "zero_area_mask", None),
    (change(NOTES, 0, bbox=[10, 10, 0, 20]), "zero_area_box", None),
    (change(NOTES, 0, bbox=[90, 10, 20, 20]), "zero_area_box", None),
    (change(NOTES, 1, bbox=[2, 4, 70, 36]), "box_outside_picture", None),
    (change(NOTES, 0, bbox=[10, 10, 20, 12]), "box_misses_mask", None),
    (change(NOTES, 0, area=4000), "area_mismatch", None),
    (lambda coco, folder: (folder / "2.png").unlink(), "picture_missing", r"2\.png .* does not exist \(1 of 3"),
    (rewrite("2.png", lambda data: b""), "picture_unreadable", "is empty"),
    (rewrite("2.png", lambda data: data[: len(data) // 2]), "picture_unreadable", "truncated or damaged"),
    (lambda coco, folder: Image.new("RGB", (63, 48)).save(folder / "2.png"), "picture_size", "63 x 48 pixels and not"),
    (change(IMAGES, 2, file_name="../3.png"), "picture_outside_folder", "outside the folder"),
    (change(IMAGES, 2, file_name="a/../../images/3.png"), "picture_outside_folder", "outside the folder"),
    (change(IMAGES, 2, file_name="/3.png"), "picture_outside_folder", "outside the folder"),
]
"""Each with the kind of the finding, and the sentence of the error where data with this fault are refused."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("fault", "kind", "sentence"), FAULTS)
def test_the_check_finds_each_fault_and_reading_refuses_the_errors(world, fault, kind, sentence):
    folder, write = world
    coco = sound()
    fault(coco, folder)
    path = write(coco)
    report = check_data(path, folder)
    found = [finding["kind"] for finding in report["findings"]]
    assert kind in found and set(report["finding_counts"]) == set(found)
    assert report["usable"] == (kind != "no_objects")
    assert all(finding["where"] and finding["problem"] and finding["cure"] for finding in report["findings"])
    assert (sentence is None) == (report["errors"] == 0) == (kind in WARNINGS)

    def load() -> None:
        dataset = CocoDataset(folder, path)
        require_objects(dataset)
        for index in range(len(dataset)):
            dataset[index]

    if sentence is None:
        return load()
    with pytest.raises(DynaMaskError, match=sentence) as caught:
        load()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or kind in ("picture_unreadable", "picture_size")


def test_every_kind_of_finding_is_tested():
    labels = {"labels_missing", "labels_unreadable", "unknown_label"}  # of Cityscapes: see test_data_sources.py
    assert {kind for _, kind, _ in FAULTS} == {*ERRORS, *WARNINGS} - labels - {"bad_result"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "not valid JSON"),
        ('{"images": [\n{"id": 1}, ', "ends in the middle at line 2, column"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "must be an object"),
        ('{"annotations": []}', "'images' is missing"),
        ('{"images": [], "annotations": {}, "categories": []}', "'annotations' is missing"),
        (None, "does not exist"),
    ],
)
def test_what_is_not_coco_is_refused_by_name(world, capsys, content, sentence):
    folder, write = world
    path = write("" if content is None else content)
    if content is None:
        path.unlink()
    with pytest.raises(DynaMaskError, match=sentence) as caught:
        read_coco(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    out = path.with_name("out.json")
    assert cli.main(["data", "check", "--annotations", str(path), "--json", str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("dynamask: error: ") and printed.count("\n") == 1 and str(path) in printed
    assert not out.exists()


def test_files_without_images_or_categories_and_missing_folders(world):
    folder, write = world
    for key in ("images", "categories"):
        with pytest.raises(DynaMaskError, match=f"it lists no {key}"):
            read_coco(write({**sound(), key: []}))
        assert not check_data(write({**sound(), key: []}))["usable"]
    with pytest.raises(DynaMaskError, match="is a folder: give a COCO JSON file"):
        read_coco(folder)
    for refuse in (CocoDataset, lambda images, path: check_data(path, images)):
        with pytest.raises(DynaMaskError, match="picture folder .*none does not exist"):
            refuse(folder / "none", write(sound()))


def test_the_command_lists_all_findings_and_counts_what_is_left(world, capsys):
    folder, write = world
    coco = sound()
    lost = {"image_id": 99, "category_id": 99, "segmentation": SQUARE}
    coco["annotations"] += [{"id": 10 + i, **lost} for i in range(30)]
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:100])
    (folder / "3.png").unlink()
    words = ["data", "check", "--annotations", str(write(coco)), "--images", str(folder), "--json", "-"]
    assert cli.main(words) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["finding_counts"] == {
        "unknown_image": 30,
        "unknown_category": 30,
        "picture_unreadable": 1,
        "picture_missing": 1,
    }
    assert report["errors"] == 62 and report["instances"] == 2 and report["pictures_read"] == 1
    assert "picture 2.png is truncated or damaged" in printed.err and "… and 10 more" in printed.err
    assert "error: unknown_image (30): correct the image_id" in printed.err
    assert str(folder / "2.png") not in report["findings"][-2]["problem"]


def test_nothing_usable_is_an_error_after_the_list(world, capsys):
    _, write = world
    coco = sound()
    for annotation in coco["annotations"]:
        annotation["category_id"] = 1
    assert cli.main(["data", "check", "--annotations", str(write(coco))]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "nothing in" in printed.err
    assert "unknown_category (3)" in printed.out


def test_the_page_shows_each_kind_with_its_cure_and_thumbnails(world, tmp_path, capsys):
    folder, write = world
    command = ["data", "check", "--images", str(folder), "--out", str(tmp_path / "page"), "--annotations"]
    assert cli.main([*command, str(write(sound()))]) == 0
    page = tmp_path / "page" / "data-check.html"
    assert "Nothing was found" in page.read_text(encoding="utf-8")
    coco = sound()
    coco["categories"][0]["name"] = "<b>&"
    coco["annotations"][0]["bbox"] = [0, 0, 0, 0]
    coco["annotations"].append({**coco["annotations"][1], "id": 8, "image_id": 77})
    assert cli.main([*command, str(write(coco))]) == 1
    text = page.read_text(encoding="utf-8")
    assert "box from mask (1)" in text and ASSUMPTIONS["box_from_mask"] in text and WARNINGS["box_from_mask"] in text
    assert text.count("data:image/jpeg;base64,") == 1 and "annotation 8 belongs to image 77" in text
    assert "<b>" not in text and f"page: {page}" in capsys.readouterr().out
    page.unlink()
    page.parent.rmdir()
    page.parent.write_text("a file")
    assert cli.main([*command, str(write(coco))]) == 2 and "is a file" in capsys.readouterr().err


def test_what_was_assumed_is_said_in_one_warning(world):
    folder, write = world
    coco = sound()
    coco["categories"].append({"id": 12, "name": "square "})
    coco["annotations"][0] |= {"category_id": "12", "bbox": None, "image_id": 1.0}
    coco["annotations"].append({"image_id": 3, "category_id": 5, "segmentation": []})
    with pytest.warns(UserWarning) as caught:
        dataset = CocoDataset(folder, write(coco))
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    for words in ("skipped 1 annotation", "joined to one class", "null", "integers", "1 have no segmentation"):
        assert words in str(caught[0].message)
    assert dataset.class_names == ("__background__", "square", "plate", "never")
    assert dataset[0][1]["labels"].tolist() == [1] and dataset[0][1]["boxes"].tolist() == [[10, 10, 30, 30]]
    again = read_coco(dataset.coco)
    assert [a["category_id"] for a in again.coco["annotations"]] == [5, 9, 5]


def test_results_with_a_joined_category_count_for_it(world):
    folder, write = world
    coco = {**sound(), "categories": [*sound()["categories"], {"id": 12, "name": "square"}]}
    result = {"image_id": 1, "category_id": 12, "score": 1.0, "segmentation": SQUARE}
    with pytest.warns(UserWarning, match="joined"):
        figures = evaluate_coco(coco, [result], ["segm"])
    assert figures["segm"]["AP50"] == pytest.approx(0.5), "the square is found, the plate is not"


def test_exchanged_sizes_are_refused_where_the_objects_do_not_tell(world):
    folder, write = world
    coco = sound()
    coco["images"][0] |= {"width": 48, "height": 64}
    with pytest.raises(DynaMaskError, match="width and height are exchanged"):
        CocoDataset(folder, write(coco))


def test_objects_of_turned_pictures_decide_between_the_sizes(world):
    folder, write = world
    coco = sound()
    turn("1.png")(coco, folder)  # stored 64 x 48, upright 48 x 64
    coco["annotations"][0]["segmentation"] = [[10, 10, 30, 10, 30, 60, 10, 60]]
    del coco["annotations"][0]["bbox"], coco["annotations"][0]["area"]
    with pytest.warns(UserWarning, match="exchanged"):
        image, target = CocoDataset(folder, write(coco))[0]
    assert image.shape == (3, 64, 48) and target["masks"].sum() == 1000


@pytest.mark.parametrize("change_entry", [{"segmentation": []}, {"iscrowd": 1}, None])
def test_training_and_analysis_refuse_data_without_an_object(world, tmp_path, capsys, change_entry):
    folder, write = world
    coco = sound()
    coco["annotations"] = [{**entry, **change_entry} for entry in coco["annotations"][:2]] if change_entry else []
    path = str(write(coco))
    training = ["train", "--images", str(folder), "--annotations", path, "--model", "dynamask_mobilenetv2_fpn_small"]
    for command in ([*training, "--out", str(tmp_path / "run")], ["analyze", "--annotations", path]):
        assert cli.main(command) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "no object that can be used" in error and ("2 " in error or change_entry is None)
    assert not (tmp_path / "run").exists()
    assert cli.main(["data", "check", "--annotations", path]) == 2 and "no_objects (1)" in capsys.readouterr().out


RESULT = {"image_id": 1, "category_id": 5, "score": 0.5, "segmentation": {"size": [48, 64], "counts": COUNTS}}
LISTING = read_coco(sound()).listing


@pytest.fixture
def results(tmp_path):
    """Write results to a file and read it."""

    def read(content) -> list[dict]:
        path = tmp_path / "results.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return read_results(path, LISTING)

    return read


def test_good_results_are_kept(results):
    found = results([{**RESULT, "mask_size": 28, "macs": 7, "bbox": []}, {**RESULT, "segmentation": SQUARE}])
    assert found == [{**RESULT, "mask_size": 28, "macs": 7}, RESULT]
    assert results([]) == []


@pytest.mark.parametrize(
    "fault",
    [
        *({"image_id": value} for value in (4, "1", True, [1], None, 1.0, ...)),
        *({"category_id": value} for value in (6, None, {}, ...)),
        *({"score": value} for value in (float("nan"), float("inf"), "0.5", None, True, 10**400, ...)),
        *({"bbox": value} for value in ([1, 2, 3], [1, 2, 3, float("nan")], [1, 2, -3, 4], "1234", None)),
        *({"segmentation": value} for value in (None, [], "abc", 3, {}, [[1, 1, 5, 5]], [[1, 1, 5, 5, 9]], ...)),
        *({"segmentation": value} for value in ([1, 1, 5, 1, 5, 5], [[1, 1, 5, 1, 5, float("inf")]])),
        *({"segmentation": value} for value in ([[1, 1, 5, 1, 5, "5"]], [[1, 1, 5, 1, 5, 1e9]])),
        *({"size": value} for value in ([64, 48], None)),
        *({"counts": value} for value in (None, "", "zzzz", "\u00e9", COUNTS[:-1], COUNTS + "1", "o" * 40)),
        *({"counts": value} for value in ([48 * 64, 1], [48 * 64 + 1, -1], [48.0 * 32, 48.0 * 32], [])),
    ],
)
def test_malformed_results_are_refused_in_one_sentence(results, fault):
    (key, value), result = next(iter(fault.items())), copy.deepcopy(RESULT)
    if value is ...:
        del result[key]
    else:
        (result["segmentation"] if key in ("size", "counts") else result)[key] = value
    with pytest.raises(DynaMaskError, match="result 1 ") as refusal:
        results([RESULT, result])
    assert "results.json" in str(refusal.value) and "\n" not in str(refusal.value)
    assert value is not ... or key in str(refusal.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[",
        b"\xff\xfe\x00",
        b"{}",
        b"null",
        b"3",
        b'"text"',
        b"[3]",
        b"[null]",
        b"[[]]",
        b"[" * 100_000,
        b'[{"score": ' + b"9" * 5000 + b"}]",
        b'{"images": [], "annotations": []}',
    ],
)
def test_files_that_are_no_results_are_refused(results, content):
    with pytest.raises(DynaMaskError) as refusal:
        results(content)
    assert "\n" not in str(refusal.value)


def test_missing_results_files_and_folders_are_refused(tmp_path):
    for path, reason in ((tmp_path / "none.json", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(DynaMaskError, match=reason):
            read_results(path, LISTING)
