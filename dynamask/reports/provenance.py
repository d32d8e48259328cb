"""Where the figures of a report come from: weights, data, split and command."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from dynamask.models.hub import find_weights
from dynamask.models.weights import file_digest, list_baselines, list_bundled, read_header


@dataclass(frozen=True)
class Provenance:
    """Data and command of a report.

    Attributes:
        data: name of the data set.
        split: which of its pictures, in words.
        command: the command that makes the report.
    """

    data: str
    split: str
    command: str


@dataclass(frozen=True)
class Checkpoint:
    """A weights file and its training; what the file does not say is None.

    Attributes:
        sha256: SHA-256 of the file in hex.
        model: name of its configuration.
        images_seen: number of images seen in training.
        seed: seed of the training.
        budget_target: budget that the switch was trained for, as a share of the full MACs.
        baseline: True for the bundled baselines.
        switch_trained: True if the training used the switch.
        training: the header's record of the training.
    """

    sha256: str
    model: str
    images_seen: int | None = None
    seed: int | None = None
    budget_target: float | None = None
    baseline: bool = False
    switch_trained: bool = True
    training: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def trained_on(self) -> str:
        """Data of the training, as its command named them."""
        data = self.training.get("data") or "unknown"
        return data if isinstance(data, str) else ", ".join(data)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without the record of the training."""
        return {name: value for name, value in asdict(self).items() if name != "training"}


def read_checkpoint(weights: str) -> Checkpoint:
    """The checkpoint of a bundled name or a file; :class:`DynaMaskError` if there is none."""
    path, entry = find_weights(weights), {**list_bundled(), **list_baselines()}.get(weights, {})
    header = read_header(path)
    training = header["training"]
    return Checkpoint(
        sha256=file_digest(path),
        model=header["config"]["name"],
        images_seen=entry.get("images_seen", training.get("images_seen")),
        seed=entry.get("seed", training.get("train", {}).get("seed")),
        budget_target=training.get("switch", training).get("losses", {}).get("budget_target"),
        baseline=weights in list_baselines(),
        switch_trained="switch" in training or training.get("train", {}).get("warm_start", 0.0) < 1.0,
        training=training,
    )
