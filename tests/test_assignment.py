"""Dynamic soft label assignment: the costs, the number of cells of an object, conflicts, ignored objects and speed."""

import math
import time

import pytest
import torch
from helpers.small_models import picture, target, tiny_nanodet

from dynamask.models.detectors.assignment import (
    BACKGROUND,
    IGNORED,
    assign_cells,
    assign_objects,
    assignment_cost,
    inside,
)

NONE = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def grid(side: int, stride: int) -> torch.Tensor:
    """(side², 2) points at multiples of the stride, row by row."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1).float() * stride


def random_case(count: int = 20, classes: int = 80, seed: int = 0):
    """Cells of a 416×416 picture with predictions near random objects: logits, boxes, points, objects, labels."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.cat([grid(math.ceil(416 / stride), stride) for stride in (8, 16, 32, 64)])
    low = torch.rand(count, 2, generator=generator) * 300
    objects = torch.cat([low, low + 16 + torch.rand(count, 2, generator=generator) * 100], dim=1)
    labels = torch.randint(1, classes + 1, (count,), generator=generator)
    nearest = inside(points, objects).float().argmax(1)
    boxes = objects[nearest] + torch.randn(len(points), 4, generator=generator).clamp(-1, 1) * 7
    logits = torch.randn(len(points), classes, generator=generator) - 3
    return logits, boxes, points, objects, labels


def test_the_cost_equals_its_equation_summed_over_all_classes():
    generator = torch.Generator().manual_seed(1)
    logits, iou = torch.randn(5, 4, generator=generator), torch.rand(5, 3, generator=generator)
    labels = torch.tensor([2, 4, 2])
    cost = assignment_cost(logits, iou, labels)
    for cell in range(5):
        for row, label in enumerate(labels.tolist()):
            expected = -3 * math.log(float(iou[cell, row]) + 1e-7)
            for c in range(4):
                p = 1 / (1 + math.exp(-float(logits[cell, c])))
                t = float(iou[cell, row]) if c == label - 1 else 0.0
                expected -= (t * math.log(p) + (1 - t) * math.log(1 - p)) * (t - p) ** 2
            assert float(cost[cell, row]) == pytest.approx(expected, rel=1e-5)


def test_an_object_gets_as_many_cells_as_its_highest_ious_add_up_to():
    points = torch.tensor([[5.0, 5.0], [5.0, 6.0], [5.0, 7.0], [50.0, 50.0]])
    objects = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 4], [0, 0, 10, 10]]).float()  # IoU 1, .9, .4, 1
    matched, quality = assign_objects(torch.zeros(4, 2), boxes, points, objects, torch.tensor([1]))
    # The fourth cell lies outside: 1 + .9 + .4 = 2.3, so the two cheapest cells learn the object.
    assert matched.tolist() == [0, 0, BACKGROUND, BACKGROUND]
    assert quality.tolist() == pytest.approx([1.0, 0.9, 0.0, 0.0])


def test_an_object_that_no_prediction_covers_gets_one_cell_which_is_the_one_with_the_best_score():
    points = torch.tensor([[5.0, 5.0], [5.0, 6.0]])
    far = torch.tensor([[80.0, 80.0, 90.0, 90.0]]).expand(2, 4)
    logits = torch.tensor([[0.0, 3.0], [0.0, -3.0]])  # a false score of the other class makes the first cell dear
    matched, _ = assign_objects(logits, far, points, torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([1]))
    assert matched.tolist() == [BACKGROUND, 0]


def test_a_cell_that_two_objects_claim_goes_to_the_cheaper_one():
    points = torch.tensor([[5.0, 5.0]])
    objects = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]])
    for order in ([0, 1], [1, 0]):
        matched, quality = assign_objects(torch.zeros(1, 1), objects[1:], points, objects[order], torch.tensor([1, 1]))
        assert order[matched[0]] == 1
        assert float(quality[0]) == 1.0


def test_only_cells_strictly_inside_a_box_are_candidates():
    points = torch.tensor([[0.0, 5.0], [5.0, 0.0], [10.0, 5.0], [5.0, 10.0], [5.0, 5.0]])
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert inside(points, box)[:, 0].tolist() == [False, False, False, False, True]
    matched, _ = assign_objects(torch.zeros(5, 1), box.expand(5, 4), points, box, torch.tensor([1]))
    assert matched.tolist() == [BACKGROUND] * 4 + [0]


def test_the_order_of_the_objects_does_not_matter():
    logits, boxes, points, objects, labels = random_case()
    matched, quality = assign_objects(logits, boxes, points, objects, labels)
    assert len(matched[matched >= 0].unique()) == len(objects)
    order = torch.randperm(len(objects), generator=torch.Generator().manual_seed(3))
    again, again_quality = assign_objects(logits, boxes, points, objects[order], labels[order])
    learns = again >= 0
    assert torch.equal(learns, matched >= 0)
    assert torch.equal(order[again[learns]], matched[learns])
    assert torch.equal(again_quality, quality)


def test_pictures_of_a_batch_do_not_influence_each_other_and_may_be_empty():
    logits, boxes, points, objects, labels = random_case(count=4)
    found = {"boxes": objects, "labels": labels}
    both = assign_cells(logits.expand(3, -1, -1), boxes.expand(3, -1, -1), points, [NONE, found, NONE])
    matched, quality = assign_objects(logits, boxes, points, objects, labels)
    assert torch.equal(both.matched[1], matched)
    assert torch.equal(both.quality[1], quality)
    assert both.positive[1].any()
    assert not both.positive[[0, 2]].any()
    assert both.quality[[0, 2]].eq(0).all()


def test_objects_that_are_only_masks_are_not_assigned_and_their_cells_are_not_background():
    points = torch.tensor([[5.0, 5.0], [25.0, 5.0], [45.0, 5.0], [65.0, 5.0]])
    target = {
        "boxes": torch.tensor([[20.0, 0.0, 50.0, 10.0], [0.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]]),
        "labels": torch.tensor([1, 1, 1]),
        "mask_only": torch.tensor([True, False, False]),
    }
    boxes = torch.tensor([[0, 0, 30, 10], [90, 90, 95, 95], [40, 0, 50, 9], [90, 90, 95, 95]]).float()
    assigned = assign_cells(torch.zeros(1, 4, 1), boxes[None], points, [target])
    # The third object learns from the third cell, although the object that is only a mask covers it as well.
    assert assigned.matched[0].tolist() == [1, IGNORED, 2, BACKGROUND]


def test_a_picture_whose_objects_are_all_only_masks_has_no_positive_cell():
    points = torch.tensor([[5.0, 5.0], [25.0, 5.0]])
    target = {
        "boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0]]),
        "labels": torch.tensor([1]),
        "mask_only": torch.tensor([True]),
    }
    assigned = assign_cells(torch.zeros(1, 2, 1), torch.zeros(1, 2, 4), points, [target])
    assert assigned.matched[0].tolist() == [IGNORED, BACKGROUND]


def test_twenty_objects_on_a_picture_of_416_pixels_are_assigned_in_milliseconds():
    case = random_case()
    assign_objects(*case)
    times = []
    for _ in range(5):
        start = time.thread_time()
        assign_objects(*case)
        times.append(time.thread_time() - start)
    assert min(times) < 0.02


def test_a_detector_passes_on_which_objects_are_only_masks():
    model, objects = tiny_nanodet(), {**target(objects=2), "mask_only": torch.tensor([False, True])}
    encoded, targets = model.detector.encode([picture()] * 2, [objects, target(objects=2)])
    assert targets[0]["mask_only"].tolist() == [False, True]
    assert "mask_only" not in targets[1]
    losses, _ = model.detector.losses(encoded, targets)
    assert all(torch.isfinite(value) for value in losses.values())
