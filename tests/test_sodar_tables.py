"""Tables of the SODAR paper on a few pictures, compared with independent evaluations; seeds and missing rows."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from helpers.reports import parsed, parsed_command, run_report
from helpers.small_models import TINY_SOLO
from PIL import Image

from dynamask import cli
from dynamask.cli import report_runs
from dynamask.config import AggregationConfig
from dynamask.data.shapes import ShapesDataset
from dynamask.data.sources import open_data
from dynamask.engine.evaluate import EvaluationOptions, collect
from dynamask.evaluation.coco_ap import evaluate_coco, threshold_rows
from dynamask.evaluation.resampled_ap import THRESHOLDS
from dynamask.models.build import build_solo
from dynamask.models.solo.costs import decoded_values, decoding_macs, network_macs
from dynamask.models.solo.inference import CHUNK, detect
from dynamask.models.weights import save_model
from dynamask.ops.rle import encode_rle
from dynamask.predict import load
from dynamask.presets import list_models, model_config
from dynamask.reports import comparison
from dynamask.reports.catalogue import REPORTS
from dynamask.reports.paper import PAPER, gains_by_iou
from dynamask.reports.render import Report
from dynamask.reports.rows import Row
from dynamask.reports.sodar_ablations import ABLATIONS, ablated_config
from dynamask.reports.sodar_models import interpolation, name_of
from dynamask.reports.sodar_tables import TABLES, conclude_aggregation
from dynamask.structures import DynaMaskError, Interval

torch.set_num_threads(1)
SCENES = 4
NAMES = tuple(ShapesDataset(1, 1001).class_names)
TINY = dataclasses.replace(
    TINY_SOLO,
    class_names=NAMES,
    min_sizes=(96,),
    test_min_size=96,
    max_size=160,
    score_threshold=0.01,
    update_threshold=0.0,
    detections_per_img=8,
)
COARSER = (4, 3, 2, 2, 1)
FINER = (10, 7, 4, 3, 2)
KINDS = {
    "plain": {},
    "sodar": {"aggregation": AggregationConfig()},
    "mask": {"aggregation": AggregationConfig(neighbours="corners"), "mask_grids": COARSER},
    "cls": {"aggregation": AggregationConfig(), "grids": FINER, "mask_grids": TINY.grids},
    "moving": {
        "aggregation": AggregationConfig(deformable=True),
        "grids": FINER,
        "mask_grids": TINY.grids,
    },
    "row": {"aggregation": AggregationConfig(neighbours="row")},
}


def saved(path, seed, images_seen=2400, **changed):
    """Random weights that find plenty of large and small masks, as if trained with a seed."""
    torch.manual_seed(seed)
    model = build_solo(dataclasses.replace(TINY, name=path.stem, **changed))
    with torch.no_grad():
        for module in (model.head.category, model.head.kernel):
            module.weight.normal_(std=0.3)
        model.head.category.bias.fill_(-3.0)
    train = {"seed": seed, "iterations": 600, "jitter": False}
    training = {"images_seen": images_seen, "train": train, "data": f"shapes:{seed}:100000"}
    save_model(model, path, training=training)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one-stage")
    files = {name: saved(folder / f"{name}-4.safetensors", 4, **changed) for name, changed in KINDS.items()}
    files |= {f"{name}-5": saved(folder / f"{name}-5.safetensors", 5, **KINDS[name]) for name in ("plain", "sodar")}
    return files


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, weights):
    """Noise whose true masks are what one model each finds in it, moved a little, so that every model finds some."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    rng, images, annotations = np.random.default_rng(0), [], []
    for number, name in enumerate(("plain", "sodar", "plain-5", "sodar-5"), start=1):
        pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 128})
        found = load(weights[name])(pixels, score=0.0)
        for row in range(min(4, len(found))):
            rle = encode_rle(found.masks[row].roll(row, 1))
            truth = {"id": len(annotations) + 1, "image_id": number, "category_id": int(found.labels[row])}
            box = {"area": float(coco_mask.area([rle])[0]), "bbox": coco_mask.toBbox([rle])[0].tolist()}
            annotations.append({**truth, **box, "iscrowd": 0, "segmentation": rle})
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES) if i]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(coco))
    return root


@pytest.fixture(scope="module")
def expected(pictures, weights):
    """AP of weights by the evaluator, also at single thresholds, with fields of their configuration changed."""
    known, dataset = {}, open_data(str(pictures), class_names=NAMES)

    def judged(name, **changed):
        key = (name, *changed.items())
        if key not in known:
            predictor = load(weights[name])
            predictor.model.config = dataclasses.replace(predictor.model.config, **changed)
            found = collect(predictor, dataset, range(SCENES), EvaluationOptions(score=0.05))
            results = [{**result, "segmentation": rles[0]} for result, rles in zip(found.results, found.rles)]
            ious = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
            known[key] = evaluate_coco(dataset.coco, results, ("segm", "boundary"), dataset.image_ids, at_ious=ious)
        return known[key]

    return judged


@pytest.fixture(scope="module")
def run(tmp_path_factory, pictures):
    """Make a report once; returns its data and folder."""
    kept = tmp_path_factory.mktemp("kept")

    def made(name, *files, more=(), samples="12"):
        out = tmp_path_factory.mktemp(name)
        words = ["report", name, "--weights", *map(str, files), "--data", str(pictures), "--out", str(out)]
        assert cli.main([*words, "--ap-samples", samples, "--cache", str(kept), *more]) == 0
        return json.loads((out / f"{name}.json").read_text()), out

    return made


@pytest.fixture(scope="module")
def three(run, weights):
    return run("sodar-table3", *(weights[name] for name in ("plain-5", "plain", "sodar", "sodar-5")))


def test_rows_are_what_the_evaluation_says_as_means_over_seeds(three, expected):
    data, _ = three
    rows = {row["row"]: row for row in data["rows"]}
    assert list(rows) == ["SOLOv2", "SODAR*"]
    for row, names in ((rows["SOLOv2"], ("plain", "plain-5")), (rows["SODAR*"], ("sodar", "sodar-5"))):
        judged = [expected(name) for name in names]
        assert all(0.05 < figures["segm"]["AP"] < 0.95 for figures in judged)
        for key in ("", "50", "60", "70", "75", "80", "90"):
            values = [figures["segm"][f"AP{key}"] for figures in judged]
            assert row[f"segm_ap{key}"] == pytest.approx(np.mean(values))
            assert (row[f"segm_ap{key}_least"], row[f"segm_ap{key}_most"]) == pytest.approx((min(values), max(values)))
        assert row["boundary_ap"] == pytest.approx(np.mean([figures["boundary"]["AP"] for figures in judged]))
        assert row["APL"] == pytest.approx(np.mean([figures["segm"]["APL"] for figures in judged]))
        assert row["segm_ap_low"] <= row["segm_ap"] <= row["segm_ap_high"]
        assert row["seeds"] == 2 and row["training_seeds"] == "4, 5" and row["images_seen"] == 2400
    assert rows["SOLOv2"]["paper_AP"] == 0.377 and rows["SODAR*"]["paper_AP*"] == 0.41


def test_differences_are_paired_by_seed(three, expected):
    data, out = three
    (difference,) = data["differences"]
    single = [expected(f"sodar{e}")["segm"]["AP50"] - expected(f"plain{e}")["segm"]["AP50"] for e in ("", "-5")]
    assert difference["row"] == "SODAR* − SOLOv2" and difference["seeds"] == 2
    assert difference["segm_ap50"] == pytest.approx(np.mean(single))
    assert difference["segm_ap50_least"] == pytest.approx(min(single))
    assert len(difference["by_iou"]) == len(THRESHOLDS)
    assert np.mean([v["mean"] for v in difference["by_iou"]]) == pytest.approx(difference["segm_ap"])
    rise = difference["segm_ap80"] - difference["segm_ap50"]
    assert difference["rise"]["80"]["mean"] == pytest.approx(rise)
    text = (out / "sodar-table3.md").read_text()
    assert "Shapes are not COCO" in text and "## The paper's Tab. III" in text and "larger at high thresholds" in text
    html = (out / "sodar-table3.html").read_text()
    assert html.count("Plotly.newPlot") == 1 and "Gain in mask AP by IoU threshold" in html
    with (out / "sodar-table3.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["SOLOv2", "SODAR*", "SODAR* − SOLOv2"]
    assert parsed_command(out / "sodar-table3.md").ap_samples == 12


def test_macs_of_a_picture_are_those_of_what_is_decoded(three, weights, pictures):
    data, _ = three
    row = next(row for row in data["rows"] if row["row"] == "SOLOv2")
    totals = []
    for name in ("plain", "plain-5"):
        model, dataset, calls = load(weights[name]).model, open_data(str(pictures), class_names=NAMES), []
        decode = model.mask_logits
        model.mask_logits = lambda *a, decode=decode, calls=calls: calls.append(len(a[3])) or decode(*a)
        frames = []
        for index in range(SCENES):
            picture = dataset[index][0].float() / 255.0
            encoded, _ = model.encode([picture])
            detect(model, encoded, 0)
            frames.append(encoded.frame)
        height, width = frames[0]
        assert set(frames) == {(height, width)}
        network = sum(network_macs(model, height, width).values())
        totals.append(network + sum(calls) * decoding_macs(height // 4, width // 4, 8, None) / SCENES)
    assert row["total_macs"] == pytest.approx(np.mean(totals), rel=1e-3)  # masks that vanish are decoded, too
    assert row["total_macs"] == row["backbone_macs"] + row["head_macs"] + row["masks_macs"]


@pytest.mark.parametrize(
    ("rises", "verdict"),
    [
        ([(0.01, 0.02), (0.01, 0.03)], "The pattern holds"),
        ([(0.01, 0.02), (-0.03, -0.01)], "The pattern does not hold"),
        ([(0.01, 0.02), (-0.03, 0.01)], "The figures do not show the pattern"),
        ([(0.01, 0.02), (-0.01, 0.03)], "The figures show the pattern, but"),
    ],
)
def test_the_papers_pattern_is_judged_by_intervals(rises, verdict):
    figures = {f"segm_ap{i}": Interval(0.01, 0.0, 0.02) for i in ("", 50, 70, 80, 90)}
    rise = {iou: Interval((a + b) / 2, a, b).to_dict() for iou, (a, b) in zip(("80", "90"), rises)}
    assert verdict in conclude_aggregation([Row("a − b", "b", {}, figures, {}, {"rise": rise})])[0]


def test_mask_interpolation_and_moving_neighbours(run, weights):
    data, out = run("sodar-table4", *(weights[n] for n in ("plain", "sodar", "mask", "cls")))
    rows = {row["row"]: row for row in data["rows"]}
    assert list(rows) == ["SOLOv2", "SODAR*", "SODAR*, −mask", "SODAR*, +cls"] and data["lacking"] == []
    assert [d["row"] for d in data["differences"]] == ["SODAR*, −mask − SODAR*", "SODAR*, +cls − SODAR*"]
    assert rows["SODAR*, −mask"]["decoded_values_dense"] < rows["SODAR*"]["decoded_values_dense"] / 3
    assert rows["SODAR*, −mask"]["paper_AP"] == 0.392
    assert "GMACs per picture" in (out / "sodar-table4.html").read_text()
    data, _ = run("sodar-table5", weights["moving"], weights["cls"])
    assert [d["row"] for d in data["differences"]] == ["SODAR*, +cls, deformable − SODAR*, +cls"]
    data, _ = run("sodar-table5", weights["sodar"])
    (lacking,) = data["lacking"]
    training = parsed(lacking.split("`")[1])
    assert (training.model, training.seed) == ("sodar_v2_deformable_mobilenetv2_fpn_small", 4)
    assert training.min_sizes == [96]


def test_voting_changes_the_masks_of_plain_weights_alone(run, weights, expected):
    files = (weights["plain"], weights["sodar"])
    data, _ = run("sodar-table2", *files, more=["--voting-iou", "0.5"])
    assert len(data["rows"]) == 4 and [d["seeds"] for d in data["differences"]] == [1, 1, 1]
    plain, rows = expected("plain")["segm"], {row["row"]: row for row in data["rows"]}
    assert rows["SOLOv2, no voting"]["segm_ap"] == pytest.approx(plain["AP"])
    voted = expected("plain", voting="iou", voting_iou=0.5)["segm"]
    assert rows["SOLOv2, iou"]["segm_ap"] == pytest.approx(voted["AP"]) != plain["AP"]


def test_ablations_are_found_by_configuration_and_the_others_are_listed(run, weights):
    data, out = run("sodar-table6", *(weights[n] for n in ("plain", "sodar", "row", "mask")))
    rows = {row["row"]: row for row in data["rows"]}
    assert list(rows) == [name for name, _ in PAPER["sodar-table6"].rows]
    there = {name for name, row in rows.items() if row["segm_ap"] is not None}
    own = {name for name, changed in ABLATIONS.items() if changed == {}}
    assert there == {"Baseline", "N-2-row", *own} and "N-4" in own
    assert [rows[n]["theta"] for n in ("agg-D", "no-neighbor", "N-8", "Baseline")] == [945, 801, 1089, 0]
    assert rows["agg-D"]["macs_per_pixel"] == 5 * 8 + 936
    for name, changed in ABLATIONS.items():
        command = rows[name]["command"]
        assert (command is None) == (name in there)
        if command is not None:
            training = parsed(command)
            assert {field: getattr(training, f"agg_{field}") for field in changed} == changed
            assert training.model == "sodar_v2_mobilenetv2_fpn_small" and training.jitter is False
    assert {d["row"] for d in data["differences"]} == {"agg-D − Baseline", "N-2-row − agg-D"}
    text, html = (out / "sodar-table6.md").read_text(), (out / "sodar-table6.html").read_text()
    assert "| agg-S | `dynamask train" in text and "no weights given" in html


def test_table7_agrees_except_for_totals_and_moving_neighbours(tmp_path):
    assert cli.main(["report", "sodar-table7", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "sodar-table7.json").read_text())
    rows = {row["row"].removeprefix("SOLO + aggregation"): row for row in data["rows"]}
    counts = [round(rows[name]["parameters"] / 1e6, 3) for name in ("SOLO", "", ", −mask")]
    assert counts == [55.068, 55.381, 54.626]
    for name, step in (("", 5.50), (", +cls", 5.50), (", −mask", -37.85)):
        assert rows[name]["step"] / 1e9 == pytest.approx(step, rel=0.01) and rows[name]["step_comes_out"]
    assert rows["SOLO"]["operations"] / 1e9 == pytest.approx(442.75, rel=1e-4)
    assert not any(row["operations_come_out"] for row in rows.values())
    for name, row in rows.items():
        assert row["parameters_come_out"] == ("deformable" not in name)
        assert row["step_comes_out"] is (None if name == "SOLO" else "deformable" not in name)
    text = (tmp_path / "sodar-table7.md").read_text()
    assert "does not agree" in text and "4 of 4 parameter counts" in text
    assert "context is the sum of the levels" in text and "| SOLO + aggregation | 428.3 | 55.4 |" in text


def test_both_families_at_equal_macs_of_a_picture(run, weights, pictures):
    data, out = run("sodar-table8", weights["sodar"], "shapes", samples="4")
    rows = {row["row"]: row for row in data["rows"]}
    fixed = [rows[f"DynaMask shapes, all at {size}"] for size in (14, 28, 56, 112)]
    assert [row["total_macs"] for row in fixed] == sorted(row["total_macs"] for row in fixed)
    predictor, dataset = load("shapes"), open_data(str(pictures), class_names=NAMES)
    counts = [len(predictor(dataset[i][0], score=0.05)) for i in range(SCENES)]
    macs = predictor.costs.macs_per_instance
    step = (macs[1] - macs[0]) * sum(counts) / SCENES
    assert fixed[1]["masks_macs"] - fixed[0]["masks_macs"] == pytest.approx(step)
    assert len(data["differences"]) == 1 and data["differences"][0]["seeds"] == 0
    text = (out / "sodar-table8.md").read_text()
    assert "TensorMask, TensorMask+agg | not implemented" in text and "its cheapest is dearer" in text


def test_seeds_are_grouped_and_lengths_of_training_are_not(run, weights, tmp_path):
    longer = saved(tmp_path / "plain-4.safetensors", 4, images_seen=4800)
    data, _ = run("sodar-table3", weights["plain"], longer)
    assert [row["row"] for row in data["rows"]] == ["SOLOv2, 2400 images seen", "SOLOv2, 4800 images seen"]
    assert data["differences"] == [] and len(data["lacking"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sodar-table2", "--weights", "{sodar}"], "none were given"),
        (["sodar-table3", "--weights", "shapes"], "shapes is a two-stage model"),
        (["sodar-table3", "--weights", "{plain}", "{plain}"], "are the same weights; give them once"),
        (["sodar-table3", "--weights", "{mask}"], "neither plain weights nor SODAR as it is"),
        (["sodar-table5", "--weights", "{plain}"], "no weights of SODAR were given"),
        (["sodar-table4", "--weights", "{sodar}", "--ap-samples", "1"], "ap-samples must be at least 2"),
        (["table1", "--weights", "{plain}"], "is a one-stage model"),
        (["sodar-all", "--weights", "{plain}", "--summary", "."], "--summary . is a folder"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(weights, pictures, capsys, tmp_path, words, message):
    words = [word.format(**weights) for word in words]
    code, printed = run_report(capsys, *words, "--data", pictures, "--out", tmp_path / "o")
    assert code == 2 and message in printed.err and printed.err.count("\n") == 1 and not (tmp_path / "o").exists()


def test_a_voting_overlap_out_of_range_is_refused(capsys, tmp_path):
    words = ["sodar-table2", "--weights", "x", "--data", "shapes:1:2", "--out", tmp_path / "o", "--voting-iou", "1.5"]
    code, printed = run_report(capsys, *words)
    assert code == 2 and "'1.5' is not a number from 0 to 1" in printed.err and printed.err.count("\n") == 1


def test_without_weights_the_bundled_ones_are_compared(pictures, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(report_runs, "list_bundled", dict)
    words = ["sodar-table3", "--data", pictures, "--out", tmp_path / "o"]
    assert "no one-stage weights are bundled here; name some with" in run_report(capsys, *words)[1].err
    monkeypatch.setattr(report_runs, "list_bundled", lambda: {"shapes-sodar": {}, "shapes": {}})
    for report, names in (("sodar-table3", ["shapes-sodar"]), ("sodar-table8", ["shapes-sodar", "shapes"])):
        arguments = parsed(f"dynamask report {report} --data {pictures} --out o")
        assert report_runs._one_stage_weights(arguments) == names


def test_bundled_one_stage_weights_are_no_relatives_of_a_detector(monkeypatch):
    entries = {
        "shapes": {"model": "dynamask_mobilenetv2_fpn_small"},
        "shapes-low": {"model": "dynamask_mobilenetv2_fpn_small"},
        "shapes-sodar": {"model": "sodar_v2_mobilenetv2_fpn_small", "family": "one-stage"},
    }
    monkeypatch.setattr("dynamask.models.weights._read_manifest", lambda f: {} if f.name == "baselines" else entries)
    assert report_runs.with_relatives(["shapes"]) == ["shapes", "shapes-low"]


def test_all_tables_with_a_summary(weights, pictures, capsys, tmp_path, monkeypatch):
    counts = Report("sodar-table7", "Tab. VII: counts", [], [], [], {})
    monkeypatch.setattr(report_runs, "make_counts", lambda _command: counts)
    words = ["sodar-all", "--weights", weights["sodar"], "--data", pictures, "--out", tmp_path / "o"]
    more = ["--ap-samples", "4", "--summary", tmp_path / "s.md", "--json", tmp_path / "s.json"]
    assert run_report(capsys, *words, *more)[0] == 0
    names = {name for name in REPORTS if name.startswith("sodar")} - {"sodar-table2"}
    assert {path.stem for path in (tmp_path / "o").glob("*.html")} == names
    text, data = (tmp_path / "s.md").read_text(), json.loads((tmp_path / "s.json").read_text())
    assert "sodar-table2 was not made: mask voting is for plain" in text and list(data["not_made"]) == ["sodar-table2"]
    assert text.count("## Tab. ") == 6 and text.count("Brackets are 95 %") == 1


def test_predictions_are_read_from_the_cache(weights, pictures, monkeypatch, tmp_path, capsys):
    words = ["sodar-table3", "--weights", weights["plain"], "--data", pictures, "--out", tmp_path / "o"]
    words += ["--ap-samples", "4", "--cache", tmp_path / "kept"]
    assert run_report(capsys, *words)[0] == 0
    before = (tmp_path / "o" / "sodar-table3.json").read_bytes()
    monkeypatch.setattr(comparison, "collect", lambda *_: pytest.fail("predicted again"))
    assert run_report(capsys, *words)[0] == 0 and (tmp_path / "o" / "sodar-table3.json").read_bytes() == before


def test_configurations_have_the_papers_names():
    configs = {name: model_config(name) for name in list_models("one-stage")}
    known = {name: (name_of(config), interpolation(config)) for name, config in configs.items()}
    assert known["solo_resnet50_fpn"] == ("SOLO", "") and known["sodar_resnet101_fpn"] == ("SODAR", "")
    assert known["sodar_v2_cls_resnet50_fpn"] == ("SODAR*, +cls", "+cls")
    assert known["sodar_mask_resnet50_fpn"] == ("SODAR, −mask", "−mask")
    assert known["sodar_v2_deformable_mobilenetv2_fpn_small"] == ("SODAR*, +cls, deformable", "+cls")
    for name in ("sodar_v2_mask_mobilenetv2_fpn_small", "sodar_v2_mask_resnet50_fpn"):
        assert known[name] == ("SODAR*, −mask", "−mask")
    both = dataclasses.replace(model_config("sodar_mask_resnet50_fpn"), grids=(50, 40, 24, 16, 12))
    assert name_of(both) == "SODAR, +c−m"
    small = model_config("sodar_v2_mask_mobilenetv2_fpn_small")
    assert name_of(dataclasses.replace(small, grids=(25, 20, 12, 8, 6))) == "SODAR*, +c−m"
    moved = dataclasses.replace(small, aggregation=AggregationConfig(interpolation="between"))
    assert name_of(moved) == "SODAR*, −mask, positions between"
    row = ablated_config(model_config("sodar_v2_cls_resnet50_fpn"), ABLATIONS["N-2-row"])
    assert name_of(row) == "SODAR*, neighbours row" and row.grids == model_config("solov2_resnet50_fpn").grids


def test_decoded_values_are_those_of_the_papers_memory():
    solo, lazy = model_config("solo_resnet50_fpn"), model_config("sodar_v2_resnet50_fpn")
    assert decoded_values(solo, 800, 1280)["dense"] == pytest.approx(196e6, rel=0.01)
    assert decoded_values(lazy, 800, 1280)["dense"] == sum(g * g for g in lazy.grids) * 200 * 320
    assert decoded_values(solo, 800, 1280)["held"] == CHUNK * 200 * 320


def test_the_papers_figures_agree_with_each_other():
    assert {name for name in PAPER if name.startswith("sodar-")} == {*TABLES, "sodar-table7"}
    assert gains_by_iou("SODAR-R50", "SOLO-R50") == [0.022, 0.031, 0.035, 0.042, 0.032]  # Δ as printed
    three, six = dict(PAPER["sodar-table3"].rows), dict(PAPER["sodar-table6"].rows)
    assert six["agg-D"] == three["SODAR-R101"][:-1] and len(PAPER["sodar-table8"].rows) == 17


def test_ap_at_a_threshold_that_is_not_evaluated_is_refused():
    assert threshold_rows((0.5, 0.75, 0.95)) == {"AP50": 0, "AP75": 5, "AP95": 9}
    for iou in (0.45, 0.62, 1.0):
        with pytest.raises(DynaMaskError, match="is not evaluated; choose among 0.50"):
            threshold_rows((iou,))
