"""`--data` by its content: what is recognised, which split is taken, what is refused, and what the check finds."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.cityscapes_world import add_picture, labels, make_cityscapes
from helpers.coco_files import coco_file
from PIL import Image

from dynamask.cli import build_parser, main
from dynamask.data.cityscapes import CityscapesDataset
from dynamask.data.coco import CocoDataset
from dynamask.data.sources import find_source, open_data
from dynamask.structures import DynaMaskError

AGNOSTIC = ("__background__", "object")


@pytest.fixture
def coco_root(tmp_path):
    coco_file(tmp_path / "annotations/instances_train2017.json", ["train2017/a.png", "train2017/b.png"])
    coco_file(tmp_path / "annotations/instances_val2017.json", ["val2017/c.png"])
    (tmp_path / "annotations/captions_val2017.json").write_text("{}")
    return tmp_path


def test_the_root_of_coco(coco_root):
    assert len(open_data(str(coco_root))) == 2
    assert len(open_data(str(coco_root), default_split="val")) == len(open_data(str(coco_root), split="val")) == 1
    dataset = open_data(str(coco_root), split="train")
    assert dataset.class_names == ("__background__", "cat") and dataset[1][1]["masks"].sum() == 64
    assert open_data(str(coco_root), class_names=AGNOSTIC).class_names == AGNOSTIC
    coco_file(coco_root / "annotations/instances_train2014.json", ["train2014/d.png"])
    source = find_source(coco_root, "train2014")
    assert source.splits == ("train2014", "train2017", "val") and source.images.name == "train2014"


def test_the_root_of_lvis(tmp_path):
    root = tmp_path / "lvis"
    coco_file(root / "lvis_v1_train.json", ["train2017/a.jpg"], lvis=True)
    coco_file(root / "lvis_v1_val.json", ["train2017/b.jpg", "val2017/c.jpg"], lvis=True)
    dataset = open_data(str(root), default_split="val")
    assert find_source(root).kind == "lvis" and len(dataset) == 2 and len(open_data(str(root))) == 1
    assert dataset.files[1].parent.name == "val2017" and "neg_category_ids" in dataset.coco["images"][0]
    for folder in ("train2017", "val2017"):  # the pictures in the root of COCO beside it
        shutil.move(root / folder, tmp_path / "coco" / folder)
    assert len(open_data(str(root), split="val")) == 2


def test_the_root_of_cityscapes_and_a_folder_without_splits(tmp_path, coco_root):
    make_cityscapes(tmp_path / "city")
    dataset = open_data(str(tmp_path / "city"))
    assert isinstance(dataset, CityscapesDataset) and dataset.split == "train"
    assert open_data(str(tmp_path / "city"), split="val").split == "val"
    assert open_data(str(tmp_path / "city"), class_names=AGNOSTIC).class_names == AGNOSTIC
    coco_file(tmp_path / "plain/annotations/instances_train2017.json", ["images/a.png"])
    (tmp_path / "plain/annotations/instances_train2017.json").rename(tmp_path / "plain/annotations.json")
    assert isinstance(open_data(str(tmp_path / "plain"), default_split="val"), CocoDataset)
    shutil.rmtree(tmp_path / "city/leftImg8bit/train")
    assert open_data(str(tmp_path / "city")).split == "val", "the only split there is"


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (lambda root: None, {"split": "test"}, "has no split 'test'; choose --split train or val"),
        (
            lambda root: shutil.rmtree(root / "annotations"),
            {},
            "is not a known kind of data set; give a folder with images/",
        ),
        (lambda root: make_cityscapes(root), {}, "holds COCO and Cityscapes; name one with --images and --annotations"),
        (lambda root: (root / "annotations.json").write_text("{}"), {}, "holds a COCO-style folder and COCO"),
        (lambda root: (root / "leftImg8bit").mkdir(), {}, r"has leftImg8bit/ without gtFine/; unpack"),
        (lambda root: shutil.rmtree(root / "val2017"), {"split": "val"}, "picture folder .*val2017 does not exist"),
    ],
)
def test_what_cannot_be_recognised_is_one_sentence(coco_root, change, options, sentence):
    change(coco_root)
    with pytest.raises(DynaMaskError, match=sentence):
        open_data(str(coco_root), **options)


def test_split_where_there_is_none(tmp_path):
    with pytest.raises(DynaMaskError, match="leave out --split val"):
        open_data("shapes:1:10", split="val")
    with pytest.raises(DynaMaskError, match="is no folder; give one with"):
        open_data(str(tmp_path / "nowhere"))
    with pytest.raises(DynaMaskError, match="chooses a split of --data"):
        open_data(images=tmp_path, annotations=tmp_path / "x.json", split="val")
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(DynaMaskError, match="has no splits"):
        open_data(str(tmp_path), split="val")


COMMANDS = [
    line
    for line in (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("dynamask ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_guide_parse(command):
    build_parser().parse_args(shlex.split(command)[1:])


def test_analyze_takes_a_split(coco_root, tmp_path, capsys):
    assert main(["analyze", "--data", str(coco_root), "--split", "val", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["instances"] == 1
    assert main(["analyze", "--data", str(make_cityscapes(tmp_path / "city")), "--json", "-"]) == 0
    assert set(json.loads(capsys.readouterr().out)["classes"]) == {"car", "person"}


def check(capsys, *arguments) -> tuple[int, dict, str]:
    code = main(["data", "check", *map(str, arguments), "--json", "-"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_the_check_covers_every_layout(tmp_path, coco_root, capsys):
    code, report, err = check(capsys, "--data", coco_root, "--split", "val")
    assert code == 0 and report["images"] == report["pictures_read"] == 1 and not report["findings"]
    assert "split val of train, val" in err
    coco_file(tmp_path / "lvis/lvis_v1_val.json", ["val2017/c.jpg"], lvis=True)
    code, report, _ = check(capsys, "--data", tmp_path / "lvis")
    assert code == 0 and report["classes"] == {"cat": 1} and not report["findings"]
    code, report, _ = check(capsys, "--data", make_cityscapes(tmp_path / "city"), "--split", "val")
    assert code == 0 and report["crowds"] == 1 and report["instances"] == 5 and not report["findings"]
    assert report["classes"]["car"] == 2 and report["images_without_object"] == 0


def test_every_broken_file_of_cityscapes_is_found(tmp_path, capsys):
    root = make_cityscapes(tmp_path)
    for number in range(4):
        add_picture(root, "val", f"ulm_00000{number + 1}_000019", labels((26000, 4, 4, 30, 20)))
    folder = root / "gtFine/val/ulm"
    files = sorted(folder.iterdir())
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:40])
    Image.fromarray(np.full((60, 80), 45000, dtype=np.uint16)).save(files[3])
    Image.fromarray(labels(size=(30, 40)).astype(np.uint16)).save(files[4])
    code, report, _ = check(capsys, "--data", root, "--split", "val")
    assert code == 0 and report["usable"] and report["instances"] == 5
    assert report["finding_counts"] == {
        "labels_missing": 1,
        "labels_unreadable": 1,
        "unknown_label": 1,
        "picture_size": 1,
    }
    assert any("45000" in finding["problem"] for finding in report["findings"])
    assert all(finding["severity"] == "error" for finding in report["findings"])
    code = main(["data", "check", "--data", str(root), "--split", "test"])
    assert code == 2 and "has no split 'test'; choose --split train or val" in capsys.readouterr().err
