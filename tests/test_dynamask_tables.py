"""Tables and figures of the DynaMask paper on a few scenes, compared with independent computations."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.reports import parsed, parsed_command, run_report
from helpers.small_models import tiny_model, tiny_nanodet
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from dynamask.data.shapes import ShapesDataset
from dynamask.engine.evaluate import EvaluationOptions, run_evaluation
from dynamask.evaluation.bootstrap import PictureBootstrap
from dynamask.evaluation.choices import spearman
from dynamask.evaluation.ranking import SizeRanking, pairwise, row_spearman
from dynamask.models.masks.policies import Policy
from dynamask.models.weights import save_model
from dynamask.ops.masks import crop_masks
from dynamask.predict import TwoStagePredictor, load
from dynamask.reports import dynamask_tables, speed
from dynamask.reports.cache import data_digest
from dynamask.reports.comparison import Comparison
from dynamask.reports.dynamask_tables import FCN_HEADS, STYLE, TABLES, ap_by_frequency, categories_by_frequency
from dynamask.reports.figures import FINER, LEGEND, conclude_figure5, make_figure5, make_figure7, rank_sizes
from dynamask.reports.options import CollectOptions, ReportOptions, SpeedOptions
from dynamask.reports.paper import PAPER
from dynamask.reports.picture_macs import count_detector_macs
from dynamask.reports.provenance import Provenance, read_checkpoint
from dynamask.reports.render import Picture, markdown, page
from dynamask.reports.rows import Row
from dynamask.reports.tables import make_table
from dynamask.structures import MASK_SIZES, DynaMaskError, Interval

SCENES = 5
FULL = Policy.fixed(112)
FAST = ("--samples", "10", "--ap-samples", "4")


class OneSize(TwoStagePredictor):
    """The r-FPN asked for one size alone stands for a mask branch that has no other and no switch."""

    def __init__(self, size, branch):
        super().__init__(load("shapes").model)
        self.has_switch, self.mask_sizes = False, (size,)
        self.model.config = dataclasses.replace(self.model.config, mask_branch=branch)


def comparison_of(dataset, *names, count=SCENES, samples=10, ap_samples=5, **collect):
    """A comparison of bundled weights on the first scenes of a data set."""
    source, options = Provenance("scenes", "all pictures", "dynamask report"), ReportOptions(samples, ap_samples)
    comparison = Comparison(dataset, range(count), source, options, CollectOptions(**collect))
    for name in names:
        comparison.add(name, load(name), read_checkpoint(name))
    return comparison


def table(name, comparison):
    return make_table(name, STYLE, TABLES[name], comparison)


def rows_of(report):
    return {row["row"]: row for row in report.data["rows"]}


@pytest.fixture(scope="module")
def shapes():
    """Scenes with two bundled switches, and stand-ins for two FCN heads and a pyramid."""
    options = {"samples": 40, "ap_samples": 20, "views": 1, "size_losses": True}
    comparison = comparison_of(ShapesDataset(SCENES, 1001), "shapes", "shapes-low", **options)
    checkpoint = dataclasses.replace(read_checkpoint("shapes"), sha256="f" * 64)
    for name, size, branch in (("fcn", 28, "fcn:28"), ("wide", 112, "fcn:112"), ("panet", 112, "panet")):
        comparison.add(name, OneSize(size, branch), checkpoint)
    return comparison


@pytest.fixture(scope="module")
def evaluated():
    """Results of the evaluation on the same scenes, by policy."""
    predictor, dataset, known = load("shapes"), ShapesDataset(SCENES, 1001), {}

    def figures(policy, **more):
        key = (policy, *sorted(more.items()))
        if key not in known:
            known[key] = run_evaluation(predictor, dataset, options=EvaluationOptions(policy=policy, **more))
        return known[key]

    return figures


def test_table1_agrees_with_the_evaluation(shapes, evaluated):
    report = table("table1", shapes)
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
        assert row["paper_AP"] == PAPER["table1"].fraction(f"fixed:{size}")
        assert row["segm_ap_low"] <= row["segm_ap"] <= row["segm_ap_high"]
    gaps = {row["row"]: row for row in report.data["differences"]}
    assert gaps["r-FPN − FCN head, 28"]["segm_ap"] == gaps["r-FPN − FCN head, 28"]["segm_ap_high"] == 0
    step = gaps["r-FPN, 56 − 28"]
    assert step["segm_ap"] == pytest.approx(rows["r-FPN, 56"]["segm_ap"] - rows["r-FPN, 28"]["segm_ap"])
    assert report.data["lacking"] == ["fcn:14", "fcn:56"]


def test_rows_have_provenance_and_missing_ones_a_command(shapes):
    report = table("table1", shapes)
    for row in report.data["rows"]:
        assert {"weights", "mask_branch", "checkpoint", "images_seen", "training_seed", "data", "split"} <= set(row)
        assert row["data"] == "scenes" and row["images_seen"] == 8100
        assert row["paper_setting"].startswith("COCO val2017")
    assert len({tuple(row) for row in report.rows}) == 1
    text = markdown(report)
    assert "paper's AP (COCO val2017, R50-FPN 1×)" in text and "## The paper's Tab. 1" in text and "ffffffff" in text
    (missing,) = [line for line in text.splitlines() if line.startswith("Rows are missing")]
    assert "mask branch fcn:14, fcn:56 were given" in missing
    assert parsed(missing.split("`")[1]).mask_branch in FCN_HEADS


@pytest.mark.parametrize(
    ("fcn", "fpn", "outcome"),
    [
        ([(-0.02, 0.01), (-0.03, -0.01)], [(0.01, 0.02), (0.01, 0.02)], "is shown on"),
        ([(0.01, 0.02), (-0.01, 0.01)], [(0.01, 0.02), (-0.01, 0.02)], "is refuted on"),
        ([(0.01, 0.02), (-0.01, 0.01)], [(0.01, 0.02), (0.01, 0.02)], "is shown in part only"),
    ],
)
def test_the_papers_contrast_is_judged_by_intervals(fcn, fpn, outcome):
    steps = []
    for head, bounds in {"FCN head": fcn, "r-FPN": fpn}.items():
        for name, (low, high) in zip(("56 − 28", "112 − 56"), bounds):
            steps.append(Row(f"{head}, {name}", "", {}, {"segm_ap": Interval((low + high) / 2, low, high)}))
    assert outcome in dynamask_tables.conclude_table1(steps)[-1]
    assert dynamask_tables.conclude_table1([]) == []


def test_table8_agrees_with_the_evaluation_at_equal_macs(shapes, evaluated):
    report = table("table8", shapes)
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


def test_only_some_tables_need_a_switch(shapes):
    assert list(rows_of(table("table7", shapes))) == [f"all at {s}" for s in MASK_SIZES]
    without = comparison_of(shapes.dataset, count=2)
    without.add("fcn", OneSize(28, "fcn:28"), read_checkpoint("shapes"))
    for name in ("table5", "table8", "tableS1"):
        with pytest.raises(DynaMaskError, match="fcn have no trained switch; give weights with the mask branch"):
            table(name, without)
    assert list(rows_of(table("table3", without))) == ["fcn, all at 28"]


def test_table_s3_shows_the_cost_of_other_pyramids(shapes):
    report = table("tableS3", shapes)
    assert report.data["lacking"] == ["bifpn", "nasfpn"] and list(rows_of(report)) == ["PANet", "r-FPN (DynaMask)"]
    (gap,) = report.data["differences"]
    assert gap["row"] == "r-FPN − PANet" and gap["boundary_iou"] == gap["boundary_iou_low"] == 0
    text = markdown(report)
    assert "| PANet | +0.0% |" in text and "r-FPN − PANet: mask AP not significant" in text


def test_table5_holds_the_slider_to_the_cost_of_trained_models(shapes):
    rows = rows_of(table("table5", shapes))
    low, slider = rows["shapes-low, sizes of the switch"], rows["shapes, held to that cost"]
    assert slider["limit"] == pytest.approx(low["mean_macs"]) and slider["mean_macs"] <= low["mean_macs"] + 1
    assert rows["all at 112"]["share_112"] == 1


def with_frequencies(dataset, frequencies):
    """The same scenes with a frequency in some categories, given by their names."""
    copy = ShapesDataset(dataset.count, dataset.seed)
    known = {name: {"frequency": frequency} for name, frequency in frequencies.items()}
    copy.coco = {**dataset.coco, "categories": [{**c, **known.get(c["name"], {})} for c in dataset.coco["categories"]]}
    return copy


def test_ap_by_frequency_is_the_mean_over_its_classes(shapes):
    assert "carry no `frequency`" in markdown(table("tableS2", shapes))
    comparison = comparison_of(
        with_frequencies(shapes.dataset, {"disc": "r", "book": "c", "star": "f", "gear": "f"}), "shapes"
    )
    assert "carry no" not in markdown(table("tableS2", comparison))
    evidence = comparison.main
    found, groups = ap_by_frequency(evidence, FULL), categories_by_frequency(comparison)
    ap = evidence.precision.ap
    matches = ap.match(evidence.choice(FULL), "segm")
    single = {c: float(ap.average_precision(matches, categories=[c])[0]) for ids in groups.values() for c in ids}
    for key, name in (("r", "APr"), ("c", "APc"), ("f", "APf")):
        known = [single[c] for c in groups[key] if np.isfinite(single[c])]
        assert found[name] == (pytest.approx(np.mean(known)) if known else None)


def test_federated_data_are_evaluated_by_their_own_rule(shapes):
    dataset = with_frequencies(shapes.dataset, dict.fromkeys(shapes.dataset.class_names, "f"))
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    dataset.coco["images"] = [{**image, **lists} for image in dataset.coco["images"]]
    comparison = comparison_of(dataset, "shapes")
    found = ap_by_frequency(comparison.main, FULL)
    assert found["APr"] is None and found["APf"] == found["LVIS AP"]
    strict = comparison.main.ap(comparison.main.choice(FULL))["AP"]
    assert found["LVIS AP"] >= strict > 0  # detections of classes that were not searched for do not count against it
    assert "LVIS AP" in markdown(table("tableS2", comparison))


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
    assert ranking.figures(quality)["pairs"] == Interval(1, 1, 1)
    assert ranking.difference(quality, -quality)["pairs"].mean == 1
    flat = SizeRanking(np.ones((30, 4)), ranking.bootstrap, ranking.rows).figures(signal)
    assert flat == {"pairs": Interval(), "spearman": Interval(), "gain": Interval()}


def test_size_losses_by_hand(shapes):
    collected, predictor, dataset = shapes.main.collected, shapes.main.predictor, shapes.dataset
    index = next(i for i in range(SCENES) if len(dataset[i][1]["boxes"]))
    image, target = dataset[index]
    prediction = predictor(image, boxes=target["boxes"], labels=target["labels"], all_sizes=True)
    place = [r["image_id"] for r in collected.true_boxes.results].index(target["image_id"])
    for k, size in enumerate(MASK_SIZES):
        truth = (crop_masks(target["masks"][:1], target["boxes"][:1], size)[0] >= 0.5).float()
        expected = F.binary_cross_entropy(prediction.mask_probs_at(0, size), truth)
        assert collected.size_losses["mask_loss"][place, k] == pytest.approx(float(expected), rel=1e-3)
        padded = F.pad(truth[None], (1, 1, 1, 1), mode="replicate")[0]
        around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        edges = ((around - 4 * truth).abs() > 0.5).float()
        state, pyramid = prediction.regions.state, prediction.regions.branch.region_fpn
        with torch.inference_mode():
            logits = pyramid.edge_logits(state, k, torch.tensor([0]))[0]
        expected = F.binary_cross_entropy_with_logits(logits, edges)
        assert collected.size_losses["edge_loss"][place, k] == pytest.approx(float(expected), rel=1e-3)
    for own in ("mask_loss", "edge_loss"):
        assert np.allclose(collected.size_losses[own][:, 3], collected.size_losses[f"{own}_112"][:, 3])


def test_figure5_ranks_by_true_boundary_iou(shapes):
    report = make_figure5(shapes)
    rankings, differences = rank_sizes(shapes.main)
    collected = shapes.main.collected
    right, pairs = pairwise(-collected.size_losses["edge_loss"], collected.true_boxes.quality("boundary_iou"))
    assert rankings["edge_loss"]["pairs"].mean == pytest.approx(right.sum() / pairs.sum())
    expected = rankings["edge_loss"]["pairs"].mean - rankings["mask_loss"]["pairs"].mean
    assert differences["mask_loss"]["pairs"].mean == pytest.approx(expected)
    assert FINER in rankings and page(report).count("violin") > 0 and len({tuple(row) for row in report.rows}) == 1
    assert json.dumps(report.data, allow_nan=False)
    flat = {"pairs": Interval()}
    assert conclude_figure5({"edge_loss": flat, "mask_loss": flat}, {"mask_loss": flat}) == []


def test_the_verdict_on_figure5_names_the_base_rate_and_the_gain_across_instances():
    def figures(pairs, gain):
        return {"pairs": Interval(pairs, pairs, pairs), "gain": Interval(gain, gain, gain)}

    rankings = {"edge_loss": figures(0.8, 0.2), "mask_loss": figures(0.7, 0.5), FINER: figures(0.96, None)}
    rankings["edge_loss_112"] = figures(0.95, 0.1)
    gaps = {name: {"pairs": Interval(gap, gap, gap)} for name, gap in (("mask_loss", 0.1), (FINER, -0.16))}
    text = " ".join(conclude_figure5(rankings, gaps))
    assert "better than the mask loss" in text and "worse than the base rate" in text and "puts 0.960 in order" in text
    assert "0.200 [0.200, 0.200] for the edge loss and 0.500" in text


def test_figure7_shows_pictures_and_the_papers_colours(shapes):
    report = make_figure7(shapes, 2)
    pictures = [block for block in report.blocks if isinstance(block, Picture)]
    assert len(pictures) == 2 and all(p.jpeg.startswith(b"\xff\xd8") for p in pictures)
    html = page(report)
    assert html.count("data:image/jpeg;base64,") == 2 and "red (large)" in html and set(LEGEND) == set(MASK_SIZES)
    assert "base64" not in markdown(report) and "detections with score ≥ 0.5" in html
    with pytest.raises(DynaMaskError, match="--pictures is 0"):
        make_figure7(shapes, 0)


def test_torchvisions_model_has_the_same_boxes(shapes):
    twin = speed.same_detector(shapes.main.predictor)
    image = shapes.dataset[0][0]
    with torch.inference_mode():
        theirs = twin([image.float() / 255])[0]
    ours = shapes.main.predictor(image, score=0.05)
    assert len(ours) > 0 and torch.allclose(theirs["boxes"], ours.boxes, atol=1e-3)
    assert torch.equal(theirs["labels"], ours.labels)


def test_table6_times_every_model_on_as_many_detections(shapes):
    report = speed.make_table6(shapes, SpeedOptions(rounds=1, pictures=1, detections=3))
    cases = {(row["part"], row["case"]) for row in report.data["times"]}
    ours = ["FCN head, 28", "DynaMask, all at 112", "DynaMask, sizes of the switch", "DynaMask, held to 46%"]
    parts = ("end to end", "mask branch")
    assert cases == set(itertools.product(parts, [speed.TORCHVISION, *ours]))
    assert all(row["ratio"] == 1 for row in report.data["times"] if row["case"] == speed.TORCHVISION)
    assert report.data["lacking"] == ["pointrend"] and "threads" in dict(report.facts)["machine"]
    heads = shapes.main.predictor.model.detector.roi_heads
    assert heads.score_thresh == 0.05 and heads.detections_per_img == 100


def test_the_papers_figures():
    assert {name for name in PAPER if not name.startswith("sodar-")} == {*TABLES, "table6"}
    for name, printed in PAPER.items():
        assert all(len(values) == len(printed.columns) for _, values in printed.rows), name
        assert len({row for row, _ in printed.rows}) == len(printed.rows)
    assert PAPER["table2"].fraction("DynaMask R50 1×", "APL") == 0.503
    assert PAPER["table5"].figure("0.4, 0.4", "G") == 0.64 and PAPER["table1"].figure("fcn:112", "AP") == 32.5
    assert PAPER["table3"].fraction("RefineMask R101 3×", "AP75") is None
    assert PAPER["table8"].fraction("no such row") is None and PAPER["table8"].fraction("size", "tiny") == 0.47
    for size in MASK_SIZES:  # the tables agree with each other
        assert PAPER["table1"].figure(f"fixed:{size}", "AP") == PAPER["table7"].figure(f"fixed:{size}", "AP")


def test_weights_of_other_classes_are_refused(tmp_path, shapes, capsys):
    path = tmp_path / "persons.safetensors"
    save_model(tiny_model(class_names=("__background__", "person")), path)
    with pytest.raises(DynaMaskError, match="persons and shapes know different classes"):
        shapes.add("persons", load(path), read_checkpoint(str(path)))
    code, printed = run_report(capsys, "table1", "--weights", path, "--data", "shapes:5:1", "--out", tmp_path / "o")
    assert code == 2 and "no class in common" in printed.err and printed.err.count("\n") == 1


@pytest.mark.parametrize("model", [tiny_model, tiny_nanodet])
def test_macs_of_a_detector_are_those_of_its_convolutions_and_matrices(model):
    predictor = TwoStagePredictor(model())
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    with count_detector_macs(predictor) as counts:
        predictor(picture, score=1.0)
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoded, _ = predictor.model.detector.encode([pixels])
        predictor.model.detector.detect(encoded)
    assert sum(counts.values()) == counter.get_total_flops() / 2 and min(counts.values()) > 0


def test_table_6_needs_the_detector_of_mask_rcnn():
    with pytest.raises(DynaMaskError, match="needs a Faster R-CNN detector"):
        speed.same_detector(TwoStagePredictor(tiny_nanodet()))


def test_a_switch_that_was_never_trained_does_not_count(tmp_path, shapes):
    path, model = tmp_path / "w.safetensors", tiny_model(class_names=ShapesDataset(1).class_names)
    save_model(model, path, training={"images_seen": 4, "train": {"warm_start": 1.0, "seed": 3}})
    checkpoint = read_checkpoint(str(path))
    assert not checkpoint.switch_trained and checkpoint.seed == 3 and read_checkpoint("shapes").switch_trained
    comparison = comparison_of(shapes.dataset, "shapes", count=1)
    plain = comparison.add("w", load(path), checkpoint)
    assert comparison.switched == [comparison.main] != [plain] and comparison.region_fpn is plain


def test_the_digest_follows_the_content():
    datasets = [ShapesDataset(3, 5), ShapesDataset(3, 6), ShapesDataset(3, 5, sides=(0.2, 0.3))]
    digests = [data_digest(dataset, [0, 1, 2]) for dataset in datasets]
    assert digests[0] == data_digest(ShapesDataset(3, 5), [0, 1, 2])
    assert len({*digests, data_digest(datasets[0], [0, 1])}) == 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Random weights that know the classes of the scenes."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_model(tiny_model(class_names=ShapesDataset(1).class_names), path, training={"images_seen": 1})
    return path


def test_all_writes_every_report_and_a_summary(tiny, capsys, tmp_path):
    curve = ("--budgets", "2", "--views", "1", "--permutations", "1")
    words = ["all", "--weights", tiny, "--data", "shapes:5:3", "--out", tmp_path / "o", *FAST, *curve]
    code, printed = run_report(capsys, *words, "--summary", tmp_path / "results.md", "--json", "-")
    assert code == 0, printed.err
    made = json.loads(printed.out)
    missing = set(made.pop("not_made"))
    assert set(made) | missing == {*TABLES, "table6", "figure5", "figure7", "figure8", "budget-curve", "quality"}
    assert missing <= {"figure8"}
    for name in made:
        assert {p.suffix for p in (tmp_path / "o").glob(f"{name}.*")} == {".md", ".csv", ".html", ".json"}
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# Results") and "## Tab. 1" in text and "### The paper's Tab. S3" in text
    assert text.count("Brackets are 95 %") == 1 and "## Fig. 5" in text


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("table1", ()),
        ("table6", ("--rounds", "1", "--pictures", "1")),
        ("figure5", ()),
        ("figure7", ("--pictures", "1")),
    ],
)
def test_one_report_alone(name, more, tiny, capsys, tmp_path):
    words = ["--weights", tiny, "--data", "shapes:5:2", "--out", tmp_path, *FAST]
    code, printed = run_report(capsys, name, *words, *more)
    assert code == 0, printed.err
    assert parsed_command(tmp_path / f"{name}.md").weights == [str(tiny)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classes", "--weights", "shapes", "shapes-low"], "about one weights file"),
        (["table7", "--weights", "shapes", "--ap-samples", "1"], "ap-samples must be at least 2"),
        (["all", "--weights", "shapes", "--summary", "."], "--summary . is a folder"),
        (["table1", "--weights", "nothing"], "no bundled weights are called"),
        (["table7", "--weights", "shapes", "--json", "no/such/f.json"], "of --json does not exist"),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys, tmp_path):
    code, printed = run_report(capsys, *words, "--data", "shapes:5:1", "--out", tmp_path / "o")
    assert code == 2 and message in printed.err and printed.err.count("\n") == 1 and not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["figure5", "figure7", "budget-curve"])
def test_pictures_without_an_instance_are_refused(name, tiny, capsys, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "a.png")
    image = {"id": 1, "file_name": "a.png", "width": 64, "height": 64}
    coco = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "disc"}]}
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    code, printed = run_report(capsys, name, "--weights", tiny, "--data", tmp_path, "--out", tmp_path / "o", *FAST)
    assert code == 2 and "no instance" in printed.err.replace("holds an", "no") and printed.err.count("\n") == 1
