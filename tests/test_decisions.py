"""Comparisons of switches on cached features, and their tables."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.feature_caches import synthetic_cache

from dynamask.engine.frozen_features import save_cache
from dynamask.engine.frozen_switch import SCHEDULE as DEFAULT
from dynamask.engine.frozen_switch import predict_logits, train_switch
from dynamask.models.masks.policies import at_price, learned, price_for_budget
from dynamask.ops.knapsack import best_under_budget
from dynamask.structures import DynaMaskError
from dynamask.training_config import LossConfig
from tools import decision_tables, decisions, switch_training

DOC = Path(decisions.__file__).parents[1] / "docs" / "decisions.md"
SCHEDULE = dataclasses.replace(DEFAULT, iterations=80, batch_size=32, warmup=5, lr=1e-2)


# The switch on a cache


def test_a_switch_learns_what_the_features_say():
    cache, unseen = synthetic_cache(), synthetic_cache(seed=1)
    judge = switch_training.Judge(unseen)
    config = LossConfig(**decisions.SLIDER)
    row = switch_training.run_setting(cache, judge, config, SCHEDULE, [0, 1])
    assert row["losses"]["entropy_on"] == "instances" and [run["seed"] for run in row["runs"]] == [0, 1]
    for run in row["runs"]:
        half = run["budgets"]["0.5"]
        assert half["macs_fraction"] <= 0.5 and half["spearman_complexity"] > 0.7
        assert half["mask_iou"]["share_of_oracle"] > 0.8 and half["mask_iou"]["gain"]["low"] > 0
    again = switch_training.run_setting(cache, judge, config, SCHEDULE, [0])
    assert again["runs"][0] == row["runs"][0]
    assert "ρ complexity" in decision_tables.line("x", row)


def test_a_price_in_the_bias_is_the_budget_of_the_switch_itself():
    cache = synthetic_cache()
    switch = train_switch(cache, LossConfig(**decisions.SLIDER), SCHEDULE)
    before = predict_logits(switch, cache.true_boxes())
    price = switch_training.spend(switch, cache, 0.4)
    after = predict_logits(switch, cache.true_boxes())
    macs = tuple(cache.about["macs_per_instance"])
    assert price > 0 and cache.macs[learned(after)].mean() <= 0.4 * macs[-1]
    assert (learned(after) == at_price(before, macs, price)).float().mean() > 0.98
    again = price_for_budget(after, macs, 0.2 * macs[-1])
    assert again == pytest.approx(price_for_budget(before, macs, 0.2 * macs[-1]) - price, rel=0.02)


def test_the_frontier_is_the_exact_oracle_but_for_one_instance():
    rng = np.random.default_rng(0)
    quality, macs = rng.random((300, 4)).cumsum(axis=1) / 4, np.array([10.0, 30.0, 60.0, 100.0])
    frontier = switch_training.Frontier(quality, quality, macs)
    for limit in (12.0, 35.0, 77.0):
        exact = quality[np.arange(300), best_under_budget(quality, macs, limit)].mean()
        assert frontier(limit) == pytest.approx(exact, abs=1 / 300)


def test_the_premise_ranks_what_was_built_in():
    found = decisions.premise(synthetic_cache(), samples=50)
    assert set(found) == set(decisions.SIGNALS)
    assert found["complexity"]["mean"] > 0.9 and found["box size"]["mean"] < 0.5
    assert found["boundary error"]["low"] <= found["boundary error"]["mean"] <= found["boundary error"]["high"]


def test_quality_in_other_views_is_a_mean_by_instance():
    cache = synthetic_cache(6, views=3)
    mean = switch_training.other_views(cache, "boundary_iou")
    rows = (cache.instance == 4) & (cache.view > 0)
    np.testing.assert_allclose(mean[4], cache.boundary_iou[rows].double().mean(0), rtol=1e-6)
    assert switch_training.other_views(cache.true_boxes(), "boundary_iou") is None


def test_a_switch_that_knows_more_than_class_and_size_beats_the_tables():
    train, test = synthetic_cache(), synthetic_cache(seed=1)
    known = test.true_boxes()
    rows = switch_training.compare_with_tables(train, test, {"switch": known.mask_iou, "noise": known.switch_logits})
    half = rows["budgets"]["0.5"]
    assert set(half) == {"switch", "noise", "class table", "size table", "class-size table", "noise-aware oracle"}
    assert half["class-size table"]["mask_iou_difference"]["low"] > 0 and half["switch"]["macs_fraction"] <= 0.5
    assert half["switch"]["mask_iou_share_of_aware"]["mean"] > 0.9 > half["noise"]["mask_iou_share_of_aware"]["mean"]
    assert rows["correlation"]["switch"]["pooled"]["mean"] > 0.8


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
    cache = synthetic_cache()
    worse = dataclasses.replace(cache, mask_iou=cache.mask_iou - 0.1)
    rows = decisions.compare_branches({"first": cache, "worse": worse, "same": cache})
    cell = rows["sizes"]["mask_iou"]["28"]
    assert cell["minus_first"]["worse"]["mean"] == pytest.approx(-0.1, abs=1e-6)
    assert cell["mean"]["first"] == pytest.approx(cell["mean"]["worse"] + 0.1, abs=1e-6)
    assert rows["sizes"]["boundary_iou"]["112"]["minus_first"]["same"]["mean"] == 0
    judged = switch_training.Judge(cache).judge(cache.true_boxes().switch_logits)
    assert rows["slider"]["mask_iou"]["first"] == judged["sweep"]["mask_iou"]["gain"]
    with pytest.raises(DynaMaskError, match="other instances"):
        decisions.compare_branches({"a": cache, "b": synthetic_cache(60)})


def test_commands_write_results_and_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_cache(synthetic_cache(40), Path("a.st"))
    save_cache(synthetic_cache(40, seed=1), Path("b.st"))
    shared = ["switch", "--train", "a.st", "--validation", "b.st", "--seeds", "0", "--steps", "3"]
    assert decisions.main([*shared, "--table", "temperature", "--json", "t.json"]) == 0
    assert decisions.main(["rank", "--cache", "b.st", "--json", "r.json"]) == 0
    assert decisions.main(["branches", "--table", "t", "--caches", "a.st", "b.st"]) == 2
    fitted = ["rivals", "--train", "a.st", "--validation", "b.st"]
    assert decisions.main([*fitted, "--json", "v.json"]) == 0
    assert "| 50 %, class-size table |" in capsys.readouterr().out
    two = ["--caches", "all=a.st", "selected=a.st", "--json", "s.json"]
    assert decisions.main(["branches", "--table", "supervision", *two]) == 0
    names = ("temperature", "rank", "supervision", "rivals")
    Path("d.md").write_text("# D\n" + "".join(f"<!-- {n}:begin -->\nold\n<!-- {n}:end -->\n" for n in names))
    assert decisions.main(["write", "--results", "t.json", "r.json", "s.json", "v.json", "--doc", "d.md"]) == 0
    text = Path("d.md").read_text(encoding="utf-8")
    assert "old" not in text and text.count("| :-- |") == 5 and "| τ = 2 |" in text
    assert json.loads(Path("t.json").read_text())["train"]["instances"] == 40
    Path("d.md").write_text("# D\n")
    capsys.readouterr()
    assert decisions.main(["write", "--results", "t.json", "--doc", "d.md"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_document_has_a_block_for_every_table_and_commands_that_parse():
    text = DOC.read_text(encoding="utf-8")
    for name in (*decisions.TABLES, "rank", "rivals", "supervision", "edge", "detach"):
        block = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, re.S)
        assert block, f"no block for the table {name}"
    commands = [c for c in text.replace("\\\n", " ").splitlines() if c.startswith("python tools/decisions.py")]
    assert len(commands) >= 5
    for command in commands:
        decisions.build_parser().parse_args(shlex.split(command)[2:])
