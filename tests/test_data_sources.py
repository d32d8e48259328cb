"""Data sets by folder or name: what is recognised and refused, and the commands on each kind of data set."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.cityscapes_world import add_picture, labels, make_cityscapes
from helpers.coco_files import coco_file
from helpers.command_line import refusal
from helpers.exports import EXPORTS, fiftyone
from helpers.runs import flags
from helpers.small_models import TINY, tiny_model
from PIL import Image

from dynamask.cli import build_parser, main
from dynamask.data.cityscapes import CityscapesDataset
from dynamask.data.coco import CocoDataset
from dynamask.data.coco_format import read_coco
from dynamask.data.instances import is_held_out
from dynamask.data.sources import find_source, open_data
from dynamask.models.weights import save_model
from dynamask.structures import DynaMaskError

AGNOSTIC = ("__background__", "object")
AP_KEYS = {"AP", "AP50", "AP75", "APS", "APM", "APL"}


@pytest.fixture
def run(capsys):
    """Run a command that must end with a code, 0 by default, with --json -; returns the JSON and stderr."""

    def call(command: str, *words, ends_with: int = 0) -> tuple[dict, str]:
        code = main([*command.split(), *map(str, words), "--json", "-"])
        out, err = capsys.readouterr()
        assert code == ends_with, err
        return json.loads(out), err

    return call


@pytest.fixture
def city(tmp_path):
    return make_cityscapes(tmp_path / "city")


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


def test_the_root_of_cityscapes_and_a_folder_without_splits(tmp_path, city):
    dataset = open_data(str(city))
    assert isinstance(dataset, CityscapesDataset) and dataset.split == "train"
    assert open_data(str(city), split="val").split == "val"
    assert open_data(str(city), class_names=AGNOSTIC).class_names == AGNOSTIC
    coco_file(tmp_path / "plain/annotations/instances_train2017.json", ["images/a.png"])
    (tmp_path / "plain/annotations/instances_train2017.json").rename(tmp_path / "plain/annotations.json")
    assert isinstance(open_data(str(tmp_path / "plain"), default_split="val"), CocoDataset)
    shutil.rmtree(city / "leftImg8bit/train")
    assert open_data(str(city)).split == "val", "the only split there is"


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


def test_every_layout_is_checked_and_analysed(tmp_path, coco_root, city, run):
    report, err = run("data check", "--data", coco_root, "--split", "val")
    assert report["images"] == report["pictures_read"] == 1 and not report["findings"]
    assert "split val of train, val" in err
    coco_file(tmp_path / "lvis/lvis_v1_val.json", ["val2017/c.jpg"], lvis=True)
    report, _ = run("data check", "--data", tmp_path / "lvis")
    assert report["classes"] == {"cat": 1} and not report["findings"]
    report, _ = run("data check", "--data", city, "--split", "val")
    assert report["crowds"] == 1 and report["instances"] == 5 and not report["findings"]
    assert report["classes"]["car"] == 2 and report["images_without_object"] == 0
    assert run("analyze", "--data", coco_root, "--split", "val")[0]["all"]["instances"] == 1
    assert set(run("analyze", "--data", city)[0]["classes"]) == {"car", "person"}


def test_every_broken_file_of_cityscapes_is_found(city, run, capsys):
    for number in range(4):
        add_picture(city, "val", f"ulm_00000{number + 1}_000019", labels((26000, 4, 4, 30, 20)))
    files = sorted((city / "gtFine/val/ulm").iterdir())
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:40])
    Image.fromarray(np.full((60, 80), 45000, dtype=np.uint16)).save(files[3])
    Image.fromarray(labels(size=(30, 40)).astype(np.uint16)).save(files[4])
    report, _ = run("data check", "--data", city, "--split", "val", ends_with=1)
    assert report["usable"] and report["instances"] == 5
    kinds = ("labels_missing", "labels_unreadable", "unknown_label", "picture_size")
    assert report["finding_counts"] == dict.fromkeys(kinds, 1)
    assert any("45000" in finding["problem"] for finding in report["findings"])
    assert all(finding["severity"] == "error" for finding in report["findings"])
    assert main(["data", "check", "--data", str(city), "--split", "test"]) == 2
    assert "has no split 'test'; choose --split train or val" in capsys.readouterr().err


def train_on(city: Path, out: Path, *more) -> list[str]:
    words = ["--data", str(city), "--model", "dynamask_mobilenetv2_fpn_small", "--out", str(out)]
    return ["train", *words, *flags(TINY), *map(str, more)]


def test_cityscapes_is_trained_on_resumed_and_evaluated_by_its_own_ap(city, tmp_path, run, capsys):
    settings = {"iterations": 3, "batch_size": 2, "copy_paste": 1, "scale_jitter": (0.5, 2), "crop": 0.5, "warmup": 0}
    words = (*flags(settings), "--val-data", city)
    assert main(train_on(city, tmp_path / "whole", *words)) == 0
    summary = json.loads((tmp_path / "whole/evaluation.json").read_text())
    assert summary["images"] == 2 and set(summary["segm"]) == AP_KEYS
    assert set(summary["cityscapes"]) == {"AP", "AP50", "classes"} and len(summary["cityscapes"]["classes"]) == 8
    assert summary["cityscapes"]["classes"]["train"]["AP"] is None and summary["cityscapes"]["AP"] is not None
    for part in (("--stop-at", 1), ("--resume",)):
        assert main(train_on(city, tmp_path / "parts", *words, *part)) == 0
    whole, parts = (tmp_path / name / "last.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes()[-4096:] == parts.read_bytes()[-4096:], "the weights, bit for bit"
    capsys.readouterr()
    _, printed = run("evaluate", "--weights", whole, "--data", city, "--split", "train")
    assert "2 images" in printed and "cityscapes AP" in printed and "motorcycle" in printed


def test_lvis_is_evaluated_by_its_own_rule(tmp_path, run):
    annotations = tmp_path / "lvis/lvis_v1_val.json"
    coco_file(annotations, ["train2017/b.png", "val2017/c.png"], lvis=True)
    weights = tmp_path / "weights.safetensors"
    names = {"class_names": ("__background__", "cat"), "category_ids": (5,)}
    save_model(tiny_model(num_classes=2, class_agnostic=True, score_threshold=0.0, **names), weights, training={})
    summary, _ = run("evaluate", "--weights", weights, "--data", tmp_path / "lvis")
    assert summary["protocol"] == "lvis" and summary["detections"] > 0, "the weights' own threshold is used"
    assert set(summary["segm"]) == set(summary["boundary"]) == AP_KEYS | {"APr", "APc", "APf"}
    assert summary["segm"]["APr"] is None and summary["segm"]["APc"] == summary["segm"]["AP"]
    assert run("evaluate", "--weights", weights, "--data", tmp_path / "lvis", "--score", 1)[0]["detections"] == 0
    (tmp_path / "results.json").write_text("[]")
    summary, _ = run("evaluate", "--predictions", tmp_path / "results.json", "--annotations", annotations)
    assert summary["segm"]["APc"] == 0.0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("--val-data nowhere", "--data nowhere is no folder"),
        ("--val-data CITY --val-split test", "has no split 'test'; choose --split train or val"),
        ("--val-split val", "--val-split chooses a part of --val-data; give both"),
        ("--val-data shapes:1:10", "no class in common"),
        ("--split test", "has no split 'test'"),
        ("--copy-paste 2", "copy_paste is 2.0; give a number from 0 to 1"),
        ("--scale-jitter 2", "scale_jitter is"),
    ],
)
def test_mistakes_are_refused_before_the_work(city, tmp_path, capsys, more, sentence):
    assert main(train_on(city, tmp_path / "run", *more.replace("CITY", str(city)).split())) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_subset_holds_the_chosen_pictures_and_their_annotations(tmp_path, capsys):
    source, out = tmp_path / "all.json", tmp_path / "some.json"
    coco_file(source, [f"{number}.jpg" for number in range(40)])
    coco = json.loads(source.read_text())
    for image in coco["images"]:
        image["coco_url"] = f"http://example.org/{'val2017' if image['id'] % 2 else 'train2017'}/{image['id']}.jpg"
    source.write_text(json.dumps(coco))
    words = ["data", "subset", "--annotations", str(source), "--out", str(out)]
    assert main([*words, "--holdout", "4", "--where", "coco_url=val2017"]) == 0
    subset = json.loads(out.read_text())
    ids = [image["id"] for image in subset["images"]]
    assert ids == [image["id"] for image in coco["images"] if image["id"] % 2 and is_held_out(image["id"], 4)] != []
    assert subset["annotations"] == [each for each in coco["annotations"] if each["image_id"] in ids]
    assert subset["categories"] == coco["categories"]
    out.unlink()
    capsys.readouterr()
    source.write_text(json.dumps({**coco, "info": float("nan")}))
    assert main([*words, "--holdout", "4"]) == 2
    assert "NaN or Infinity" in capsys.readouterr().err and not out.exists()
    source.write_text(json.dumps(coco))
    for wrong in (["--where", "val2017"], ["--holdout", "1"], ["--where", "coco_url=test2017"]):
        assert refusal(capsys, *words, *wrong) and not out.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("export", EXPORTS)
def test_exports_of_annotation_tools_work_by_folder(tmp_path, export, capsys):
    export(tmp_path)
    dataset = open_data(str(tmp_path))
    assert dataset.class_names == ("__background__", "crate") and len(dataset) == 2
    for index in range(2):
        image, target = dataset[index]
        assert image.shape == (3, 30, 40) and int(target["masks"].sum()) == 192
        assert target["boxes"].tolist() == [[4, 5, 20, 17]]
        assert (image[0][target["masks"][0].bool()] == 200).all(), "the mask is on its object"
    assert main(["data", "check", "--data", str(tmp_path)]) in (0, 1)
    assert "2 instances" in capsys.readouterr().out
    location = find_source(tmp_path)
    by_folder = open_data(images=location.images, annotations=location.annotations.parent)
    assert by_folder.files == dataset.files
    if export.__name__ == "roboflow":
        assert open_data(str(tmp_path), default_split="val").files[0].parent.name == "valid"


def test_folders_with_several_or_no_annotation_files_are_refused(tmp_path):
    fiftyone(tmp_path)
    shutil.copy(tmp_path / "labels.json", tmp_path / "more.json")
    for refused in (
        lambda: open_data(str(tmp_path)),
        lambda: open_data(images=tmp_path / "data", annotations=tmp_path),
        lambda: open_data(images=tmp_path / "data", annotations=tmp_path / "data"),
    ):
        with pytest.raises(DynaMaskError, match=r"labels\.json, more\.json|holds none"):
            refused()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"shapes": [], "imagePath": "a.png"}, "labelme"),
        ({"_via_img_metadata": {}}, "VIA"),
        ({"a.png123": {"regions": []}}, "VIA"),
        ({"samples": []}, "FiftyOne"),
        ([{"data": {}, "annotations": []}], "Label Studio"),
        ([{"image": "a.png", "annotations": []}], "CreateML"),
        ([{"image_id": 1, "score": 0.5}], "predictions"),
    ],
)
def test_other_formats_are_named(tmp_path, content, name):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DynaMaskError, match=name):
        read_coco(path)
