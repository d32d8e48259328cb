"""The overlay: colours, outlines and printed sizes land where they should, and nothing else changes."""

import numpy as np
import pytest

from dynamask.structures import MASK_SIZES
from dynamask.viz.overlay import SIZE_COLOURS, SIZE_OUTLINES, contrast_colour, draw_overlay, hex_to_rgb

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


def test_size_colours_are_the_four_of_the_house():
    assert SIZE_COLOURS == {14: "#FEE90C", 28: "#66C2A5", 56: "#1F5FBF", 112: "#8E0B2B"}


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


def test_printed_text_contrasts_with_its_plate():
    assert contrast_colour("#FEE90C") == (0, 0, 0)
    assert contrast_colour("#8E0B2B") == (255, 255, 255)
