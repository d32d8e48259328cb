"""``dynamask recipes``: list the named trainings with command, hardware, time and expected result."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from dynamask.cli.common import add_json, print_line, write_json
from dynamask.recipes import RECIPES, Recipe, recipe_named
from dynamask.structures import DynaMaskError

_SWITCHES = ("merge_classes",)
"""Flags whose value is False, not None, if they are not given."""


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "recipes",
        help="list the named trainings",
        description="List the trainings of the paper and of the bundled weights. `dynamask train --recipe NAME` sets "
        "the flags that are not given.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this recipe with all its values")
    add_json(parser)
    parser.set_defaults(run=_recipes)


def apply_recipe(arguments: argparse.Namespace) -> None:
    """Set the flags of ``dynamask train`` that are not given to the values of ``--recipe``, in place.

    Raises:
        DynaMaskError: the recipe is unknown, or there is neither a recipe nor a model.
    """
    if arguments.recipe is not None:
        values = recipe_named(arguments.recipe).values()
        if arguments.init is not None:
            values.pop("backbone_weights", None)  # the initial weights include the backbone
        if arguments.epochs is not None:
            values.pop("iterations", None)
            values.pop("stop_at", None)  # a step of the recipe's own schedule
        for name, value in values.items():
            given = getattr(arguments, name)
            if given is None or (name in _SWITCHES and given is False):
                setattr(arguments, name, value)
    if arguments.model is None:
        raise DynaMaskError("there is nothing to train; give --model or --recipe")


def _recipes(arguments: argparse.Namespace) -> None:
    if arguments.name is not None:
        recipe = recipe_named(arguments.name)
        _describe(recipe, arguments.json)
        write_json(_as_json(recipe), arguments.json)
        return
    for recipe in RECIPES.values():
        print_line(f"{recipe.name:<20}{recipe.title}; {_duration(recipe)} on {recipe.hardware}", arguments.json)
        for line in textwrap.wrap(recipe.expect, 96):
            print_line(f"{'':<20}{line}", arguments.json)
    print_line(
        "`dynamask recipes NAME` prints the command; those with path/to/ have not been run",
        arguments.json,
    )
    write_json([_as_json(recipe) for recipe in RECIPES.values()], arguments.json)


def _describe(recipe: Recipe, target: str | None) -> None:
    """Print one recipe."""
    epochs = "" if recipe.epochs is None else f", {recipe.epochs} epochs of {recipe.images:,} images"
    rows = {
        "recipe": f"{recipe.name}: {recipe.title}",
        "data": recipe.data,
        "steps": f"{recipe.steps:,} of {recipe.iterations:,}, {recipe.batch_size} images each{epochs}",
        "values": ", ".join(f"{name} {value}" for name, value in recipe.values().items()),
        "hardware": recipe.hardware,
        "time": f"{_duration(recipe)} ({recipe.basis})",
        "expect": recipe.expect,
    }
    for name, value in rows.items():
        print_line(f"{name:<10}{value}", target)
    for command in (recipe.command, *recipe.after):
        print_line(f"  {command}", target)


def _duration(recipe: Recipe) -> str:
    """The estimated time in words."""
    return f"about {recipe.hours:.0f} h" if recipe.hours >= 2 else f"about {max(1, round(recipe.hours * 60))} min"


def _as_json(recipe: Recipe) -> dict[str, Any]:
    derived = {name: getattr(recipe, name) for name in ("iterations", "steps", "hours", "command")}
    return {**vars(recipe), **derived, "flags": recipe.values()}
