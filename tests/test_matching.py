"""Matching of predicted to true instances, by hand."""

import numpy as np
import torch

from dynamask.evaluation.matching import match_detections, match_greedily

IOUS = np.array([[0.8, 0.6, 0.0], [0.9, 0.7, 0.0], [0.9, 0.7, 0.49], [0.0, 0.0, 0.5]])


def test_each_prediction_takes_the_best_free_true_instance():
    assert match_greedily(IOUS) == [0, 1, None, 2]
    allowed = np.ones_like(IOUS, dtype=bool)
    allowed[0, 0] = False
    assert match_greedily(IOUS, allowed) == [1, 0, None, 2]
    assert match_greedily(IOUS, exclusive=np.array([False, False, True, True])) == [0, 0, 0, 2]
    assert match_greedily(IOUS, threshold=IOUS.max() + 0.01) == [None] * len(IOUS)
    assert match_greedily(np.zeros((2, 0))) == [None, None] and match_greedily(np.zeros((0, 2))) == []


def test_detections_match_by_box_and_category():
    true_boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    boxes = torch.tensor([[20.0, 20, 40, 41], [0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 10, 4.9]])
    assert match_detections(boxes, [7, 3, 3, 3], true_boxes, [3, 7]) == [1, 0, None, None]
    assert match_detections(boxes, [3, 7, None, 3], true_boxes, [3, 7]) == [None] * 4
    assert match_detections(boxes, [7, 3, 3, 3], torch.zeros(0, 4), []) == [None] * 4
    assert match_detections(torch.zeros(0, 4), [], true_boxes, [3, 7]) == []
