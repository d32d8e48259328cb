"""A training run: what it consists of, its log, and its state on the disk that survives the end of the process."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from dynamask.config import LossConfig, ModelConfig, TrainConfig
from dynamask.data.loaders import TrainingLoader
from dynamask.engine.checkpoint import (
    checkpoints,
    load_newest_run,
    random_state,
    restore_random_state,
    save_run,
    step_of,
)
from dynamask.engine.optimizer import WeightAverage, build_optimizer
from dynamask.files import replacing, system_reason
from dynamask.structures import DynaMaskError

FREE_SETTINGS = ("train.workers", "train.save_every", "train.keep", "train.log_every", "train.stop_at")
"""Settings that may change when a run is resumed: no loss depends on them."""
_LONGEST_VALUE = 60


class RunLog:
    """Scalars of a run: one row of ``log.csv`` and TensorBoard points at each :meth:`write`.

    Args:
        out: folder of the run.
        step: where the run stands; rows after it, torn rows and repeated ones are removed.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.path = out / "log.csv"
        self._truncate(step)
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def _truncate(self, step: int) -> None:
        """Keep whole rows up to a step, each step once."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        header, *rows = text.splitlines(keepends=True) or [""]
        kept, last = [header], 0
        for row in rows:
            cells = row.split(",")
            whole = row.endswith("\n") and len(cells) == header.count(",") + 1 and cells[0].isdecimal()
            if whole and last < int(cells[0]) <= step:
                kept, last = [*kept, row], int(cells[0])
        if len(kept) == 1:
            self.path.unlink()
        elif "".join(kept) != text:
            with replacing(self.path) as stream:
                stream.write("".join(kept).encode())

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step; nine digits, so that a float32 is told exactly.

        Raises:
            DynaMaskError: the disk is full, or the file cannot be written for another reason.
        """
        try:
            new = not self.path.exists()
            with self.path.open("a", newline="", encoding="utf-8") as stream:
                rows = csv.writer(stream, lineterminator="\n")
                if new:
                    rows.writerow(["step", *values])
                rows.writerow([step, *(f"{value:.9g}" for value in values.values())])
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        except OSError as error:
            raise self._refused(error) from error

    def flush(self) -> None:
        """Bring everything written so far to the disk; raises as :meth:`write`."""
        try:
            self.writer.flush()
            if self.path.exists():
                with self.path.open("rb+") as stream:
                    os.fsync(stream.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Close the TensorBoard file; what it cannot write any more is given up."""
        try:
            self.writer.close()
        except OSError as error:
            warnings.warn(f"the TensorBoard log could not be completed ({system_reason(error)})", stacklevel=2)

    def _refused(self, error: OSError) -> DynaMaskError:
        return DynaMaskError(
            f"the log in {self.path.parent} cannot be written ({system_reason(error)}), and the saved states are "
            "intact; make room, then --resume goes on from the last one"
        )


@dataclasses.dataclass
class Run:
    """A training run: everything that a resumed one needs again.

    Attributes:
        model: called as model(images, targets) → named losses; images are (3, H, W) float32 in [0, 1].
        loader: of any data set with a length.
        config: the schedule.
        weights: factor of every named loss.
        out: folder of the run.
        settings: JSON values that must be the same when the run is resumed.
        step: steps done.
        saved_step: the step of the last state that this process wrote or read.
    """

    model: nn.Module
    loader: TrainingLoader
    config: TrainConfig
    weights: dict[str, float]
    out: Path
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: int = 0
    saved_step: int | None = None
    average: WeightAverage | None = None
    optimizer: torch.optim.Optimizer | None = None

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.model.to(self.config.device).train()
        self.optimizer = build_optimizer(self.model, self.config)
        self.average = WeightAverage(self.model, self.config.ema_decay) if self.config.ema_decay else None

    def final_state(self) -> dict[str, Tensor]:
        """The weights to keep: the moving average where there is one."""
        return self.average.state if self.average else self.model.state_dict()

    def prepare(self) -> None:
        """Make the folder fit for training on: no left-overs of a process that was killed while it wrote.

        Raises:
            DynaMaskError: the folder holds a later state than the run's, which training on would spoil.
        """
        found = checkpoints(self.out)
        if found and step_of(found[-1]) > self.step:
            raise DynaMaskError(
                f"{self.out} holds {found[-1].name} already, and this run stands at step {self.step}; resume that run "
                "or choose another folder"
            )
        for partial in self.out.glob("run-*.pt.partial"):
            partial.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the run's state atomically to ``out/run-STEP.pt`` and keep the last ``config.keep``.

        Raises:
            DynaMaskError: it cannot be written, or the weights are not finite; the states before it are intact.
        """
        average = {"state": self.average.state, "updates": self.average.updates} if self.average else None
        state = {
            "step": self.step,
            "settings": self.settings,
            "model": self.model.state_dict(),
            "average": average,
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "random": random_state(),
            "threads": torch.get_num_threads(),
        }
        try:
            name = next((key for key, p in self.model.named_parameters() if not torch.isfinite(p).all()), None)
            if name is not None:
                raise DynaMaskError(f"the weights are not finite after step {self.step} ({name}) and are not saved")
            save_run(self.out, state, self.config.keep)
        except DynaMaskError as error:
            found = checkpoints(self.out)
            left = f"{found[-1].name} is intact, and --resume goes on from it" if found else "no state was saved before"
            raise DynaMaskError(f"{error}; {left}") from error
        self.saved_step = self.step

    def resume(self) -> None:
        """Go on from the newest state in ``out`` that can be read; another number of threads gives a warning.

        Raises:
            DynaMaskError: no state can be read, or it was made with other settings or data, which are named.
        """
        state = load_newest_run(self.out)
        self._check_settings(state["settings"])
        self.loader.load_state_dict(state["loader"])
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise DynaMaskError(f"the run in {self.out} has another model; choose another --out") from error
        if self.average:
            self.average.state, self.average.updates = state["average"]["state"], state["average"]["updates"]
        restore_random_state(state["random"])
        self.step = self.saved_step = state["step"]
        threads = state.get("threads", torch.get_num_threads())
        if threads != torch.get_num_threads():
            warnings.warn(
                f"the run was saved with {threads} threads and goes on with {torch.get_num_threads()}: its losses may "
                "differ in their last bits",
                stacklevel=2,
            )

    def _check_settings(self, stored: dict[str, Any]) -> None:
        """Refuse other settings than the stored ones, naming each with both values.

        A setting that only one side has did not exist for the other: there it counts as its default.
        """
        defaults = default_settings()
        theirs, ours = defaults | flattened(stored), defaults | flattened(self.settings)
        changed = [
            f"{key} {_shown(theirs[key])}, now {_shown(ours[key])}"
            for key in theirs
            if key in ours and key not in FREE_SETTINGS and theirs[key] != ours[key]
        ]
        if changed:
            raise DynaMaskError(
                f"the run in {self.out} was started with other settings ({'; '.join(changed)}); "
                "resume it with the same ones or choose another --out"
            )


def flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names: {"train": {"lr": 1}} → {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def default_settings() -> dict[str, Any]:
    """The defaults of every configuration, by dotted names, as JSON keeps them."""
    configs = {"train": TrainConfig(), "losses": LossConfig(), "model": ModelConfig()}
    values = {name: dataclasses.asdict(config) for name, config in configs.items()}
    return flattened(json.loads(json.dumps(values)))


def _shown(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
