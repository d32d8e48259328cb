"""Losses of the NanoDet detector: values computed by hand, gradients, ignored cells, empty pictures, a teacher."""

import math
from types import SimpleNamespace

import pytest
import torch
from torchvision.ops import box_iou

from dynamask.models.detectors.assignment import BACKGROUND, IGNORED, AssignedCells
from dynamask.models.detectors.gfl_head import GFLHead
from dynamask.models.detectors.gfl_losses import (
    assigned_losses,
    box_distances,
    detection_losses,
    distribution_focal_loss,
    quality_focal_loss,
    teacher_losses,
)

POINTS, STRIDES = torch.tensor([[8.0, 8.0], [16.0, 8.0], [16.0, 16.0]]), torch.tensor([8.0, 8.0, 16.0])
TARGETS = [
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    {"boxes": torch.tensor([[40.0, 40.0, 50.0, 50.0], [0.0, 4.0, 20.0, 32.0]]), "labels": torch.tensor([1, 2])},
]
MATCHED = torch.tensor([[BACKGROUND, IGNORED, BACKGROUND], [1, BACKGROUND, 1]])
QUALITY = torch.tensor([[0.0, 0.0, 0.0], [0.75, 0.0, 0.5]])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def focal(x: float, q: float) -> float:
    """|q − p|² · BCE(p, q)."""
    p = sigmoid(x)
    return (q - p) ** 2 * -(q * math.log(p) + (1 - q) * math.log(1 - p))


def predictions(seed: int = 0, requires_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (2, 3, 2), bins (2, 3, 4, 8) and boxes (2, 3, 4) of two pictures and three cells."""
    generator = torch.Generator().manual_seed(seed)
    logits, bins = torch.randn(2, 3, 2, generator=generator), torch.randn(2, 3, 4, 8, generator=generator)
    reach = torch.rand(2, 3, 4, generator=generator) * 20
    boxes = torch.cat([POINTS - reach[..., :2], POINTS + reach[..., 2:]], dim=-1)
    return tuple(values.requires_grad_(requires_grad) for values in (logits, bins, boxes))


def losses_of(logits, bins, boxes, targets=TARGETS, matched=MATCHED, quality=QUALITY):
    cells = SimpleNamespace(class_logits=logits, bin_logits=bins, boxes=boxes, points=POINTS, strides=STRIDES)
    return assigned_losses(cells, targets, AssignedCells(matched, quality))


def giou(a: list[float], b: list[float]) -> float:
    """GIoU of two xyxy boxes."""
    overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - overlap
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return overlap / union - (hull - union) / hull


@pytest.mark.parametrize(("x", "q"), [(0.0, 0.0), (2.0, 0.0), (-1.0, 0.7), (3.0, 1.0)])
def test_the_quality_focal_loss_equals_its_equation(x, q):
    assert float(quality_focal_loss(torch.tensor(x), torch.tensor(q))) == pytest.approx(focal(x, q), rel=1e-5)


@pytest.mark.parametrize(
    ("distance", "below", "share"), [(0.0, 0, 0.0), (2.25, 2, 0.25), (6.5, 6, 0.5), (-3.0, 0, 0.0), (9.0, 6, 0.9)]
)
def test_the_distribution_focal_loss_is_a_cross_entropy_on_the_two_bins_around_a_distance(distance, below, share):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.0, 1.0, -0.5, 0.7])
    p = logits.softmax(0).tolist()
    expected = -((1 - share) * math.log(p[below]) + share * math.log(p[below + 1]))
    assert float(distribution_focal_loss(logits, torch.tensor(distance))) == pytest.approx(expected, rel=1e-5)


def test_the_distribution_focal_loss_is_smallest_for_a_distribution_with_the_mean_of_the_distance():
    logits = torch.zeros(8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        distribution_focal_loss(logits, torch.tensor(3.3)).backward()
        optimizer.step()
    assert float(logits.detach().softmax(0) @ torch.arange(8.0)) == pytest.approx(3.3, abs=0.02)


def test_all_losses_equal_their_equations_on_two_pictures_of_which_one_is_empty():
    logits, bins, boxes = predictions()
    found = losses_of(logits, bins, boxes)
    assert set(found) == {"loss_quality", "loss_distribution", "loss_giou"}
    total = 0.0
    for image in range(2):
        for cell in range(3):
            for c in range(2):
                q = float(QUALITY[image, cell]) if c == 1 else 0.0  # both positives have label 2
                if MATCHED[image, cell] != IGNORED:
                    total += focal(float(logits[image, cell, c]), q)
    assert float(found["loss_quality"]) == pytest.approx(total / 2, rel=1e-5)

    truth, weights, giou_sum, bin_sum = [0.0, 4.0, 20.0, 32.0], 0.0, 0.0, 0.0
    for cell, reach in ((0, [1.0, 0.5, 1.5, 3.0]), (2, [1.0, 0.75, 0.25, 1.0])):
        weight = sigmoid(float(logits[1, cell].max()))
        weights += weight
        giou_sum += weight * (1 - giou(boxes[1, cell].tolist(), truth))
        per_side = distribution_focal_loss(bins[1, cell], torch.tensor(reach))
        bin_sum += weight * float(per_side.mean())
    assert float(found["loss_giou"]) == pytest.approx(giou_sum / weights, rel=1e-5)
    assert float(found["loss_distribution"]) == pytest.approx(bin_sum / weights, rel=1e-5)


def test_each_loss_reaches_what_it_trains_and_nothing_else():
    for name, reached in {
        "loss_quality": [True, False, False],
        "loss_distribution": [False, True, False],
        "loss_giou": [False, False, True],
    }.items():
        tensors = predictions(requires_grad=True)
        losses_of(*tensors)[name].backward()
        assert [values.grad is not None and bool(values.grad.abs().sum() > 0) for values in tensors] == reached, name


def test_ignored_and_negative_cells_have_the_gradients_they_should():
    logits, bins, boxes = predictions(requires_grad=True)
    sum(losses_of(logits, bins, boxes).values()).backward()
    assert (logits.grad.abs().sum(2) > 0).tolist() == [[True, False, True], [True, True, True]]
    positive = [[False] * 3, [True, False, True]]
    assert (bins.grad.abs().sum((2, 3)) > 0).tolist() == positive
    assert (boxes.grad.abs().sum(2) > 0).tolist() == positive


def test_without_objects_the_box_losses_are_connected_zeros_and_scores_train_as_background():
    logits, bins, boxes = predictions(requires_grad=True)
    found = losses_of(logits, bins, boxes, [TARGETS[0]] * 2, torch.full((2, 3), BACKGROUND), torch.zeros(2, 3))
    expected = sum(focal(x, 0.0) for x in logits.detach().flatten().tolist())
    assert float(found["loss_quality"].detach()) == pytest.approx(expected, rel=1e-5)
    sum(found.values()).backward()
    assert float(found["loss_giou"].detach()) == float(found["loss_distribution"].detach()) == 0.0
    assert bins.grad.eq(0).all()
    assert boxes.grad.eq(0).all()
    assert bool((logits.grad > 0).all())


def test_distances_are_those_to_the_sides():
    found = box_distances(torch.tensor([[8.0, 8.0]]), torch.tensor([[0.0, 4.0, 20.0, 6.0]]))
    assert found.tolist() == [[8.0, 4.0, 12.0, -2.0]]


def teacher_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (1, 3, 2) and bins (1, 3, 4, 8)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, 2, generator=generator) - 2, torch.randn(1, 3, 4, 8, generator=generator)


def taught(own: tuple[torch.Tensor, torch.Tensor], teacher: tuple[torch.Tensor, torch.Tensor]):
    """The losses of a teacher, both given as logits and bins."""
    return teacher_losses(*(SimpleNamespace(class_logits=c, bin_logits=b) for c, b in (own, teacher)))


def test_the_losses_of_a_teacher_equal_their_equations():
    (logits, bins), (teacher_logits, teacher_bins) = teacher_case(0), teacher_case(1)
    teacher_logits[0, 1] = -4.0  # a score of 0.018: not an object
    found = taught((logits, bins), (teacher_logits, teacher_bins))
    assert set(found) == {"loss_teacher_scores", "loss_teacher_boxes"}
    scores, weights, divergence = 0.0, 0.0, 0.0
    for cell in range(3):
        pairs = zip(logits[0, cell].tolist(), teacher_logits[0, cell].tolist())
        scores += sum(focal(x, sigmoid(y)) for x, y in pairs)
        weight = sigmoid(float(teacher_logits[0, cell].max()))
        if weight > 0.05:
            weights += weight
            t, s = teacher_bins[0, cell].softmax(-1), bins[0, cell].softmax(-1)
            divergence += weight * float((t * (t / s).log()).sum(-1).mean())
    assert weights < 1  # so the scores are divided by 1
    assert float(found["loss_teacher_scores"]) == pytest.approx(scores, rel=1e-5)
    assert float(found["loss_teacher_boxes"]) == pytest.approx(divergence / weights, rel=1e-5)


def test_the_gradient_of_a_teacher_is_zero_for_its_copy_and_moves_others_towards_it():
    teacher = teacher_case(1)
    copy = [values.clone().requires_grad_() for values in teacher]
    found = taught(copy, teacher)
    sum(found.values()).backward()
    assert all(float(value.detach().abs()) < 1e-7 for value in found.values())
    assert all(float(values.grad.abs().max()) < 1e-7 for values in copy)

    student = [values.clone().requires_grad_() for values in teacher_case(0)]
    optimizer = torch.optim.Adam(student, lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        sum(taught(student, teacher).values()).backward()
        optimizer.step()
    assert float((student[0].sigmoid() - teacher[0].sigmoid()).abs().max().detach()) < 0.05
    objects = teacher[0].sigmoid().amax(2) > 0.05
    apart = (student[1].softmax(-1) - teacher[1].softmax(-1)).abs()[objects]
    assert len(apart)
    assert float(apart.max().detach()) < 0.05


def test_a_teacher_that_finds_nothing_gives_finite_losses():
    logits, bins = (values.requires_grad_() for values in teacher_case(0))
    found = taught((logits, bins), (torch.full((1, 3, 2), -8.0), torch.zeros(1, 3, 4, 8)))
    sum(found.values()).backward()
    assert float(found["loss_teacher_boxes"].detach()) == 0.0
    assert bins.grad.eq(0).all()
    assert torch.isfinite(logits.grad).all()


def test_a_head_learns_two_pictures():
    torch.manual_seed(0)
    maps = [torch.randn(2, 16, side, side) for side in (8, 4, 2, 1)]
    head = GFLHead(16, 3)
    objects = [(torch.tensor([[3.0, 5.0, 40.0, 50.0]]), 1), (torch.tensor([[10.0, 12.0, 52.0, 58.0]]), 3)]
    targets = [{"boxes": box, "labels": torch.tensor([label])} for box, label in objects]
    weights = {"loss_quality": 1.0, "loss_distribution": 0.25, "loss_giou": 2.0}
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.02)
    history = []
    for _ in range(60):
        losses = detection_losses(head(maps), targets)
        optimizer.zero_grad()
        sum(weights[name] * value for name, value in losses.items()).backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    for name in weights:
        assert history[-1][name] < 0.6 * history[0][name], (name, history[0][name], history[-1][name])
    cells = head(maps)
    for i, (box, label) in enumerate(objects):
        scores = cells.class_logits[i].sigmoid().amax(0)
        assert int(scores.argmax()) == label - 1
        assert float(scores[label - 1].detach()) > 0.7
        best = cells.class_logits[i, :, label - 1].argmax()
        assert float(box_iou(cells.boxes[i, best][None], box).detach()) > 0.8
