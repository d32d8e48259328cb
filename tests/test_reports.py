"""``report budget-curve`` and ``report classes``: files that agree, a cache, errors; and how reports are written."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers.reports import parsed_command, run_report
from helpers.small_models import TINY
from PIL import Image

from dynamask import cli
from dynamask.engine.evaluate import Instances
from dynamask.models.build import create_model
from dynamask.models.weights import copy_weights, save_model
from dynamask.reports import budget_curve, classes, comparison
from dynamask.reports.options import CurveOptions, ReportOptions, SpeedOptions
from dynamask.reports.render import Heading, Paragraph, Report, Table, page, significance, with_interval, write_report
from dynamask.structures import MASK_SIZES, DynaMaskError, Interval
from dynamask.viz.style import POLICY_STYLES

CURVE = ("--budgets", "3", "--views", "2", "--samples", "20", "--ap-samples", "5", "--permutations", "2")
REFINE = ("--refine", "1,0.5,0.25")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three small pictures of two rectangles each, one of none; weights of their classes and class-agnostic ones."""
    root = tmp_path_factory.mktemp("reports")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 5):
        picture = rng.integers(0, 60, (64, 80, 3), dtype=np.uint8)
        images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 80})
        for j in range(2 if number < 4 else 0):
            x, y, side = 4 + 36 * j, 8 + 3 * number, 20 + 4 * j + number
            picture[y : y + side, x : x + side] = (240, 90 + 60 * j, 30)
            truth = {"id": len(annotations) + 1, "image_id": number, "category_id": [7, 3][j], "iscrowd": 0}
            shape = {"bbox": [x, y, side, side], "area": side * side, "complexity": 0.1 * len(annotations)}
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append({**truth, **shape, "segmentation": [corners]})
        Image.fromarray(picture).save(root / "images" / f"{number}.png")
    categories = [{"id": 3, "name": "box"}, {"id": 7, "name": "crate"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(coco))
    for name, class_names in (("classes", ("box", "crate")), ("agnostic", ("object",))):
        torch.manual_seed(0)
        ids = tuple(range(1, len(class_names) + 1))
        names = ("__background__", *class_names)
        model = create_model("dynamask_mobilenetv2_fpn_small", class_names=names, category_ids=ids, **TINY)
        save_model(model, root / f"{name}.safetensors", training={"images_seen": 12})
    return root


def given(data, weights="classes"):
    return ["--weights", str(data / f"{weights}.safetensors"), "--data", str(data)]


@pytest.fixture(scope="module")
def curve(data):
    out = data / "curve"
    words = ["budget-curve", *given(data), "--out", str(out), *CURVE, *REFINE, "--cache", str(data / "kept")]
    assert cli.main(["report", *words]) == 0
    return out, words


def test_the_budget_curve_is_four_files_that_agree(curve):
    out, _ = curve
    assert {path.name for path in out.iterdir()} == {f"budget-curve.{e}" for e in ("md", "csv", "html", "json")}
    result = json.loads((out / "budget-curve.json").read_text())
    with (out / "budget-curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result["rows"]) > 50
    for text, row in zip(rows, result["rows"]):
        assert text["policy"] == row["policy"] and list(text) == list(row)
        assert text["mean"] == "" if row["mean"] is None else float(text["mean"]) == row["mean"]
    assert result["pictures"] == 4 and result["true_instances"] == 6 and result["detections"] > 0
    policies = {row["policy"] for row in result["rows"] if row["boxes"] == "gt" and not row["against"]}
    assert policies == set(POLICY_STYLES) and {row["boxes"] for row in result["rows"]} == {"gt", "detected"}
    assert {row["measure"] for row in result["rows"]} == set(budget_curve.TITLES)
    correlated = {f"{name}{kind}" for name in ("complexity", "object_size") for kind in ("", "_within")}
    assert set(result["known_complexity"]) == {"mean_macs", *correlated, "complexity_by_size"}
    rivals = {row["against"] for row in result["rows"] if row["policy"] == "learned" and row["boxes"] == "gt"}
    assert {"class table", "size table", "class-size table", "share over mix of noise-aware oracle"} <= rivals
    assert set(result["operating_points"]) == {"drop", "within_drop", "half"}


def test_the_settings_of_refinement_stand_beside_the_dense_sizes(curve):
    result = json.loads((curve[0] / "budget-curve.json").read_text())
    points = {(p["refine"], p["boxes"], p["measure"], p["policy"]): p for p in result["refinement"]}
    assert {key[0] for key in points} == {"dense", "1,0.5,0.25"}
    own = {(r["boxes"], r["measure"], r["policy"]): r for r in result["rows"] if not r["against"]}
    for (refine, boxes, measure, policy), point in points.items():
        dense = points["dense", boxes, measure, policy]
        if refine == "dense":
            assert point["value"]["mean"] == own[boxes, measure, policy]["mean"]
            assert point["mean_macs"] == pytest.approx(own[boxes, measure, policy]["mean_macs"])
            assert point["minus_dense"]["mean"] in (0, None)
        elif point["value"]["mean"] is not None:
            difference = point["value"]["mean"] - dense["value"]["mean"]
            assert point["minus_dense"]["mean"] == pytest.approx(difference) and policy != "fixed:14"
        assert refine == "dense" or policy in ("fixed:28", "learned") or point["mean_macs"] < dense["mean_macs"]
    text = (curve[0] / "budget-curve.md").read_text()
    assert "## Refining along the outline" in text and "| all at 112 | 1,0.5,0.25 |" in text


def test_the_document_names_weights_data_and_command(curve, data):
    out, words = curve
    text = (out / "budget-curve.md").read_text()
    for fact in ("12 images seen", str(data), "all pictures", "seed: 0", "pictures: 4", "sha256"):
        assert fact in text
    given_words = cli.build_parser().parse_args(["report", *words])
    assert vars(parsed_command(out / "budget-curve.md")) | {"parser": 0} == vars(given_words) | {"parser": 0}
    for heading in ("In true boxes", "On detections", "Two operating points", "Known complexity"):
        assert f"## {heading}" in text
    html = (out / "budget-curve.html").read_text()
    assert html.count("Plotly.newPlot") == 6 and "<script src" not in html and "known complexity" in html


def test_the_cache_is_used_for_the_same_weights_data_and_options(curve, data, capsys, monkeypatch):
    out, words = curve
    before, collect = json.loads((out / "budget-curve.json").read_text()), comparison.collect
    monkeypatch.setattr(comparison, "collect", lambda *_: pytest.fail("predicted again"))
    code, printed = run_report(capsys, *words, "--json", "-")
    assert code == 0 and json.loads(printed.out)["rows"] == before["rows"]
    calls = []
    monkeypatch.setattr(comparison, "collect", lambda *a: calls.append(1) or collect(*a))
    assert (
        run_report(capsys, *words, "--seed", "1")[0] == 0 and len(calls) == 1
    )  # other views, which the refined stages are not evaluated in
    kept = (data / "annotations.json").read_text()
    annotations = json.loads(kept)
    annotations["annotations"][0]["bbox"][2] += 1
    try:
        (data / "annotations.json").write_text(json.dumps(annotations))
        assert run_report(capsys, *words)[0] == 0 and len(calls) == 3
    finally:
        (data / "annotations.json").write_text(kept)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["budget-curve", "--budgets", "1"], "budgets must be at least 2"),
        (["budget-curve", "--refine", "1,0.5"], "give three shares of cells"),
        (["budget-curve", "--refine", "half"], "give three shares as 1,0.4,0.2"),
        (["budget-curve", "--cache", "no/such/folder"], "does not exist"),
        (["budget-curve", "--cache", "{data}/annotations.json"], "is a file"),
        (["budget-curve", "--holdout", "1"], "--holdout: '1' is not a whole number from 2"),
        (["budget-curve", "--annotations", "x.json"], "one way"),
        (["classes", "--min-instances", "4"], "no class has 4 instances"),
        (["classes", "--score", "2"], "--score: '2' is not a number from 0 to 1"),
        (["classes", "--out", "{data}/annotations.json"], "is a file"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(data, capsys, tmp_path, words, message):
    name, *more = (word.format(data=data) for word in words)
    code, printed = run_report(capsys, name, *given(data), "--out", tmp_path / "o", *more)
    assert code == 2 and message in printed.err and printed.err.count("\n") == 1 and not (tmp_path / "o").exists()


def test_classes_of_class_agnostic_weights_are_those_of_the_annotations(data, capsys, tmp_path):
    code, _ = run_report(capsys, "classes", *given(data, "agnostic"), "--out", tmp_path, "--min-instances", "2")
    result = json.loads((tmp_path / "classes.json").read_text())
    assert code == 0 and {row["class"]: row["instances"] for row in result["classes"]} == {"box": 3, "crate": 3}
    for row in result["classes"]:
        assert sum(row[f"share_{size}"] for size in MASK_SIZES) == pytest.approx(1)
        assert all(0 <= row[f"boundary_iou_{size}"] <= 1 for size in MASK_SIZES)
    text = (tmp_path / "classes.html").read_text()
    assert "Mask sizes by class" in text and "crate (3)" in text


def test_classes_of_detections(data, capsys, tmp_path):
    words = ["--boxes", "detected", "--score", "0", "--min-instances", "1"]
    code, _ = run_report(capsys, "figure8", *given(data), "--out", tmp_path, *words)
    result = json.loads((tmp_path / "figure8.json").read_text())
    assert code == 0 and result["boxes"] == "detected" and sum(row["instances"] for row in result["classes"]) > 0
    assert {row["class"] for row in result["classes"]} <= {"box", "crate"}
    copy_weights(data / "classes.safetensors", tmp_path / "classes.safetensors", display_score=0.0)
    words = ["--weights", tmp_path / "classes.safetensors", "--data", data, "--boxes", "detected"]
    code, _ = run_report(capsys, "figure8", *words, "--min-instances", "1", "--out", tmp_path)
    assert code == 0 and json.loads((tmp_path / "figure8.json").read_text())["classes"] == result["classes"]


def test_unmatched_detections_and_crowds_have_no_class():
    truths = [("giraffe", 0), ("crowd", 1), ("book", 0)]
    annotations = [{"image_id": 1, "class_name": name, "iscrowd": crowd} for name, crowd in truths]
    merged = {"category_ids": (1,), "class_names": ("__background__", "object"), "coco": {"annotations": annotations}}
    found = Instances([{"image_id": 1, "category_id": 1}] * 3, truth=[1, 0, None])
    assert classes.class_names_of(found, type("Data", (), merged)) == ["book", "giraffe", None]


def test_class_rows_are_sorted_by_their_mean_size():
    names = ["book", "giraffe", "book", "owl"]
    quality = np.array([[0.1, 0.2, 0.3, 0.4], [0.5] * 4, [np.nan] * 4, [np.nan] * 4])
    rows = classes.class_rows(names, np.array([0, 3, 1, 1]), quality, min_instances=2)
    sizes = [(row["class"], row["mean_size"], row["few"]) for row in rows]
    assert sizes == [("giraffe", 112, True), ("owl", 28, True), ("book", 21, False)]
    assert rows[2]["share_14"] == 0.5 and rows[2]["boundary_iou_56"] == 0.3 and rows[1]["boundary_iou_14"] is None


def test_a_report_is_written_as_four_files(tmp_path):
    blocks = [Heading("H <1>"), Paragraph("a & b"), Table(["x", "y"], [["p|q", "1"]])]
    report = Report("r", "T", [("command", "run it")], blocks, [{"a": 1, "b": None}], {"k": 1})
    paths = write_report(report, tmp_path / "new")
    assert [path.name for path in paths] == ["r.md", "r.csv", "r.html", "r.json"]
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    table = "| x | y |\n|---|---:|\n| p\\|q | 1 |\n"
    assert paths[0].read_text() == f"# T\n\n- command: `run it`\n\n## H <1>\n\na & b\n\n{table}"
    assert paths[1].read_text() == "a,b\n1,\n" and json.loads(paths[3].read_text()) == {"k": 1}
    assert "H &lt;1&gt;" in page(report) and "a &amp; b" in page(report)


def test_intervals_are_written_and_called_significant_only_without_zero():
    assert with_interval(Interval(0.5, 0.25, 0.75), 2, True) == "+0.50 [+0.25, +0.75]"
    assert with_interval(Interval()) == "–"
    words = [significance(Interval(*bounds)) for bounds in ((0.5, 0.1, 1), (-1, -2, -0.1), (0.5, -0.1, 1), (0.5,))]
    assert words == ["higher", "lower", "not significant", "not significant"]


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (CurveOptions, {"permutations": 0}, "permutations must be at least 1"),
        (ReportOptions, {"ap_samples": 1}, "ap-samples must be at least 2"),
        (SpeedOptions, {"rounds": 0}, "--rounds is 0"),
    ],
)
def test_options_are_checked(options, values, message):
    with pytest.raises(DynaMaskError, match=message):
        options(**values)
