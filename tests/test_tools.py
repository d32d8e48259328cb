"""The tools: bundled weights and baselines with measured scores and cards, and the table of several seeds."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from helpers.small_models import tiny_model, tiny_nanodet
from safetensors.torch import load_file

from benchmarks import harness
from dynamask import cli
from dynamask.data.sources import open_data
from dynamask.models import weights
from dynamask.models.weights import file_digest, initialise, save_model
from dynamask.predict import load
from dynamask.structures import DynaMaskError
from tools import bundle as bundle_tool
from tools import class_shares, replace_detector, seeds, speed_page


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of bundled weights with a detector, "toy", and two runs on it beside the folder."""
    folder = tmp_path / "checkpoints"
    names = open_data("shapes:7:2", None, None).class_names
    toy = folder / "toy.safetensors"
    save_model(tiny_model(class_names=names), toy)
    (folder / "manifest.json").write_text(json.dumps({"toy": {"file": toy.name}}))
    for module in (weights, bundle_tool):
        monkeypatch.setattr(module, "checkpoint_dir", lambda: folder)
    for branch, file in (("fcn:28", "fcn"), ("panet", "panet"), ("fcn:14", "stranger")):
        model = tiny_model(seed=1, mask_branch=branch, class_names=names)
        if file != "stranger":
            initialise(model, toy)
        save_model(model, tmp_path / f"{file}.safetensors", training={"train": {"seed": 0}, "images_seen": 8})
    return folder


def bundle(shelf, run: str, name: str, detector: str | None = "toy", flags: tuple[str, ...] = ()) -> int:
    words = ["--weights", str(shelf.parent / f"{run}.safetensors"), "--name", name, "--data", "shapes:7:2"]
    words += [] if detector is None else ["--detector", detector]
    words += ["--trained-on", "On scenes.", "--licence", "Apache-2.0", "--commit", "abc"]
    return bundle_tool.main([*words, *flags, "--command", f"dynamask train --out {run}"])


def test_two_baselines_share_a_manifest_and_a_card(shelf, capsys):
    assert bundle(shelf, "fcn", "toy-fcn-28") == bundle(shelf, "panet", "toy-panet") == 0
    entries = weights.list_baselines()
    assert list(entries) == ["toy-fcn-28", "toy-panet"]
    entry = entries["toy-fcn-28"]
    assert entry["sha256"] == file_digest(shelf / "baselines" / entry["file"])
    assert entry["detector"] == {"name": "toy", "sha256": weights.detector_digest(shelf / "toy.safetensors")}
    assert entry["mask_sizes"] == [28] and list(entry["scores"]) == ["fixed:28"] and entry["images_seen"] == 8
    assert list(entries["toy-panet"]["scores"]) == [f"fixed:{size}" for size in (14, 28, 56, 112)]
    predictor = load("toy-panet")
    assert predictor.mask_sizes == (14, 28, 56, 112) and not predictor.has_switch
    assert tuple(entries["toy-panet"]["macs_per_instance"]) == predictor.costs.macs_per_instance
    boxes = [row["bbox"] for each in entries.values() for row in each["scores"].values()]
    assert all(box == boxes[0] for box in boxes), "all have the detector's boxes"
    card = (shelf / "baselines" / "README.md").read_text(encoding="utf-8")
    assert card.count("| `toy-panet` | fixed:") == 4 and card.count("| `toy-fcn-28` | fixed:28 |") == 1
    assert "dynamask train --out fcn\ndynamask train --out panet" in card and card.count("Licence: Apache-2.0") == 1


def test_a_run_on_another_detector_is_refused(shelf, capsys):
    assert bundle(shelf, "stranger", "toy-fcn-14") == 2
    assert "is not that of 'toy'" in capsys.readouterr().err and not (shelf / "baselines").exists()
    assert bundle(shelf, "fcn", "toy") == 2
    assert "--name toy is the name of bundled weights" in capsys.readouterr().err
    assert torch.equal(load("toy").model.mask_branch.head.base[0].bias, torch.zeros(16))


def test_the_commands_of_the_bundled_baselines_parse():
    for entry in weights.list_baselines().values():
        for command in entry["commands"]:
            words = shlex.split(command)
            if words[0] == "dynamask":
                cli.build_parser().parse_args(words[1:])


def test_a_whole_model_gets_an_entry_and_a_card(shelf):
    assert bundle(shelf, "fcn", "toy-whole", detector=None) == 0
    entry = weights.list_bundled()["toy-whole"]
    assert entry["sha256"] == file_digest(shelf / "toy-whole.safetensors") and entry["commit"] == "abc"
    assert list(entry["scores"]) == ["fixed:28"] and entry["validation_images"] == 2
    card = (shelf / "toy-whole.md").read_text(encoding="utf-8")
    assert "| fixed:28 | " in card and "Licence: Apache-2.0" in card and "dynamask train --out fcn" in card


def test_weights_are_stored_as_float16_and_loaded_as_float32(shelf):
    assert bundle(shelf, "fcn", "toy-half", detector=None, flags=("--half", "--display-score", "0.25")) == 0
    source, target = shelf.parent / "fcn.safetensors", shelf / "toy-half.safetensors"
    stored = load_file(target)
    floats = [key for key, value in load_file(source).items() if value.is_floating_point()]
    assert floats and all(stored[key].dtype == torch.float16 for key in floats)
    assert target.stat().st_size < 0.6 * source.stat().st_size
    predictor, trained = load("toy-half"), load(source)
    assert (predictor.default_score, trained.default_score) == (0.25, 0.5)
    own, theirs = predictor.model.state_dict(), trained.model.state_dict()
    assert all(own[key].dtype == theirs[key].dtype for key in theirs)
    assert all(torch.equal(own[key], theirs[key].half().to(theirs[key])) for key in theirs)
    assert weights.verify_file(target, weights.list_bundled()["toy-half"]) == []
    assert file_digest(target) == weights.list_bundled()["toy-half"]["sha256"]


def test_weights_beyond_the_range_of_float16_are_refused(shelf, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.mask_branch.head.base[0].bias[0] = 1e5
    save_model(model, tmp_path / "large.safetensors")
    with pytest.raises(DynaMaskError, match="1 tensors of .* exceed the range of float16, first .*bias"):
        weights.copy_weights(tmp_path / "large.safetensors", tmp_path / "half.safetensors", half=True)
    assert not (tmp_path / "half.safetensors").exists()


def test_a_baseline_may_rest_on_a_detector_in_float16(shelf, capsys):
    toy = shelf / "toy.safetensors"
    weights.copy_weights(toy, toy, half=True)
    run = tiny_model(seed=5, mask_branch="fcn:28", class_names=load("toy").class_names)
    initialise(run, toy)
    save_model(run, shelf.parent / "late.safetensors", training={"train": {"seed": 0}, "images_seen": 8})
    assert bundle(shelf, "late", "toy-fcn-28") == 0
    assert all(value.dtype != torch.float16 for value in load("toy-fcn-28").model.state_dict().values())
    assert bundle(shelf, "fcn", "toy-fcn-14") == 2, "its detector has more digits"
    assert bundle(shelf, "late", "toy-late", flags=("--half",)) == 2
    assert "omit them with --detector" in capsys.readouterr().err


@pytest.mark.parametrize("boxes", ["gt", "detected"])
def test_the_class_table_counts_true_boxes_or_detections(tmp_path, boxes):
    names = open_data("shapes:7:2", None, None).class_names
    model = tiny_model(class_names=names, display_score=0.0, score_threshold=0.0, detections_per_img=7)
    save_model(model, tmp_path / "tiny.safetensors")
    words = ["--weights", str(tmp_path / "tiny.safetensors"), "--data", "shapes:7:2", "--boxes", boxes]
    assert class_shares.main([*words, "--out", str(tmp_path / "t.json")]) == 0
    table = json.loads((tmp_path / "t.json").read_text())
    counted = [one for one in table["classes"] if one["shares"] is not None]
    assert (table["boxes"], table["score"]) == (boxes, 0.0 if boxes == "detected" else None)
    assert table["instances"] == sum(one["instances"] for one in counted) and table["pictures"] == 2
    assert all((one["quality"] is None) == (boxes == "detected") for one in counted)
    assert any(one["needs"] is not None for one in table["classes"])
    if boxes == "detected":
        assert table["instances"] == 14


def test_the_seed_table_has_every_report_and_the_mean(tmp_path, capsys):
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}

    def row(measure, policy, against="", limit=None, **changed):
        key = {"measure": measure, "policy": policy, "against": against, "budget_macs": limit}
        return {**interval, **key, **changed}

    rows = []
    for measure in ("segm_ap", "boundary_ap"):
        rows += [row(measure, f"fixed:{size}") for size in (14, 28, 56, 112)]
        rows += [row(measure, "learned", limit=7.0, mean=-1.0)]  # a point of the curve, which the table leaves out
        rows += [row(measure, "learned"), row(measure, "learned", "random")]
        rows += [row(measure, "budget", rival, 9.0) for rival in ("size", "fixed:28", "fixed:56")]
    rows += [row(measure, "learned", "share of noise-aware oracle") for measure in ("mask_iou", "boundary_iou")]
    data = {
        "rows": rows,
        "known_complexity": {"complexity": interval, "object_size": interval},
        "operating_points": {"half": {f"{name}_minus_full": interval for name in ("segm_ap", "boundary_ap")}},
    }
    other = json.loads(json.dumps(data).replace("0.5", "0.7"))
    for name, content in (("a", data), ("b", other), ("c", {**data, "rows": rows[:3]})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    paths = [str(tmp_path / f"{name}.json") for name in "ab"]
    assert seeds.main(["--reports", *paths, "--out", str(tmp_path / "t.md")]) == 0
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    assert "| mask AP, learned sizes | 0.500 [0.400, 0.600] | 0.700 [0.400, 0.600] | 0.600 (0.500 to 0.700) |" in lines
    assert len(lines) == 2 + 2 * 10 + 4 and "-1" not in "".join(lines)
    capsys.readouterr()
    assert seeds.main(["--reports", str(tmp_path / "c.json")]) == 2
    assert "make it again" in capsys.readouterr().err


SPEED = {
    "machine": {"cpu": "C", "cores": 2, "threads": 2, "torch": "2", "torchvision": "0", "load": 0.1},
    "settings": {"refine": [1.0, 0.4, 0.2], "rounds": 3},
    "picture_ratio_learned": 1.05,
    "train_step_ratio": 1.2,
    "train_step_ratio_openvino": None,
    "rows": [
        {"part": "predict", "case": "mask_rcnn", "median_ms": 50.0, "ratio": 1.0},
        {"part": "predict", "case": "dynamask learned", "median_ms": 52.4, "ratio": 1.05},
        {"part": "regions paper", "case": "refined", "median_ms": 700.0, "ratio": 0.9},
        {"part": "regions paper, openvino", "case": "refined", "median_ms": 400.0, "ratio": 0.8},
    ],
    "stages": [
        {"model": "paper", "case": "refined", "stage": 14, "regions": 100, "median_ms": 300.0},
        {"model": "paper", "case": "refined", "stage": 28, "regions": 65, "median_ms": 400.4},
    ],
    "profile": [{"model": "paper", "case": "refined", "operator": "aten::mm", "share": 0.5}],
    "memory": [{"case": "refined", "peak_bytes": 2**29, "ratio": 1.5}],
}


@pytest.fixture
def speed_files(tmp_path):
    """Figures of now, of before, and of the app, and a copy of the page."""
    before = {**SPEED, "train_step_ratio": 2.0, "stages": [], "profile": [], "memory": []}
    figures = {
        "now": SPEED,
        "before": before,
        "app": {"start_s": 5.5, "server_s": 4.0, "first_start_s": 30.0, "photograph": {"median_ms": 812.3}},
    }
    for name, values in figures.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    page = tmp_path / "speed.md"
    page.write_text((harness.ROOT / "docs" / "speed.md").read_text(encoding="utf-8"), encoding="utf-8")
    return {**{name: str(tmp_path / f"{name}.json") for name in figures}, "doc": str(page)}


def block_of(page, name):
    text = page.split(f"<!-- {name}:begin -->\n")[1]
    return text.split(f"\n<!-- {name}:end -->")[0].splitlines()


def test_the_page_about_speed_is_filled_from_json(speed_files):
    words = [word for name, path in speed_files.items() for word in (f"--{name}", path)]
    assert speed_page.main(words) == 0
    page = Path(speed_files["doc"]).read_text(encoding="utf-8")
    headlines = block_of(page, "headlines")
    assert "| picture to masks, learned sizes | 1.05 | 1.05 | ≤ 1.1 | – | ≤ 0.6 |" in headlines
    assert "| training step of the small preset, now as a share of before | 1.00 | 0.60 | ≤ 0.75 | – | – |" in headlines
    assert "| dynamask learned | 52 | 1.05 | 52 | 1.05 |" in block_of(page, "pictures")
    assert block_of(page, "branch-paper")[2:] == [
        "| refined | 700 | 0.90 | 700 | 0.90 |",
        "| refined, openvino | 400 | 0.80 | 400 | 0.80 |",
    ]
    assert block_of(page, "stages-paper")[2:] == ["| to 14 | 100 | 300 |", "| to 28 | 65 | 400 |", "| all |  | 700 |"]
    assert "| refined | – | 512 |" in block_of(page, "memory")
    assert "| a photograph to its masks, ms (median) | 812 | ≤ 1000 |" in block_of(page, "app")
    assert "| `aten::mm` | – | 50 % |" in block_of(page, "profile-paper")
    measured = [line for line in block_of(page, "machine") if line]
    assert measured[0].startswith("Before: C, 2 cores") and "refine [1.0, 0.4, 0.2]" in measured[1]


def test_blocks_without_figures_are_left_as_they_are(speed_files, capsys):
    before = Path(speed_files["doc"]).read_text(encoding="utf-8")
    assert speed_page.main(["--app", speed_files["app"], "--doc", speed_files["doc"]]) == 0
    after = Path(speed_files["doc"]).read_text(encoding="utf-8")
    assert (
        block_of(before, "headlines") == block_of(after, "headlines")
        and "| the same with an empty cache, s | 30.0 | – |" in after
    )
    Path(speed_files["doc"]).write_text("No blocks.", encoding="utf-8")
    assert speed_page.main(["--app", speed_files["app"], "--doc", speed_files["doc"]]) == 2
    assert "has no block 'app'; add its two markers" in capsys.readouterr().err
    assert Path(speed_files["doc"]).read_text(encoding="utf-8") == "No blocks."


def test_masks_move_to_another_detector(tmp_path, capsys):
    masks, boxes, rcnn, out = (tmp_path / f"{name}.safetensors" for name in ("masks", "boxes", "rcnn", "out"))
    for seed, path in ((1, masks), (2, boxes)):
        save_model(tiny_nanodet(seed=seed), path)
    save_model(tiny_model(), rcnn)
    words = ["--weights", str(masks), "--out", str(out), "--detector"]
    assert replace_detector.main([*words, str(boxes)]) == 0
    new, of_masks, of_boxes = (load_file(path) for path in (out, masks, boxes))
    taken = {name for name in new if torch.equal(new[name], of_boxes[name])}
    kept = {name for name in new if torch.equal(new[name], of_masks[name])}
    assert taken | kept == set(new)
    assert "backbone.body.conv1.0.weight" in taken - kept and "head.gfl_cls.0.weight" in taken - kept
    assert "backbone.mask_pyramid.outputs.0.weight" in kept - taken
    assert "roi_heads.mask_branch.region_fpn.base.0.weight" in kept - taken
    assert replace_detector.main([*words, str(rcnn)]) == 2
    assert "a detector of another kind" in capsys.readouterr().err
