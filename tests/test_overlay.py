"""The overlay: colours, outlines and labels are drawn where they should be, and nothing else changes."""

import numpy as np
import pytest
import torch

from dynamask.structures import MASK_SIZES
from dynamask.viz.overlay import draw_instances, draw_overlay
from dynamask.viz.style import SIZE_COLOURS, SIZE_OUTLINES, class_colour, contrast_colour, hex_to_rgb

GREY = 120


def picture(height=200, width=240):
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def square(top=40, left=40, side=120):
    mask = np.zeros((200, 240), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize("size", MASK_SIZES)
def test_the_fill_is_a_blend_and_only_the_mask_changes(size):
    image, mask = picture(), square()
    drawn = draw_overlay(image, mask[None], [size], opacity=0.25)
    expected = np.rint(0.75 * GREY + 0.25 * np.array(hex_to_rgb(SIZE_COLOURS[size])))
    assert np.array_equal(drawn[60, 60], expected)  # inside, away from the outline and from the label in the middle
    assert (drawn[~mask] == GREY).all() and (drawn[mask] != GREY).any(axis=-1).all()
    assert (image == GREY).all(), "the given picture is left unchanged"


def test_outlines_differ_by_more_than_colour():
    """Share of the outline in the size's own colour: dotted < dashed < solid; the double line has a core."""
    share = {}
    for size in MASK_SIZES:
        ring = draw_overlay(picture(), square()[None], [size], opacity=0.0)[40, 40:160]  # (120, 3) outermost row
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


def test_first_instance_is_on_top():
    masks = np.stack([square(), square(top=60, left=60)])
    drawn = draw_overlay(picture(), masks, [112, 14], opacity=1.0)
    crimson, yellow = hex_to_rgb(SIZE_COLOURS[112]), hex_to_rgb(SIZE_COLOURS[14])
    assert tuple(drawn[130, 70]) == crimson  # in both masks
    assert tuple(drawn[170, 170]) == yellow  # in the second alone
    assert tuple(draw_overlay(picture(), masks[::-1], [14, 112], opacity=1.0)[130, 70]) == yellow


def test_size_is_printed_and_the_label_before_it():
    plain, labelled = (draw_overlay(picture(), square()[None], [28], labels=labels) for labels in (None, ["person"]))
    middle = plain[95:105, 90:110].reshape(-1, 3)
    assert (middle == hex_to_rgb(SIZE_COLOURS[28])).all(axis=-1).any()  # the plate
    assert (middle.sum(axis=-1) < 150).any()  # dark text on it
    changed = np.flatnonzero((plain != labelled).any(axis=(0, 2)))
    assert changed.max() - changed.min() > 40  # a wider plate


def test_boxes_are_drawn_and_clipped():
    drawn = draw_overlay(picture(), square()[None], [56], boxes=[[-10, 20, 5000, 180]])
    blue = hex_to_rgb(SIZE_COLOURS[56])
    assert (drawn[20, 10:230] == blue).all() and (drawn[20:180, 239] == blue).all()


def test_no_instance_an_empty_mask_and_a_picture_of_one_pixel():
    for masks, sizes in ((np.zeros((0, 200, 240), dtype=bool), []), ([], []), (np.zeros((1, 200, 240)), [14])):
        assert np.array_equal(draw_overlay(picture(), masks, sizes), picture())
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
def test_input_that_does_not_match_is_refused(arguments):
    with pytest.raises(ValueError):
        draw_overlay(**{"image": picture(), "masks": square()[None], "mask_size": [14]} | arguments)


def test_instances_are_drawn_in_the_colours_of_their_classes():
    image = np.full((120, 160, 3), 90, dtype=np.uint8)
    masks = torch.zeros(2, 120, 160, dtype=torch.bool)
    masks[0, 20:100, 20:80], masks[1, 20:100, 60:140] = True, True
    boxes = torch.tensor([[20.0, 20.0, 79.0, 99.0], [60.0, 20.0, 139.0, 99.0]])
    drawn = draw_instances(image, masks, boxes, torch.tensor([1, 2]), ("background", "cup", "box"))
    first, second = (np.array(hex_to_rgb(class_colour(label))) for label in (1, 2))
    assert (image == 90).all() and (drawn[:15] == 90).all() and (drawn[105:] == 90).all()
    assert (drawn[60, 21] == first).all() and (drawn[60, 138] == second).all(), "outline"
    assert (drawn[60, 22] == contrast_colour(class_colour(1))).all(), "black or white along the outline"
    for column, colour in ((30, first), (130, second), (70, first)):  # the best covers the other at column 70
        assert (drawn[90, column] == np.rint((90 + colour) / 2)).all()
    empty = draw_instances(image, masks[:1] & False, boxes[:1] * 0, torch.tensor([1]), ("background", "cup"))
    none = draw_instances(image, masks[:0], boxes[:0], torch.zeros(0).long(), ("background",))
    assert (empty[1:, 1:] == 90).all() and (none == 90).all() and none is not image


def test_more_colours_than_a_byte_can_index():
    count = 300
    masks = torch.ones(count, 60, 400, dtype=torch.bool)
    colours = [f"#{number:06X}" for number in range(0x800000, 0x800000 + count)]
    boxes, labels = torch.zeros(count, 4), torch.zeros(count).long()
    drawn = draw_instances(np.zeros((60, 400, 3), np.uint8), masks, boxes, labels, [""], 1.0, colours, framed=False)
    assert tuple(drawn[30, 380]) == hex_to_rgb(colours[0])
    assert tuple(drawn[59, 380]) == hex_to_rgb(colours[0]), "outline"
