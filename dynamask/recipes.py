"""Recipes: named trainings, each with the values of its flags, the hardware, the time and the expected result.

They are listed in ``recipes.toml`` beside this file.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamask.structures import DynaMaskError

PAPER_GMACS = 1.4
"""Cost of the paper's full mask branch. Its budgets C_t are in GMACs; here they are shares of the full branch."""
SLOWDOWN = 12.4 / 8.3
"""Inference speed of Mask R-CNN over that of DynaMask (Tab. 6), assumed for training as well."""


@dataclass(frozen=True)
class Recipe:
    """Everything about a training except the place of the data.

    Attributes:
        name: value of ``dynamask train --recipe NAME``.
        title: what is trained, in a few words.
        model: name of the preset.
        data: description of the data.
        data_flags: flags of the command with places for the user's paths.
        images: number of training images.
        epochs: passes over the images, which give the iterations; None where ``flags`` has the iterations.
        batch_size: images per step.
        flags: values of further flags of ``dynamask train``, by their names in Python.
        expect: expected result and its source.
        hardware: to which the time refers.
        seconds_per_step: estimated time of one step on that hardware.
        basis: source of that estimate.
        processes: processes of the command, one per GPU.
        after: commands that complete the weights after this training.
    """

    name: str
    title: str
    model: str
    data: str
    data_flags: str
    images: int
    batch_size: int
    flags: Mapping[str, Any]
    expect: str
    hardware: str
    seconds_per_step: float
    basis: str
    epochs: int | None = None
    processes: int = 1
    after: tuple[str, ...] = ()

    @property
    def iterations(self) -> int:
        """Steps of the schedule."""
        if self.epochs is None:
            return int(self.flags["iterations"])
        return math.ceil(self.epochs * self.images / self.batch_size)

    @property
    def steps(self) -> int:
        """Steps that are run; the small recipes stop before the end of their schedule."""
        return int(self.flags.get("stop_at", 0)) or self.iterations

    @property
    def hours(self) -> float:
        """Estimated duration on ``hardware``."""
        return self.steps * self.seconds_per_step / 3600

    @property
    def command(self) -> str:
        """The shell command."""
        start = "dynamask" if self.processes == 1 else f"torchrun --nproc-per-node {self.processes} -m dynamask"
        return f"{start} train --recipe {self.name} {self.data_flags} --out runs/{self.name}"

    def values(self) -> dict[str, Any]:
        """Values of all flags of ``dynamask train`` that the recipe sets, by their names in Python."""
        steps = {"batch_size": self.batch_size, "iterations": self.iterations}
        return {"model": self.model, **steps, **self.flags}


def recipe_named(name: str) -> Recipe:
    """The recipe with this name; an unknown name raises :class:`DynaMaskError`."""
    if name not in RECIPES:
        raise DynaMaskError(f"recipe {name!r} is unknown; `dynamask recipes` lists them all")
    return RECIPES[name]


def read_recipes(path: Path) -> dict[str, Recipe]:
    """The recipes of a TOML file by name; the file says what its keys mean."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: _recipe(name, _inherited(name, tables)) for name in tables}


def _inherited(name: str, tables: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The table of a recipe with the fields and flags of the recipe that it is ``like``."""
    table = tables[name]
    base = _inherited(table["like"], tables) if "like" in table else {}
    flags = {**base.get("flags", {}), **table.get("flags", {})}
    return {key: value for key, value in {**base, **table, "flags": flags}.items() if key != "like"}


def _recipe(name: str, table: dict[str, Any]) -> Recipe:
    """A recipe of its complete table."""
    fields = {key: _frozen(value) for key, value in table.items() if key != "flags"}
    flags = {key: _frozen(value) for key, value in table["flags"].items()}
    if times := fields.pop("schedule", None):
        epochs = 12 * times + 1  # the first one without the switch
        fields["epochs"] = epochs
        flags |= {"warm_start": 1 / epochs, "milestones": ((8 * times + 1) / epochs, (11 * times + 1) / epochs)}
    if gmacs := fields.pop("budget_gmacs", None):
        flags["budget_target"] = round(gmacs / PAPER_GMACS, 2)
    if model := fields.pop("mask_rcnn", None):
        seconds = fields.pop("mask_rcnn_seconds")
        fields["seconds_per_step"] = seconds * SLOWDOWN
        fields["basis"] = (
            f"estimate: {seconds} s per step of Mask R-CNN {model} on 8 V100 (Detectron2's model zoo), times "
            f"{SLOWDOWN:.2f}, the paper's Tab. 6"
        )
    return Recipe(name=name, flags=flags, **fields)


def _frozen(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(value) if isinstance(value, list) else value


RECIPES = read_recipes(Path(__file__).with_name("recipes.toml"))
"""All recipes by name: the paper's, then those of the bundled weights."""
