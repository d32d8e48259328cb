"""Reports from the command line: four files that agree, a cache, one line for bad input; and what they are made of."""

import csv
import json
import shlex

import numpy as np
import pytest
import torch
from helpers.small_models import TINY
from PIL import Image

from dynamask import cli
from dynamask.engine.evaluate import Instances
from dynamask.models.build import create_model
from dynamask.models.weights import save_model
from dynamask.reports import budget_curve, classes
from dynamask.reports import world as world_module
from dynamask.reports.collecting import Collected
from dynamask.reports.facts import Source
from dynamask.reports.options import TableOptions
from dynamask.reports.writer import Heading, Paragraph, Report, Table, markdown, page, with_interval, write_report
from dynamask.structures import MASK_SIZES, DynaMaskError, Interval
from dynamask.viz.style import POLICY_STYLES

CURVE = ("--budgets", "3", "--views", "2", "--samples", "20", "--ap-samples", "5", "--permutations", "2")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
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
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": [7, 3][j],
                    "iscrowd": 0,
                    "area": side * side,
                    "bbox": [x, y, side, side],
                    "segmentation": [corners],
                    "complexity": 0.1 * len(annotations),
                }  # fmt: skip
            )
        Image.fromarray(picture).save(root / "images" / f"{number}.png")
    categories = [{"id": 3, "name": "box"}, {"id": 7, "name": "crate"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(coco))
    for name, class_names in (("classes", ("box", "crate")), ("agnostic", ("object",))):
        torch.manual_seed(0)
        model = create_model(
            "dynamask_mobilenetv2_fpn_small", class_names=("__background__", *class_names),
            category_ids=tuple(range(1, len(class_names) + 1)), **TINY)  # fmt: skip
        save_model(model, root / f"{name}.safetensors", training={"images_seen": 12})
    return root


def given(world, weights="classes"):
    return ["--weights", str(world / f"{weights}.safetensors"), "--data", str(world)]


def run(capsys, *words):
    code = cli.main(["report", *map(str, words)])
    return code, capsys.readouterr()


@pytest.fixture(scope="module")
def curve(world):
    out = world / "curve"
    words = ["budget-curve", *given(world), "--out", str(out), *CURVE, "--cache", str(world / "kept")]
    assert cli.main(["report", *words]) == 0
    return out, words


def test_the_budget_curve_is_four_files_that_agree(curve):
    out, _ = curve
    assert {path.name for path in out.iterdir()} == {f"budget-curve.{e}" for e in ("md", "csv", "html", "json")}
    data = json.loads((out / "budget-curve.json").read_text())
    with (out / "budget-curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(data["rows"]) > 50
    for text, row in zip(rows, data["rows"]):
        assert text["policy"] == row["policy"] and (text["mean"] == "" if row["mean"] is None else True)
        assert row["mean"] is None or float(text["mean"]) == row["mean"]
    assert data["pictures"] == 4 and data["true_instances"] == 6 and data["detections"] > 0
    policies = {row["policy"] for row in data["rows"] if row["boxes"] == "gt" and not row["against"]}
    assert policies == set(POLICY_STYLES) and {row["boxes"] for row in data["rows"]} == {"gt", "detected"}
    assert {row["measure"] for row in data["rows"]} == set(budget_curve.TITLES)
    known = data["known_complexity"]
    assert set(known) == {"mean_macs", "complexity", "object_size", "complexity_by_size"}
    assert set(data["operating_points"]) == {"drop", "within_drop", "half"}


def test_the_document_says_what_was_measured(curve, world):
    out, words = curve
    text = (out / "budget-curve.md").read_text()
    for fact in ("12 images seen", str(world), "all pictures", "seed: 0", "pictures: 4", "sha256"):
        assert fact in text
    command = next(line for line in text.splitlines() if line.startswith("- command")).split("`")[1]
    parsed = cli.build_parser().parse_args(shlex.split(command)[1:])
    assert vars(parsed) | {"parser": 0} == vars(cli.build_parser().parse_args(["report", *words])) | {"parser": 0}
    for heading in ("In true boxes", "On detections", "Two operating points", "Known complexity"):
        assert f"## {heading}" in text
    html = (out / "budget-curve.html").read_text()
    assert html.count("Plotly.newPlot") == 4 and "<script src" not in html and "known complexity" in html


def test_the_cache_is_used_while_it_fits(curve, world, capsys, monkeypatch):
    out, words = curve
    before, collect = json.loads((out / "budget-curve.json").read_text()), world_module.collect_all
    monkeypatch.setattr(world_module, "collect_all", lambda *_, **__: pytest.fail("predicted again"))
    code, printed = run(capsys, *words, "--json", "-")
    again = json.loads(printed.out)
    assert code == 0 and again["rows"] == before["rows"]
    calls = []
    monkeypatch.setattr(world_module, "collect_all", lambda *a, **k: calls.append(1) or collect(*a, **k))
    assert run(capsys, *words, "--seed", "1")[0] == 0 and len(calls) == 1  # other views
    annotations = json.loads((world / "annotations.json").read_text())
    kept = json.dumps(annotations)
    annotations["annotations"][0]["bbox"][2] += 1
    try:
        (world / "annotations.json").write_text(json.dumps(annotations))
        assert run(capsys, *words)[0] == 0 and len(calls) == 2  # the annotations changed
    finally:
        (world / "annotations.json").write_text(kept)
    code, printed = run(capsys, *words[:-1], str(world / "annotations.json"))
    assert code == 2 and "--cache" in printed.err and "is a file" in printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budgets", "1"], "budgets must be at least 2"),
        (["--cache", "no/such/folder"], "does not exist"),
        (["--holdout", "1"], "--holdout is 1"),
        (["--annotations", "x.json"], "one way"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(world, capsys, tmp_path, words, message):
    code, printed = run(capsys, "budget-curve", *given(world), "--out", tmp_path / "o", *words)
    assert code == 2 and message in printed.err and printed.err.count("\n") == 1 and not (tmp_path / "o").exists()


def test_an_out_that_is_a_file_is_refused(world, capsys, tmp_path):
    (tmp_path / "o").write_text("")
    code, printed = run(capsys, "classes", *given(world), "--out", tmp_path / "o")
    assert code == 2 and "is a file" in printed.err


def test_classes_of_weights_that_know_one_class_are_those_of_the_annotations(world, capsys, tmp_path):
    code, _ = run(capsys, "classes", *given(world, "agnostic"), "--out", tmp_path, "--min-instances", "2")
    data = json.loads((tmp_path / "classes.json").read_text())
    assert code == 0 and {row["class"]: row["instances"] for row in data["classes"]} == {"box": 3, "crate": 3}
    for row in data["classes"]:
        assert sum(row[f"share_{size}"] for size in MASK_SIZES) == pytest.approx(1)
        assert all(0 <= row[f"boundary_iou_{size}"] <= 1 for size in MASK_SIZES)
    page_text = (tmp_path / "classes.html").read_text()
    assert "Mask sizes by class" in page_text and "crate (3)" in page_text
    code, printed = run(capsys, "classes", *given(world), "--out", tmp_path / "o", "--min-instances", "4")
    assert code == 2 and "no class has 4 instances" in printed.err and not (tmp_path / "o").exists()


def test_classes_of_detections(world, capsys, tmp_path):
    words = ["classes", *given(world), "--out", tmp_path, "--boxes", "detected", "--score", "0", "--min-instances", "1"]
    code, _ = run(capsys, *words)
    data = json.loads((tmp_path / "classes.json").read_text())
    assert code == 0 and data["boxes"] == "detected" and sum(row["instances"] for row in data["classes"]) > 0
    assert {row["class"] for row in data["classes"]} <= {"box", "crate"}


class Animals:
    """Annotations as class-agnostic weights see them."""

    category_ids, class_names = (1,), ("__background__", "object")
    coco = {
        "annotations": [
            {"image_id": 1, "class_name": "giraffe", "iscrowd": 0},
            {"image_id": 1, "class_name": "crowd", "iscrowd": 1},
            {"image_id": 1, "class_name": "book", "iscrowd": 0},
        ]
    }


def test_crowds_do_not_shift_the_classes_and_unmatched_detections_have_none():
    results = [{"image_id": 1, "category_id": 1}] * 3
    found = Instances(results, [{}] * 3, list(torch.zeros(3, 4)), [{}] * 3, [{}] * 3, [3, 0, 1], [1, 0, None])
    assert classes.class_names_of(found, Animals()) == ["book", "giraffe", None]
    report = classes.make_report(
        Collected(found=found), (1, 2, 3, 4), Animals(), 1, Source("w", "d", "s", "c"),
        {"sha256": "0", "model": "m", "images_seen": None}, min_instances=1, score=0.5)  # fmt: skip
    assert "match no true instance and have no class are left out: 1." in markdown(report)


def test_class_rows_are_sorted_by_their_mean_size():
    names = ["book", "giraffe", "book", "owl"]
    quality = np.array([[0.1, 0.2, 0.3, 0.4], [0.5] * 4, [np.nan] * 4, [np.nan] * 4])
    rows = classes.class_rows(names, np.array([0, 3, 1, 1]), quality, min_instances=2)
    assert [(row["class"], row["mean_size"], row["few"]) for row in rows] == [
        ("giraffe", 112, True), ("owl", 28, True), ("book", 21, False)]  # fmt: skip
    assert rows[2]["share_14"] == 0.5 and rows[2]["boundary_iou_56"] == 0.3 and rows[1]["boundary_iou_14"] is None


def test_a_report_is_written_whole(tmp_path):
    blocks = [Heading("H <1>"), Paragraph("a & b"), Table(["x", "y"], [["p|q", "1"]])]
    report = Report("r", "T", [("command", "run it")], blocks, [{"a": 1, "b": None}], {"k": 1})
    paths = write_report(report, tmp_path / "new")
    assert [path.name for path in paths] == ["r.md", "r.csv", "r.html", "r.json"]
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    table = "| x | y |\n|---|---:|\n| p\\|q | 1 |\n"
    assert paths[0].read_text() == f"# T\n\n- command: `run it`\n\n## H <1>\n\na & b\n\n{table}"
    assert paths[1].read_text() == "a,b\n1,\n" and json.loads(paths[3].read_text()) == {"k": 1}
    assert "H &lt;1&gt;" in page(report) and "a &amp; b" in page(report)
    assert with_interval(Interval(0.5, 0.25, 0.75), 2, True) == "+0.50 [+0.25, +0.75]"
    assert with_interval(Interval()) == "–"


def test_options_are_checked():
    with pytest.raises(DynaMaskError, match="permutations must be at least 1"):
        budget_curve.CurveOptions(permutations=0)
    with pytest.raises(DynaMaskError, match="ap-samples must be at least 2"):
        TableOptions(ap_samples=1)
