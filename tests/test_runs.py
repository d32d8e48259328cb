"""The logs of runs: tables that grow without losing what older versions wrote, and the page that draws them."""

import json
import math
import re

import numpy as np
import pytest
from helpers.command_line import refusal
from helpers.runs import toy_run
from torch.utils.tensorboard import SummaryWriter

from dynamask import cli
from dynamask.engine.log import RunLog, ScalarTable
from dynamask.engine.train import Periodic, train
from dynamask.reports.runs import find_runs, read_runs, read_table
from dynamask.structures import DynaMaskError
from dynamask.viz.style import SERIES_COLOURS
from dynamask.viz.training_curves import panels_of, smoothed, training_curves


def test_a_log_of_an_older_version_gets_the_new_columns_and_keeps_its_rows(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss,lr\n1,0.5,1\n2,0.4,1\n")
    log = RunLog(tmp_path, 2)
    log.write(3, {"loss": 0.25, "share_14": 0.75, "lr": 0.1})
    log.write(4, {"loss": 0.125, "lr": 0.1})
    log.close()
    assert path.read_text() == "step,loss,lr,share_14\n1,0.5,1,\n2,0.4,1,\n3,0.25,0.1,0.75\n4,0.125,0.1,\n"
    ScalarTable(path, 3).write(4, {"loss": 1.0, "lr": 2.0, "share_14": 0.0})
    assert path.read_text().splitlines()[3:] == ["3,0.25,0.1,0.75", "4,1,2,0"]


def test_validation_has_a_table_of_its_own_that_resuming_cuts(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in (2, 4):
        log.write_validation(step, {"segm_AP": step / 10})
    log.flush()
    log.close()
    assert (tmp_path / "validation.csv").read_text() == "step,segm_AP\n2,0.2\n4,0.4\n"
    RunLog(tmp_path, 3).close()
    assert (tmp_path / "validation.csv").read_text() == "step,segm_AP\n2,0.2\n"


def test_periodic_acts_come_after_their_steps_with_run_and_log(tmp_path, monkeypatch):
    drawn, came = [], []
    monkeypatch.setattr(SummaryWriter, "add_image", lambda self, name, pixels, step, dataformats: drawn.append(step))

    def draw(run, log):
        came.append(run.step)
        log.image(run.step, "overlay/0", np.zeros((2, 2, 3), dtype=np.uint8))

    run = toy_run(tmp_path, iterations=6)
    train(run, progress=False, periodic=[Periodic(2, draw), Periodic(0, draw), Periodic(5, draw)])
    assert came == [2, 4, 5, 6] and drawn == came


def runs_in(folder) -> None:
    """Three runs: a finished one, one with an evaluation on the way, and one that an older version wrote."""
    logs = {
        "a": "step,loss,loss_mask,lr,share_14,mean_macs,target_macs\n10,2,1,0.1,0.5,9,5\n20,1,0.5,0.1,0.25,8,5\n",
        "deep/b": "step,loss,lr\n10,3,0.1\n20,2.5,0.1\n30,2",
        "c": "step,loss,lr,share_14\n5,4,0.1,\n6,3,0.1,1\n",
    }
    for name, text in logs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "log.csv").write_text(text)
    (folder / "c" / "validation.csv").write_text("step,segm_AP,bbox_AP\n5,0.1,0.2\n")
    figures = {"bbox": {"AP": 0.4}, "segm": {"AP": 0.3}, "boundary": {"AP": None}}
    (folder / "a" / "evaluation.json").write_text(json.dumps(figures))


def test_runs_are_read_with_what_they_have(tmp_path):
    runs_in(tmp_path)
    runs = {run.name: run for run in read_runs(tmp_path)}
    assert list(runs) == ["a", "c", "deep/b"]
    assert runs["deep/b"].log["step"] == [10, 20], "the torn row is left out"
    assert runs["a"].final == {"bbox_AP": 0.4, "segm_AP": 0.3}
    assert math.isnan(runs["c"].log["share_14"][0]) and runs["c"].log["share_14"][1] == 1
    assert runs["c"].validation == {"step": [5], "segm_AP": [0.1], "bbox_AP": [0.2]}
    assert [run.name for run in read_runs(tmp_path / "a")] == ["a"]


def test_panels_are_those_that_some_run_knows(tmp_path):
    runs_in(tmp_path)
    titles = [title for title, _ in panels_of(read_runs(tmp_path))]
    assert titles == [
        "loss",
        "loss_mask",
        "learning rate",
        "share of regions at 14",
        "mean MACs per region (target dotted)",
        "box AP on validation pictures",
        "mask AP on validation pictures",
    ]


def test_every_run_has_one_colour_and_one_entry_in_the_legend(tmp_path):
    runs_in(tmp_path)
    figure = training_curves(read_runs(tmp_path), half_life=0)
    by_name: dict[str, set] = {}
    for trace in figure.data:
        by_name.setdefault(trace.name, set()).add(trace.line.color)
    assert by_name == {name: {colour} for name, colour in zip(("a", "c", "deep/b"), SERIES_COLOURS)}
    assert sorted(t.name for t in figure.data if t.showlegend) == ["a", "c", "deep/b"]
    curve = next(t for t in figure.data if t.name == "a")
    assert list(curve.x) == [10, 20] and list(curve.y) == [2, 1]
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert labels[0] == "not smoothed" and figure.layout.updatemenus[0].active == 0
    smooth = figure.layout.updatemenus[0].buttons[1].args[0]["y"]
    assert len(smooth) == len(figure.data) and list(smooth[0]) == smoothed([2, 1], 5)


def test_smoothing_by_hand():
    assert smoothed([1.0, 3.0], 0) == [1, 3]
    assert smoothed([1.0, 3.0, 5.0], 1) == pytest.approx([1, (0.5 * 1 + 3) / 1.5, (0.25 * 1 + 0.5 * 3 + 5) / 1.75])
    assert smoothed([2.0] * 50, 7) == pytest.approx([2.0] * 50), "no pull towards zero at the start"
    with_gap = smoothed([1.0, math.nan, 3.0], 1)
    assert math.isnan(with_gap[1]) and with_gap[2] == pytest.approx((0.5 + 3) / 1.5)
    assert smoothed([], 5) == []


def test_the_command_writes_one_page_that_stands_alone(tmp_path, capsys):
    runs_in(tmp_path)
    assert cli.main(["runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "a: 20 steps  bbox AP 0.4000  segm AP 0.3000" in out and str(tmp_path / "runs.html") in out
    page = (tmp_path / "runs.html").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page and "Training runs</title>" in page and '<script src="http' not in page
    assert cli.main(["runs", str(tmp_path / "a"), "--out", str(tmp_path / "one.html"), "--half-life", "0"]) == 0
    assert (tmp_path / "one.html").is_file()


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (lambda d: None, ["nowhere"], "nowhere is no folder"),
        (lambda d: None, ["."], r"there is no run \(log.csv\) in"),
        (lambda d: (d / "log.csv").write_text("a,b\n1,2\n"), ["."], "its first column is not step"),
        (lambda d: (d / "log.csv").write_text("step,loss\n1,much\n"), ["."], "cannot be read as a run's log"),
        (lambda d: runs_in(d), [".", "--half-life", "-1"], "--half-life: .-1. is not a number from 0"),
        (lambda d: runs_in(d), [".", "--out", "a"], "--out a is a folder"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(tmp_path, monkeypatch, capsys, make, words, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    assert re.search(message, refusal(capsys, "runs", *words))
    assert not list(tmp_path.rglob("*.html"))


def test_a_table_without_rows_and_a_broken_evaluation(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n")
    assert read_table(tmp_path / "log.csv") == {"step": [], "loss": []}
    assert find_runs(tmp_path) == [tmp_path] and training_curves(read_runs(tmp_path)).data
    (tmp_path / "evaluation.json").write_text('{"segm": 0.3}')
    with pytest.raises(DynaMaskError, match="is no evaluation of a training"):
        read_runs(tmp_path)
