"""What the guides say runs: commands parse, Python runs, links lead somewhere, figures are the recipes'."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from dynamask import cli
from dynamask.cli.recipes import fill_in
from dynamask.models.masks.export import export_mask_branch, save_exported
from dynamask.models.weights import bundled_path, load_model
from dynamask.recipes import RECIPES

DOCS = Path(__file__).resolve().parent.parent / "docs"
GUIDES = ("coco.md", "weights.md")
FOREIGN = {"curl", "unzip", "mkdir", "hf"}
"""Programs of others that the guides call."""


def blocks(name: str, language: str) -> list[str]:
    text = (DOCS / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for name in GUIDES for block in blocks(name, "bash") for line in block.splitlines()]
    return [line for line in lines if line.strip()]


@pytest.mark.parametrize("command", commands())
def test_command_parses(command):
    words = shlex.split(command)
    if words[0] in FOREIGN:
        return
    if words[0] == "torchrun":
        assert words[1:2] == ["--nproc-per-node"] and words[3:5] == ["-m", "dynamask"]
        words = words[4:]
    assert words[0] == "dynamask"
    arguments = cli.build_parser().parse_args(words[1:])
    if arguments.command == "train":
        fill_in(arguments)


@pytest.mark.slow
def test_python_of_the_weights_guide_runs(tmp_path, monkeypatch, capsys):
    model = load_model(bundled_path("people"))
    save_exported(export_mask_branch(model), tmp_path / "people.pt2", model)
    monkeypatch.chdir(tmp_path)
    for number, snippet in enumerate(blocks("weights.md", "python")):
        (tmp_path / f"snippet{number}.py").write_text(snippet, encoding="utf-8")
        runpy.run_path(str(tmp_path / f"snippet{number}.py"))
    assert (tmp_path / "mine" / "config.json").is_file()
    assert "torch.Size([" in capsys.readouterr().out


@pytest.mark.parametrize("name", GUIDES)
def test_links_lead_to_files(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert not [link for link in links if not (DOCS / link).exists()]


def test_the_coco_guides_figures_are_the_recipes():
    text = (DOCS / "coco.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \| [^|]+ \| ([^|]+) \|$", text, flags=re.MULTILINE)
    named = [(re.findall(r"`([^`]+)`", names), figures, times) for names, figures, times in rows]
    assert sum(len(names) for names, _, _ in named) >= 10
    for names, figures, times in named:
        hours = [int(value) for value in re.findall(r"\d+", times)]
        for name, expected in zip(names, re.findall(r"\d\d\.\d", figures)):
            assert f"mask AP {expected}" in RECIPES[name].expect
        assert {round(RECIPES[name].hours) for name in names} == set(hours)
    short = RECIPES["coco-r50-short"]
    assert f"{short.iterations:,} of {short.batch_size} pictures: {short.epochs} epochs" in text
    one = RECIPES["coco-r50-1x"]
    assert f"--batch-size 4 --lr 0.005 --iterations {4 * one.iterations} " in text
