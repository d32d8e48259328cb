"""Bundling a baseline: the branch alone, a manifest entry with measured scores, one card for all."""

import json
import shlex

import pytest
import torch
from helpers.small_models import tiny_model

from dynamask import bundled, cli
from dynamask.data.sources import open_data
from dynamask.engine.initialise import initialise
from dynamask.models.weights import file_digest, save_model
from dynamask.predict import load
from tools import bundle_baselines


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of bundled weights with a detector, "toy", and two runs on it beside the folder."""
    folder = tmp_path / "checkpoints"
    names = open_data("shapes:7:2", None, None).class_names
    toy = folder / "toy.safetensors"
    save_model(tiny_model(class_names=names), toy)
    (folder / "manifest.json").write_text(json.dumps({"toy": {"file": toy.name}}))
    for module in (bundled, bundle_baselines):
        monkeypatch.setattr(module, "checkpoint_dir", lambda: folder)
    for branch, file in (("fcn:28", "fcn"), ("panet", "panet"), ("fcn:14", "stranger")):
        model = tiny_model(seed=1, mask_branch=branch, class_names=names)
        if file != "stranger":
            initialise(model, toy)
        save_model(model, tmp_path / f"{file}.safetensors", training={"train": {"seed": 0}, "images_seen": 8})
    return folder


def bundle(shelf, run: str, name: str) -> int:
    words = ["--weights", shelf.parent / f"{run}.safetensors", "--name", name, "--detector", "toy", "--data",
             "shapes:7:2", "--trained-on", "On scenes.", "--licence", "Apache-2.0", "--command",
             f"dynamask train --out {run}", "--commit", "abc"]  # fmt: skip
    return bundle_baselines.main([str(word) for word in words])


def test_two_baselines_share_a_manifest_and_a_card(shelf, capsys):
    assert bundle(shelf, "fcn", "toy-fcn-28") == bundle(shelf, "panet", "toy-panet") == 0
    entries = bundled.list_baselines()
    assert list(entries) == ["toy-fcn-28", "toy-panet"]
    entry = entries["toy-fcn-28"]
    assert entry["sha256"] == file_digest(shelf / "baselines" / entry["file"])
    assert entry["detector"] == {"name": "toy", "sha256": file_digest(shelf / "toy.safetensors")}
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
    assert "--name toy is bundled already" in capsys.readouterr().err
    assert torch.equal(load("toy").model.mask_branch.head.base[0].bias, torch.zeros(16))


def test_the_commands_of_the_bundled_baselines_parse():
    for entry in bundled.list_baselines().values():
        for command in entry["commands"]:
            words = shlex.split(command)
            if words[0] == "dynamask":
                cli.build_parser().parse_args(words[1:])
