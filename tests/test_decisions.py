"""Cached features say what the model says, the switch learns from them, and the tables hold what was measured."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_models import tiny_model

from benchmarks import decision_tables, decisions, switch_training
from dynamask.config import LossConfig
from dynamask.data.shapes import CLASS_NAMES, ShapesDataset
from dynamask.engine import switch_training as fitting
from dynamask.engine.cached_features import Cache, build_cache, jittered, load_cache, save_cache
from dynamask.evaluation.mask_quality import quality_by_size
from dynamask.models.masks.policies import at_price, learned, price_for_budget
from dynamask.ops.knapsack import best_under_budget
from dynamask.predict import Predictor
from dynamask.structures import MASK_SIZES, DynaMaskError

DOC = Path(decisions.__file__).parents[1] / "docs" / "decisions.md"
SCHEDULE = dataclasses.replace(fitting.SCHEDULE, iterations=150, batch_size=32, lr=5e-3)


@pytest.fixture(scope="module")
def world():
    """A model with random weights, three small scenes, and their cache with three other views."""
    predictor = Predictor(tiny_model(class_names=CLASS_NAMES))
    scenes = ShapesDataset(3, seed=5, size=(96, 128), first=1)
    return predictor, scenes, build_cache(predictor, scenes, range(3), 3, 0, {"weights": "w"})


def synthetic(count: int = 120, views: int = 2, seed: int = 0) -> Cache:
    """Instances whose first channel says whether they gain from a finer mask."""
    generator = torch.Generator().manual_seed(seed)
    needs = torch.rand(count, generator=generator)
    rows = needs.repeat(views)
    quality = 0.9 - 0.5 * rows[:, None] * torch.tensor([1.0, 0.6, 0.3, 0.0])
    noise = torch.rand(count * views, 4, generator=generator)
    feature = 0.1 * torch.randn(count * views, 16, 14, 14, generator=generator)
    feature[:, 0] += rows[:, None, None] * 2 - 1
    scenes = torch.arange(count).repeat(views)
    names = ("mask_loss", "edge_loss", "boundary_error", "overlap_error")
    columns = {name: (1 - quality).clone() for name in names}
    box = torch.tensor([[0.0, 0.0, 40.0, 40.0]]) + noise.cumsum(1)
    config = tiny_model().config.to_dict()
    about = {"config": config, "macs_per_instance": [10, 30, 60, 100], "weights": "w"}
    return Cache(
        feature.half(), **columns, mask_iou=quality, boundary_iou=quality + 0.01 * noise, switch_logits=noise, box=box,
        image_size=torch.tensor([[96, 128]]).repeat(count * views, 1), label=torch.ones_like(scenes),
        image_id=scenes // 3, instance=scenes, view=torch.arange(views).repeat_interleave(count), complexity=rows,
        about=about,
    )  # fmt: skip


# Cached features


def test_true_boxes_are_what_the_predictor_sees(world):
    predictor, scenes, cache = world
    own = cache.true_boxes()
    for index in range(3):
        scene, rows = scenes.scene(index), own.image_id == scenes.image_ids[index]
        pixels, boxes = scene.image, torch.from_numpy(scene.boxes)
        prediction = predictor(pixels, boxes=boxes, labels=scene.labels.tolist(), all_sizes=True)
        masks = [np.stack([prediction.mask_at(i, s).numpy() for i in range(len(scene))]) for s in MASK_SIZES]
        mask_iou, boundary_iou = quality_by_size(scene.masks, masks)
        np.testing.assert_allclose(own.mask_iou[rows], mask_iou, atol=0.02)
        np.testing.assert_allclose(own.boundary_iou[rows], boundary_iou, atol=0.02)
        torch.testing.assert_close(own.switch_logits[rows], prediction.switch_logits, atol=1e-4, rtol=1e-3)
        assert own.complexity[rows].tolist() == pytest.approx(scene.complexity.tolist())
        assert own.box[rows].tolist() == boxes.tolist() and own.label[rows].tolist() == scene.labels.tolist()
    switch = predictor.model.mask_branch.switch
    torch.testing.assert_close(fitting.logits_of(switch, own), own.switch_logits, atol=1e-2, rtol=1e-2)


def test_views_of_an_instance_share_its_number_and_its_truth(world):
    _, scenes, cache = world
    count = sum(len(scenes.scene(i)) for i in range(3))
    assert len(cache) == 4 * count and sorted(cache.instance[cache.view == 2].tolist()) == list(range(count))
    for number in range(count):
        rows = cache.instance == number
        assert sorted(cache.view[rows].tolist()) == [0, 1, 2, 3] and len(set(cache.complexity[rows].tolist())) == 1
    mean = cache.other_views("mask_iou")
    first = (cache.instance == 0) & (cache.view > 0)
    np.testing.assert_allclose(mean[0], cache.mask_iou[first].double().mean(0), rtol=1e-6)


def test_a_cache_is_the_same_again_and_survives_the_disk(world, tmp_path):
    predictor, scenes, cache = world
    again = build_cache(predictor, scenes, range(3), 3, 0, {"weights": "w"})
    save_cache(cache, tmp_path / "c.safetensors")
    stored = load_cache(tmp_path / "c.safetensors")
    for name, values in cache.tensors().items():
        assert torch.equal(values, again.tensors()[name]) and torch.equal(values, stored.tensors()[name]), name
    assert stored.about == cache.about and list(tmp_path.iterdir()) == [tmp_path / "c.safetensors"]
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    with pytest.raises(DynaMaskError, match="cannot be read"):
        load_cache(tmp_path / "c.safetensors")


def test_moved_boxes_stay_in_the_picture():
    boxes = torch.tensor([[0.0, 0.0, 60.0, 90.0], [30.0, 20.0, 127.5, 96.0], [5.0, 5.0, 5.9, 6.0]])
    moved = jittered(boxes, (96, 128), torch.Generator().manual_seed(0))
    assert (moved[:, :2] >= 0).all() and (moved[:, 2] <= 128).all() and (moved[:, 3] <= 96).all()
    assert not torch.equal(moved[:2], boxes[:2]) and torch.equal(moved[2], boxes[2])
    assert (moved - boxes).abs().max() <= 0.1 * 98


# The switch on a cache


def test_a_switch_learns_what_the_features_say():
    cache, unseen = synthetic(), synthetic(seed=1)
    judge = switch_training.Judge(unseen)
    config = LossConfig(**decisions.SLIDER)
    row = switch_training.run_setting(cache, fitting.Signals.of(cache), judge, config, SCHEDULE, [0, 1])
    assert row["losses"]["entropy_on"] == "instances" and [run["seed"] for run in row["runs"]] == [0, 1]
    for run in row["runs"]:
        half = run["budgets"]["0.5"]
        assert half["macs_fraction"] <= 0.5 and half["spearman_complexity"] > 0.7
        assert half["mask_iou"]["share_of_oracle"] > 0.8 and half["mask_iou"]["gain"]["low"] > 0
    again = switch_training.run_setting(cache, fitting.Signals.of(cache), judge, config, SCHEDULE, [0])
    assert again["runs"][0] == row["runs"][0]
    assert "ρ complexity" in decision_tables.line("x", row)


def test_a_price_in_the_bias_is_the_budget_of_the_switch_itself():
    cache = synthetic()
    torch.manual_seed(0)
    switch = fitting.train_switch(
        fitting.Signals.of(cache), cache.new_switch(), LossConfig(**decisions.SLIDER), SCHEDULE, 0
    )
    before = fitting.logits_of(switch, cache.true_boxes())
    price = switch_training.spend(switch, cache, 0.4)
    after = fitting.logits_of(switch, cache.true_boxes())
    macs = tuple(cache.about["macs_per_instance"])
    assert price > 0 and cache.macs[learned(after)].mean() <= 0.4 * macs[-1]
    assert (learned(after) == at_price(before, macs, price)).float().mean() > 0.98
    again = price_for_budget(after, macs, 0.2 * macs[-1] / 1e9)
    assert again == pytest.approx(price_for_budget(before, macs, 0.2 * macs[-1] / 1e9) - price, rel=0.02)


def test_the_frontier_is_the_exact_oracle_but_for_one_instance():
    rng = np.random.default_rng(0)
    quality, macs = rng.random((300, 4)).cumsum(axis=1) / 4, np.array([10.0, 30.0, 60.0, 100.0])
    frontier = switch_training.Frontier(quality, quality, macs)
    for limit in (12.0, 35.0, 77.0):
        exact = quality[np.arange(300), best_under_budget(quality, macs, limit)].mean()
        assert frontier(limit) == pytest.approx(exact, abs=1 / 300)


def test_features_of_a_cache_take_no_gradients():
    with pytest.raises(DynaMaskError, match="no gradients"):
        fitting.check_config(LossConfig(detach_switch=False))


def test_the_premise_ranks_what_was_built_in():
    found = decisions.premise(synthetic(), samples=50)
    assert set(found) == set(decisions.SIGNALS)
    assert found["complexity"]["mean"] > 0.9 and found["box size"]["mean"] < 0.5
    assert found["boundary error"]["low"] <= found["boundary error"]["mean"] <= found["boundary error"]["high"]


# Settings and tables


def test_settings_come_from_a_table_or_a_grid():
    for table in decisions.TABLES:
        rows = decisions.settings(table, [], [])
        assert len(rows) == len(decisions.TABLES[table]) > 1 and len(set(rows.values())) == len(rows)
    rows = decisions.settings(None, ["switch_signal=boundary"], ["temperature=0.5,2", "switch_weight=0.1,0.4,1"])
    assert len(rows) == 6 and {config.temperature for config in rows.values()} == {0.5, 2.0}
    assert all(config.switch_signal == "boundary" for config in rows.values())


@pytest.mark.parametrize("text", ["nonsense=1", "temperature", "temperature=warm", "detach_switch=perhaps"])
def test_a_setting_that_is_none_is_refused(text):
    with pytest.raises(DynaMaskError, match=text.split("=")[0]):
        decisions.settings(None, [], [text])


def test_branches_are_compared_on_the_same_instances():
    cache = synthetic()
    worse = dataclasses.replace(cache, mask_iou=cache.mask_iou - 0.1)
    rows = decisions.compare_branches({"first": cache, "worse": worse, "same": cache})
    cell = rows["sizes"]["mask_iou"]["28"]
    assert cell["minus_first"]["worse"]["mean"] == pytest.approx(-0.1, abs=1e-6)
    assert cell["mean"]["first"] == pytest.approx(cell["mean"]["worse"] + 0.1, abs=1e-6)
    assert rows["sizes"]["boundary_iou"]["112"]["minus_first"]["same"]["mean"] == 0
    judged = switch_training.Judge(cache).judge(cache.true_boxes().switch_logits)
    assert rows["slider"]["mask_iou"]["first"] == judged["sweep"]["mask_iou"]["gain"]
    with pytest.raises(DynaMaskError, match="other instances"):
        decisions.compare_branches({"a": cache, "b": synthetic(60)})


def test_commands_write_results_and_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_cache(synthetic(40), Path("a.st"))
    save_cache(synthetic(40, seed=1), Path("b.st"))
    shared = ["switch", "--train", "a.st", "--validation", "b.st", "--seeds", "0", "--steps", "3"]
    assert decisions.main([*shared, "--table", "temperature", "--json", "t.json"]) == 0
    assert decisions.main(["rank", "--cache", "b.st", "--json", "r.json"]) == 0
    assert decisions.main(["branches", "--table", "t", "--caches", "a.st", "b.st"]) == 2
    two = ["--caches", "all=a.st", "selected=a.st", "--json", "s.json"]
    assert decisions.main(["branches", "--table", "supervision", *two]) == 0
    names = ("temperature", "rank", "supervision")
    Path("d.md").write_text("# D\n" + "".join(f"<!-- {n}:begin -->\nold\n<!-- {n}:end -->\n" for n in names))
    assert decisions.main(["write", "--results", "t.json", "r.json", "s.json", "--doc", "d.md"]) == 0
    text = Path("d.md").read_text(encoding="utf-8")
    assert "old" not in text and text.count("| :-- |") == 3 and "| τ = 2 |" in text
    assert json.loads(Path("t.json").read_text())["train"]["instances"] == 40
    Path("d.md").write_text("# D\n")
    capsys.readouterr()
    assert decisions.main(["write", "--results", "t.json", "--doc", "d.md"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_document_has_a_block_for_every_table_and_commands_that_parse():
    text = DOC.read_text(encoding="utf-8")
    for name in (*decisions.TABLES, "rank", "supervision", "edge", "detach"):
        block = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, re.S)
        assert block, f"no block for the table {name}"
    commands = [c for c in text.replace("\\\n", " ").splitlines() if c.startswith("python benchmarks/decisions.py")]
    assert len(commands) >= 5
    for command in commands:
        decisions.build_parser().parse_args(shlex.split(command)[2:])
