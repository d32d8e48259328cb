"""The benchmarks: the baseline shares our detector, the cases that are compared do equal work, and commands parse."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from benchmarks import harness, inputs, mask_branch, mask_rcnn, mixed_regions, page, speed, training_cost, training_step
from dynamask import cli
from dynamask.models.build import build_model
from dynamask.presets import model_config
from dynamask.structures import MASK_SIZES, DynaMaskError

SMALL = model_config(mask_rcnn.PRESET, class_names=("__background__", "person"))


@pytest.fixture(scope="module")
def baseline():
    torch.manual_seed(0)
    return mask_rcnn.build_mask_rcnn(SMALL).eval()


def test_the_readme_files_name_every_script():
    for folder in ("benchmarks", "tools"):
        scripts = [path for path in (harness.ROOT / folder).glob("*.py") if "__main__" in path.read_text("utf-8")]
        text = (harness.ROOT / folder / "README.md").read_text("utf-8")
        assert scripts and not [path.name for path in scripts if path.name not in text]


def test_a_result_is_printed_and_written_with_the_machine(tmp_path, capsys):
    parser = harness.make_parser("toy", "Measures nothing.\n\nMore.")
    harness.add_json_flag(parser)
    parser.set_defaults(measure=lambda arguments: harness.Result({"rows": [1]}, "one row"))
    assert harness.run(parser, ["--json", str(tmp_path / "r.json")]) == 0
    figures = json.loads((tmp_path / "r.json").read_text())
    assert figures["rows"] == [1] and figures["machine"]["cores"] > 0
    assert capsys.readouterr().out.endswith("one row\n")


def test_a_mistake_is_one_line(capsys, tmp_path):
    missing = ["--json", str(tmp_path / "no" / "f.json")]
    for words, message in (
        (missing, "of --json does not exist"),
        (["--rounds", "0"], "--rounds is 0; give a whole"),
        (["--device", "cuda"], "add --parts regions"),
    ):
        assert harness.run(speed.build_parser(), words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("speed: error: ") and message in line


def test_the_baseline_has_our_detector_and_torchvisions_head(baseline):
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


def test_the_baseline_is_stored_with_its_configuration(baseline, tmp_path):
    path = tmp_path / "w.safetensors"
    mask_rcnn.save_mask_rcnn(baseline, path, {"model": {}, "images_seen": 8})
    again = mask_rcnn.load_mask_rcnn(path)
    assert again.config == SMALL
    assert all(torch.equal(value, baseline.state_dict()[key]) for key, value in again.state_dict().items())
    path.write_bytes(b"no weights")
    with pytest.raises(DynaMaskError, match="cannot be read"):
        mask_rcnn.load_mask_rcnn(path)


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
    boxes = inputs.mixed_boxes(50, inputs.PHOTO)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 640).all() and (boxes[:, 3] <= 480).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 23.9).all()
    images, targets = inputs.generated_batches(2, 3)[1]
    assert len(images) == len(targets) == 3
    for image, target in zip(images, targets):
        assert target["masks"].shape == (len(target["boxes"]), *image.shape[-2:])
        areas = target["masks"].sum((1, 2)) / (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1)
        assert torch.allclose(areas, torch.tensor(torch.pi / 4), atol=0.05)


def test_operators_are_timed_on_the_stages_of_the_preset():
    rows = mask_branch.measure_deform(dataclasses.replace(SMALL, region_channels=8), regions=1, rounds=1)
    assert {row["part"].split()[1] for row in rows} == {"4x28x28", "2x56x56", "1x112x112"}
    assert {row["case"] for row in rows} == {"torchvision", "sampled"}


@pytest.fixture(scope="module")
def regions():
    return mixed_regions.MixedRegions(mask_rcnn.PRESET, (1.0, 0.4, 0.2), 6)


def test_regions_of_mixed_sizes_are_timed_by_stage(regions):
    rows, stages = regions.time(1)
    dense, refined = rows[1:]
    assert [row["case"] for row in rows] == [mixed_regions.FCN, "dense", "refined"] and rows[0]["ratio"] == 1.0
    assert refined["mean_macs"] < dense["mean_macs"]
    for row in (dense, refined):
        own = [stage for stage in stages if stage["case"] == row["case"]]
        assert [stage["regions"] for stage in own] == [int((regions.choice >= k).sum()) for k in range(4)]
        assert sum(stage["median_ms"] for stage in own) == pytest.approx(row["median_ms"])


def test_regions_get_the_sizes_of_the_papers_table():
    assert torch.bincount(mixed_regions.mixed_sizes(100)).tolist() == [35, 34, 21, 10]


def test_a_refined_branch_has_the_weights_of_the_dense_one_and_masks_of_the_same_sizes(regions):
    dense, refined = (branch.state_dict() for branch in regions.branches.values())
    assert dense.keys() == refined.keys() and all(torch.equal(value, refined[key]) for key, value in dense.items())
    sizes = [[len(mask) for mask in regions.run(kind)] for kind in regions.branches]
    assert sizes[0] == sizes[1] == [MASK_SIZES[k] for k in regions.choice]
    assert max(len(mask) for mask in regions.run("dense", 1)) == 28


def test_a_profile_names_the_operators_that_take_most_of_the_time(regions):
    rows = regions.profile("refined")
    shares = [row["share"] for row in rows]
    assert len(rows) == mixed_regions.PROFILED and shares == sorted(shares, reverse=True) and 0.3 < sum(shares) <= 1
    assert all(row["operator"] for row in rows)


def test_the_headlines_are_null_where_nothing_was_measured():
    rows = [
        {"part": "predict", "case": "dynamask learned", "ratio": 1.1},
        {"part": f"regions {mask_rcnn.PRESET}", "case": "dense", "ratio": 3.0},
        {"part": "training step", "case": "dense", "ratio": 1.5},
        {"part": "training step", "case": "refined", "ratio": 1.2},
    ]
    found = speed.headlines(rows)
    assert found["picture_ratio_learned"] == 1.1 and found["picture_ratio_112"] is None
    assert found["branch_ratio_small"] == 3.0 and found["branch_ratio_paper_widths"] is None
    assert found["train_step_ratio"] == 1.2
    assert list(found) == list(speed.HEADLINES)
    rows += [{"part": "predict", "case": "openvino learned", "ratio": 0.5}]
    rows += [{"part": f"regions {mask_rcnn.PRESET}, openvino", "case": "refined", "ratio": 0.9}]
    both = speed.headlines(rows, ("torch", "openvino"))
    assert both["picture_ratio_learned_openvino"] == 0.5 and both["branch_ratio_small_openvino"] == 0.9
    assert both["train_step_ratio_openvino"] is None and both["train_step_ratio"] == 1.2


@pytest.mark.slow
def test_a_refined_training_step_takes_less_memory():
    mask_rcnn_row, dense, refined = training_step.measure_memory(speed.__file__, (1.0, 0.4, 0.2), 1)
    assert mask_rcnn_row["ratio"] == 1.0 and 0 < refined["peak_bytes"] < dense["peak_bytes"]


def test_the_memory_of_a_small_branch_step_is_measured():
    words = ["memory", "--model", training_cost.SMALL, "--regions", "48", "--repeats", "0", "--rounds", "1"]
    result = training_cost.measure_memory(training_cost.build_parser().parse_args(words))
    plain, checkpointed = result.figures["cases"].values()
    assert checkpointed["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    (ratio,) = result.figures["ratios"].values()
    assert 0.1 < ratio < 0.8 and result.text.endswith(f"checkpointed / plain: peak {ratio:.2f}")


def test_the_command_of_several_processes_parses(tmp_path):
    arguments = training_cost.build_parser().parse_args(["processes"])
    one, two = (training_cost.command_of(number, tmp_path, arguments) for number in (1, 2))
    assert one[1:3] == ["-m", "dynamask"]
    assert two[2:6] == ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = cli.build_parser().parse_args(one[3:])
    assert two[two.index("train") :] == one[3:] and given.batch_size == 4 and given.log_every == 1


def test_made_up_instances_fill_a_session():
    session = page.made_up_session(3, (48, 64))
    assert len(session.instances) == 3 and session.image_size == (48, 64)
