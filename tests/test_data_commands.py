"""`train` and `evaluate` on Cityscapes and LVIS, augmentation as flags, mistakes that are refused before the work."""

import json

import pytest
from helpers.cityscapes_world import make_cityscapes
from helpers.coco_files import coco_file
from helpers.small_models import TINY, tiny_model

from dynamask import cli
from dynamask.models.weights import save_model

MODEL = "dynamask_mobilenetv2_fpn_small"
SMALL = [
    word
    for name, value in TINY.items()
    for word in (f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,)))
]
AP_KEYS = {"AP", "AP50", "AP75", "APS", "APM", "APL"}


def run(capsys, *words) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def city(tmp_path):
    return make_cityscapes(tmp_path / "city")


def test_cityscapes_is_trained_on_resumed_and_judged_by_its_own_ap(city, tmp_path, capsys):
    words = [
        "train",
        "--data",
        city,
        "--model",
        MODEL,
        *SMALL,
        "--iterations",
        3,
        "--batch-size",
        2,
        "--copy-paste",
        1,
        "--scale-jitter",
        0.5,
        2,
        "--crop",
        0.5,
        "--val-data",
        city,
        "--warmup",
        0,
    ]
    code, _, err = run(capsys, *words, "--out", tmp_path / "whole")
    assert code == 0, err
    summary = json.loads((tmp_path / "whole/evaluation.json").read_text())
    assert summary["images"] == 2 and set(summary["segm"]) == AP_KEYS
    assert set(summary["cityscapes"]) == {"AP", "AP50", "classes"} and len(summary["cityscapes"]["classes"]) == 8
    assert summary["cityscapes"]["classes"]["train"]["AP"] is None and summary["cityscapes"]["AP"] is not None
    assert run(capsys, *words, "--out", tmp_path / "parts", "--stop-at", 1)[0] == 0
    assert run(capsys, *words, "--out", tmp_path / "parts", "--resume")[0] == 0
    whole, parts = (tmp_path / run / "last.safetensors" for run in ("whole", "parts"))
    assert whole.read_bytes()[-4096:] == parts.read_bytes()[-4096:], "the weights, bit for bit"
    code, out, _ = run(capsys, "evaluate", "--weights", whole, "--data", city, "--split", "train")
    assert code == 0 and "2 images" in out and "cityscapes AP" in out and "motorcycle" in out


def test_lvis_is_judged_by_its_own_rule(tmp_path, capsys):
    coco_file(tmp_path / "lvis/lvis_v1_val.json", ["train2017/b.png", "val2017/c.png"], lvis=True)
    weights = tmp_path / "weights.safetensors"
    names = {"class_names": ("__background__", "cat"), "category_ids": (5,)}
    save_model(tiny_model(num_classes=2, class_agnostic=True, score_threshold=0.0, **names), weights, training={})
    code, out, err = run(capsys, "evaluate", "--weights", weights, "--data", tmp_path / "lvis", "--json", "-")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["protocol"] == "lvis" and summary["detections"] > 0, "the weights' own threshold is used"
    assert set(summary["segm"]) == set(summary["boundary"]) == AP_KEYS | {"APr", "APc", "APf"}
    assert summary["segm"]["APr"] is None and summary["segm"]["APc"] == summary["segm"]["AP"]
    code, out, _ = run(
        capsys, "evaluate", "--weights", weights, "--data", tmp_path / "lvis", "--score", 1, "--json", "-"
    )
    assert code == 0 and json.loads(out)["detections"] == 0
    annotations = tmp_path / "lvis/lvis_v1_val.json"
    (tmp_path / "results.json").write_text("[]")
    code, out, _ = run(
        capsys, "evaluate", "--predictions", tmp_path / "results.json", "--annotations", annotations, "--json", "-"
    )
    assert code == 0 and json.loads(out)["segm"]["APc"] == 0.0


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--val-data", "nowhere"], "--data nowhere is no folder"),
        (["--val-data", "CITY", "--val-split", "test"], "has no split 'test'; choose --split train or val"),
        (["--val-split", "val"], "--val-split chooses a part of --val-data; give both"),
        (["--val-data", "shapes:1:10"], "no class in common"),
        (["--split", "test"], "has no split 'test'"),
        (["--copy-paste", 2], "copy_paste is 2.0; give a probability"),
        (["--scale-jitter", 2], "scale_jitter is"),
    ],
)
def test_mistakes_are_refused_before_the_work(city, tmp_path, capsys, more, sentence):
    words = [city if word == "CITY" else word for word in more]
    code, _, err = run(capsys, "train", "--data", city, "--model", MODEL, *SMALL, "--out", tmp_path / "run", *words)
    assert code == 2 and sentence in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
