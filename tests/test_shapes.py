"""The shapes world: the same bytes everywhere, exact masks, and a difficulty that depends on nothing else."""

import errno
import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import refusal
from PIL import Image
from scipy.stats import spearmanr

from dynamask import DynaMaskError, cli
from dynamask.data.coco import CocoDataset
from dynamask.data.shapes import CLASS_NAMES, ShapesDataset, export, make_scene
from dynamask.data.shapes.numbers import Stream
from dynamask.data.shapes.outlines import CLASSES, circle, placed
from dynamask.data.shapes.raster import FULL, coverage, inside, outline_length
from dynamask.data.shapes.scene import complexity
from dynamask.data.sources import open_data

PINNED = {
    (0, 0): "cd9059a31932230f14d996263919b1e4295c6d177bab9ad75d18338e0a54b96a",
    (7, 123): "9ce6d1d42525908fb9c2eb292a26b1e3a4dd29ad932456362e0af25fa59e1788",
    (1000, 5): "ffc0575ca0558a74687a24c2ffe94132671fb25bd6454dea4769c3d8a960b440",
}
"""SHA-256 of picture, masks, boxes, labels and complexity of scenes: they must never change, on any machine."""


def digest(seed: int, index: int) -> str:
    scene = make_scene(seed, index)
    parts = (scene.image, scene.masks, scene.boxes.astype("<f4"), scene.labels.astype("<i8"), scene.complexity)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@pytest.fixture(scope="module")
def instances() -> dict[str, np.ndarray]:
    """Every instance of 300 scenes: complexity, label, side and centre of its box."""
    rows = []
    for index in range(300):
        scene = make_scene(42, index)
        for box, label, value in zip(scene.boxes, scene.labels, scene.complexity, strict=True):
            x0, y0, x1, y1 = box.tolist()
            rows.append((value, label, math.sqrt((x1 - x0) * (y1 - y0)), (x0 + x1) / 2, (y0 + y1) / 2))
    return dict(zip(("complexity", "label", "side", "x", "y"), np.array(rows).T, strict=True))


@pytest.mark.parametrize(("seed", "index"), PINNED)
def test_scenes_never_change(seed, index):
    assert digest(seed, index) == PINNED[seed, index]


def test_seeds_and_indices_differ():
    pictures = {make_scene(s, i).image.tobytes() for s in range(3) for i in range(3)}
    assert len(pictures) == 9


def test_every_tenth_scene_is_empty_and_others_mostly_not():
    counts = [len(make_scene(4, i)) for i in range(40)]
    assert counts[9::10] == [0, 0, 0, 0]
    assert sum(count > 0 for count in counts) >= 34


def test_masks_are_disjoint_and_boxes_are_tight():
    for index in range(12):
        scene = make_scene(8, index)
        assert scene.image.shape == (288, 352, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.sum(axis=0).max(initial=0) <= 1
        for mask, (x0, y0, x1, y1) in zip(scene.masks, scene.boxes.astype(int).tolist(), strict=True):
            assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
            assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()


def test_complexity_is_independent_of_size_and_place(instances):
    for other in ("side", "x", "y"):
        result = spearmanr(instances["complexity"], instances[other])
        assert abs(result.statistic) < 0.08, other
        assert result.pvalue > 0.01, other


def test_complexity_is_independent_of_class_frequency(instances):
    labels = range(1, len(CLASS_NAMES))
    counts = np.array([(instances["label"] == label).sum() for label in labels])
    means = [instances["complexity"][instances["label"] == label].mean() for label in labels]
    assert counts.min() > 0.7 * counts.mean() and counts.max() < 1.3 * counts.mean()
    assert spearmanr(counts, means).pvalue > 0.05


def test_classes_are_graded_and_vary_inside(instances):
    by_class = {
        CLASS_NAMES[label]: instances["complexity"][instances["label"] == label] for label in range(1, len(CLASS_NAMES))
    }
    means = {name: values.mean() for name, values in by_class.items()}
    assert max(means["disc"], means["book"]) < min(means["star"], means["gear"])
    assert max(means["star"], means["gear"]) < min(means["fern"], means["snowflake"])
    for name, values in by_class.items():
        assert np.quantile(values, 0.95) - np.quantile(values, 0.05) > 0.08, name
    assert instances["complexity"].min() < 0.05
    assert instances["complexity"].max() > 0.75


@pytest.mark.parametrize("name", CLASSES)
def test_detail_makes_outlines_more_complex(name):
    plain, fine = (
        np.mean([complexity(placed(CLASSES[name](Stream(i), detail), 0.3, 1.0)) for i in range(6)])
        for detail in (0.05, 0.95)
    )
    assert fine > plain + 0.05


def test_complexity_of_a_square_and_a_disc_is_nought_and_that_of_a_comb_is_known():
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=float)
    assert complexity([square]) == 0
    assert complexity(placed([circle(0, 0, 1, 200)], 0, 1)) < 0.01
    # A comb of 8 teeth, each 1/16 wide: outline 2·8·(1 − 1/8) + 4 sides of a unit box, area 1/8 + 7/8/2.
    teeth = [np.array([(i / 8, 0.1), (i / 8 + 1 / 16, 0.1), (i / 8 + 1 / 16, 1), (i / 8, 1)]) for i in range(8)]
    comb = [np.array([(0, 0), (1, 0), (1, 1 / 8), (0, 1 / 8)], dtype=float), *teeth]
    length, area = 2 + 2 * 1 / 8 + 16 * 7 / 8, 1 / 8 + 8 / 16 * 7 / 8
    axis = math.pi / 4 * length  # the estimate of an outline along the axes counts π/4 of each side
    assert complexity(comb) == pytest.approx(math.log(axis / (4 * area)) / math.log(32), abs=0.02)


def test_rasters_agree_with_areas_and_pixel_centres():
    disc = [circle(20.3, 18.9, 11.2, 400)]
    cover = coverage(disc, 40, 40)
    assert cover.sum() / FULL == pytest.approx(math.pi * 11.2**2, rel=2e-3)
    assert set(np.unique(cover)) <= set(range(FULL + 1))
    y, x = np.mgrid[:40, :40] + 0.5
    distance = np.hypot(x - 20.3, y - 18.9)
    centres = inside(disc, 40, 40)
    clear = abs(distance - 11.2) > 0.01
    assert np.array_equal(centres[clear], (distance < 11.2)[clear])
    assert outline_length(centres) == pytest.approx(2 * math.pi * 11.2, rel=0.05)


def test_holes_and_unions_by_winding():
    box = np.array([(2, 2), (10, 2), (10, 10), (2, 10)], dtype=float)
    hole = np.array([(4, 4), (4, 8), (8, 8), (8, 4)], dtype=float)
    assert inside([box, hole], 12, 12).sum() == 64 - 16
    assert inside([box, box + 4], 16, 16).sum() == 64 + 64 - 16
    assert not inside([box + 50], 12, 12).any()


def test_export_repeats_its_bytes_and_reads_back_as_coco(tmp_path):
    for name in ("a", "b"):
        export(tmp_path / name, 11, seed=6)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 12
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    read, made = open_data(str(tmp_path / "a")), ShapesDataset(11, 6)
    assert read.class_names == made.class_names and read.category_ids == made.category_ids
    assert read.image_ids == made.image_ids
    for index in (0, 4, 9, 10):
        (image, target), (own, truth) = read[index], made[index]
        assert torch.equal(image, own)
        assert target.keys() == truth.keys()
        for key in ("boxes", "labels", "masks", "area", "iscrowd"):
            assert torch.equal(target[key], truth[key]), key
            assert target[key].dtype == truth[key].dtype
    assert read.coco["annotations"] == made.coco["annotations"]
    assert all(0 <= a["complexity"] <= 1 for a in made.coco["annotations"])


def test_the_command_writes_them_and_refuses_what_cannot_be(tmp_path, capsys):
    assert cli.main(["shapes", "--images", "3", "--seed", "2", "--out", str(tmp_path / "out")]) == 0
    annotations = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [image["file_name"] for image in annotations["images"]] == ["000000.png", "000001.png", "000002.png"]
    assert isinstance(open_data(str(tmp_path / "out")), CocoDataset)
    capsys.readouterr()
    for words in (
        ["--images", "0", "--seed", "1"],
        ["--images", "1", "--seed", "-1"],
        ["--images", "1", "--seed", "1", "--size", "10", "10"],
    ):
        refusal(capsys, "shapes", *words, "--out", tmp_path / "new")
        assert not (tmp_path / "new").exists()
    assert cli.main(["shapes", "--images", "1", "--seed", "1", "--out", str(tmp_path / "out")]) == 2
    assert "holds something" in capsys.readouterr().err


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("place", ["picture", "annotations"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, capsys, monkeypatch, exists, place):
    out, saved = tmp_path / "out", []

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save_two(picture: Image.Image, path: Path) -> None:
        saved.append(path)
        path.write_bytes(b"part of a picture")
        if len(saved) > 2:
            full()

    if place == "picture":
        monkeypatch.setattr(Image.Image, "save", save_two)
    else:
        monkeypatch.setattr(os, "fsync", full)
    if exists:
        out.mkdir()
    assert cli.main(["shapes", "--images", "5", "--seed", "2", "--out", str(out)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("dynamask: error: ") and "the disk is full" in line and line.count("\n") == 1
    assert out.exists() == exists and list(tmp_path.rglob("*")) == ([out] if exists else [])


@pytest.mark.parametrize(
    "data", ["shapes", "shapes:1", "shapes:x:3", "shapes:1:0", "shapes:-1:4", "shapes:1:2:0.9-0.2", "nowhere", None]
)
def test_data_that_cannot_be_opened_are_refused(data):
    with pytest.raises(DynaMaskError):
        open_data(data)[0]


def test_scenes_of_a_chosen_count_detail_and_size():
    plain, fine = make_scene(3, 9, (200, 260), count=5, detail=0.0), make_scene(3, 9, (200, 260), count=5, detail=1.0)
    assert plain.image.shape == (200, 260, 3)
    assert len(plain) and len(fine)
    assert fine.complexity.mean() > plain.complexity.mean()
    with pytest.raises(DynaMaskError):
        make_scene(3, 9, detail=1.5)


def test_sides_can_be_chosen():
    small = open_data("shapes:3:6:0.1-0.2")
    sides = [math.sqrt(a["bbox"][2] * a["bbox"][3]) for a in small.coco["annotations"]]
    assert sides and max(sides) < 0.23 * math.sqrt(288 * 352)


def test_draws_follow_from_the_raw_stream_alone():
    stream, raw = Stream(1, 2), np.random.PCG64(np.random.SeedSequence((1, 2)))
    assert stream.unit() == (int(raw.random_raw()) >> 11) / 2**53
    draws = [Stream(9).integer(2, 4) for _ in range(1)] + [Stream(i).integer(2, 4) for i in range(60)]
    assert set(draws) == {2, 3, 4}
    assert Stream(3).bytes(5, 7).shape == (5, 7)


def test_a_folder_may_be_called_shapes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(Path("shapes-mini"), 1, 3)
    assert len(open_data("shapes-mini")) == 1
    export(Path("shapes"), 1, 3)
    assert len(open_data("shapes")) == 1
