"""The paper's tables and figures on a few scenes: figures against independent computations, and what bad input says."""

import dataclasses
import itertools
import json
import shlex

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.small_models import tiny_model
from PIL import Image

from dynamask import cli
from dynamask.data.shapes import ShapesDataset
from dynamask.engine.evaluate import EvaluationOptions, run_evaluation
from dynamask.evaluation.bootstrap import PictureBootstrap
from dynamask.evaluation.choices import spearman
from dynamask.evaluation.ranking import SizeRanking, pairwise, row_spearman
from dynamask.models.weights import save_model
from dynamask.ops.masks import crop_masks
from dynamask.predict import TwoStagePredictor, load
from dynamask.reports import speed
from dynamask.reports.cache import data_digest
from dynamask.reports.facts import Source, checkpoint_facts
from dynamask.reports.figure5 import FINER, make_figure5, rankings, said
from dynamask.reports.figure7 import LEGEND, make_figure7
from dynamask.reports.options import TableOptions, Wanted
from dynamask.reports.paper import PAPER, fraction
from dynamask.reports.rare import categories_by_frequency, frequency_ap
from dynamask.reports.tables import FCN_HEADS, TABLES, make_table
from dynamask.reports.verdicts import sizes_said
from dynamask.reports.world import World
from dynamask.reports.writer import Picture, markdown, page
from dynamask.structures import MASK_SIZES, DynaMaskError, Interval

SCENES = 5


class OneSize(TwoStagePredictor):
    """The r-FPN asked for one size alone stands for a mask branch that has no other and no switch."""

    def __init__(self, model, size, branch):
        super().__init__(model)
        self.has_switch, self.mask_sizes = False, (size,)
        self.model.config = dataclasses.replace(model.config, mask_branch=branch)


def one_size(size, branch):
    return OneSize(load("shapes").model, size, branch)


def source():
    return Source("w", "scenes", "all pictures", "dynamask report")


@pytest.fixture(scope="module")
def shapes():
    """Scenes with the bundled switches, and stand-ins for an FCN head and two pyramids."""
    dataset = ShapesDataset(SCENES, 1001)
    wanted = Wanted(views=1, signals=True)
    world = World(dataset, range(SCENES), source(), TableOptions(samples=40, ap_samples=20), wanted)
    for name in ("shapes", "shapes-low"):
        world.add(name, load(name), checkpoint_facts(name))
    facts = {**checkpoint_facts("shapes"), "sha256": "f" * 64}
    for name, size, branch in (("fcn", 28, "fcn:28"), ("wide", 112, "fcn:112"), ("panet", 112, "panet")):
        world.add(name, one_size(size, branch), facts)
    return world


@pytest.fixture(scope="module")
def evaluated():
    """What the evaluation says of the same scenes, policy by policy."""
    predictor, dataset, known = load("shapes"), ShapesDataset(SCENES, 1001), {}

    def figures(policy, **more):
        key = (policy, *sorted(more.items()))
        if key not in known:
            known[key] = run_evaluation(predictor, dataset, options=EvaluationOptions(policy=policy, **more))
        return known[key]

    return figures


def rows_of(report):
    return {row["row"]: row for row in report.data["rows"]}


def test_table1_is_what_the_evaluation_says(shapes, evaluated):
    report = make_table("table1", shapes)
    rows = rows_of(report)
    assert list(rows) == ["FCN head, 28", "FCN head, 112", *(f"r-FPN, {size}" for size in MASK_SIZES)]
    for k, size in enumerate(MASK_SIZES):
        row, expected = rows[f"r-FPN, {size}"], evaluated(f"fixed:{size}")
        assert row["segm_ap"] == pytest.approx(expected["segm"]["AP"]) == pytest.approx(row["AP"])
        assert row["boundary_ap"] == pytest.approx(expected["boundary"]["AP"])
        assert row["AP75"] == expected["segm"]["AP75"] and row["APL"] == expected["segm"]["APL"]
        assert row["mean_macs"] == shapes.main.macs[k] == expected["mean_macs_per_instance"]
        true = evaluated(f"fixed:{size}", boxes="gt")
        assert row["mask_iou"] == pytest.approx(true["mean_mask_iou"])
        assert row["boundary_iou"] == pytest.approx(true["mean_boundary_iou"])
        assert row["paper_AP"] == fraction(PAPER["table1"], f"fixed:{size}")
        assert row["segm_ap_low"] <= row["segm_ap"] <= row["segm_ap_high"]
    gaps = {row["row"]: row for row in report.data["differences"]}
    assert gaps["r-FPN − FCN head, 28"]["segm_ap"] == gaps["r-FPN − FCN head, 28"]["segm_ap_high"] == 0
    step = gaps["r-FPN, 56 − 28"]
    assert step["segm_ap"] == pytest.approx(rows["r-FPN, 56"]["segm_ap"] - rows["r-FPN, 28"]["segm_ap"])
    assert report.data["lacking"] == ["fcn:14", "fcn:56"]


def test_every_row_says_where_it_comes_from(shapes):
    report = make_table("table1", shapes)
    for row in report.data["rows"]:
        assert {"weights", "mask_branch", "checkpoint", "images_seen", "training_seed", "data", "split"} <= set(row)
        assert row["data"] == "scenes" and row["images_seen"] == 8100
        assert row["paper_setting"].startswith("COCO val2017")
    assert len({tuple(row) for row in report.rows}) == 1
    text = markdown(report)
    assert "paper's AP (COCO val2017, R50-FPN 1×)" in text and "## The paper's Tab. 1" in text and "ffffffff" in text
    (missing,) = [line for line in text.splitlines() if line.startswith("Rows are missing")]
    assert "mask branch fcn:14, fcn:56 were given" in missing
    assert cli.build_parser().parse_args(shlex.split(missing.split("`")[1])[1:]).mask_branch in FCN_HEADS


def step(name, low, high):
    return {"row": name, "segm_ap": (low + high) / 2, "segm_ap_low": low, "segm_ap_high": high}


@pytest.mark.parametrize(
    ("fcn", "fpn", "verdict"),
    [
        ([(-0.02, 0.01), (-0.03, -0.01)], [(0.01, 0.02), (0.01, 0.02)], "is shown on"),
        ([(0.01, 0.02), (-0.01, 0.01)], [(0.01, 0.02), (-0.01, 0.02)], "is refuted on"),
        ([(0.01, 0.02), (-0.01, 0.01)], [(0.01, 0.02), (0.01, 0.02)], "is shown in part only"),
    ],
)
def test_the_papers_contrast_is_called_by_its_intervals(fcn, fpn, verdict):
    found = {"FCN head": fcn, "r-FPN": fpn}
    steps = [step(f"{h}, {n}", *b) for h, both in found.items() for n, b in zip(("56 − 28", "112 − 56"), both)]
    assert verdict in sizes_said([], steps)[-1]
    assert sizes_said([], []) == []


def test_table8_shares_and_costs(shapes, evaluated):
    report = make_table("table8", shapes)
    rows = rows_of(report)
    policies = {"all at 28": "fixed:28", "size-based (Eq. 8)": "size", "sizes of the switch": "learned"}
    for label, policy in policies.items():
        expected = evaluated(policy)
        assert {str(s): rows[label][f"share_{s}"] for s in MASK_SIZES} == pytest.approx(expected["size_shares"])
        assert rows[label]["segm_ap"] == pytest.approx(expected["segm"]["AP"])
        assert rows[label]["mean_macs"] == pytest.approx(expected["mean_macs_per_instance"])
    held = rows["switch held to 46%"]
    assert held["mean_macs"] <= held["limit"] + 1 and held["limit"] == pytest.approx(0.64 / 1.4 * shapes.main.macs[-1])
    gap = next(d for d in report.data["differences"] if "size-based (Eq. 8), equal MACs" in d["row"])
    size = evaluated("size")
    assert gap["limit"] == pytest.approx(size["mean_macs_per_instance"])
    own = evaluated("learned", budget=gap["limit"] / 1e9, budget_scope="dataset")
    assert gap["segm_ap"] == pytest.approx(own["segm"]["AP"] - size["segm"]["AP"], abs=1e-6)


def test_table7_goes_on_without_a_switch_and_table8_does_not(shapes):
    assert [row["row"] for row in make_table("table7", shapes).data["rows"]] == [f"all at {s}" for s in MASK_SIZES]
    without = World(shapes.dataset, range(2), source(), TableOptions(samples=10, ap_samples=5))
    without.add("fcn", one_size(28, "fcn:28"), checkpoint_facts("shapes"))
    for name in ("table5", "table8", "tableS1"):
        with pytest.raises(DynaMaskError, match="fcn have no trained switch; give weights with the mask branch"):
            make_table(name, without)
    assert [row["row"] for row in make_table("table3", without).data["rows"]] == ["fcn, all at 28"]


def test_table_s3_says_what_the_other_pyramid_costs(shapes):
    report = make_table("tableS3", shapes)
    assert report.data["lacking"] == ["bifpn", "nasfpn"] and list(rows_of(report)) == ["PANet", "r-FPN (DynaMask)"]
    (gap,) = report.data["differences"]
    assert gap["row"] == "r-FPN − PANet" and gap["boundary_iou"] == gap["boundary_iou_low"] == 0
    assert "| PANet | +0.0% |" in markdown(report) and "r-FPN − PANet: mask AP not told apart" in markdown(report)


def test_table5_holds_the_slider_to_the_trained_models_cost(shapes):
    rows = rows_of(make_table("table5", shapes))
    low, slider = rows["shapes-low, sizes of the switch"], rows["shapes, held to that cost"]
    assert slider["limit"] == pytest.approx(low["mean_macs"]) and slider["mean_macs"] <= low["mean_macs"] + 1
    assert rows["all at 112"]["share_112"] == 1


def test_rare_common_and_frequent_classes(shapes):
    assert "carry no `frequency`" in markdown(make_table("tableS2", shapes))
    named = {"disc": "r", "book": "c"}
    world = World(shapes.dataset, range(SCENES), source(), TableOptions(samples=10, ap_samples=5))
    world.dataset = dataclass_of(shapes.dataset, lambda c: {**c, "frequency": named.get(c["name"], "f")})
    world.add("shapes", load("shapes"), checkpoint_facts("shapes"))
    evidence = world.main
    report = make_table("tableS2", world)
    assert "carry no" not in markdown(report)
    found, groups = frequency_ap(evidence, "fixed:112"), categories_by_frequency(world)
    judge = evidence.drawn.ap
    matches = judge.match(evidence.choice("fixed:112"), "segm")
    single = {c: float(judge.average_precision(matches, categories=[c])[0]) for ids in groups.values() for c in ids}
    for key, name in (("r", "APr"), ("c", "APc"), ("f", "APf")):
        known = [single[c] for c in groups[key] if np.isfinite(single[c])]
        assert found[name] == (pytest.approx(np.mean(known)) if known else None)


def test_federated_data_are_judged_by_their_own_rule(shapes):
    world = World(shapes.dataset, range(SCENES), source(), TableOptions(samples=10, ap_samples=5))
    world.dataset = dataclass_of(shapes.dataset, lambda c: {**c, "frequency": "f"})
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    world.dataset.coco["images"] = [{**image, **lists} for image in shapes.dataset.coco["images"]]
    world.add("shapes", load("shapes"), checkpoint_facts("shapes"))
    found = frequency_ap(world.main, "fixed:112")
    assert found["APr"] is None and found["APf"] == found["LVIS AP"]
    strict = world.main.average_precision(world.main.choice("fixed:112"))["AP"]
    assert found["LVIS AP"] >= strict > 0  # finds of classes that nobody looked for do not count against it
    assert "LVIS AP" in markdown(make_table("tableS2", world))


def dataclass_of(dataset, change):
    """The same scenes with other categories."""
    copy = ShapesDataset(dataset.count, dataset.seed)
    copy.coco = {**dataset.coco, "categories": [change(c) for c in dataset.coco["categories"]]}
    return copy


def test_pairs_and_ranks_against_counting():
    rng = np.random.default_rng(0)
    signal, quality = rng.integers(0, 4, (30, 4)).astype(float), rng.integers(0, 4, (30, 4)).astype(float)
    right, pairs = pairwise(signal, quality)
    for row in range(30):
        good, total = 0.0, 0
        for j, k in itertools.combinations(range(4), 2):
            if quality[row, j] != quality[row, k]:
                total += 1
                same = (signal[row, j] - signal[row, k]) * (quality[row, j] - quality[row, k])
                good += 0.5 if same == 0 else float(same > 0)
        assert (right[row], pairs[row]) == (good, total)
    expected = [spearman(a, b) for a, b in zip(signal, quality)]
    assert row_spearman(signal, quality) == pytest.approx([np.nan if v is None else v for v in expected], nan_ok=True)
    ranking = SizeRanking(quality, PictureBootstrap(range(15), 50), np.arange(30) // 2)
    assert ranking.row(quality)["pairs"] == Interval(1, 1, 1)
    assert ranking.difference(quality, -quality)["pairs"].mean == 1
    flat = SizeRanking(np.ones((30, 4)), ranking.bootstrap, ranking.rows).row(signal)
    assert flat == {"pairs": Interval(), "spearman": Interval(), "gain": Interval()}


def test_figure5_signals_are_the_losses_by_hand(shapes):
    kept, predictor, dataset = shapes.main.kept, shapes.main.predictor, shapes.dataset
    index = next(i for i in range(SCENES) if len(dataset[i][1]["boxes"]))
    image, target = dataset[index]
    prediction = predictor(image, boxes=target["boxes"], labels=target["labels"], all_sizes=True)
    place = [r["image_id"] for r in kept.given.results].index(target["image_id"])
    for k, size in enumerate(MASK_SIZES):
        truth = (crop_masks(target["masks"][:1], target["boxes"][:1], size)[0] >= 0.5).float()
        probs = prediction.mask_probs_at(0, size)
        expected = F.binary_cross_entropy(probs, truth)
        assert kept.signals["mask_loss"][place, k] == pytest.approx(float(expected), rel=1e-3)
        padded = F.pad(truth[None], (1, 1, 1, 1), mode="replicate")[0]
        around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        edges = ((around - 4 * truth).abs() > 0.5).float()
        state, pyramid = prediction.regions.state, prediction.regions.branch.region_fpn
        with torch.inference_mode():
            logits = pyramid.edge_logits(state, k, torch.tensor([0]))[0]
        assert kept.signals["edge_loss"][place, k] == pytest.approx(
            float(F.binary_cross_entropy_with_logits(logits, edges)), rel=1e-3
        )
    for own in ("mask_loss", "edge_loss"):
        assert np.allclose(kept.signals[own][:, 3], kept.signals[f"{own}_112"][:, 3])


def test_figure5_ranks_by_true_boundary_iou(shapes):
    report = make_figure5(shapes)
    found, against = rankings(shapes.main)
    quality, edge = shapes.main.kept.given.quality("boundary_iou"), shapes.main.kept.signals["edge_loss"]
    right, pairs = pairwise(-edge, quality)
    assert found["edge_loss"]["pairs"].mean == pytest.approx(right.sum() / pairs.sum())
    expected = found["edge_loss"]["pairs"].mean - found["mask_loss"]["pairs"].mean
    assert against["mask_loss"]["pairs"].mean == pytest.approx(expected)
    assert FINER in found and page(report).count("violin") > 0 and len({tuple(row) for row in report.rows}) == 1
    assert json.dumps(report.data, allow_nan=False)
    flat = Interval()
    assert said({"edge_loss": {"pairs": flat}, "mask_loss": {"pairs": flat}}, {"mask_loss": {"pairs": flat}}) == []


def test_figure7_shows_pictures_and_the_papers_colours(shapes):
    report = make_figure7(shapes, 2)
    pictures = [block for block in report.blocks if isinstance(block, Picture)]
    assert len(pictures) == 2 and all(p.jpeg.startswith(b"\xff\xd8") for p in pictures)
    html = page(report)
    assert html.count("data:image/jpeg;base64,") == 2 and "red (large)" in html and set(LEGEND) == set(MASK_SIZES)
    assert "base64" not in markdown(report)
    with pytest.raises(DynaMaskError, match="--pictures is 0"):
        make_figure7(shapes, 0)


def test_torchvisions_model_has_the_same_boxes(shapes):
    twin = speed.same_detector(shapes.main.predictor)
    pixels = shapes.dataset[0][0]
    with torch.inference_mode():
        theirs = twin([pixels.float() / 255])[0]
    ours = shapes.main.predictor(pixels, score=0.05)
    assert len(ours) > 0 and torch.allclose(theirs["boxes"], ours.boxes, atol=1e-3)
    assert torch.equal(theirs["labels"], ours.labels)


def test_table6_times_every_model_on_as_many_detections(shapes):
    report = speed.make_table6(shapes, speed.SpeedOptions(rounds=1, pictures=1, detections=3))
    cases = {(row["part"], row["case"]) for row in report.data["times"]}
    names = [speed.TORCHVISION, "FCN head, 28", "DynaMask, all at 112", "DynaMask, sizes of the switch",
             "DynaMask, held to 46%"]  # fmt: skip
    assert cases == {(part, name) for part in ("end to end", "mask branch") for name in names}
    assert all(row["ratio"] == 1 for row in report.data["times"] if row["case"] == speed.TORCHVISION)
    assert report.data["lacking"] == ["pointrend"] and "threads" in dict(report.facts)["machine"]
    heads = shapes.main.predictor.model.detector.roi_heads
    assert heads.score_thresh == 0.05 and heads.detections_per_img == 100
    with pytest.raises(DynaMaskError, match="--rounds is 0"):
        speed.SpeedOptions(rounds=0)


def test_the_papers_figures_are_those_of_the_paper():
    assert set(PAPER) == {*TABLES, "table6"}
    for table in PAPER.values():
        assert all(len(values) == len(table.columns) for _, values in table.rows)
        assert len({name for name, _ in table.rows}) == len(table.rows)
    assert fraction(PAPER["table2"], "DynaMask R50 1×", "APL") == 0.503
    assert PAPER["table5"].figure("0.4, 0.4", "G") == 0.64 and PAPER["table1"].figure("fcn:112", "AP") == 32.5
    assert fraction(PAPER["table3"], "RefineMask R101 3×", "AP75") is None
    assert fraction(PAPER["table8"], "no such row") is None
    seven = dict(PAPER["table7"].rows)
    for size in MASK_SIZES:  # the tables agree with each other
        assert PAPER["table1"].figure(f"fixed:{size}", "AP") == seven[f"fixed:{size}"][1]


def test_weights_of_other_classes_do_not_share_a_table(shapes):
    with pytest.raises(DynaMaskError, match="people and shapes know different classes"):
        shapes.add("people", load("people"), checkpoint_facts("people"))


def test_a_switch_that_was_never_trained_is_none(tmp_path, shapes):
    path, model = tmp_path / "w.safetensors", tiny_model(class_names=ShapesDataset(1).class_names)
    save_model(model, path, training={"images_seen": 4, "train": {"warm_start": 1.0, "seed": 3}})
    facts = checkpoint_facts(str(path))
    assert facts["switch_trained"] is False and facts["seed"] == 3 and checkpoint_facts("shapes")["switch_trained"]
    world = World(shapes.dataset, [0], source(), TableOptions(samples=5, ap_samples=5))
    ours, plain = world.add("shapes", load("shapes"), checkpoint_facts("shapes")), world.add("w", load(path), facts)
    assert world.main is ours and world.switched == [ours] and world.plain is plain


def test_the_digest_follows_the_content():
    dataset = ShapesDataset(3, 5)
    assert data_digest(dataset, [0, 1, 2]) == data_digest(ShapesDataset(3, 5), [0, 1, 2])
    others = [ShapesDataset(3, 6), ShapesDataset(3, 5, sides=(0.2, 0.3))]
    assert len({data_digest(d, [0, 1, 2]) for d in (dataset, *others)} | {data_digest(dataset, [0, 1])}) == 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Random weights that know the classes of the scenes."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_model(tiny_model(class_names=ShapesDataset(1).class_names), path, training={"images_seen": 1})
    return path


FAST = ("--samples", "10", "--ap-samples", "4")


def run(capsys, *words):
    code = cli.main(["report", *map(str, words)])
    return code, capsys.readouterr()


def test_all_writes_every_report_and_a_summary(tiny, capsys, tmp_path):
    words = ["all", "--weights", tiny, "--data", "shapes:5:3", "--out", tmp_path / "o", *FAST, "--budgets", "2",
             "--views", "1", "--permutations", "1", "--summary", tmp_path / "results.md", "--json", "-"]  # fmt: skip
    code, printed = run(capsys, *words)
    assert code == 0, printed.err
    made = json.loads(printed.out)
    expected = {*PAPER, "figure5", "figure7", "figure8", "budget-curve"}
    assert set(made) - {"not_made"} | set(made["not_made"]) == expected and set(made["not_made"]) <= {"figure8"}
    for name in set(made) - {"not_made"}:
        assert {p.suffix for p in (tmp_path / "o").glob(f"{name}.*")} == {".md", ".csv", ".html", ".json"}
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# Results") and "## Tab. 1" in text and "### The paper's Tab. S3" in text
    assert text.count("Brackets are 95 %") == 1 and "## Fig. 5" in text


@pytest.mark.parametrize("name", ["table1", "table6", "figure5", "figure7"])
def test_one_report_alone(name, tiny, capsys, tmp_path):
    more = {"table6": ("--rounds", "1", "--pictures", "1"), "figure7": ("--pictures", "1")}.get(name, ())
    code, printed = run(capsys, name, "--weights", tiny, "--data", "shapes:5:2", "--out", tmp_path, *FAST, *more)
    assert code == 0, printed.err
    text = (tmp_path / f"{name}.md").read_text()
    command = next(line for line in text.splitlines() if line.startswith("- command")).split("`")[1]
    assert str(cli.build_parser().parse_args(shlex.split(command)[1:]).weights[0]) == str(tiny)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classes", "--weights", "shapes", "shapes-low"], "about one weights file"),
        (["table1", "--weights", "people"], "no class in common"),
        (["table7", "--weights", "shapes", "--ap-samples", "1"], "ap-samples must be at least 2"),
        (["table7", "--weights", "shapes", "--cache", "no/such/folder"], "of --cache does not exist"),
        (["all", "--weights", "shapes", "--summary", "."], "--summary . is a folder"),
        (["table1", "--weights", "nothing"], "no bundled weights are called"),
        (["table7", "--weights", "shapes", "--json", "no/such/f.json"], "of --json does not exist"),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys, tmp_path):
    code, printed = run(capsys, *words, "--data", "shapes:5:1", "--out", tmp_path / "o")
    assert code == 2 and message in printed.err and printed.err.count("\n") == 1 and not (tmp_path / "o").exists()


def test_pictures_without_an_instance_are_refused(tiny, capsys, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "a.png")
    coco = {"images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}], "annotations": [],
            "categories": [{"id": 1, "name": "disc"}]}  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    for name in ("figure5", "figure7", "budget-curve"):
        code, printed = run(capsys, name, "--weights", tiny, "--data", tmp_path, "--out", tmp_path / "o", *FAST)
        assert code == 2 and "no instance" in printed.err.replace("holds an", "no") and printed.err.count("\n") == 1
