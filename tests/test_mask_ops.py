"""Mask geometry: hand-made cases of the pixel convention, a round trip, edges and boundaries."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from dynamask.evaluation.mask_quality import boundary_iou, boundary_width
from dynamask.ops.boxes import chunked_box_iou
from dynamask.ops.mask_windows import MaskWindows
from dynamask.ops.masks import (
    crop_mask_pyramid,
    crop_masks,
    grid_boundary_iou,
    mask_edges,
    paste_mask,
    paste_mask_window,
    paste_masks,
    paste_window,
)
from dynamask.ops.rle import encode_rle
from dynamask.structures import MASK_SIZES

torch.set_num_threads(1)
CANVAS = 72


def wavy_objects(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Objects of about 48 px with wavy outlines, and boxes that end anywhere inside a pixel."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.arange(CANVAS) + 0.5
    ys, xs = torch.meshgrid(centres, centres, indexing="ij")
    masks, boxes = [], []
    for _ in range(count):
        cx, cy = (torch.rand(2, generator=generator) * 8 + 32).tolist()
        phase = torch.rand(3, generator=generator) * 6.28
        angle = torch.atan2(ys - cy, xs - cx)
        waves = sum(a * torch.cos(f * angle + p) for a, f, p in zip((3.0, 2.0, 1.5), (2, 3, 5), phase))
        mask = torch.hypot(ys - cy, xs - cx) <= 20 + waves
        inside = torch.nonzero(mask)
        (top, left), (bottom, right) = inside.min(0).values.tolist(), (inside.max(0).values + 1).tolist()
        slack = (torch.rand(4, generator=generator) * 0.5).tolist()
        masks.append(mask)
        boxes.append([left - slack[0], top - slack[1], right + slack[2], bottom + slack[3]])
    return torch.stack(masks), torch.tensor(boxes)


def test_round_trip_keeps_the_object_and_more_of_it_at_each_size():
    masks, boxes = wavy_objects()
    ious = []
    for size in MASK_SIZES:
        pasted = paste_masks(crop_masks(masks, boxes, size), boxes, (CANVAS, CANVAS))
        ious.append(float(((pasted & masks).sum((1, 2)) / (pasted | masks).sum((1, 2))).mean()))
    assert all(iou >= least for iou, least in zip(ious, (0.97, 0.995, 0.999, 0.999)))
    assert ious[0] < ious[1] < ious[2] + 1e-6


def test_crop_at_one_cell_a_pixel_is_a_slice():
    masks = torch.rand(2, 20, 30, generator=torch.Generator().manual_seed(1)) > 0.5
    boxes = torch.tensor([[3.0, 2.0, 17.0, 16.0], [16.0, 6.0, 30.0, 20.0]])
    crops = crop_masks(masks, boxes, 14)
    assert torch.equal(crops[0], masks[0, 2:16, 3:17].float())
    assert torch.equal(crops[1], masks[1, 6:20, 16:30].float())
    assert crops.dtype == torch.float32


def test_crop_takes_the_share_of_the_area():
    stripes = torch.tensor([[[0, 1, 1, 0, 1, 0]] * 6])  # half a pixel off averages neighbours
    assert crop_masks(stripes, torch.tensor([[0.5, 1.0, 4.5, 5.0]]), 4)[0, 1].tolist() == [0.5, 1.0, 0.5, 0.5]
    mask = torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]])
    assert crop_masks(mask, torch.tensor([[0.0, 0.0, 4.0, 4.0]]), 2)[0].tolist() == [[0.75, 0.0], [0.0, 0.25]]


def test_window_holds_the_pixels_whose_centres_lie_in_the_box():
    assert paste_window((0.5, 0.0, 2.5, 2.0), (4, 6)) == (0, 2, 0, 2)
    assert paste_window((0.51, 0.49, 2.51, 3.5), (4, 6)) == (0, 3, 1, 3)
    assert paste_window((-5.0, -5.0, 99.0, 99.0), (4, 6)) == (0, 4, 0, 6)
    top, bottom, left, right = paste_window((10.0, 10.0, 12.0, 12.0), (4, 6))
    assert top == bottom and left == right


def test_paste_at_one_cell_a_pixel_is_the_mask_itself():
    probs = torch.rand(5, 5, generator=torch.Generator().manual_seed(2))
    box = (2.0, 1.0, 7.0, 6.0)
    torch.testing.assert_close(paste_mask_window(probs, box, paste_window(box, (9, 9))), probs)
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[1:6, 2:7] = probs >= 0.5
    assert torch.equal(paste_mask(probs, box, (9, 9)), expected)


def test_paste_reads_bilinearly_at_pixel_centres_and_zero_outside_the_mask():
    values = paste_mask_window(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), (0, 0, 4, 4), (0, 4, 0, 4))
    down, across = torch.tensor([0.75, 1.0, 1.0, 0.75]), torch.tensor([0.75, 0.75, 0.25, 0.0])
    torch.testing.assert_close(values, torch.outer(down, across))
    box = (0.5, 0.5, 4.5, 4.5)  # half a pixel off averages neighbours
    values = paste_mask_window(torch.tensor([[0.8, 0.4, 0.2, 1.0]] * 4), box, paste_window(box, (6, 6)))
    assert values.shape == (4, 4)
    torch.testing.assert_close(values[1], torch.tensor([0.4, 0.6, 0.3, 0.6]))


def test_paste_at_the_threshold_outside_the_image_and_without_area():
    probs = torch.tensor([[0.5, 0.49], [0.3, 0.9]])
    assert paste_mask(probs, (0, 0, 2, 2), (2, 2)).tolist() == [[True, False], [False, True]]
    assert paste_mask(probs, (0, 0, 2, 2), (2, 2), threshold=0.3).all()
    full = torch.ones(3, 3)
    assert not paste_mask(full, torch.tensor([20.0, 20.0, 25.0, 25.0]), (8, 8)).any()
    assert not paste_mask(full, (2.6, 2.0, 2.6, 5.0), (8, 8)).any()
    assert paste_mask(full, (-4.0, -4.0, 12.0, 12.0), (8, 8)).all()


def test_masks_of_mixed_sizes_land_in_their_boxes():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 2.0, 10.0, 9.0]])
    pasted = paste_masks([torch.ones(14, 14), torch.ones(112, 112)], boxes, (10, 12))
    assert pasted.shape == (2, 10, 12) and pasted.dtype == torch.bool
    assert pasted[0].sum() == 16 and pasted[0, :4, :4].all()
    assert pasted[1].sum() == 56 and pasted[1, 2:9, 2:10].all()


def test_no_mask_at_all():
    none = torch.zeros(0, 4)
    assert crop_masks(torch.zeros(0, 5, 5), none, 14).shape == (0, 14, 14)
    assert paste_masks(torch.zeros(0, 14, 14), none, (5, 7)).shape == (0, 5, 7)
    coarse, fine = crop_mask_pyramid(torch.zeros(0, 5, 5), none, (2, 4))
    assert coarse.shape == (0, 2, 2) and fine.shape == (0, 4, 4)
    assert mask_edges(torch.zeros(0, 4, 4)).shape == (0, 4, 4)


def test_pyramid_is_pooled_and_near_the_direct_crop():
    masks, boxes = wavy_objects(12)
    crops = crop_mask_pyramid(masks.float(), boxes, MASK_SIZES)
    for size, crop in zip(MASK_SIZES, crops):
        torch.testing.assert_close(crop, F.avg_pool2d(crops[-1], 112 // size), atol=1e-6, rtol=0)
        direct = crop_masks(masks, boxes, size)
        assert float((crop - direct).abs().mean()) < 0.005
        assert float(((crop >= 0.5) != (direct >= 0.5)).float().mean()) < 0.005


def test_pyramid_takes_the_mask_that_belongs_to_each_box():
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[1] = 1
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [1.0, 1.0, 7.0, 7.0], [2.0, 2.0, 6.0, 6.0]])
    coarse, fine = crop_mask_pyramid(masks, boxes, (2, 4), torch.tensor([1, 0, 1]))
    assert coarse.mean((1, 2)).tolist() == [1.0, 0.0, 1.0] and fine.mean((1, 2)).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("mask", "edges"),
    [
        (["00000", "00000", "00100", "00000", "00000"], ["00000", "00100", "01110", "00100", "00000"]),
        (["11100", "11100", "11100", "11100", "11100"], ["00110", "00110", "00110", "00110", "00110"]),
        (["00000", "01110", "01110", "01110", "00000"], ["01110", "11111", "11011", "11111", "01110"]),
        (["11111"] * 5, ["00000"] * 5),
    ],
    ids=["pixel", "half-plane that goes on beyond the crop", "square", "all inside"],
)
def test_edges_are_both_sides_of_the_outline(mask, edges):
    values = torch.tensor([[float(c) for c in row] for row in mask])[None]
    found = mask_edges(values)[0]
    assert found.dtype == torch.float32
    assert ["".join(str(int(v)) for v in row) for row in found.tolist()] == edges


def rim_by_hand(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Cells of a mask that have something else within reach; what lies beyond the crop is something else."""
    padded = np.pad(mask, ((rows, rows), (columns, columns)))
    rim = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask)):
        rim[y, x] = not padded[y : y + 2 * rows + 1, x : x + 2 * columns + 1].all()
    return rim


def test_boundary_iou_on_the_grid_equals_its_definition():
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(3, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, size=(24, 24), mode="bilinear") > 0.45
    candidates, truth = smooth[:, :2], smooth[:, 2]
    boxes = torch.tensor([[0.0, 0.0, 48.0, 24.0], [5.0, 5.0, 17.0, 29.0], [2.0, 3.0, 202.0, 203.0]])
    width = torch.tensor([4.0, 1.0, 1.0])
    reach = [(4, 2), (1, 2), (1, 1)]  # rows and columns: width · 24 / side of the box, at least 1
    found = grid_boundary_iou(candidates.float(), truth.float(), boxes, width)
    for i, (rows, columns) in enumerate(reach):
        rim = rim_by_hand(truth[i].numpy(), rows, columns)
        for k in range(2):
            other = rim_by_hand(candidates[i, k].numpy(), rows, columns)
            assert float(found[i, k]) == pytest.approx((rim & other).sum() / (rim | other).sum(), abs=1e-6)
    same = grid_boundary_iou(truth[:, None].float(), truth.float(), boxes, width)
    assert (same == 1).all()
    empty = torch.zeros(3, 1, 24, 24)
    assert (grid_boundary_iou(empty, truth.float(), boxes, width) == 0).all()
    assert (grid_boundary_iou(empty, empty[:, 0], boxes, width) == 1).all()


def test_boundary_iou_on_the_grid_equals_that_of_the_picture_where_the_grids_agree():
    masks, _ = wavy_objects(4)
    side = float(CANVAS)
    width = torch.tensor([float(boundary_width((CANVAS, CANVAS)))] * 2)
    boxes = torch.tensor([[0.0, 0.0, side, side]] * 2)
    candidates = torch.stack([masks[1:3], masks[[0, 3]]]).float()
    found = grid_boundary_iou(candidates, masks[:2].float(), boxes, width)
    for i, row in enumerate(candidates.numpy().astype(bool)):
        expected = [boundary_iou(candidate, masks[i].numpy()) for candidate in row]
        assert found[i].tolist() == pytest.approx(expected, abs=1e-6)


def windows_and_masks() -> tuple[MaskWindows, torch.Tensor]:
    """Masks of 90 x 110 pixels as windows and as a tensor: blobs at all borders, a large one and an empty one."""
    rng = np.random.default_rng(3)
    masks = torch.zeros(6, 90, 110, dtype=torch.uint8)
    for mask, (top, bottom, left, right) in zip(
        masks, [(0, 9, 0, 7), (80, 90, 95, 110), (20, 33, 40, 90), (5, 88, 3, 108)]
    ):
        mask[top:bottom, left:right] = torch.from_numpy(
            rng.integers(0, 2, (bottom - top, right - left), dtype=np.uint8)
        )
    masks[5] = 1
    return MaskWindows.of(masks), masks


def test_windows_hold_the_masks_that_they_were_made_of():
    windows, masks = windows_and_masks()
    assert windows.shape == masks.shape and torch.equal(windows.dense(), masks)
    assert torch.equal(MaskWindows.from_rles([encode_rle(mask) for mask in masks], (90, 110)).dense(), masks)
    assert windows.counts().tolist() == masks.sum((1, 2)).tolist()
    assert torch.equal(windows[3], masks[3]) and torch.equal(windows[[2, 0]].dense(), masks[[2, 0]])
    keep = torch.tensor([True, False, False, True, True, False])
    assert torch.equal(windows[keep].dense(), masks[keep])
    assert np.array_equal(windows[keep].union(), masks[keep].amax(0).numpy())
    assert windows.tight_boxes()[5].tolist() == [0, 0, 110, 90] and windows.tight_boxes()[4].tolist() == [0] * 4
    assert sum(len(part) for part in windows.batches()) == 6
    assert windows.like(masks).equal(masks) and windows.like(windows) is windows
    assert MaskWindows.of(masks[:0]).dense().shape == (0, 90, 110)


def test_windows_move_as_the_masks_do():
    windows, masks = windows_and_masks()
    rows, columns = slice(4, 85), slice(50, 100)
    assert torch.equal(windows.cropped(rows, columns).dense(), masks[:, rows, columns])
    assert torch.equal(windows.flipped().dense(), masks.flip(2))
    assert torch.equal(windows.placed(3, 5, (100, 130)).dense(), F.pad(masks, (5, 15, 3, 7)))
    for size in ((45, 55), (200, 131), (90, 110), (1, 1)):
        expected = F.interpolate(masks[:, None].float(), size=size, mode="nearest-exact")[:, 0].byte()
        assert torch.equal(windows.resized(size).dense(), expected)
    cover = torch.randint(0, 2, (81, 50), dtype=torch.uint8)
    left = masks.clone()
    left[:, rows, columns] &= 1 - cover
    assert torch.equal(windows.without(cover.numpy(), rows, columns).dense(), left)
    assert torch.equal(windows.joined(windows.flipped()).dense(), torch.cat([masks, masks.flip(2)]))


def test_crops_of_windows_are_those_of_the_masks():
    windows, masks = windows_and_masks()
    boxes = torch.tensor(
        [[0, 0, 7, 9], [94.3, 79, 111, 90], [38, 15, 95, 40.5], [2, 2, 109, 89], [1, 1, 9, 9], [-9, -9, 120, 99]]
    )
    index = torch.tensor([0, 1, 2, 3, 4, 5, 3])
    boxes = torch.cat([boxes, boxes[:1]])
    for ours, whole in zip(*(crop_mask_pyramid(m, boxes, MASK_SIZES, index) for m in (windows, masks))):
        assert torch.allclose(ours, whole, atol=1e-4)
    assert crop_mask_pyramid(windows, boxes[:0], MASK_SIZES, index[:0])[0].shape == (0, 14, 14)


def test_overlaps_of_many_boxes_equal_those_of_torchvision():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(150, 2, generator=generator) * 80
    boxes = torch.cat([low, low + torch.rand(150, 2, generator=generator) * 40], dim=1)
    for count in (0, 1, 64, 65, 150):
        assert torch.equal(chunked_box_iou(boxes[:count], boxes[:40]), box_iou(boxes[:count], boxes[:40]))
