"""Property-based tests of the command line: every combination of arguments ends with a result or one line.

The values come from the parser's own flags. Trainings end before the first step, and nothing is uploaded.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="the inputs are made by hypothesis")

from helpers.fuzzing import Target, run_command, run_examples, run_for
from helpers.mutations import TEXTS
from helpers.runs import FLAGS, flags, write_blocks
from helpers.small_models import finding_solo, tiny_model
from hypothesis import strategies as st

from dynamask import cli
from dynamask.models.weights import save_model

WORDS = [text for text in TEXTS if len(text) < 1000 and "\0" not in text and not text.startswith("/")]
NUMBERS = ("1", "2", "0", "-1", "0.5", "1.5", "1e-9", "nan", "inf", "-inf", "1e400", "9" * 400, "0x10", "1_0", "٣", "")
COUNTS = ("1", "2", "0", "-1", "0.5", "nan", "9" * 400, "2147483648000")
"""Values of flags that multiply the work: none is a large number that is allowed."""
PATHS = ("here", "images/1.png", "images", "annotations.json", "results.json", "empty", "pipe", "missing", "a/b/c")
WEIGHTS = ("tiny.safetensors", "solo.safetensors", "annotations.json", "empty", "images", "missing.safetensors", "none")
VALUES = {
    "weights": WEIGHTS,
    "init": (*WEIGHTS, "shapes"),
    "teacher": WEIGHTS,
    "backbone_weights": ("tiny.safetensors", "empty", "missing"),
    "image": ("images/1.png", "images/*.png", "images", "@list.txt", "@empty", "@missing", "empty", "pipe", "**"),
    "images": ("images", "images", "empty", "missing", "1", "0", "-1"),
    "annotations": ("annotations.json", "annotations.json", "results.json", "empty", "images", "pipe", "missing"),
    "predictions": ("results.json", "results.json", "annotations.json", "empty", "images", "pipe", "missing"),
    "data": (
        "shapes:1:2",
        "shapes:0:0",
        "shapes:-1:2",
        "shapes:1",
        "shapes:x:y",
        ".",
        "images",
        "missing",
        "shapes:1:2:3",
    ),
    "policy": (
        "learned",
        "size",
        "quality",
        "fixed:14",
        "fixed:28",
        "fixed:15",
        "fixed:",
        "fixed:٣",
        "oracle",
        "random",
    ),
    "budget_scope": ("image", "dataset", "all"),
    "boxes": ("detected", "gt", "none"),
    "model": ("dynamask_mobilenetv2_fpn_small", "sodar_v2_mobilenetv2_fpn_small", "none", "dynamask_nanodet_plus_m"),
    "recipe": ("none", "shapes"),
    "device": ("cpu", "cpu", "cuda", "cuda:9", "gpu", "meta", "mps", "auto"),
    "backend": ("torch", "onnx"),
    "refine": ("dense", "1,0.4,0.2", "0,0,0", "1,1", "nan,1,1", "a,b,c"),
    "json": ("-", "out/figures.json", "images", "a/b/c.json"),
    "where": ("file_name=1", "file_name", "=", "x=y"),
    "holdout": ("2", "3", "1", "0", "-1", "9" * 30, "x"),
    "num_classes": COUNTS,
    "iterations": COUNTS,
    "batch_size": COUNTS,
    "workers": ("0", "-1", "x", "9" * 400),
}
HEAVY = ("report", "push", "export")
"""Words of commands of which only the errors in their arguments are checked."""


@functools.cache
def folder() -> Path:
    """A data set, results, weights of small models and files of the wrong kind; removed at the end of the process."""
    folder.kept = tempfile.TemporaryDirectory(prefix="dynamask-fuzz-")
    path = write_blocks(Path(folder.kept.name))
    result = {"image_id": 1, "category_id": 3, "score": 0.9, "bbox": [4, 7, 22, 30], "file_name": "1.png"}
    square = [[4, 7, 26, 7, 26, 37, 4, 37]]
    (path / "results.json").write_text(json.dumps([{**result, "segmentation": square}]))
    (path / "list.txt").write_text("images/1.png\nimages/2.png\n")
    (path / "empty").write_bytes(b"")
    (path / "out").mkdir()
    os.mkfifo(path / "pipe")
    save_model(tiny_model(), path / "tiny.safetensors")
    save_model(finding_solo(), path / "solo.safetensors")
    return path


@functools.cache
def commands() -> dict[tuple[str, ...], list[argparse.Action]]:
    """The flags of every command without parts, by its words."""
    found: dict[tuple[str, ...], list[argparse.Action]] = {}

    def walk(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> None:
        parts = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        for part in parts:
            for name, inner in part.choices.items():
                walk(inner, (*words, name))
        if not parts:
            found[words] = [action for action in parser._actions if action.dest != "help"]

    walk(cli.build_parser(), ())
    return found


def _values(action: argparse.Action) -> st.SearchStrategy:
    """Values of a flag: usable ones, those of other flags, numbers and odd texts."""
    if action.dest == "out":
        return st.sampled_from(("out/new", "out/new", "out", "images/1.png", "empty", "pipe/x", "", "out/" + "x" * 300))
    known = VALUES.get(action.dest)
    usual = st.sampled_from(tuple(map(str, action.choices or known or COUNTS)))
    odd = st.sampled_from((*WORDS, *(() if known else NUMBERS)))
    return st.one_of(usual, usual, usual, odd) if action.dest != "json" else usual


@st.composite
def command_lines(draw: st.DrawFn, wanted: tuple[str, ...]) -> list[str]:
    """Words of a command: most of the required flags, some of the others, and now and then what no parser knows."""
    words, actions = [*wanted], commands()[wanted]
    if wanted == ("train",):
        words += ["--images", "images", "--annotations", "annotations.json", *flags(FLAGS)]
        words += ["--model", draw(st.sampled_from(VALUES["model"]))]
    required = [action for action in actions if action.required]
    others = [action for action in actions if not action.required]
    chosen = [action for action in required if draw(st.integers(0, 9))]
    chosen += (
        draw(st.lists(st.sampled_from(others), max_size=4, unique_by=lambda action: action.dest)) if others else []
    )
    for action in chosen:
        words += [action.option_strings[-1]] if action.option_strings else []
        if action.nargs != 0:
            several = draw(st.integers(1, 3)) if action.nargs in ("+", "*") else 1
            words += [draw(_values(action)) for _ in range(several)]
    if not draw(st.integers(0, 9)):
        words.insert(draw(st.integers(0, len(words))), draw(st.sampled_from((*WORDS, "--nonsense", "-h"))))
    return words


def check_command(words: list[str]) -> None:
    """A command in the folder of small files; trainings and reports end before their work begins."""
    before = Path.cwd()
    os.chdir(folder())
    with pytest.MonkeyPatch.context() as patch:
        if words[:1] == ["train"]:
            import dynamask.cli.training

            patch.setattr(dynamask.cli.training, "train", lambda run, **_: False)
        elif set(words) & set(HEAVY):
            patch.setattr(cli, "run_command", lambda name, command, json_target=None: 0)
        try:
            run_command(*words)
        finally:
            os.chdir(before)
            _clear(folder() / "out")


def _clear(out: Path) -> None:
    """Remove what a command wrote, so that the next one finds the same folder."""
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


TRAININGS = st.deferred(lambda: command_lines(("train",)))
OTHERS = st.deferred(
    lambda: st.sampled_from([words for words in commands() if words != ("train",)]).flatmap(command_lines)
)
TARGETS = {"commands": Target(OTHERS, check_command, 60), "train": Target(TRAININGS, check_command, 15)}


@pytest.mark.parametrize("name", TARGETS)
def test_arguments_give_a_result_or_one_line(name):
    run_examples(TARGETS[name])


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_new_arguments_give_a_result_or_one_line(name):
    print(f"{name}: {run_for(TARGETS[name])} inputs")
