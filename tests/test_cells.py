"""Figures of a one-stage model's instance: geometry against hand cases, and the figures against their view."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.small_models import finding_solo

from dynamask.config import AggregationConfig
from dynamask.models.solo.explain import CellView
from dynamask.predict import OneStagePredictor
from dynamask.viz import cells


def view_of(neighbours="4", **changes) -> CellView:
    """An object in the middle of a 100 × 200 picture whose frame is 120 × 240 px, on a 6 × 6 grid, maps of 30 × 60."""
    base = torch.tensor([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [2.0, 3.0], [3.0, 2.0]], dtype=torch.float64)
    mask = torch.zeros(30, 60)
    mask[8:14, 20:30] = 0.9
    maps = torch.linspace(-3, 3, 5 * 1800).reshape(5, 30, 60)
    view = CellView(2, 16, 6, 2, 2, (120.0, 240.0), 6, base.clone(), base, maps, mask, neighbours)
    return dataclasses.replace(view, **changes)


def one_view() -> CellView:
    base = torch.tensor([[2.0, 2.0]], dtype=torch.float64)
    return view_of(None, base=base, positions=base, representations=torch.ones(1, 30, 60))


def predicted(aggregation, **overrides):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    prediction = OneStagePredictor(finding_solo(aggregation, **overrides))(pixels, score=0.0)
    assert len(prediction) > 0
    return pixels, prediction


def test_geometry_by_hand():
    view = view_of()
    assert cells.cell_box(view) == (80.0, 40.0, 120.0, 60.0)
    np.testing.assert_allclose(cells.centres(view, view.base)[0], (100.0, 30.0))  # x, y of row 1, column 2
    lines = cells.grid_lines((100, 200), view.frame, 6)
    assert lines["x"][::3][:4] == [40, 80, 120, 160] and lines["y"][::3][4:] == [20, 40, 60, 80]  # none in the padding
    crop = cells.object_crop(view, margin=0.2)  # two cells of maps on every side
    assert crop == (6, 16, 18, 32) and cells.crop_box(view, crop) == (72.0, 24.0, 128.0, 64.0)
    wide = cells.object_crop(view, margin=5.0, size=(100, 200))
    assert wide == (0, 25, 0, 50)  # the picture has 25 of 30 rows and 50 of 60 columns
    empty = cells.object_crop(view_of(mask=torch.zeros(30, 60)), margin=0.0)
    assert empty == (8, 17, 18, 32)  # the cell, rows 10–14 and columns 20–29, and two more


def test_places_have_names_and_a_move_is_seen():
    assert cells.place_names(view_of()) == ["top", "left", "centre", "right", "bottom"]
    assert cells.place_names(one_view()) == ["cell"]
    base = view_of().base
    nine = cells.place_names(view_of("8", base=base.repeat(2, 1)[:9]))
    assert nine[:3] == ["top left", "top", "top right"] and nine[8] == "bottom right"
    four = cells.place_names(view_of("corners", base=base[:4]))
    assert four == ["top right", "bottom right", "bottom left", "top left"]
    shifted = base.clone()
    shifted[1] += torch.tensor([0.0, 0.31])
    shifted[2] += 0.01
    assert cells.moved(view_of(positions=shifted)) == [False, True, False, False, False]
    assert cells.position_text(shifted[1].tolist()) == "(2, 1.3)"


def test_sentences_say_what_was_aggregated():
    assert "aggregated from 5 representations at (row, column) (1, 2), (2, 1)" in cells.cell_sentence(view_of())
    assert cells.cell_sentence(view_of()).startswith("Level 3 of 5 (stride 16, a grid of 6 × 6 cells)")
    assert cells.cell_sentence(one_view()).endswith("this cell; nothing is aggregated.")
    assert "of the coarser grid of 3 × 3" in cells.cell_sentence(view_of(mask_grid=3))
    assert "all of them moved" in cells.cell_sentence(view_of(positions=view_of().base + 0.5))
    none = view_of(positions=torch.zeros(0, 2), base=torch.zeros(0, 2), representations=torch.zeros(0, 30, 60))
    assert "the context feature alone" in cells.cell_sentence(none)


def test_cell_figure_draws_the_grid_inside_the_picture_and_arrows_where_cells_moved():
    view = view_of(positions=view_of().base + torch.tensor([0.0, 0.5]))
    drawn = cells.cell_figure(np.zeros((100, 200, 3), dtype=np.uint8), view)
    lines = drawn.data[0]
    assert max(x for x in lines.x if x is not None) == 200 and max(y for y in lines.y if y is not None) == 100
    assert len(drawn.layout.annotations) == 5 and drawn.layout.images[0].source.startswith("data:image/jpeg")
    arrow = drawn.layout.annotations[0]
    assert (arrow.ax, arrow.ay) == (100, 30) and (arrow.x, arrow.y) == (120, 30)
    names = [trace.name for trace in drawn.data]
    assert "moved to" in names and "neighbours" in names
    plain = cells.cell_figure(np.zeros((100, 200, 3), dtype=np.uint8), one_view())
    assert not plain.layout.annotations and "neighbours" not in [trace.name for trace in plain.data]
    coarser = cells.cell_figure(np.zeros((100, 200, 3), dtype=np.uint8), view_of(mask_grid=3))
    assert "grid of representations 3 × 3" in [trace.name for trace in coarser.data]


def test_tiles_share_a_crop_and_a_scale():
    maps = torch.linspace(-3, 3, 60).expand(5, 30, 60) * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5])[:, None, None]
    view = view_of(representations=maps)
    top, bottom, left, right = crop = cells.object_crop(view, margin=5.0)
    tiles = cells.tile_pictures(view, crop, side=right - left)
    assert len(tiles) == 6 and {tile.shape for tile in tiles} == {(bottom - top, right - left, 3)}
    for tile in tiles[:5]:
        assert tile[5, 2, 2] > tile[5, 2, 0] and tile[5, -3, 0] > tile[5, -3, 2], "blue is negative, red is positive"
        assert (tile[:, 30 - left] == 17).all(), "a line at logit 0"
    strong, weak = (tile[5, -3].astype(int) for tile in (tiles[0], tiles[4]))
    assert weak.sum() > strong.sum(), "half the logit is paler"
    assert cells.logit_limit(view_of(representations=maps * 100), crop) == cells.MAX_LOGIT


@pytest.mark.parametrize(
    ("aggregation", "overrides"),
    [
        (None, {}),
        (None, {"kind": "solo"}),
        (AggregationConfig(deformable=True), {}),
        (AggregationConfig(neighbours="corners"), {"mask_grids": (4, 3, 2, 2, 1)}),
        (AggregationConfig(neighbours="none"), {}),
        (AggregationConfig(context="only"), {}),
    ],
)
def test_every_kind_of_model_is_explained(aggregation, overrides):
    pixels, prediction = predicted(aggregation, **overrides)
    view = prediction.cells.explain(len(prediction) - 1)
    count = 1 if aggregation is None else aggregation.samples
    assert len(cells.place_names(view)) == len(view.representations) == len(view.positions) == count
    cells.cell_figure(pixels, view)
    assert len(cells.tile_pictures(view, cells.object_crop(view))) == count + 1
    assert cells.cell_sentence(view).endswith(".")
