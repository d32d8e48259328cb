"""What an ideal mask of each size keeps: against a NumPy reference, on known shapes, and as the command writes it."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_files import uncompressed

from dynamask import cli
from dynamask.cli.analyze import csv_rows, headline, html_page, markdown_table
from dynamask.data.coco_format import read_coco
from dynamask.evaluation.ideal_masks import IdealQuality, by_loss, ideal_masks, ideal_quality, needed_size, summarise
from dynamask.evaluation.mask_quality import boundary_iou, mask_iou
from dynamask.ops.rle import encode_rle
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.required_size import required_size_by_class

COCO_MINI = Path(os.environ.get("DYNAMASK_DATA") or "../shared/data") / "coco-mini" / "annotations" / "instances.json"


def bilinear(grid, y, x):
    """Value at index coordinates (y, x); beyond the border the nearest row and column, as in RoIAlign."""
    y, x = min(max(y, 0), grid.shape[0] - 1), min(max(x, 0), grid.shape[1] - 1)
    top, left = min(int(y), grid.shape[0] - 2), min(int(x), grid.shape[1] - 2)
    fy, fx = y - top, x - left
    rows = grid[top : top + 2, left : left + 2] @ np.array([1 - fx, fx])
    return rows @ np.array([1 - fy, fy])


def reference(truth, box, size):
    """The definition in plain loops: pasted values (H, W), nan outside the box."""
    x0, y0, x1, y1 = box
    cell_h, cell_w = (y1 - y0) / size, (x1 - x0) / size
    down, across = max(1, math.ceil(cell_h)), max(1, math.ceil(cell_w))  # at least one sample per pixel
    crop = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            crop[i, j] = np.mean(
                [
                    bilinear(
                        truth, y0 + (i + (a + 0.5) / down) * cell_h - 0.5, x0 + (j + (b + 0.5) / across) * cell_w - 0.5
                    )
                    for a in range(down)
                    for b in range(across)
                ]
            )
    padded = np.pad(crop, 1)  # beyond the mask there is nothing
    pasted = np.full(truth.shape, np.nan)
    for row in range(truth.shape[0]):
        for column in range(truth.shape[1]):
            y, x = row + 0.5, column + 0.5
            if x0 <= x < x1 and y0 <= y < y1:
                pasted[row, column] = bilinear(padded, (y - y0) / cell_h + 0.5, (x - x0) / cell_w + 0.5)
    return pasted


@pytest.mark.parametrize("box", [(2.3, 1.6, 21.8, 17.1), (4.0, 3.0, 9.5, 15.25)])
def test_ideal_masks_are_the_definition(box):
    rng = np.random.default_rng(3)
    truth = np.kron(rng.random((6, 8)) > 0.5, np.ones((3, 3))).astype(bool)  # (18, 24)
    for size, found in zip((3, 14, 28), ideal_masks(truth, box, (3, 14, 28)), strict=True):
        values = reference(truth.astype(float), box, size)
        inside = ~np.isnan(values)
        clear = inside & (np.abs(values - 0.5) > 1e-4)
        assert clear.sum() > 0.8 * inside.sum() and found.shape == truth.shape
        assert (found[clear] == (values[clear] >= 0.5)).all()
        assert not found[~inside].any()


def annotated(masks, **columns):
    """COCO content with a picture for each mask, and their run lengths; each column is a field of the annotations."""
    images = [{"id": i, "height": mask.shape[0], "width": mask.shape[1]} for i, mask in enumerate(masks)]
    annotations = [{"image_id": i, "category_id": 1, "segmentation": encode_rle(m)} for i, m in enumerate(masks)]
    for key, values in columns.items():
        for annotation, value in zip(annotations, values, strict=True):
            annotation[key] = value
    categories = [{"id": 1, "name": "comb"}, {"id": 2, "name": "plate"}, {"id": 3, "name": "none"}]
    content = read_coco({"images": images, "annotations": annotations, "categories": categories}, need_files=False)
    return content.coco, content.rles


def plate():
    mask = np.zeros((120, 160), dtype=bool)
    mask[20:100, 30:140] = True
    return mask


def comb():
    mask = np.zeros((120, 160), dtype=bool)
    mask[20:30, 30:110] = True
    mask[20:100, 30:110:4] = mask[20:100, 31:110:4] = True
    return mask


def test_a_rectangle_keeps_its_shape_and_a_comb_needs_a_fine_mask():
    coco, rles = annotated([comb(), plate()], category_id=[1, 2])
    quality = ideal_quality(coco, rles)
    assert quality.class_names == ("comb", "plate") and quality.mask_iou.shape == (2, 4)
    assert (quality.mask_iou[1] > 0.99).all() and (quality.boundary_iou[1] > 0.96).all()
    assert quality.mask_iou[0, 0] < 0.75 and quality.mask_iou[0, 3] > 0.97
    assert quality.boundary_iou[0, 0] < quality.boundary_iou[0, 2] < quality.boundary_iou[0, 3]
    pasted = ideal_masks(comb(), (30, 20, 110, 100))
    assert quality.mask_iou[0].tolist() == [mask_iou(comb(), mask) for mask in pasted]
    assert quality.boundary_iou[0].tolist() == [boundary_iou(comb(), mask, 0.02) for mask in pasted]
    summary = summarise(quality)
    assert summary["classes"]["plate"]["needed_size_boundary"] == 14
    assert by_loss(summary) == ["comb", "plate"]
    assert summary["classes"]["comb"]["needed_size_mask"] in (56, 112)


def test_the_annotation_box_counts_and_not_the_mask():
    coco, rles = annotated([plate()], bbox=[[30.0, 20.0, 55.0, 80.0]])
    assert ideal_quality(coco, rles).mask_iou[0, 3] == pytest.approx(0.5, abs=0.01)


def test_crowds_and_small_fields_are_left_out():
    coco, rles = annotated([plate(), plate(), plate()], area=[99.0, 100.0, 5000.0], iscrowd=[0, 0, 1])
    assert ideal_quality(coco, rles, min_area=100).areas.tolist() == [100.0]
    assert len(ideal_quality(coco, rles).areas) == 2
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(DynaMaskError, match="smallest area"):
            ideal_quality(coco, rles, wrong)


def test_means_are_plain_and_sizes_are_cocos():
    rows = np.array([[0.2, 0.9, 0.95, 1.0], [0.4, 0.95, 0.97, 1.0], [0.6, 0.7, 0.8, 0.9]])
    quality = IdealQuality(("a", "a", "b"), np.array([1023.9, 1024.0, 9216.0]), rows, rows / 2)
    summary = summarise(quality)
    assert summary["all"]["instances"] == 3
    assert list(summary["all"]["mask_iou"]) == ["14", "28", "56", "112"]
    assert summary["all"]["mask_iou"]["14"] == pytest.approx(0.4)
    assert summary["all"]["boundary_iou"]["112"] == pytest.approx(2.9 / 6)
    one = summary["classes"]["a"]
    assert one["instances"] == 2 and one["mask_iou"]["28"] == pytest.approx(0.925)
    assert (one["needed_size_mask"], one["needed_size_boundary"]) == (56, None)
    assert [one["by_area"][key]["instances"] for key in ("small", "medium", "large")] == [1, 1, 0]
    assert one["by_area"]["medium"]["needed_size_mask"] == 28
    assert one["by_area"]["large"]["mask_iou"] == {"14": None, "28": None, "56": None, "112": None}
    assert summary["all"]["by_area"]["large"]["mask_iou"]["14"] == 0.6
    assert list(summary["classes"]) == ["a", "b"]
    assert needed_size({"14": 0.95, "28": 0.9}) == 14
    assert "| a | 2 | 0.300 |" in markdown_table(summary) and "> 112" in markdown_table(summary)
    groups = [(row["class"], row["object_size"], row["instances"]) for row in csv_rows(summary)]
    assert groups[:2] == [("", "all", 3), ("", "small", 1)] and ("a", "large", 0) not in groups


def test_no_instance_is_an_answer():
    coco, rles = annotated([plate()])
    summary = summarise(ideal_quality(coco, rles, min_area=1e9))
    assert summary["all"]["instances"] == 0 and summary["classes"] == {}
    assert summary["all"]["boundary_iou"]["14"] is None and summary["all"]["needed_size_mask"] is None
    assert "no instance" in html_page(summary) and "| all | 0 | – |" in markdown_table(summary)
    assert [row["class"] for row in csv_rows(summary)] == [""]


def test_the_chart_sorts_rings_and_counts():
    coco, rles = annotated([plate(), comb(), comb()], category_id=[2, 1, 1])
    summary = summarise(ideal_quality(coco, rles))
    figure = required_size_by_class(summary)
    assert figure.layout.yaxis.categoryarray == ("plate (1)", "comb (2)")  # drawn from the bottom up
    coarse = next(trace for trace in figure.data if trace.name == "14×14")
    assert coarse.y == ("comb (2)", "plate (1)")
    assert list(coarse.x) == [summary["classes"][name]["boundary_iou"]["14"] for name in ("comb", "plate")]
    assert coarse.marker.size[1] > coarse.marker.size[0]  # the plate's needed size is the large dot
    assert coarse.customdata[0][0] == 2
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert labels == ["all (3)", "small (0)", "medium (3)", "large (0)"]
    assert sum(figure.layout.updatemenus[0].buttons[0].args[1]) == sum(trace.visible for trace in figure.data)
    assert "3 instances of 2 classes" in headline(summary) and "is lowest for comb" in headline(summary)


@pytest.fixture
def file(tmp_path):
    """One square three times (polygon, run lengths, compressed), one without area, one crowd; no annotation ids."""
    square = np.zeros((40, 50), dtype=np.uint8)
    square[10:30, 5:35] = 1
    segmentations = [[[5, 10, 35, 10, 35, 30, 5, 30]], uncompressed(square), encode_rle(square), [[1, 1, 2, 2]]]
    annotations = [{"image_id": 1, "category_id": 4, "segmentation": s} for s in segmentations]
    annotations.append({"image_id": 1, "category_id": 4, "segmentation": segmentations[1], "iscrowd": 1})
    path = tmp_path / "annotations.json"
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}],
        "annotations": annotations,
        "categories": [{"id": 4, "name": "<sign> & co"}],
    }
    path.write_text(json.dumps(coco))
    return path


def test_the_command_reads_every_kind_of_mask(file, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["analyze", "--annotations", str(file), "--json", "-", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["all"]["instances"] == 3 and summary["classes"]["<sign> & co"]["instances"] == 3
    assert set(summary["all"]) >= {"instances", "mask_iou", "boundary_iou"}
    assert list(summary["all"]["mask_iou"]) == [str(size) for size in MASK_SIZES]
    assert summary["all"]["mask_iou"]["112"] == 1.0
    assert printed.err.count("skipped 1 annotation") == 1
    assert sorted(path.name for path in out.iterdir()) == ["analyze.csv", "analyze.html", "analyze.md"]
    rows = list(csv.DictReader((out / "analyze.csv").open(encoding="utf-8")))
    assert [row["object_size"] for row in rows] == ["all", "small", "all", "small"]
    assert float(rows[0]["boundary_iou_14"]) == summary["all"]["boundary_iou"]["14"]
    page = (out / "analyze.html").read_text(encoding="utf-8")
    assert "&lt;sign&gt; &amp; co" in page and "<sign>" not in page
    assert "Plotly.newPlot" in page and '<script src="' not in page.replace(' charset="utf-8"', "")


@pytest.mark.parametrize(
    "more", [["--min-area", "nan"], ["--min-area", "-3"], ["--out", "FILE"], ["--data", "shapes:1:1"]]
)
def test_bad_input_is_one_line(file, capsys, more):
    try:
        code = cli.main(["analyze", "--annotations", str(file), *(str(file) if v == "FILE" else v for v in more)])
    except SystemExit as stop:
        code = stop.code
    errors = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert code == 2 and len(errors) == 1 and errors[0].startswith("dynamask: error: ")


def test_scenes_are_data_too(capsys):
    assert cli.main(["analyze", "--data", "shapes:5:2", "--json", "-"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["all"]["instances"] == sum(entry["instances"] for entry in summary["classes"].values()) > 0


@pytest.mark.skipif(not COCO_MINI.is_file(), reason="needs the development data")
def test_giraffe_against_book():
    coco = read_coco(COCO_MINI).coco
    wanted = {c["id"] for c in coco["categories"] if c["name"] in ("giraffe", "book")}
    coco["annotations"] = [a for a in coco["annotations"] if a["category_id"] in wanted][-60:] + [
        a for a in coco["annotations"] if a["category_id"] == min(wanted)
    ]
    content = read_coco(coco)
    coco, rles = content.coco, content.rles
    classes = summarise(ideal_quality(coco, rles))["classes"]
    assert classes["giraffe"]["boundary_iou"]["14"] < classes["book"]["boundary_iou"]["14"] - 0.1
    assert classes["giraffe"]["needed_size_boundary"] > classes["book"]["needed_size_boundary"]
