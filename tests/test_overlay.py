"""The overlay: colours, outlines and printed sizes land where they should, and nothing else changes."""

import numpy as np
import pytest
import torch

from dynamask.structures import MASK_SIZES
from dynamask.viz.overlay import draw_instances, draw_overlay
from dynamask.viz.style import SIZE_COLOURS, SIZE_OUTLINES, class_colour, contrast_colour, hex_to_rgb

GREY = 120


def picture(height=200, width=240):
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def square(top=40, left=40, side=120, height=200, width=240):
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def border_colours(size, height=200, width=240):
    """Colours (P, 3) of the outermost ring of a square drawn at `size`."""
    drawn = draw_overlay(picture(height, width), square()[None], [size], opacity=0.0)
    return drawn[40, 40:160]


@pytest.mark.parametrize("size", MASK_SIZES)
def test_fill_is_the_blend_of_picture_and_size_colour(size):
    drawn = draw_overlay(picture(), square()[None], [size], opacity=0.25)
    expected = np.rint(0.75 * GREY + 0.25 * np.array(hex_to_rgb(SIZE_COLOURS[size])))
    assert np.array_equal(drawn[60, 60], expected)  # inside, away from the outline and from the plate in the middle


@pytest.mark.parametrize("size", MASK_SIZES)
def test_only_the_mask_changes(size):
    mask = square()
    drawn = draw_overlay(picture(), mask[None], [size])
    assert (drawn[~mask] == GREY).all()
    assert (drawn[mask] != GREY).any(axis=-1).all()


def test_callers_picture_stays_as_it_was():
    image = picture()
    draw_overlay(image, square()[None], [56], boxes=[[40, 40, 160, 160]])
    assert (image == GREY).all()


def test_outlines_differ_by_more_than_colour():
    """Share of the outline that bears the size's own colour: dotted < dashed < full; the double line has a core."""
    share = {}
    for size in MASK_SIZES:
        ring = border_colours(size)
        own = (ring == hex_to_rgb(SIZE_COLOURS[size])).all(axis=-1)
        gap = (ring == contrast_colour(SIZE_COLOURS[size])).all(axis=-1)
        assert (own | gap).all()
        share[size] = own.mean()
    assert 0.3 < share[14] < 0.6 < share[28] < 0.85
    assert share[56] == share[112] == 1.0
    drawn = draw_overlay(picture(), square()[None], [112], opacity=0.0)
    middle = drawn[40 : 40 + SIZE_OUTLINES[112].width, 70]
    assert (middle == contrast_colour(SIZE_COLOURS[112])).all(axis=-1).any()
    assert not (draw_overlay(picture(), square()[None], [56], opacity=0.0)[40:43, 70] == 255).all(axis=-1).any()


def test_first_instance_lies_on_top():
    masks = np.stack([square(), square(top=60, left=60)])
    drawn = draw_overlay(picture(), masks, [112, 14], opacity=1.0)
    crimson, yellow = hex_to_rgb(SIZE_COLOURS[112]), hex_to_rgb(SIZE_COLOURS[14])
    assert tuple(drawn[130, 70]) == crimson  # in both masks
    assert tuple(drawn[170, 170]) == yellow  # in the second alone
    assert tuple(draw_overlay(picture(), masks[::-1], [14, 112], opacity=1.0)[130, 70]) == yellow


def test_size_is_printed_and_the_label_before_it():
    plain = draw_overlay(picture(), square()[None], [28])
    other = draw_overlay(picture(), square()[None], [28], labels=["person"])
    middle = plain[95:105, 90:110].reshape(-1, 3)
    assert (middle == hex_to_rgb(SIZE_COLOURS[28])).all(axis=-1).any()  # the plate
    assert (middle.sum(axis=-1) < 150).any()  # dark print on it
    changed = np.flatnonzero((plain != other).any(axis=(0, 2)))
    assert changed.max() - changed.min() > 40  # a wider plate


def test_boxes_are_drawn_and_clipped():
    drawn = draw_overlay(picture(), square()[None], [56], boxes=[[-10, 20, 5000, 180]])
    blue = hex_to_rgb(SIZE_COLOURS[56])
    assert (drawn[20, 10:230] == blue).all() and (drawn[20:180, 239] == blue).all()


@pytest.mark.parametrize("masks", [np.zeros((0, 200, 240), dtype=bool), []])
def test_no_instance_leaves_the_picture(masks):
    assert np.array_equal(draw_overlay(picture(), masks, []), picture())


def test_empty_mask_and_one_pixel_picture():
    assert np.array_equal(draw_overlay(picture(), np.zeros((1, 200, 240), dtype=bool), [14]), picture())
    tiny = draw_overlay(picture(1, 1), np.ones((1, 1, 1), dtype=bool), [112], boxes=[[0, 0, 1, 1]])
    assert tiny.shape == (1, 1, 3) and tiny.dtype == np.uint8


@pytest.mark.parametrize(
    "arguments",
    [
        {"mask_size": [13]},
        {"mask_size": [14, 28]},
        {"masks": np.zeros((1, 10, 10), dtype=bool)},
        {"image": np.zeros((200, 240), dtype=np.uint8)},
        {"image": np.zeros((200, 240, 3), dtype=np.float32)},
        {"boxes": np.zeros((2, 4))},
        {"labels": []},
        {"opacity": 1.5},
    ],
)
def test_what_does_not_fit_is_refused(arguments):
    given = {"image": picture(), "masks": square()[None], "mask_size": [14]} | arguments
    with pytest.raises(ValueError):
        draw_overlay(**given)


# --- instances in the colours of their classes -----------------------------------------------------------------------


def test_instances_without_sizes_are_filled_outlined_and_named_inside_their_masks():
    image = np.full((120, 160, 3), 90, dtype=np.uint8)
    masks = torch.zeros(2, 120, 160, dtype=torch.bool)
    masks[0, 20:100, 20:80], masks[1, 20:100, 60:140] = True, True
    boxes = torch.tensor([[20.0, 20.0, 79.0, 99.0], [60.0, 20.0, 139.0, 99.0]])
    drawn = draw_instances(image, masks, boxes, torch.tensor([1, 2]), ("background", "cup", "box"))
    first, second = (np.array(hex_to_rgb(class_colour(label))) for label in (1, 2))
    assert (image == 90).all() and (drawn[:15] == 90).all() and (drawn[105:] == 90).all()
    assert (drawn[60, 21] == first).all() and (drawn[60, 138] == second).all(), "a line along the border"
    assert (drawn[90, 30] == np.rint((90 + first) / 2)).all() and (drawn[90, 130] == np.rint((90 + second) / 2)).all()
    assert (drawn[90, 70] == np.rint((90 + first) / 2)).all(), "the best hides what is below"
    assert (drawn[60, 22] == contrast_colour(class_colour(1))).all(), "black or white along the line"


def test_no_instance_and_an_empty_mask_leave_the_picture():
    image = np.full((40, 50, 3), 7, dtype=np.uint8)
    none = draw_instances(image, torch.zeros(0, 40, 50).bool(), torch.zeros(0, 4), torch.zeros(0).long(), ("b",))
    assert (none == image).all() and none is not image
    empty = draw_instances(image, torch.zeros(1, 40, 50).bool(), torch.zeros(1, 4), torch.tensor([1]), ("b", "cup"))
    assert (empty[1:, 1:] == 7).all()
