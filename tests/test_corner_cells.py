"""Crops of maps whose cells lie at their first pixel."""

from __future__ import annotations

import torch
from torch import nn

from dynamask.models.detectors.mask_pyramid import MaskPyramid
from dynamask.models.masks.heads.base import centred_rois
from dynamask.models.masks.region_fpn import LEVEL_STRIDES, crop_assigned_level


def positions(stride: int, cells: int) -> torch.Tensor:
    """(1, 1, cells, cells): x of the first pixel's centre of each cell."""
    return (torch.arange(cells) * stride + 0.5).repeat(cells, 1)[None, None].float()


def test_a_crop_reads_the_position_of_its_own_cells():
    features = {str(k): positions(s, 512 // s) for k, s in enumerate(LEVEL_STRIDES)}
    rois = torch.tensor([[0, 40.0, 40.0, 68.0, 68.0], [0, 40.0, 40.0, 264.0, 264.0]])
    crops = crop_assigned_level(features, rois, 14, corner_cells=True)
    for roi, crop in zip(rois, crops):
        side = (roi[3] - roi[1]) / 14
        expected = roi[1] + side * (torch.arange(14) + 0.5)
        torch.testing.assert_close(crop[0, 0], expected, atol=1e-3, rtol=0)


def test_the_shift_grows_with_the_stride():
    rois = torch.tensor([[1.0, 0.0, 0.0, 8.0, 8.0]])
    assert centred_rois(rois, 16).tolist() == [[1.0, 7.5, 7.5, 15.5, 15.5]]
    assert centred_rois(rois, 1).tolist() == rois.tolist()


def test_levels_are_added_where_their_cells_lie():
    pyramid = MaskPyramid([1, 1, 1, 1, 1], 1, 8, corner_cells=True)
    pyramid.laterals = nn.ModuleList(nn.Conv2d(c, 1, 1, bias=False) for c in (5, 2, 2, 2))
    for lateral in pyramid.laterals:
        nn.init.zeros_(lateral.weight)
    nn.init.ones_(pyramid.laterals[1].weight[:, :1])
    pyramid.outputs = nn.ModuleList(nn.Identity() for _ in range(4))
    body = [torch.zeros(1, 1, 64, 64), *(positions(s, 128 // s) for s in LEVEL_STRIDES)]
    finest = pyramid(body, [torch.zeros(1, 1, 128 // s, 128 // s) for s in LEVEL_STRIDES[1:]])[0]
    torch.testing.assert_close(finest[0, 0, :, :-1], positions(4, 32)[0, 0, :, :-1])
