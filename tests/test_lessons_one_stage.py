"""Notebook 08: cells, vectors, matrix NMS and neighbours equal the model's, comparisons equal the evaluator's."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers.small_models import finding_solo, tiny_model
from lessons import cell_masks, two_models
from lessons.cell_masks import candidates_of, full_size, redrawn, representations_of, theta_of

from dynamask.config import NEIGHBOURS, AggregationConfig
from dynamask.data.shapes import Scene, ShapesDataset, make_scene
from dynamask.evaluation.coco_ap import evaluate_coco
from dynamask.evaluation.mask_quality import mask_iou
from dynamask.models.masks.costs import MaskBranchCosts
from dynamask.models.solo.inference import matrix_nms
from dynamask.predict import OneStagePredictor, TwoStagePredictor
from dynamask.presets import model_config

NAMES = ("__background__", *"abcdefghij")


@pytest.fixture(scope="module")
def scene():
    return make_scene(1001, 0)


@pytest.fixture(scope="module")
def plain():
    return OneStagePredictor(finding_solo(class_names=NAMES))


@pytest.fixture(scope="module")
def sodar():
    model = finding_solo(AggregationConfig(), class_names=NAMES)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("head.aggregation.theta.bias"):
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return OneStagePredictor(model)


@pytest.fixture(scope="module")
def found(plain, scene):
    return plain(scene.image, score=0.0)


@pytest.fixture(scope="module")
def seen(sodar, scene):
    return sodar(scene.image, score=0.0)


# --- cells ----------------------------------------------------------------------------------------------------------


def test_responsible_cells_lie_around_the_centre_of_mass(plain, scene):
    model = plain.model
    found = cell_masks.targets_of(model, scene)
    factor = found.scale
    for i, mask in enumerate(scene.masks):
        rows, columns = np.nonzero(mask)
        x, y = (columns.mean() + 0.5) * factor, (rows.mean() + 0.5) * factor
        assert found.centres[i].tolist() == pytest.approx([x, y], rel=0.02)
        x0, y0, x1, y1 = scene.boxes[i] * factor
        assert float(found.sides[i]) == pytest.approx(math.sqrt((x1 - x0) * (y1 - y0)), rel=0.03)
        for level, own in enumerate(found.levels):
            grid, (low, high) = model.config.grids[level], model.config.scale_ranges[level]
            cells = own.cell[own.instance == i].tolist()
            centre = int(y * grid / found.frame[0]), int(x * grid / found.frame[1])
            if not low <= float(found.sides[i]) <= high:
                assert cells == []
            for cell in cells:
                assert abs(cell // grid - centre[0]) <= 1 and abs(cell % grid - centre[1]) <= 1


def copies(scene, rows):
    return Scene(scene.image, scene.masks[rows], scene.boxes[rows], scene.labels[rows], scene.complexity[rows])


def test_an_object_in_anothers_cells_is_not_learned(scene):
    small = finding_solo(scale_ranges=((1, 1024),) * 5).eval()
    worlds = [copies(scene, [0, 0]), copies(scene, [0]), copies(scene, [])]
    dataset = type("World", (), {"__len__": lambda _: 3, "scene": lambda _, i: worlds[i]})()
    assert cell_masks.unlearned(small, dataset) == (1, 3)


def test_the_grid_figure_has_a_step_per_level(plain, scene):
    drawn = cell_masks.grid_figure(plain.model, scene, [f"#{i}" for i in range(len(scene))])
    assert [step.label for step in drawn.layout.sliders[0].steps] == [f"{k} of 5" for k in range(1, 6)]
    count = 3 + len(scene)
    assert len(drawn.data) == 5 * count
    for level, own in enumerate(cell_masks.targets_of(plain.model, scene).levels):
        filled = drawn.data[level * count + 2 :][: len(scene)]
        assert sum(trace.x.count(None) for trace in filled if trace.x != (None,)) == len(own)


def test_dense_maps_are_the_papers():
    for name, values in (("solo", 196_160_000), ("solov2", 3872 * 200 * 320)):
        maps = cell_masks.dense_maps(model_config(f"{name}_resnet50_fpn"), 800, 1280)
        assert sum(row.maps for row in maps) == 3872
        assert sum(row.megabytes for row in maps) == pytest.approx(4 * values / 1e6)
    drawn = cell_masks.memory_figure(model_config("solo_resnet50_fpn"), [(320, 512), (800, 1280)])
    assert "785 MB" in drawn.layout.annotations[0].text and len(drawn.layout.sliders[0].steps) == 2


def test_every_cell_has_a_tile_in_the_mosaic(found, scene):
    picture, side = cell_masks.mosaic(found, 4), found.cells.encoded.grids[4].vectors.shape[-1]
    height, width = picture.shape[:2]
    tiles = picture.reshape(side, height // side, side, width // side, 3)
    assert (tiles[:, -1] == 255).all() and (tiles[:, :, :, -1] == 255).all(), "a line ends every tile"
    assert len(cell_masks.mosaic_figure(found, scene.image).layout.sliders[0].steps) == 5


# --- vectors and suppression ----------------------------------------------------------------------------------------


def test_a_mask_is_its_vector_times_the_feature(found, scene):
    assert len(found) > 1
    feature = cell_masks.feature_of(found)
    for index in range(len(found)):
        by_hand = (cell_masks.kernel_of(found, index)[:, None, None] * feature).sum(0)
        assert torch.allclose(by_hand.sigmoid(), found.cells.explain(index).mask, atol=1e-5)
        assert (full_size(found, by_hand) == found.mask(index).numpy()).all()
    drawn = cell_masks.mixing_figure(found, scene.image, 0, 1)
    assert [step.label for step in drawn.layout.sliders[0].steps][::3] == ["0%", "50%", "100%"]
    assert len(drawn.data) == 2 * len(drawn.layout.sliders[0].steps)


def test_candidates_decay_to_the_models_scores(found, scene):
    case = candidates_of(found, most=1000)
    after = matrix_nms(case.ious, case.labels, case.scores).sort(descending=True).values
    assert torch.allclose(after[: len(found)], found.scores, atol=1e-5)
    assert (case.scores.diff() <= 0).all() and torch.allclose(case.ious, case.ious.T)
    few = candidates_of(found, most=8)
    assert len(few.names) == len(few.masks) == len(few.scores) == 8 and few.ious.shape == (8, 8)
    drawn = cell_masks.suppression_figure(few, 0.05, sigmas=(1.0, 2.0))
    assert [step.label for step in drawn.layout.sliders[0].steps] == ["linear", "Gaussian, σ = 1", "Gaussian, σ = 2"]
    before, linear, one, two = (np.array(drawn.data[k].y) for k in (0, 1, 4, 7))
    assert (linear <= before).all() and (two <= one + 1e-9).all() and (one <= before + 1e-9).all()
    assert len(cell_masks.candidate_pictures(few, scene.image).data) == 8


def test_a_picture_without_candidates(scene):
    silent = OneStagePredictor(finding_solo(score_threshold=0.999999, class_names=NAMES))
    case = candidates_of(silent(scene.image))
    assert case.names == [] and len(case.masks) == 0 and case.ious.shape == (0, 0)


# --- neighbours -----------------------------------------------------------------------------------------------------


def test_redrawn_is_the_models_mask_and_depends_on_every_input(seen):
    assert len(seen) > 1
    for index in range(len(seen)):
        view = seen.cells.explain(index)
        assert torch.allclose(representations_of(seen, index), view.representations, atol=1e-5)
        assert torch.allclose(redrawn(seen, index).sigmoid(), view.mask, atol=1e-5)
        assert theta_of(seen, index).shape == (1, 945)
    maps, theta = representations_of(seen, 0) * 0, theta_of(seen, 0) * 2
    for changed in ({"maps": maps}, {"theta": theta}, {"with_context": False}):
        assert not torch.allclose(redrawn(seen, 0, **changed), redrawn(seen, 0))


def test_moved_neighbours(seen):
    steps, fixed = torch.tensor(NEIGHBOURS["4"]), representations_of(seen, 0)
    assert torch.equal(representations_of(seen, 0, steps * 0.0), fixed)
    together = representations_of(seen, 0, steps * -1.0)
    assert all(torch.allclose(each, fixed[2], atol=1e-5) for each in together), "all five at the centre"
    grid = seen.cells.encoded.grids[int(seen.cells.level[0])]
    column = int(seen.cells.cell[0]) % grid.vectors.shape[-1]
    top = torch.einsum("c,chw->hw", grid.vectors[0, :, 0, column], grid.features[0])
    far = representations_of(seen, 0, steps * 100.0)
    assert torch.allclose(far[0], top, atol=1e-5), "the top one is clamped to the first row"


def test_figures_of_neighbours(seen, scene):
    shown = cell_masks.representation_pictures(seen.cells.explain(0))
    assert len(shown.data) == 6 and shown.layout.annotations[5].text == "mask"
    assert len(cell_masks.swap_figure(seen, scene.image, [0, 1]).data) == 4
    masks = [[full_size(seen, redrawn(seen, i, theta=theta_of(seen, j))) for j in (0, 1)] for i in (0, 1)]
    other_theta = [mask_iou(masks[0][0], masks[0][1]), mask_iou(masks[1][1], masks[1][0])]
    other_maps = [mask_iou(masks[0][0], masks[1][0]), mask_iou(masks[1][1], masks[0][1])]
    assert cell_masks.swapped_ious(seen, [0, 1]) == pytest.approx((np.mean(other_theta), np.mean(other_maps)))
    drawn = cell_masks.spread_figure(seen, scene.image, 0, scene.masks[0])
    assert drawn.layout.sliders[0].active == 2 and drawn.layout.sliders[0].steps[2].label == "1"


def test_losses_of_neighbours_by_hand(sodar, scene, monkeypatch):
    monkeypatch.setattr(two_models, "matched", lambda prediction, scene: [(0, 0)][: len(scene)])
    lost = two_models.neighbour_losses(partial(sodar, score=0.0), [scene, make_scene(1001, 9)])
    assert [*lost] == ["top", "left", "right", "bottom", "all four", "centre", "context"]
    assert {len(values) for values in lost.values()} == {1}, "the other scene is empty"
    prediction, truth = sodar(scene.image, score=0.0), scene.masks[0]
    maps = representations_of(prediction, 0)
    centre_for_all = maps[2:3].expand(5, -1, -1)
    mean_for_centre = torch.stack([*maps[:2], (maps[0] + maps[1] + maps[3] + maps[4]) / 4, *maps[3:]])
    whole, alone, without = (
        mask_iou(truth, full_size(prediction, redrawn(prediction, 0, maps=changed)))
        for changed in (maps, centre_for_all, mean_for_centre)
    )
    assert lost["all four"][0] == whole - alone and lost["centre"][0] == pytest.approx(whole - without)
    drawn = two_models.losses_figure({name: np.array([0.1, 0.3]) for name in lost})
    assert drawn.data[0].y == pytest.approx([0.2] * 7) and drawn.layout.xaxis.ticktext[6] == "context<br>+0.200"


def test_matched_takes_the_best_of_the_class(scene):
    masks = torch.from_numpy(np.stack([scene.masks[0], scene.masks[0] & (np.arange(352) % 4 > 0), scene.masks[1]]))
    labels = torch.tensor([scene.labels[0], scene.labels[0], scene.labels[2]])
    class_ = type("Found", (), {"__len__": lambda _: 3, "mask": lambda _, i: masks[i], "labels": labels})
    assert two_models.matched(class_(), scene) == [(0, 0)], "the third has the wrong class for its mask"


# --- comparisons ----------------------------------------------------------------------------------------------------


class MovedTruth:
    """Predicts the truth of a data set, each mask moved."""

    class_names, mask_sizes = ShapesDataset(1, 0).class_names, ()

    def __init__(self, dataset, move):
        self.dataset, self.move, self.next = dataset, move, 0

    def __call__(self, image, score, **_):
        target, self.next = self.dataset.target(self.next), self.next + 1
        return MovedMasks(target, self.move)


class MovedMasks:
    mask_size = switch_logits = quality = None

    def __init__(self, target, move):
        self.boxes = self.mask_boxes = target["boxes"]
        self.labels, self.target, self.move = target["labels"], target, move
        self.scores, self.macs = 0.9 - 0.1 * torch.arange(len(self)), torch.ones(len(self))

    def __len__(self):
        return len(self.labels)

    def mask(self, row):
        return self.target["masks"][row].roll(self.move * (row + 1), dims=1).bool()


@pytest.fixture(scope="module")
def scenes():
    return ShapesDataset(6, 31)


@pytest.fixture(scope="module")
def both(scenes):
    return [two_models.judged(MovedTruth(scenes, move), scenes) for move in (9, 3)]


def test_precision_is_the_evaluators(scenes, both):
    for each in both:
        expected = evaluate_coco(scenes.coco, each.results)
        for name in ("AP", "AP50", "AP75"):
            assert float(each.precision(name)[0]) == pytest.approx(expected["segm"][name], abs=1e-9)
        assert float(each.precision("boundary AP")[0]) == pytest.approx(expected["boundary"]["AP"], abs=1e-9)
        steps = [float(each.precision(f"AP{value}")[0]) for value in range(50, 100, 5)]
        assert np.mean(steps) == pytest.approx(expected["segm"]["AP"])
    first_scene_only = np.eye(1, len(scenes), dtype=np.int64).repeat(3, axis=0)
    values = both[1].precision("AP", first_scene_only)
    alone = evaluate_coco(scenes.coco, both[1].results, image_ids=[scenes.image_ids[0]])
    assert values == pytest.approx([alone["segm"]["AP"]] * 3), "classes without an instance are left out"


def test_compared_and_verdict(both):
    worse, better = both
    found = two_models.compare(("A", "B"), worse, better, samples=60)
    assert found.difference["AP"].mean == pytest.approx(found.second["AP"] - found.first["AP"]) and found.scenes == 6
    assert found.difference["AP"].low > 0
    text = found.verdict()
    assert text.startswith("AP: B is better than A on these 6 scenes, +") and "too few for a reliable interval" in text
    back = two_models.compare(("A", "B"), better, worse, samples=60)
    assert "B is worse than A" in back.verdict()
    same = two_models.compare(("A", "B"), worse, worse, samples=60)
    assert "no significant difference between A and B on 6 scenes, +0.000" in same.verdict("AP90")
    assert [row[0] for row in found.rows()] == ["AP", "AP50", "AP60", "AP70", "AP80", "AP90", "boundary AP"]
    drawn = two_models.comparison_figure(found)
    assert drawn.data[0].y[0] == found.first["AP"] and drawn.data[2].y[0] == found.difference["AP"].mean


def test_pairs_hold_what_both_have_found(both, scenes):
    found = two_models.pairs(*both, scenes)
    assert found and all(pair.boundary[1] >= pair.boundary[0] for pair in found), "3 pixels are less than 9"
    none = two_models.pairs(*both, scenes, least=0.999)
    assert none == []
    edge = two_models.outline_difference(found, scenes.image_ids, samples=50)
    assert edge.mean == pytest.approx(np.mean([pair.boundary[1] - pair.boundary[0] for pair in found]))
    drawn = two_models.pairs_figure(found, scenes, ("A", "B"), count=2)
    assert len(drawn.layout.sliders[0].steps) == min(4, len(found))


def test_spent_adds_up(plain, sodar, scene):
    for predictor in (plain, sodar):
        prediction, parts = predictor(scene.image), two_models.spent(predictor, scene.image)
        assert parts["network"] == pytest.approx(sum(prediction.image_macs.values()) / 1e9)
        assert parts["masks"] == pytest.approx(int(prediction.macs.sum()) / 1e9) and parts["discarded"] > 0
    two_stage = TwoStagePredictor(tiny_model(num_classes=11).eval())
    parts = two_models.spent(two_stage, scene.image)
    assert parts["masks"] == pytest.approx(int(two_stage(scene.image).macs.sum()) / 1e9) and parts["network"] > 0
    drawn = two_models.spent_figure({"a": parts})
    assert [trace.name for trace in drawn.data] == ["network", "masks", "discarded"]


def test_masks_grow_with_the_picture():
    configs = {name: model_config(f"{name}_resnet50_fpn") for name in ("solov2", "sodar_v2")}
    costs = MaskBranchCosts((1, 2, 3, 4), 0, (), ())
    drawn = two_models.growth_figure(configs, costs, (400, 800))
    assert drawn.data[0].y == pytest.approx([256 * 100 * 160 / 1e9, 256 * 200 * 320 / 1e9])
    assert drawn.data[1].y[1] == pytest.approx((5 * 256 + 936) * 200 * 320 / 1e9)
    assert drawn.data[5].y == pytest.approx([4e-9, 4e-9])
