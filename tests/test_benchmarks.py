"""The benchmarks' pure functions: the yardstick shares our detector, the comparisons are what they claim to be."""

import dataclasses
import itertools
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import loading, mask_rcnn, one_stage, page, report, scenes, speed, switch, training
from dynamask import cli
from dynamask.engine.evaluate import Instances
from dynamask.models.build import build_model, preset
from dynamask.structures import DynaMaskError
from tools import bundle_baselines, class_shares, fit_switch, seeds

SMALL = preset(mask_rcnn.PRESET, class_names=("__background__", "person"))
MACS = np.array([10.0, 30.0, 50.0, 70.0])
README = Path(report.__file__).with_name("README.md")


@pytest.fixture(scope="module")
def baseline():
    torch.manual_seed(0)
    return mask_rcnn.build_mask_rcnn(SMALL).eval()


def random_quality(count=6, seed=0):
    return np.random.default_rng(seed).random((count, 4))


def readme_commands():
    lines = README.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith(("python benchmarks/", "python tools/", "dynamask "))]


def test_the_yardstick_has_our_detector_and_torchvisions_head(baseline):
    ours = build_model(SMALL).detector
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in baseline.state_dict().items() if ".mask_" not in key}
    assert baseline.roi_heads.mask_predictor.mask_fcn_logits.weight.shape == (2, 64, 1, 1)
    assert baseline.transform.min_size == ours.transform.min_size and baseline.transform.min_size[-1] == 320
    assert baseline.rpn._post_nms_top_n == ours.rpn._post_nms_top_n
    for attribute in ("batch_size_per_image", "positive_fraction"):
        assert getattr(baseline.roi_heads.fg_bg_sampler, attribute) == getattr(ours.roi_heads.fg_bg_sampler, attribute)


def test_stopping_before_the_paste_changes_nothing(baseline):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    found = mask_rcnn.detect(baseline, pixels)
    with torch.no_grad():
        expected = baseline([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255])[0]
    assert len(found["boxes"]) > 0 and found["mask_probs"].shape[1:] == (28, 28)
    torch.testing.assert_close(found["boxes"], expected["boxes"])
    pasted = mask_rcnn.paste_both(found, (96, 128))
    assert torch.equal(pasted["torchvision_paste"], expected["masks"][:, 0] > 0.5)
    assert pasted["aligned_paste"].shape == pasted["torchvision_paste"].shape


def test_the_yardstick_is_stored_with_its_configuration(baseline, tmp_path):
    path = tmp_path / "w.safetensors"
    mask_rcnn.save_mask_rcnn(baseline, path, {"model": {}, "images_seen": 8})
    again = mask_rcnn.load_mask_rcnn(path)
    assert again.config == SMALL
    assert all(torch.equal(value, baseline.state_dict()[key]) for key, value in again.state_dict().items())
    path.write_bytes(b"no weights")
    with pytest.raises(DynaMaskError, match="cannot be read"):
        mask_rcnn.load_mask_rcnn(path)


def test_permuted_is_the_mean_over_every_permutation():
    quality, choice = random_quality(5), np.array([0, 0, 1, 3, 3])
    every = np.mean([switch.at(quality, np.array(p)) for p in itertools.permutations(choice)], axis=0)
    np.testing.assert_allclose(switch.permuted(quality, choice), every)


def test_a_perfect_choice_is_seldom_reached_by_permutations():
    quality = np.tile(np.eye(4), (5, 1))
    best = quality.argmax(axis=1)
    assert switch.permutation_p(quality, best, draws=99) == pytest.approx(0.01)
    assert switch.permutation_p(np.ones((8, 4)), best[:8], draws=99) == 1.0


def test_best_fixed_size_keeps_the_limit():
    quality = np.array([[0.2, 0.5, 0.4, 0.9]])
    assert switch.best_fixed_within(quality, MACS, 69.0) == 1
    assert switch.best_fixed_within(quality, MACS, 70.0) == 3
    assert switch.best_fixed_within(quality, MACS, 10.0) == 0


@pytest.mark.parametrize("limit", [10.0, 20.0, 30.0, 44.0, 70.0])
def test_interpolated_fixed_costs_the_limit_and_lies_on_the_upper_hull(limit):
    quality = random_quality(9)
    low, high, weight = switch.interpolated_fixed(quality, MACS, limit)
    assert MACS[low] * (1 - weight) + MACS[high] * weight == pytest.approx(limit)
    means = quality.mean(axis=0)
    found = means[low] * (1 - weight) + means[high] * weight
    grid = np.linspace(0, 1, 21)
    for mixture in itertools.product(grid, grid, grid):
        full = np.array([*mixture, 1 - sum(mixture)])
        if full[-1] >= -1e-12 and abs(full @ MACS - limit) < 1e-9:
            assert full @ means <= found + 1e-9


def instances(quality, logits, boxes):
    rows = [dict(enumerate(row)) for row in quality.tolist()]
    results = [{"image_id": 1, "bbox": box} for box in boxes]
    choice = logits.argmax(1).tolist()
    return Instances(results, [{}] * len(rows), list(logits), rows, rows, choice)


def test_the_whole_comparison_favours_a_switch_that_knows():
    quality = np.tile(np.array([[0.9, 0.85, 0.7, 0.6], [0.1, 0.2, 0.3, 0.8]]), (20, 1))
    logits = torch.from_numpy(quality).float()
    found = instances(quality, logits, [[0, 0, 10, 10], [0, 0, 90, 90]] * 20)
    summary = switch.analyse(found, (10, 30, 50, 70), {1: (100, 100)}, 50)
    assert summary["size_shares"]["learned"] == {"14": 0.5, "28": 0.0, "56": 0.0, "112": 0.5}
    assert summary["size_shares"]["size_based"] == {"14": 0.5, "28": 0.0, "56": 0.5, "112": 0.0}
    assert summary["mean_macs"] == {"learned": 40.0, "size_based": 30.0, "learned_at_size_based": 10.0}
    measure = summary["boundary_iou"]
    assert measure["learned"] == pytest.approx(0.85) and measure["permuted"] == pytest.approx(0.6)
    assert measure["learned_minus_permuted"]["low"] > 0 and measure["share_of_oracle_gain"] == pytest.approx(1.0)
    assert measure["best_fixed_within_macs"]["size"] == 28
    assert measure["interpolated_fixed"]["sizes"] == [14, 112]
    assert measure["steps"]["56-112"]["mean"] == pytest.approx(0.2)
    assert "interpolated fixed" in switch.show(summary)


def test_interleaving_gives_every_case_the_same_rounds():
    seen = {"a": [], "b": [], "c": []}
    times = speed.interleave({name: seen[name].append for name in seen}, rounds=4, warmup=1)
    assert all(numbers == [-1, 0, 1, 2, 3] for numbers in seen.values())
    assert all(values.shape == (4,) and (values > 0).all() for values in times.values())


def test_ratios_are_taken_within_the_round():
    times = {"a": np.array([1.0, 10.0, 100.0]), "b": np.array([2.0, 20.0, 200.0])}
    rows = speed.rows_of("part", times, "a", {"b": {"regions": 3}})
    assert [row["ratio"] for row in rows] == [1.0, 2.0] and rows[1]["regions"] == 3
    assert rows[1]["median_ms"] == 20.0 and "regions 3" in speed.describe(rows[1])[-1]


def test_boxes_and_batches_fit_their_pictures():
    boxes = speed.mixed_boxes(50, speed.PHOTO)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 640).all() and (boxes[:, 3] <= 480).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 23.9).all()
    images, targets = speed.generated_batches(2, 3)[1]
    assert len(images) == len(targets) == 3
    for image, target in zip(images, targets):
        assert target["masks"].shape == (len(target["boxes"]), *image.shape[-2:])
        areas = target["masks"].sum((1, 2)) / (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1)
        assert torch.allclose(areas, torch.tensor(torch.pi / 4), atol=0.05)


def test_operators_are_timed_on_the_stages_of_the_preset():
    rows = speed.measure_deform(dataclasses.replace(SMALL, region_channels=8), regions=1, rounds=1)
    assert {row["part"].split()[1] for row in rows} == {"4x28x28", "2x56x56", "1x112x112"}
    assert {row["case"] for row in rows} == {"torchvision", "sampled"}


@pytest.mark.parametrize("command", readme_commands())
def test_commands_of_the_readme_parse(command):
    words = shlex.split(command)
    if words[0] == "dynamask":
        cli.build_parser().parse_args(words[1:])
        return
    known = (
        bundle_baselines, class_shares, fit_switch, loading, mask_rcnn, one_stage, page, scenes, seeds, speed, switch,
        training,
    )  # fmt: skip
    modules = {f"{module.__name__.replace('.', '/')}.py": module for module in known}
    modules[words[1]].build_parser().parse_args(words[2:])


def test_the_memory_of_a_small_branch_step_is_measured(capsys):
    words = [
        "memory",
        "--model",
        "dynamask_mobilenetv2_fpn_small",
        "--regions",
        "20",
        "--repeats",
        "0",
        "--rounds",
        "1",
    ]
    found = training.memory(training.build_parser().parse_args(words))
    plain, checkpointed = found["cases"].values()
    assert checkpointed["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert set(found["ratios"]) == {"peak_bytes"} and 0.1 < found["ratios"]["peak_bytes"] < 0.8
    assert training.printed(found)[-1] == f"checkpointed / as it is: peak {found['ratios']['peak_bytes']:.2f}"


def test_the_command_of_several_processes_parses(tmp_path):
    arguments = training.build_parser().parse_args(["processes"])
    one, two = (training.command_of(number, tmp_path, arguments) for number in (1, 2))
    assert one[1:3] == ["-m", "dynamask"] and two[2:6] == [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    given = cli.build_parser().parse_args(one[3:])
    assert two[two.index("train") :] == one[3:] and given.batch_size == 4 and given.log_every == 1


def test_a_mistake_is_one_line(capsys, tmp_path):
    code = switch.main(["--images", str(tmp_path), "--annotations", "x", "--json", str(tmp_path / "no" / "f.json")])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("switch: error: --json")


def test_seeds_say_what_each_report_says_and_their_mean(tmp_path, capsys):
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    keys = [("segm_ap", "boundary_ap"), ("mask_iou", "boundary_iou")]
    rows = []
    for measure in keys[0]:
        for policy, against, limit in (
            *((f"fixed:{size}", "", None) for size in (14, 28, 56, 112)),
            ("learned", "", 7.0),  # a point of the curve: not what is asked for
            ("learned", "", None),
            ("learned", "random", None),
            *(("budget", rival, 9.0) for rival in ("size", "fixed:28", "fixed:56")),
        ):
            mean = -1.0 if policy == "learned" and limit else 0.5
            rows.append({**interval, "mean": mean, "measure": measure, "policy": policy, "against": against,
                         "budget_macs": limit})  # fmt: skip
    for measure in keys[1]:
        rows.append({**interval, "measure": measure, "policy": "learned", "against": "share of noise-aware oracle",
                     "budget_macs": None})  # fmt: skip
    data = {
        "rows": rows,
        "known_complexity": {"complexity": interval, "object_size": interval},
        "operating_points": {"half": {f"{name}_minus_full": interval for name in keys[0]}},
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
    assert "make it anew" in capsys.readouterr().err
