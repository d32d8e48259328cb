"""What the README says runs: its commands parse, its Python runs, its links lead somewhere, its figures are counted."""

import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest

from app.__main__ import parse_arguments as parse_app_arguments
from dynamask import cli, list_models
from dynamask.structures import MASK_SIZES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COSTS = (ROOT / "docs" / "bundled-weights.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command of the shell blocks, one by one, continued lines joined."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [command.strip() for line in lines for command in line.split("&&") if command.strip()]


def check_command(command: str) -> None:
    """Fail unless the command is one that the project understands with these flags."""
    words = shlex.split(command, comments=True)
    if words[0] == "dynamask":
        cli.build_parser().parse_args(words[1:])
    elif words[0] == "torchrun":
        start = words.index("dynamask")
        assert words[start - 1] == "-m" and re.fullmatch(r"--nproc-per-node \d+", " ".join(words[1 : start - 1]))
        cli.build_parser().parse_args(words[start + 1 :])
    elif words[:3] == ["python", "-m", "app"]:
        parse_app_arguments(words[3:])
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        match = re.fullmatch(r"\.(?:\[(\w+)\])?", words[-1])
        assert words[2:-1] == ["-e"] and match and match[1] in {None, *extras}
    else:
        assert words == ["pytest"], f"nothing here knows how to check {command!r}"


def macs_table() -> dict[str, list[str]]:
    """Cells of the cost table by model name."""
    table = re.search(r"<!-- macs:begin.*?-->(.*?)<!-- macs:end -->", COSTS, flags=re.DOTALL)[1]
    rows = [[cell.strip(" `") for cell in line.strip("| ").split("|")] for line in table.strip().splitlines()]
    assert rows[0] == ["model", *map(str, MASK_SIZES), "switch"]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_two_commands_are_there():
    lines = "\n".join(blocks("bash")).splitlines()
    assert 'pip install -e ".[app]" && python -m app' in lines
    assert 'pip install -e ".[dev]" && pytest' in lines


@pytest.mark.parametrize("command", commands())
def test_command_parses(command):
    check_command(command)
    for word in shlex.split(command, comments=True):
        assert not word.startswith(("app/", "docs/", "checkpoints/")) or (ROOT / word).exists()


@pytest.mark.parametrize("command", ["dynamask costs --modell x", "dynamask nonsense", "python -m app --colour red"])
def test_the_check_sees_a_wrong_command(command):
    with pytest.raises(SystemExit):
        check_command(command)


@pytest.mark.slow
def test_python_runs_on_the_bundled_weights(tmp_path, monkeypatch, capsys):
    snippets = blocks("python")
    assert snippets
    monkeypatch.chdir(ROOT)
    for number, snippet in enumerate(snippets):
        script = tmp_path / f"snippet{number}.py"
        script.write_text(snippet, encoding="utf-8")
        names = runpy.run_path(str(script))
        assert len(names["prediction"]) == len(names["results"]) > 0
        assert set(names["cheaper"].mask_size.tolist()) == {28}
    assert "torch.Size" in capsys.readouterr().out


def test_command_table_lists_the_commands_of_the_parser():
    listed = set(re.findall(r"^\| `dynamask (\w+)[ `]", README, flags=re.MULTILINE))
    parser = cli.build_parser()
    known = {name for action in parser._actions if isinstance(action.choices, dict) for name in action.choices}
    assert listed == known


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links and not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models("two-stage"))
def test_cost_table_is_what_the_command_counts(name, capsys):
    cells = macs_table()[name]
    try:
        cli.main(["costs", "--model", name, "--json", "-"])
    except SystemExit as end:
        assert not end.code
    costs = json.loads(capsys.readouterr().out)
    for cell, macs in zip(cells, [*costs["macs_per_instance"], costs["switch_macs"]], strict=True):
        digits = len(cell.partition(".")[2])
        assert float(cell) == pytest.approx(macs / 1e9, abs=0.51 * 10**-digits)
        assert float(cell) > 0


def test_cost_table_holds_the_models_that_exist():
    assert list(macs_table()) == list_models("two-stage")
