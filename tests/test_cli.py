"""The command line: flags, files, JSON keys, and one line with exit code 2 for bad input."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dynamask import cli
from dynamask.models.build import create_model
from dynamask.models.weights import save_model

AP_KEYS = {"AP", "AP50", "AP75", "APS", "APM", "APL"}
MODEL = "dynamask_resnet18_fpn_small"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Five small pictures of discs, the last one empty, with one crowd region; polygons and RLE."""
    root = tmp_path_factory.mktemp("world")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 6):
        picture = rng.integers(0, 60, (96, 128, 3), dtype=np.uint8)
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 128})
        if number < 5:
            x, y, r = 40 + 8 * number, 48, 20
            angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            polygon = np.stack([x + r * np.cos(angle), y + r * np.sin(angle)], axis=1)
            rows, columns = np.mgrid[:96, :128]
            picture[(columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < r * r] = (250, 220, 30)
            annotations.append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": 7,
                    "iscrowd": 0,
                    "area": 3.1 * r * r,
                    "bbox": [x - r, y - r, 2 * r, 2 * r],
                    "segmentation": [polygon.ravel().tolist()],
                }
            )
        Image.fromarray(picture).save(root / "images" / f"{number}.png")
    annotations.append(
        {
            "id": 99,
            "image_id": 1,
            "category_id": 7,
            "iscrowd": 1,
            "area": 64,
            "bbox": [0, 0, 8, 8],
            "segmentation": {"size": [96, 128], "counts": [0, 8, *[88, 8] * 7, 96 * 128 - 8 - 96 * 7]},
        }
    )
    (root / "annotations.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "disc"}]})
    )
    torch.manual_seed(0)
    model = create_model(
        MODEL, class_names=("__background__", "disc"), category_ids=(7,), test_min_size=96, max_size=128
    )
    save_model(model, root / "random.safetensors", training={"images_seen": 0})
    return root


def run(capsys, *arguments):
    """Exit code, stdout and stderr of a command."""
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments):
    """The one line of a refusal."""
    code, out, err = run(capsys, *arguments)
    assert code == 2
    lines = [line for line in err.splitlines() if not line.startswith("dynamask: warning:")]
    assert len(lines) == 1 and lines[0].startswith("dynamask: error: "), err
    return lines[0]


def evaluate(capsys, world, *more):
    code, out, err = run(
        capsys,
        "evaluate",
        "--weights",
        world / "random.safetensors",
        "--images",
        world / "images",
        "--annotations",
        world / "annotations.json",
        "--json",
        "-",
        *more,
    )
    assert code == 0, err
    return json.loads(out)


def test_costs_json_is_alone_on_stdout(capsys):
    code, out, _ = run(capsys, "costs", "--model", MODEL, "--json", "-")
    costs = json.loads(out)
    assert code == 0 and costs["mask_sizes"] == [14, 28, 56, 112]
    assert costs["macs_per_instance"] == sorted(costs["macs_per_instance"]) and costs["switch_macs"] > 0


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--policy", "size"),
        ("--policy", "fixed:56"),
        ("--policy", "random"),
        ("--policy", "oracle"),
        ("--budget", "0.05"),
        ("--budget", "0.05", "--budget-scope", "dataset"),
    ],
)
def test_evaluate_keys(capsys, world, more):
    summary = evaluate(capsys, world, *more)
    assert summary["images"] == 5
    for kind in ("bbox", "segm", "boundary"):
        assert set(summary[kind]) == AP_KEYS
    assert set(summary["size_shares"]) == {"14", "28", "56", "112"}
    assert sum(summary["size_shares"].values()) == pytest.approx(1)
    if "--budget" in more:
        assert summary["mean_macs_per_instance"] <= 0.05e9


def test_evaluate_on_true_boxes(capsys, world):
    fixed = evaluate(capsys, world, "--boxes", "gt", "--policy", "fixed:28")
    assert fixed["detections"] == 4 and fixed["size_shares"]["28"] == 1
    assert fixed["bbox"]["AP"] == pytest.approx(1)
    assert 0 <= fixed["mean_boundary_iou"] <= 1
    learned, permuted, oracle = (
        evaluate(capsys, world, "--boxes", "gt", "--policy", policy) for policy in ("learned", "random", "oracle")
    )
    assert permuted["size_shares"] == learned["size_shares"]
    assert oracle["mean_macs_per_instance"] <= learned["mean_macs_per_instance"]
    assert oracle["mean_mask_iou"] >= max(learned["mean_mask_iou"], permuted["mean_mask_iou"])


def test_evaluate_results_file(capsys, world, tmp_path):
    truth = json.loads((world / "annotations.json").read_text())
    results = [
        {"image_id": a["image_id"], "category_id": 7, "score": 0.9, "segmentation": a["segmentation"]}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    code, out, _ = run(
        capsys,
        "evaluate",
        "--predictions",
        tmp_path / "results.json",
        "--annotations",
        world / "annotations.json",
        "--json",
        "-",
    )
    summary = json.loads(out)
    assert code == 0 and summary["segm"]["AP"] == pytest.approx(1) and "mean_macs_per_instance" not in summary


def test_a_results_file_is_judged_on_the_held_out_pictures(capsys, world, tmp_path):
    truth = json.loads((world / "annotations.json").read_text())
    ids = [image["id"] for image in truth["images"]]
    kept = {i for i in ids if int(hashlib.sha256(str(i).encode()).hexdigest(), 16) % 2 == 0}
    results = [
        {"image_id": a["image_id"], "category_id": 7, "score": 0.9, "segmentation": a["segmentation"]}
        for a in truth["annotations"]
        if not a["iscrowd"] and a["image_id"] in kept
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    words = ("evaluate", "--predictions", tmp_path / "results.json", "--annotations", world / "annotations.json")
    code, out, err = run(capsys, *words, "--holdout", "2", "--json", "-")
    summary = json.loads(out)
    assert code == 0 and 0 < len(kept) < len(ids) and summary["images"] == len(kept)
    assert summary["detections"] == len(results) and summary["segm"]["AP"] == pytest.approx(1)
    code, _, err = run(capsys, *words, "--holdout", "1")
    assert code == 2 and "--holdout is 1" in err
    code, _, err = run(capsys, *words, "--json", tmp_path / "no" / "f.json")
    assert code == 2 and "of --json does not exist" in err and err.count("\n") == 1


def test_predict_writes_overlay_and_results(capsys, world, tmp_path):
    code, out, err = run(
        capsys,
        "predict",
        "--weights",
        world / "random.safetensors",
        "--image",
        world / "images/1.png",
        world / "images/5.png",
        "--score",
        "0.05",
        "--budget",
        "0.03",
        "--out",
        tmp_path / "out",
    )
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1.json", "1.png", "5.json", "5.png"]
    results = json.loads((tmp_path / "out/1.json").read_text())
    assert Image.open(tmp_path / "out/1.png").size == (128, 96)
    assert results and {"segmentation", "mask_size", "macs", "bbox", "score"} <= set(results[0])
    assert np.mean([r["macs"] for r in results]) <= 0.03e9
    assert results[0]["category_id"] == 7


def test_refusals_of_predict(capsys, world, tmp_path):
    weights, picture = world / "random.safetensors", world / "images/1.png"
    (tmp_path / "foreign.safetensors").write_bytes(b"no weights")
    (tmp_path / "empty.png").write_bytes(b"")
    base = ("predict", "--out", tmp_path / "out", "--image", picture, "--weights", weights)
    for more in (
        ("--budget", "nan"),
        ("--budget", "0.001"),
        ("--policy", "best"),
        ("--policy", "fixed:30"),
        ("--score", "2"),
        ("--image", tmp_path / "empty.png"),
        ("--image", tmp_path),
        ("--image", picture, picture),
        ("--image", tmp_path / "none.png"),
        ("--image", picture, tmp_path / "empty.png"),
        ("--weights", tmp_path / "foreign.safetensors"),
        ("--weights", "nobody"),
        ("--device", "tpu:9"),
    ):
        refused(capsys, *base, *more)
    assert not (tmp_path / "out").exists()


def test_refusals_of_evaluate_and_train(capsys, world, tmp_path):
    (tmp_path / "bad.json").write_text("{]")
    (tmp_path / "list.json").write_text("[1]")
    weights, images = world / "random.safetensors", world / "images"
    for annotations in (tmp_path / "bad.json", tmp_path / "list.json", tmp_path / "none.json"):
        refused(capsys, "evaluate", "--weights", weights, "--images", images, "--annotations", annotations)
    good = world / "annotations.json"
    refused(capsys, "evaluate", "--weights", weights, "--annotations", good)
    refused(capsys, "evaluate", "--weights", weights, "--images", tmp_path, "--annotations", good)
    refused(capsys, "evaluate", "--weights", weights, "--images", images, "--annotations", good, "--policy", "x")
    base = ("train", "--images", images, "--annotations", good, "--out", tmp_path / "run")
    for more in (
        ("--model", "x"),
        ("--model", MODEL, "--optimizer", "lion"),
        ("--model", MODEL, "--resume"),
        ("--model", MODEL, "--budget-target", "0"),
        ("--model", MODEL, "--backbone-weights", weights),
        ("--model", MODEL, "--out", tmp_path / "bad.json"),
        ("--model", MODEL, "--init", tmp_path / "none.safetensors"),
        ("--model", MODEL, "--val-images", images),
    ):
        refused(capsys, *base, *more)


def test_train_evaluate_resume(capsys, world, tmp_path):
    base = [
        "train",
        "--images",
        world / "images",
        "--annotations",
        world / "annotations.json",
        "--model",
        MODEL,
        "--out",
        tmp_path / "run",
        "--batch-size",
        2,
        "--min-sizes",
        96,
        "--test-min-size",
        96,
        "--max-size",
        128,
        "--save-every",
        2,
        "--iterations",
        3,
        "--val-images",
        world / "images",
        "--val-annotations",
        world / "annotations.json",
    ]
    code, out, err = run(capsys, *base)
    assert code == 0, err
    assert set(json.loads((tmp_path / "run/evaluation.json").read_text())["segm"]) == AP_KEYS
    assert (tmp_path / "run/last.safetensors").is_file()
    assert "holds a run already" in refused(capsys, *base)
    assert "other settings" in refused(capsys, *base, "--resume", "--lr", "0.5")
    code, _, err = run(capsys, *base, "--resume")
    assert code == 0, err
    frozen = [tmp_path / "frozen" if part == tmp_path / "run" else part for part in base]
    code, _, err = run(capsys, *frozen, "--init", tmp_path / "run/last.safetensors", "--freeze", "detector")
    assert code == 0, err


def test_module_runs_without_traceback(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "dynamask",
            "predict",
            "--image",
            str(tmp_path / "no.png"),
            "--out",
            str(tmp_path / "o"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
