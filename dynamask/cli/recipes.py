"""``dynamask recipes``: what can be trained by name, with its command, hardware, time and the result to expect."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from typing import Any

from dynamask.cli.common import add_json, say, write_json
from dynamask.recipes import RECIPES, Recipe, recipe_named
from dynamask.structures import DynaMaskError

_SWITCHES = ("merge_classes",)
"""Flags that are False, not None, where they are not given."""


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "recipes",
        help="what can be trained by name",
        description="Trainings by name: the paper's, and those of the bundled weights. "
        "`dynamask train --recipe NAME` sets the values of all flags that are not given.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="one recipe with all its values")
    add_json(parser)
    parser.set_defaults(run=_recipes)


def fill_in(arguments: argparse.Namespace) -> None:
    """Set what the recipe of ``--recipe`` says, where the command line says nothing, in place.

    Raises:
        DynaMaskError: the recipe is unknown, or there is neither a recipe nor a model.
    """
    if arguments.recipe is not None:
        values = recipe_named(arguments.recipe).values()
        if arguments.init is not None:
            values.pop("backbone_weights", None)  # what is given brings its own backbone
        for name, value in values.items():
            given = getattr(arguments, name)
            if given is None or (name in _SWITCHES and given is False):
                setattr(arguments, name, value)
    if arguments.model is None:
        raise DynaMaskError("say what to train: give --model or --recipe")


def _recipes(arguments: argparse.Namespace) -> None:
    if arguments.name is not None:
        recipe = recipe_named(arguments.name)
        _describe(recipe, arguments.json)
        write_json(_as_json(recipe), arguments.json)
        return
    for recipe in RECIPES.values():
        say(f"{recipe.name:<20}{recipe.title}; {_duration(recipe)} on {recipe.hardware}", arguments.json)
        for line in textwrap.wrap(recipe.expect, 96):
            say(f"{'':<20}{line}", arguments.json)
    say(
        "`dynamask recipes NAME` prints the command; no recipe with path/to/ in it was run with this code",
        arguments.json,
    )
    write_json([_as_json(recipe) for recipe in RECIPES.values()], arguments.json)


def _describe(recipe: Recipe, target: str | None) -> None:
    """One recipe as lines for people."""
    epochs = "" if recipe.epochs is None else f", {recipe.epochs} epochs of {recipe.images:,} pictures"
    rows = {
        "recipe": f"{recipe.name}: {recipe.title}",
        "data": recipe.data,
        "steps": f"{recipe.steps:,} of {recipe.iterations:,}, {recipe.batch_size} pictures each{epochs}",
        "values": ", ".join(f"{name} {value}" for name, value in recipe.values().items()),
        "hardware": recipe.hardware,
        "time": f"{_duration(recipe)} ({recipe.basis})",
        "expect": recipe.expect,
    }
    for name, value in rows.items():
        say(f"{name:<10}{value}", target)
    for command in (recipe.command, *recipe.after):
        say(f"  {command}", target)


def _duration(recipe: Recipe) -> str:
    """About how long, in words."""
    return f"about {recipe.hours:.0f} h" if recipe.hours >= 2 else f"about {max(1, round(recipe.hours * 60))} min"


def _as_json(recipe: Recipe) -> dict[str, Any]:
    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    derived = {"flags": recipe.values(), "iterations": recipe.iterations, "steps": recipe.steps}
    return {**fields, **derived, "hours": recipe.hours, "command": recipe.command}
