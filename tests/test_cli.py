"""The command line: flags, files, JSON keys, one line with exit code 2 for bad input, and help without torch."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.coco_files import rectangle
from helpers.command_line import refusal, run
from PIL import Image

import dynamask
from dynamask import cli
from dynamask.cli.common import run_command
from dynamask.models.build import create_model
from dynamask.models.weights import save_model

AP_KEYS = {"AP", "AP50", "AP75", "APS", "APM", "APL"}
MODEL = "dynamask_resnet18_fpn_small"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Five pictures of noise with a square each, the last one empty, a crowd region, and random weights."""
    root = tmp_path_factory.mktemp("world")
    (root / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (5, 96, 128, 3), dtype=np.uint8)
    images, annotations = [], []
    common = {"category_id": 7, "iscrowd": 0, "area": 1600}
    for number, pixels in enumerate(noise, start=1):
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 128})
        x = 8 * number
        polygon = [x, 28, x + 40, 28, x + 40, 68, x, 68]
        place = {"id": number, "image_id": number, "bbox": [x, 28, 40, 40], "segmentation": [polygon]}
        annotations += [{**place, **common}] if number < 5 else []
    crowd = {**common, "id": 99, "image_id": 1, "iscrowd": 1, "area": 64, **rectangle((96, 128), 0, 0, 8, 8)}
    coco = {"images": images, "annotations": [*annotations, crowd], "categories": [{"id": 7, "name": "disc"}]}
    (root / "annotations.json").write_text(json.dumps(coco))
    torch.manual_seed(0)
    classes = {"class_names": ("__background__", "disc"), "category_ids": (7,)}
    model = create_model(MODEL, **classes, test_min_size=96, max_size=128)
    save_model(model, root / "random.safetensors", training={"images_seen": 0})
    return root


TRAIN = (
    f"train --images WORLD/images --annotations WORLD/annotations.json --model {MODEL} --out RUN --batch-size 2 "
    "--min-sizes 96 --test-min-size 96 --max-size 128 --save-every 2 --iterations 3 --val-images WORLD/images "
    "--val-annotations WORLD/annotations.json"
)


def words(text, world, **places):
    """The words of a command, with the places of the data set, its weights and other files filled in."""
    for name, place in {"WEIGHTS": world / "random.safetensors", "WORLD": world, **places}.items():
        text = text.replace(name, str(place))
    return text.split()


def evaluate(capsys, world, more=""):
    command = "evaluate --weights WEIGHTS --images WORLD/images --annotations WORLD/annotations.json --json - "
    code, out, err = run(capsys, *words(command + more, world))
    assert code == 0, err
    return json.loads(out)


def test_costs_json_is_alone_on_stdout(capsys):
    code, out, _ = run(capsys, "costs", "--model", MODEL, "--json", "-")
    costs = json.loads(out)
    assert code == 0 and costs["mask_sizes"] == [14, 28, 56, 112]
    assert costs["macs_per_instance"] == sorted(costs["macs_per_instance"]) and costs["switch_macs"] > 0


@pytest.mark.parametrize(
    "choice",
    [
        *("", "--policy size", "--policy fixed:56", "--policy random", "--policy oracle"),
        *("--budget 0.05", "--budget 0.05 --budget-scope dataset"),
    ],
)
def test_evaluate_keys(capsys, world, choice):
    summary = evaluate(capsys, world, choice)
    assert summary["images"] == 5
    for kind in ("bbox", "segm", "boundary"):
        assert set(summary[kind]) == AP_KEYS
    assert set(summary["size_shares"]) == {"14", "28", "56", "112"}
    assert sum(summary["size_shares"].values()) == pytest.approx(1)
    assert 0 <= summary["border_share"] <= 1
    if "--budget" in choice:
        assert summary["mean_macs_per_instance"] <= 0.05e9


def test_evaluate_on_true_boxes(capsys, world):
    fixed = evaluate(capsys, world, "--boxes gt --policy fixed:28")
    assert fixed["detections"] == 4 and fixed["size_shares"]["28"] == 1
    assert fixed["bbox"]["AP"] == pytest.approx(1)
    assert 0 <= fixed["mean_boundary_iou"] <= 1
    learned, permuted, oracle = (
        evaluate(capsys, world, f"--boxes gt --policy {policy}") for policy in ("learned", "random", "oracle")
    )
    assert permuted["size_shares"] == learned["size_shares"]
    assert oracle["mean_macs_per_instance"] <= learned["mean_macs_per_instance"]
    assert oracle["mean_mask_iou"] >= max(learned["mean_mask_iou"], permuted["mean_mask_iou"])


@pytest.mark.parametrize("modulus", [None, 2])
def test_evaluate_results_file(capsys, world, tmp_path, modulus):
    truth = json.loads((world / "annotations.json").read_text())
    ids = [image["id"] for image in truth["images"]]
    kept = {i for i in ids if modulus is None or int(hashlib.sha256(str(i).encode()).hexdigest(), 16) % modulus == 0}
    found = [a for a in truth["annotations"] if not a["iscrowd"] and a["image_id"] in kept]
    results = [{**{key: a[key] for key in ("image_id", "category_id", "segmentation")}, "score": 0.9} for a in found]
    (tmp_path / "results.json").write_text(json.dumps(results))
    command = "evaluate --predictions RESULTS --annotations WORLD/annotations.json --json - "
    command += "" if modulus is None else f"--holdout {modulus}"
    code, out, _ = run(capsys, *words(command, world, RESULTS=tmp_path / "results.json"))
    summary = json.loads(out)
    assert code == 0 and 0 < len(kept) <= len(ids) and summary["images"] == len(kept)
    assert summary["detections"] == len(results) and summary["segm"]["AP"] == pytest.approx(1)
    assert "mean_macs_per_instance" not in summary


def test_predict_writes_overlay_and_results(capsys, world, tmp_path):
    command = "predict --weights WEIGHTS --image WORLD/images/1.png WORLD/images/5.png --score 0.05 --budget 0.03 "
    code, _, err = run(capsys, *words(command + "--out OUT", world, OUT=tmp_path / "out"))
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1.json", "1.png", "5.json", "5.png"]
    results = json.loads((tmp_path / "out/1.json").read_text())
    assert Image.open(tmp_path / "out/1.png").size == (128, 96)
    assert results and {"segmentation", "mask_size", "macs", "bbox", "score"} <= set(results[0])
    assert np.mean([r["macs"] for r in results]) <= 0.03e9
    assert results[0]["category_id"] == 7


def test_predict_leaves_out_what_it_cannot_read_and_continues(capsys, world, tmp_path):
    """A bad picture is named at the end; the others are written, with the image ids of the data, and not made again."""
    folder, out = tmp_path / "pictures", tmp_path / "out"
    (folder / "more").mkdir(parents=True)
    for name in ("3.png", "more/4.png"):
        shutil.copy(world / "images" / name[-5:], folder / name)
    (folder / "bad.png").write_text("x")
    (folder / ("n" * 251 + ".png")).write_bytes((folder / "3.png").read_bytes())
    ids = tmp_path / "ids.json"
    ids.write_text(
        json.dumps({"images": [{"id": 40 + i, "file_name": p.name} for i, p in enumerate(folder.rglob("*.png"))]})
    )
    known = {image["file_name"]: image["id"] for image in json.loads(ids.read_text())["images"]}
    command = words("predict --weights WEIGHTS --score 0.05 --out OUT --image FOLDER --image-ids IDS", world, OUT=out)
    command = [str(folder) if word == "FOLDER" else str(ids) if word == "IDS" else word for word in command]
    error = refusal(capsys, *command)
    assert "2 of 4 pictures could not be used" in error and "bad.png cannot be read" in error
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.json")) == ["3.json", "more/4.json"]
    assert (out / "3.png").is_file() and (out / "more/4.png").is_file()
    for name in ("3", "more/4"):
        results = json.loads((out / f"{name}.json").read_text())
        assert {result["image_id"] for result in results} == {known[name.split("/")[-1] + ".png"]}
    (out / "3.json").write_text("[]")
    code, text, _ = run(capsys, *command[:-2], "--skip-existing")
    assert code == 2 and "2 of 4 pictures have results" in text and (out / "3.json").read_text() == "[]"


def test_ctrl_c_ends_predict_with_a_sentence(capsys, world, tmp_path, monkeypatch):
    calls = []

    def interrupted(*_):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("dynamask.viz.overlay.draw_prediction", interrupted)
    command = "predict --weights WEIGHTS --image WORLD/images --out OUT"
    code, _, err = run(capsys, *words(command, world, OUT=tmp_path / "out"))
    assert code == 130 and len(err) == 1 and "4 of 5 pictures are left, and --skip-existing continues" in err[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.json", "1.png"]


def test_predict_in_the_boxes_of_another_detector(capsys, world, tmp_path):
    command = "predict --weights WEIGHTS --image WORLD/images/1.png WORLD/images/2.png --detections GIVEN --out OUT"
    given, out = tmp_path / "given.json", tmp_path / "out"
    some = {"bbox": [10, 20, 50, 40], "category_id": 3, "category_name": "kite"}
    found = [{**some, "score": s, "file_name": name} for s, name in ((0.25, "1.png"), (0.5, "1.png"), (0.75, "x.png"))]
    given.write_text(json.dumps(found))
    code, text, _ = run(capsys, *words(command, world, GIVEN=given, OUT=out))
    results = json.loads((out / "1.json").read_text())
    assert code == 0 and [(one["score"], one["category_id"]) for one in results] == [(0.5, 3), (0.25, 3)]
    assert json.loads((out / "2.json").read_text()) == [] and text.count("kite") == 2
    other = json.dumps([{**some, "file_name": "x.png"}])
    refused = {
        "[": "cannot be read",
        "{}": "not COCO results",
        json.dumps([some]): "no file_name",
        other: "no result in",
    }
    for content, message in refused.items():
        given.write_text(content)
        code, _, err = run(capsys, *words(command, world, GIVEN=given, OUT=out))
        assert code == 2 and len(err) == 1 and message in err[0]


PREDICT = "predict --out OUT --weights WEIGHTS --image WORLD/images/1.png "
EVALUATE = "evaluate --weights WEIGHTS --images WORLD/images "
GOOD = "--annotations WORLD/annotations.json "


@pytest.mark.parametrize(
    "command",
    [
        PREDICT + "--budget nan",
        PREDICT + "--budget 0.001",
        PREDICT + "--policy best",
        PREDICT + "--policy fixed:30",
        PREDICT + "--score 2",
        PREDICT + "--image BAD/empty.png",
        PREDICT + "--image BAD",
        PREDICT + "--image WORLD/images/1.png BAD/*.jpg",
        PREDICT + "--image @BAD/none.txt",
        PREDICT + "--image-ids BAD/list.json",
        PREDICT + "--skip-existing --out BAD/bad.json",
        PREDICT + "--image BAD/none.png",
        PREDICT + "--image BAD/none.png BAD/empty.png",
        PREDICT + "--weights BAD/foreign.safetensors",
        PREDICT + "--weights nobody",
        PREDICT + "--device tpu:9",
        EVALUATE + "--annotations BAD/bad.json",
        EVALUATE + "--annotations BAD/list.json",
        EVALUATE + "--annotations BAD/none.json",
        EVALUATE + GOOD + "--images BAD",
        EVALUATE + GOOD + "--policy x",
        EVALUATE + GOOD + "--holdout 1",
        EVALUATE + GOOD + "--json BAD/no/f.json",
        "evaluate --weights WEIGHTS " + GOOD,
        TRAIN.replace(MODEL, "x"),
        TRAIN + " --optimizer lion",
        TRAIN + " --epochs 2",
        TRAIN.replace("--iterations 3", "--epochs 0"),
        TRAIN + " --batch-size 2147483648",
        TRAIN + " --workers 1" + "0" * 400,
        TRAIN + " --lr nan",
        TRAIN + " --fpn-channels -1",
        TRAIN + " --anchor-sizes -1 8 16 32 64",
        TRAIN + " --anchor-sizes 8 16",
        EVALUATE + "--annotations BAD/pipe",
        "analyze --min-area inf " + GOOD,
        "shapes --images 3 --seed 1 --out BAD/bad.json/x",
        TRAIN + " --resume",
        TRAIN + " --budget-target 0",
        TRAIN + " --backbone-weights WEIGHTS",
        TRAIN + " --out BAD/bad.json",
        TRAIN + " --init BAD/none.safetensors",
        TRAIN.replace("--val-annotations WORLD/annotations.json", ""),
    ],
)
def test_refusals(capsys, world, tmp_path, command):
    bad = tmp_path / "bad"
    bad.mkdir()
    os.mkfifo(bad / "pipe")
    for name, content in {"bad.json": "{]", "list.json": "[1]", "foreign.safetensors": "x", "empty.png": ""}.items():
        (bad / name).write_text(content)
    refusal(capsys, *words(command, world, BAD=bad, OUT=tmp_path / "out", RUN=tmp_path / "run"))
    assert not (tmp_path / "out").exists()


def test_train_evaluate_resume(capsys, world, tmp_path):
    base = words(TRAIN, world, RUN=tmp_path / "run")
    code, _, err = run(capsys, *base)
    assert code == 0, err
    assert set(json.loads((tmp_path / "run/evaluation.json").read_text())["segm"]) == AP_KEYS
    assert (tmp_path / "run/last.safetensors").is_file()
    assert "holds a run already" in refusal(capsys, *base)
    assert "other settings" in refusal(capsys, *base, "--resume", "--lr", "0.5")
    code, _, err = run(capsys, *base, "--resume")
    assert code == 0, err
    init = ("--init", tmp_path / "run/last.safetensors", "--freeze", "detector")
    code, _, err = run(capsys, *words(TRAIN, world, RUN=tmp_path / "frozen"), *init)
    assert code == 0, err


def test_module_runs_without_traceback(tmp_path):
    command = [sys.executable, "-m", "dynamask", "predict", "--image", "no.png", "--out", "o"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def imported(code, cwd):
    """Top-level modules in ``sys.modules`` after some code, in a process of its own."""
    code += "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd)
    return set(done.stdout.splitlines()[-1].split())


def test_errors_in_the_arguments_are_one_line(capsys):
    for argument in ("two\nlines", "\r", "\u2028x"):
        assert refusal(capsys, "weights", "list", argument).endswith("; see dynamask -h")


def test_help_and_argument_errors_import_no_torch(tmp_path):
    parts = ("table1", "budget-curve", "all", "sodar-all")
    commands = ["", *(module.__name__.rpartition(".")[2] for module in cli.COMMANDS), "data check", "weights export"]
    commands += [f"report {part}" for part in parts]
    lines = [*(f"{command} -h" for command in commands), "predict", "nothing", "weights list --what"]
    code = f"""
from dynamask.cli import main
for line in {lines}:
    try:
        main(line.split())
    except SystemExit as end:
        assert end.code in (0, 2)
"""
    assert not {"torch", "torchvision", "numpy", "PIL", "plotly", "timm", "tqdm"} & imported(code, tmp_path)


def test_importing_the_package_is_lazy(tmp_path):
    names = "import dynamask; dynamask.list_models(); dynamask.DynaMaskError, dynamask.MASK_SIZES, dir(dynamask)"
    assert not {"torch", "numpy"} & imported(names, tmp_path)
    names = "import dynamask; dynamask.load, dynamask.create_model, dynamask.Predictor, dynamask.viz"
    heavy = imported(names, tmp_path)
    assert "torch" in heavy and not {"timm", "plotly", "gradio", "ipywidgets", "tensorboard"} & heavy
    with pytest.raises(AttributeError, match="module 'dynamask' has no attribute 'lode'"):
        dynamask.lode  # noqa: B018


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_a_terminal_cannot_show_is_no_error(tmp_path, encoding):
    """A name with characters that the encoding of stderr lacks, and one that no encoding has."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "dynamask", "predict", "--out", "out", "--image", "@Κύκλος → 箱\udcff.txt"]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"??????" in done.stderr


def test_errors_of_the_system_are_sentences(capsys):
    def fails():
        raise PermissionError(errno.EACCES, "Permission denied", "/some/where")

    assert run_command("dynamask", fails) == 2
    assert "dynamask: error: /some/where cannot be used (permission" in capsys.readouterr().err


def test_a_reader_that_ends_early_is_no_error(tmp_path):
    code = "from dynamask.cli import main; raise SystemExit(main(['recipes']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 2
