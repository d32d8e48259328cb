"""Documents: their commands parse, their Python runs, their links lead to files, and their figures are counted."""

import json
import re
import runpy
import tomllib

import pytest
from helpers.command_line import ROOT, check_command, run

from dynamask import cli, list_models
from dynamask.models.masks.export import export_mask_branch, save_exported
from dynamask.models.weights import bundled_path, list_bundled, load_model, read_header
from dynamask.recipes import RECIPES
from dynamask.structures import MASK_SIZES

DOCUMENTS = [
    *("README.md", "benchmarks/README.md", "tools/README.md", "notebooks/README.md"),
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
    *(f"checkpoints/{path.name}" for path in sorted((ROOT / "checkpoints").glob("*.md"))),
]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name, language):
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(name), flags=re.MULTILINE | re.DOTALL)


def commands(name):
    """Every command of the shell blocks, with continued lines joined and shell variables filled in."""
    text = "".join(blocks(name, "bash")).replace("\\\n", " ")
    for variable, value in re.findall(r'^(\w+)="([^"]*)"$', text, flags=re.MULTILINE):
        text = text.replace(f'{variable}="{value}"\n', "").replace(f"${variable} ", f"{value} ")
    return [command.strip() for line in text.splitlines() for command in line.split("&&") if command.strip()]


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if commands(name)])
def test_commands_parse(name):
    for command in commands(name):
        check_command(command)


@pytest.mark.parametrize(
    "command", ["dynamask costs --modell x", "dynamask nonsense", "python -m app --colour red", "python tools/seeds.py"]
)
def test_a_wrong_command_is_found(command):
    with pytest.raises(SystemExit):
        check_command(command)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files(name):
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", read(name)) if "://" not in link]
    assert not [link for link in links if link and not ((ROOT / name).parent / link).exists()]


def test_the_readme_has_the_two_commands_and_every_command():
    lines = "\n".join(blocks("README.md", "bash")).splitlines()
    assert 'pip install -e ".[app]" && python -m app' in lines and 'pip install -e ".[dev]" && pytest' in lines
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    assert set(re.findall(r'pip install -e "\.\[(\w+)\]"', read("README.md"))) <= set(extras)
    listed = set(re.findall(r"^\| `dynamask (\w+)[ `]", read("README.md"), flags=re.MULTILINE))
    parser = cli.build_parser()
    assert listed == {name for action in parser._actions if isinstance(action.choices, dict) for name in action.choices}


@pytest.mark.slow
def test_python_of_the_readme_runs(monkeypatch, tmp_path, capsys):
    (snippet,) = blocks("README.md", "python")
    (tmp_path / "snippet.py").write_text(snippet, encoding="utf-8")
    monkeypatch.chdir(ROOT)
    names = runpy.run_path(str(tmp_path / "snippet.py"))
    assert len(names["prediction"]) == len(names["results"]) > 0
    assert set(names["cheaper"].mask_size.tolist()) == {28} and "torch.Size" in capsys.readouterr().out


@pytest.mark.slow
def test_python_of_the_weights_guide_runs(tmp_path, monkeypatch, capsys):
    model = load_model(bundled_path("things"))
    save_exported(export_mask_branch(model), tmp_path / "things.pt2", model)
    monkeypatch.chdir(tmp_path)
    for number, snippet in enumerate(blocks("docs/weights.md", "python")):
        (tmp_path / f"snippet{number}.py").write_text(snippet, encoding="utf-8")
        runpy.run_path(str(tmp_path / f"snippet{number}.py"))
    assert (tmp_path / "mine" / "config.json").is_file()
    assert "torch.Size([" in capsys.readouterr().out


def test_the_notice_names_all_weights_with_a_foreign_detector():
    notice = read("NOTICE")
    for name in list_bundled():
        if read_header(bundled_path(name))["config"].get("detector") == "nanodet_plus":
            assert f"`{name}`" in notice and "https://github.com/RangiLyu/nanodet" in notice
    assert "[NOTICE](NOTICE)" in read("README.md")


def test_the_cost_table_is_counted(capsys):
    text = read("docs/bundled-weights.md")
    table = re.search(r"<!-- macs:begin.*?-->(.*?)<!-- macs:end -->", text, flags=re.DOTALL)[1]
    head, _, *rows = [[cell.strip(" `") for cell in row.strip("| ").split("|")] for row in table.strip().splitlines()]
    assert head == ["model", *map(str, MASK_SIZES), "switch", "quality head"] and [
        row[0] for row in rows
    ] == list_models("two-stage")
    for name, *cells in rows:
        code, out, _ = run(capsys, "costs", "--model", name, "--json", "-")
        costs = json.loads(out)
        counted = [macs / 1e9 for macs in (*costs["macs_per_instance"], costs["switch_macs"], costs["quality_macs"])]
        assert code == 0 and [float(cell) for cell in cells] == pytest.approx(counted, abs=0.51e-4)


def test_the_figures_of_the_coco_guide_are_those_of_the_recipes():
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \| [^|]+ \| ([^|]+) \|$", read("docs/coco.md"), flags=re.MULTILINE)
    named = [(re.findall(r"`([^`]+)`", names), figures, times) for names, figures, times in rows]
    assert sum(len(names) for names, _, _ in named) >= 10
    for names, figures, times in named:
        hours = [int(value) for value in re.findall(r"\d+", times)]
        for name, expected in zip(names, re.findall(r"\d\d\.\d", figures)):
            assert f"mask AP {expected}" in RECIPES[name].expect
        assert {round(RECIPES[name].hours) for name in names} == set(hours)
    short, one = RECIPES["coco-r50-short"], RECIPES["coco-r50-1x"]
    assert f"{short.iterations:,} of {short.batch_size} " in read("docs/coco.md")
    assert f"--batch-size 4 --lr 0.005 --iterations {4 * one.iterations} " in read("docs/coco.md")
