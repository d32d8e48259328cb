"""A built wheel holds all that the commands need and works outside the checkout."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = [
    "pyproject.toml",
    "setup.py",
    "requirements.txt",
    "README.md",
    "LICENSE",
    "NOTICE",
    "dynamask",
    "app",
    "checkpoints",
]


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that the checkout stays clean."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, copy)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, copy)
    return next(out.glob("dynamask-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the installed wheel and nothing of the checkout."""
    target = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel)
    return target


@pytest.fixture
def outside(installed, tmp_path) -> dict[str, object]:
    """Options to run a command in an empty folder with the installed wheel first on the path."""
    return {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(installed)}}


def test_wheel_holds_every_module_and_asset(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [path for folder in ("dynamask", "app") for path in (ROOT / folder).rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts and path.name != ".gitkeep"]
    assert not {path.relative_to(ROOT).as_posix() for path in files} - held
    assert any(name.startswith("app/") and name.endswith(".js") for name in held)
    assert any(name.startswith("app/examples/") and name.endswith((".jpg", ".png")) for name in held)
    manifest = json.loads((ROOT / "checkpoints" / "manifest.json").read_text(encoding="utf-8"))
    bundled = {f"dynamask/checkpoints/{entry['file']}" for entry in manifest.values()}
    assert bundled and not (bundled | {"dynamask/checkpoints/manifest.json"}) - held
    folder = ROOT / "checkpoints" / "baselines"
    baselines = {f"dynamask/checkpoints/baselines/{path.name}" for path in folder.iterdir()}
    assert any(name.endswith(".safetensors") for name in baselines) and not baselines - held
    assert not [name for name in held if name.startswith(("tests/", "benchmarks/", "tools/", "checkpoints/"))]


def test_wheel_names_its_dependencies_and_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        metadata = archive.read(f"{folder}/METADATA").decode()
        for name in ("LICENSE", "NOTICE"):
            assert archive.read(f"{folder}/licenses/{name}") == (ROOT / name).read_bytes()
        assert "dynamask = dynamask.cli:main" in archive.read(f"{folder}/entry_points.txt").decode()
    assert "License-Expression: Apache-2.0" in metadata
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nVersion: {version}\n" in metadata


def test_a_plain_install_needs_no_extra_and_requirements_hold_them_all():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    used = [line for name in ("app", "notebooks", "train") for line in extras[name]]
    assert sorted((ROOT / "requirements.txt").read_text().split()) == sorted(project["dependencies"] + used)
    assert "dynamask[app,notebooks,train]" in extras["dev"]
    names = {line.split(">")[0] for line in project["dependencies"]}
    assert not names & {"gradio", "jupyterlab", "ipywidgets", "anywidget", "tensorboard"}


PLAIN_INSTALL = """
import sys
for name in ("gradio", "jupyterlab", "ipywidgets", "anywidget", "tensorboard", "IPython", "scipy", "skimage"):
    sys.modules[name] = None  # as if it were not installed
"""


@pytest.mark.slow
def test_a_plain_install_trains_and_names_the_missing_extras(outside, tmp_path):
    """A process in which the extras cannot be imported."""
    words = "train --data shapes:0:4 --model dynamask_resnet18_fpn_small --out run --iterations 1 --log-every 1"
    words += " --batch-size 1 --min-sizes 96 --test-min-size 96 --max-size 128"
    script = PLAIN_INSTALL + f"from dynamask.cli import main; sys.exit(main({words.split()}))"
    done = run(sys.executable, "-c", script, **outside)
    assert "TensorBoard is not installed" in done.stderr and (tmp_path / "run" / "log.csv").is_file()
    overlays = (
        f"from dynamask.cli import main; sys.exit(main({[*words.split(), '--overlay-every', '1', '--out', 'more']}))"
    )
    for script, message in (
        (overlays, "--overlay-every writes to TensorBoard; install it with `pip install"),
        ("import dynamask; dynamask.viz.explore", "explore needs ipywidgets; install it with `pip install"),
        ("from app.__main__ import main; main([])", "the app needs Gradio; install it with `pip install"),
    ):
        done = subprocess.run([sys.executable, "-c", PLAIN_INSTALL + script], capture_output=True, text=True, **outside)
        assert done.returncode != 0 and message in done.stderr.splitlines()[-1]


def test_costs_run_outside_the_checkout(installed, outside):
    place = run(sys.executable, "-c", "import dynamask; print(dynamask.__file__)", **outside).stdout.strip()
    assert Path(place).is_relative_to(installed)
    command = [sys.executable, "-m", "dynamask", "costs", "--model", "dynamask_resnet18_fpn_small", "--json", "-"]
    costs = json.loads(run(*command, **outside).stdout)
    assert costs["mask_sizes"] == [14, 28, 56, 112]
    assert costs["macs_per_instance"] == sorted(costs["macs_per_instance"]) and costs["macs_per_instance"][0] > 0


@pytest.mark.slow
def test_bundled_weights_predict_outside_the_checkout(installed, outside, tmp_path):
    pictures = sorted((installed / "app" / "examples").rglob("*"))
    example = next(path for path in pictures if path.suffix in (".jpg", ".png"))
    command = ["predict", "--weights", "things", "--image", example, "--out", tmp_path / "out"]
    run(sys.executable, "-m", "dynamask", *command, **outside)
    results = json.loads((tmp_path / "out" / f"{example.stem}.json").read_text())
    assert results and all(result["mask_size"] in (14, 28, 56, 112) for result in results)
    assert (tmp_path / "out" / f"{example.stem}.png").is_file()
    assert "usage: python -m app" in run(sys.executable, "-m", "app", "-h", **outside).stdout
