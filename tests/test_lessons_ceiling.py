"""Notebook 01: outlines, round trips and the pictures of their errors."""

import json
from collections import Counter

import numpy as np
import pytest
from lessons import ceiling, picture_grids

from dynamask.evaluation.ideal_masks import ideal_masks
from dynamask.evaluation.mask_quality import boundary_iou, mask_iou
from dynamask.structures import MASK_SIZES, DynaMaskError

SQUARE = np.zeros((4, 4, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def outlines():
    return ceiling.read_instances()


def test_outlines_are_the_selection_that_their_readme_describes(outlines, tmp_path):
    assert {one.name for one in outlines} == {"giraffe", "bicycle", "person", "book", "tv"}
    assert all(one.mask.any() and one.area > 0 for one in outlines)
    coco = json.loads(ceiling.OUTLINES.read_text(encoding="utf-8"))
    assert "CC BY 4.0" in coco["info"]["description"]
    assert set(coco["images"][0]) == {"id", "file_name", "height", "width"}, "no photograph, no address of one"
    counts = Counter((a["category_id"], a["area"] >= 32**2, a["area"] >= 96**2) for a in coco["annotations"])
    assert max(counts.values()) == 10
    with pytest.raises(DynaMaskError, match="does not exist"):
        ceiling.read_instances(tmp_path / "none.json")


def test_largest_ranks_by_area_and_refuses_unknown_classes_and_ranks(outlines):
    areas = [ceiling.largest(outlines, "giraffe", rank).area for rank in range(3)]
    assert areas == sorted((one.area for one in outlines if one.name == "giraffe"), reverse=True)[:3]
    for name, rank, message in (("zebra", 0, "no 'zebra'"), ("giraffe", 99, "rank from 0 to")):
        with pytest.raises(DynaMaskError, match=message):
            ceiling.largest(outlines, name, rank)


def test_generated_instances_have_a_complexity():
    found = ceiling.scene_instances(seed=3, count=2)
    assert found and all(0 <= one.complexity <= 1 and one.area == one.mask.sum() for one in found)


def test_measure_equals_single_scores(outlines):
    quality = ceiling.measure(outlines[:3])
    for i, one in enumerate(outlines[:3]):
        masks = ideal_masks(one.mask, one.box)
        assert quality.mask_iou[i] == pytest.approx([mask_iou(one.mask, mask) for mask in masks])
        assert quality.boundary_iou[i] == pytest.approx([boundary_iou(one.mask, mask) for mask in masks])
    assert ceiling.measure([]).mask_iou.shape == (0, len(MASK_SIZES))


def test_torchvisions_round_trip_is_worse_than_an_aligned_one():
    small = ceiling.scene_instances(seed=1, count=3, size=(320, 320), sides=(0.15, 0.15))
    ours, stock = ceiling.measure(small), ceiling.measure(small, ceiling.stock_masks)
    assert (stock.mask_iou.mean(axis=0)[1:] < ours.mask_iou.mean(axis=0)[1:]).all()


@pytest.mark.parametrize("teeth", [1, 2, 5])
def test_a_comb_has_its_teeth(teeth):
    one = ceiling.comb(teeth, side=180)
    bottom = one.mask[int(one.box[3]) - 1]
    assert len(np.flatnonzero(np.diff(bottom.astype(int)) == 1)) == teeth
    assert one.mask[int(one.box[1])].sum() == 180


def test_losses_follow_their_formulas():
    lost = ceiling.losses_by_cells(ceiling.comb(12), (14, 56))
    assert lost[0] > 0.4 and lost[1] < 0.12, "23 stripes do not fit into 14 cells"
    assert ceiling.slope((7, 14, 28), np.array([3 / m**2 for m in (7, 14, 28)])) == pytest.approx(-2)
    masks, boundaries = ceiling.shrunk_disc_scores((10, 100))
    assert masks == pytest.approx([(9 / 10) ** 2, (99 / 100) ** 2], abs=0.01)
    assert boundaries[0] == masks[0] and boundaries[1] < masks[1]


def test_error_pictures_and_shades():
    truth, mask = np.array([[1, 1, 0, 0]], dtype=bool), np.array([[1, 0, 1, 0]], dtype=bool)
    picture = picture_grids.error_picture(truth, mask)
    assert picture.shape == (1, 4, 4) and picture[0, 3, 3] == 0 and (picture[0, :3, 3] == 255).all()
    assert len({tuple(pixel) for pixel in picture[0, :3]}) == 3
    picture = picture_grids.shade(np.array([[-1.0, 0.0, 0.5, 1.0, 2.0]]), 0, 1)
    assert (picture[0, 0] == picture[0, 1]).all() and (picture[0, 3] == picture[0, 4]).all()
    assert picture[0, 1].sum() < picture[0, 2].sum() < picture[0, 3].sum()
    constant = picture_grids.shade(np.zeros((2, 2)))
    assert (constant == constant[0, 0]).all()


def test_windows_contain_their_mask_and_stay_in_the_picture():
    mask = np.zeros((20, 30), dtype=bool)
    mask[2:5, 10:28] = True
    window = picture_grids.mask_window(mask, padding=4)
    assert window == (slice(0, 9), slice(6, 30)) and mask[window].sum() == mask.sum()
    assert picture_grids.box_window((10, 2, 28, 5), (20, 30), margin=0.5) == (slice(0, 14), slice(1, 30))


def test_picture_grid_places_every_picture_and_refuses_missing_titles():
    drawn = picture_grids.picture_grid([[SQUARE, SQUARE], [SQUARE, None]], [["a", "b"], ["c", ""]])
    assert len(drawn.data) == 3 and [note.text for note in drawn.layout.annotations] == ["a", "b", "c"]
    for pictures, titles in (([[SQUARE, SQUARE]], [["a"]]), ([], [])):
        with pytest.raises(ValueError, match="one title for each"):
            picture_grids.picture_grid(pictures, titles)


def test_slider_shows_one_step_at_a_time():
    steps = {text: picture_grids.picture_grid([[SQUARE, SQUARE]], [[text, text]]) for text in "abc"}
    height = steps["a"].layout.height
    drawn = picture_grids.with_slider(steps, active=1, axis_title=True)
    assert [trace.visible for trace in drawn.data] == [False, False, True, True, False, False]
    (slider,) = drawn.layout.sliders
    assert [step.label for step in slider.steps] == ["a", "b", "c"] and slider.active == 1
    assert slider.steps[2].args[0]["visible"] == [False, False, False, False, True, True]
    assert slider.steps[2].args[1]["annotations"][0]["text"] == "c"
    assert slider.pad.t > 40 and drawn.layout.height > height + slider.pad.t
    with pytest.raises(ValueError):
        picture_grids.with_slider({})


def test_a_group_without_instances_is_not_drawn(outlines):
    quality = ceiling.measure([ceiling.largest(outlines, "giraffe"), ceiling.largest(outlines, "book")])
    groups = {"giraffe": np.array([True, False]), "nobody": np.zeros(2, dtype=bool)}
    assert [trace.name for trace in ceiling.ceiling_curves(groups, quality).data] == ["giraffe (1)"] * 2
