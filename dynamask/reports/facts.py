"""What a report's figures rest on: checkpoint, data, split, seed and command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dynamask.models.hub import find_weights
from dynamask.models.weights import file_digest, list_baselines, list_bundled, read_header


@dataclass(frozen=True)
class Source:
    """Where figures come from.

    Attributes:
        weights: bundled name or path, as given.
        data: the data set in words.
        split: which of its pictures, in words.
        command: that makes the report again.
    """

    weights: str
    data: str
    split: str
    command: str


def checkpoint_facts(weights: str) -> dict[str, Any]:
    """What is known of a bundled name or a file: its ``sha256`` and ``model``, and, None where it does not say,
    ``images_seen``, ``seed`` of the training, and ``budget_target`` of the switch. ``switch_trained`` is false where
    the training never left its phase without the switch; ``baseline`` says whether it is bundled to compare with.

    Raises:
        DynaMaskError: there are no such weights.
    """
    path, entry = find_weights(weights), {**list_bundled(), **list_baselines()}.get(weights, {})
    header = read_header(path)
    seen = entry.get("images_seen", header["training"].get("images_seen"))
    training = header["training"]
    seed = entry.get("seed", training.get("train", {}).get("seed"))
    losses = training.get("switch", training).get("losses", {})
    return {
        "sha256": file_digest(path),
        "model": header["config"]["name"],
        "images_seen": seen,
        "seed": seed,
        "budget_target": losses.get("budget_target"),
        "baseline": weights in list_baselines(),
        "switch_trained": "switch" in training or training.get("train", {}).get("warm_start", 0.0) < 1.0,
    }


def fact_lines(source: Source, checkpoint: dict[str, Any], **more: object) -> list[tuple[str, str]]:
    """(name, value) pairs for the head of a report; ``more`` are further facts, underscores shown as blanks."""
    seen = checkpoint["images_seen"]
    return [
        (
            "weights",
            f"{source.weights} ({checkpoint['model']}, {'unknown' if seen is None else f'{seen:,}'} images seen)",
        ),
        ("checkpoint", f"sha256 {checkpoint['sha256']}"),
        ("data", source.data),
        ("split", source.split),
        *(
            (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
            for name, value in more.items()
        ),
        ("command", source.command),
    ]
