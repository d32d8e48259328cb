"""`dynamask weights`: the table, the checks that find each fault, and the forms in which weights leave."""

import json
import shutil

import pytest
import torch
from helpers.command_line import run
from helpers.small_models import tiny_model
from safetensors.torch import save_file

from dynamask.models import weights
from dynamask.models.dynamask import DynaMask
from dynamask.models.hub import verify_folder
from dynamask.models.masks.export import load_exported
from dynamask.models.weights import (
    checkpoint_dir,
    file_digest,
    list_baselines,
    list_bundled,
    save_model,
    verify_bundled,
    verify_file,
)

ORIGINAL = checkpoint_dir()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of one bundled entry that a test may spoil."""
    target = tmp_path / "checkpoints"
    target.mkdir()
    for name in ("shapes.safetensors", "shapes.md"):
        shutil.copy(ORIGINAL / name, target)
    (target / "manifest.json").write_text(json.dumps({"shapes": list_bundled()["shapes"]}))
    monkeypatch.setattr(weights, "checkpoint_dir", lambda: target)
    return target


def change_entry(folder, **values) -> None:
    entries = json.loads((folder / "manifest.json").read_text())
    entries["shapes"].update(values)
    (folder / "manifest.json").write_text(json.dumps(entries))


def test_list_names_all_with_their_figures(capsys):
    code, out, _ = run(capsys, "weights", "list", "--json", "-")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and list(rows) == list(list_bundled())
    shapes = rows["shapes"]
    assert shapes["mask_ap"] == list_bundled()["shapes"]["scores"]["learned"]["segm"]["AP"]
    assert shapes["bytes"] == (ORIGINAL / "shapes.safetensors").stat().st_size
    assert shapes["sha256"] == file_digest(ORIGINAL / "shapes.safetensors")
    assert shapes["mean_gmacs_per_instance"] == pytest.approx(0.0732, abs=1e-4)
    code, out, _ = run(capsys, "weights", "list")
    assert code == 0 and all(name in out for name in rows) and max(map(len, out.splitlines())) <= 125


def test_all_bundled_weights_are_sound(capsys):
    every = [*list_bundled(), *list_baselines()]
    assert {"shapes", "shapes-fcn-28"} <= set(every)
    code, out, err = run(capsys, "weights", "verify", "--json", "-")
    assert code == 0
    assert json.loads(out) == dict.fromkeys(every, {"sound": True, "problems": []})


def test_a_changed_number_is_found_by_the_checksum(folder, capsys):
    model = DynaMask.from_pretrained(folder / "shapes.safetensors")
    model.detector.rpn.head.cls_logits.bias.data += 1
    save_model(model, folder / "shapes.safetensors")
    assert verify_bundled("shapes") == ["its SHA-256 is not the manifest's"]
    code, out, err = run(capsys, "weights", "verify")
    assert code == 2 and len(err) == 1
    assert err[0].startswith("dynamask: error: 1 of 1 weights are not sound; first shapes: its SHA-256")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"licence": ""}, "the manifest gives no licence"),
        (
            {"model": "dynamask_resnet50_fpn"},
            "it is a dynamask_mobilenetv2_fpn_small, and the manifest says dynamask_res",
        ),
        ({"macs_per_instance": [1, 2, 3, 4]}, "the manifest says [1, 2, 3, 4]"),
    ],
)
def test_a_manifest_that_says_otherwise(folder, change, problem):
    change_entry(folder, **change)
    found = verify_bundled("shapes")
    assert len(found) == 1 and problem in found[0]


def test_missing_and_torn_files(folder):
    (folder / "shapes.md").unlink()
    assert verify_bundled("shapes") == ["the card shapes.md is missing"]
    data = (folder / "shapes.safetensors").read_bytes()
    (folder / "shapes.safetensors").write_bytes(data[: len(data) // 2])
    found = verify_bundled("shapes")
    assert found[1] == "its SHA-256 is not the manifest's" and found[2].startswith("it cannot be loaded: weights ")
    (folder / "shapes.safetensors").unlink()
    assert verify_bundled("shapes")[-1] == "the file shapes.safetensors is missing"


def test_files_and_folders_are_verified_too(tmp_path, capsys):
    model = tiny_model()
    folder = model.save_pretrained(tmp_path / "mine")
    assert verify_folder(folder) == verify_file(folder / "model.safetensors") == []
    with torch.no_grad():
        model.detector.rpn.head.cls_logits.bias[0] = float("nan")
    save_model(model, folder / "model.safetensors")
    assert verify_folder(folder) == ["1 tensors hold numbers that are not finite, first rpn.head.cls_logits.bias"]
    (folder / "README.md").write_text("nothing")
    (folder / "config.json").unlink()
    assert verify_folder(folder)[:2] == ["config.json is missing", "README.md names no licence"]
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    code, out, err = run(capsys, "weights", "verify", folder, tmp_path / "foreign.safetensors", "shapes")
    assert code == 2 and err[0].startswith("dynamask: error: 2 of 3 weights are not sound")
    assert "were not written by dynamask" in out and out.splitlines()[-1].split() == ["shapes", "sound"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["verify", "dogs"], "no bundled weights are called 'dogs'"),
        (["verify", "none.safetensors"], "first none.safetensors: it cannot be loaded"),
        (["export", "--weights", "shapes", "--out", "branch.onnx"], "does not end in .pt2"),
        (["export", "--weights", "dogs", "--out", "branch.pt2"], "no bundled weights are called"),
        (["save", "--weights", "shapes", "--out", __file__], "is a file; give a folder"),
        (["push", "--weights", "shapes", "--repo", "mine"], "'mine' is not a name on the hub"),
    ],
)
def test_refusals(capsys, arguments, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "weights", *arguments)
    assert code == 2 and len(err) == 1 and match in err[0]
    assert list(tmp_path.iterdir()) == []


def test_saving_keeps_the_bundled_card(capsys, tmp_path):
    code, out, _ = run(capsys, "weights", "save", "--weights", "shapes", "--out", tmp_path / "shapes")
    assert code == 0 and "model.safetensors" in out
    text = (tmp_path / "shapes" / "README.md").read_text(encoding="utf-8")
    assert "\nlicense: apache-2.0\n" in text and "| learned | 0.836 | 0.734 |" in text
    run(capsys, "weights", "save", "--weights", tmp_path / "shapes", "--licence", "mit", "--out", tmp_path / "again")
    assert "\nlicense: mit\n" in (tmp_path / "again" / "README.md").read_text(encoding="utf-8")


def test_pushing_says_how_to_load(capsys, monkeypatch):
    monkeypatch.setattr(DynaMask, "push_to_hub", lambda self, repo, card, private: f"at {repo} {private}")
    code, out, _ = run(capsys, "weights", "push", "--weights", "shapes", "--repo", "owner/mine", "--private")
    assert code == 0 and out == 'at owner/mine True; dynamask.load("hf://owner/mine") loads it\n'


def test_exporting_writes_a_program(capsys, tmp_path, monkeypatch):
    save_model(tiny_model(), tmp_path / "tiny.safetensors")
    words = ("--weights", tmp_path / "tiny.safetensors", "--size", 14, "--out", tmp_path / "tiny.pt2")
    code, out, _ = run(capsys, "weights", "export", *words)
    assert code == 0 and "every mask at 14" in out
    assert load_exported(tmp_path / "tiny.pt2")[1]["size"] == 14


def test_nothing_bundled_is_said(monkeypatch, capsys):
    monkeypatch.setattr(weights, "list_bundled", dict)
    monkeypatch.setattr(weights, "list_baselines", dict)
    for part in ("list", "verify"):
        code, _, err = run(capsys, "weights", part)
        assert code == 2 and "no weights are bundled here" in err[0]
