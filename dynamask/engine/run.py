"""A training run: model, data, optimizer and schedule, and its state on disk, from which it can be resumed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dynamask.data.loaders import TrainingLoader
from dynamask.engine.checkpoint import (
    checkpoints,
    load_newest_run,
    random_state,
    restore_random_state,
    save_run,
    step_of,
)
from dynamask.engine.compiling import compile_body
from dynamask.engine.distributed import SINGLE_PROCESS, Ranks
from dynamask.engine.optimizer import WeightAverage, build_optimizer, load_optimizer
from dynamask.files import remove_partial_files
from dynamask.models.masks.region_fpn import RegionFPN
from dynamask.ops.devices import resolve_device
from dynamask.structures import DynaMaskError, first_sentence
from dynamask.training_config import TrainConfig

FREE_SETTINGS = (
    "train.workers",
    "train.save_every",
    "train.keep",
    "train.log_every",
    "train.stop_at",
    "train.val_every",
    "train.overlay_every",
    "train.accumulate",
    "train.checkpoint_stages",
    "train.compile",
)
"""Settings that may change when a run is resumed: the losses depend on them at most in their last bits and in random
draws within a step."""
CONTENTS = "annotation_digests"
"""Setting with the SHA-256 of the annotation files."""
COARSE_SIZES = 2
"""Number of mask sizes that are trained at a coarse start: 14 and 28."""
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LONGEST_VALUE = 60


@dataclasses.dataclass
class Run:
    """A training run: everything that is needed to continue it.

    Attributes:
        model: called as model(images, targets), it returns named losses; images are (3, H, W) float32 in [0, 1].
        loader: batches of any data set with a length; with several processes, this process's share of every batch.
        config: the schedule.
        out: folder of the run.
        weights: factor of every named loss; by default ``model.loss_weights``.
        settings: JSON values that must be equal when the run is resumed.
        step: number of steps done.
        saved_step: step of the last state that was saved or loaded.
        ranks: this process among those that train together.
        scaler: of the loss, in fp16.
        parallel: the model, in DistributedDataParallel if there are several processes.
    """

    model: nn.Module
    loader: TrainingLoader
    config: TrainConfig
    out: Path
    weights: dict[str, float] | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: int = 0
    saved_step: int | None = None
    average: WeightAverage | None = None
    optimizer: torch.optim.Optimizer | None = None
    ranks: Ranks = SINGLE_PROCESS
    scaler: torch.amp.GradScaler | None = None
    parallel: nn.Module | None = None

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.weights = self.weights or self.model.loss_weights
        self.model.to(self.device).train()
        self.optimizer = build_optimizer(self.model, self.config)
        self.average = WeightAverage(self.model, self.config.ema_decay) if self.config.ema_decay else None
        if self.config.precision == "fp16":
            self.scaler = torch.amp.GradScaler(self.device.type)
        if self.config.checkpoint_stages:
            region_fpn = getattr(self.branch, "region_fpn", None)
            if region_fpn is None:
                raise DynaMaskError(
                    "--checkpoint-stages is for a mask branch with region stages, and this model has none"
                )
            region_fpn.checkpoint_stages = True
        if self.config.compile:
            compile_body(self.model, self.device)
        self.parallel = self.model
        if self.ranks.size > 1:
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", "`broadcast_buffers` is deprecated"
                )  # its replacement does not exist in torch 2.0
                options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
                self.parallel = DistributedDataParallel(self.model, **options)
            self._seed_rank()

    def _seed_rank(self) -> None:
        """Seed this process differently from the others, by the run's seed and step and the number of the process."""
        state = np.random.SeedSequence((self.config.seed, self.step, self.ranks.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return resolve_device(self.ranks.device(self.config.device))

    @property
    def branch(self) -> Any:
        """The model's mask branch, if it has one."""
        return getattr(self.model, "mask_branch", None)

    @property
    def averaging_module(self) -> Any:
        """The module whose losses are divided by the number of positives, through its attribute ``means``, if any."""
        return next((module for module in self.model.modules() if hasattr(module, "means")), None)

    def set_phase(self) -> None:
        """Train the sizes, the switch and the offsets that this step trains."""
        if self.branch is None:
            return
        self.branch.switch_enabled = self.step >= self.config.warm_start * self.config.iterations
        if self.config.coarse_start:
            coarse = self.step < self.config.coarse_start * self.config.iterations
            self.branch.head.trained_sizes = COARSE_SIZES if coarse else None
        if self.config.offset_start and isinstance(self.branch.head, RegionFPN):
            self.branch.head.set_deformable(self.step >= self.config.offset_start * self.config.iterations)

    def tally(self) -> Tensor:
        """(T,) counts of the mask branch in the last forward pass, on the CPU; empty for a model without them."""
        return getattr(self.branch, "tally", torch.zeros(0)).cpu()

    def losses(
        self, images: list[Tensor], targets: list[dict[str, Any]], synchronised: bool = True
    ) -> dict[str, Tensor]:
        """Named losses in the run's precision; without ``synchronised`` the processes do not communicate."""
        dtype = PRECISIONS.get(self.config.precision)
        with torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext():
            return (self.parallel if synchronised else self.model)(images, targets)

    def without_sync(self) -> contextlib.AbstractContextManager[None]:
        """A context in which backward passes do not exchange gradients between processes."""
        return self.parallel.no_sync() if self.ranks.size > 1 else contextlib.nullcontext()

    def final_state(self) -> dict[str, Tensor]:
        """The weights to keep: the moving average, if there is one."""
        return self.average.state if self.average else self.model.state_dict()

    def evaluation_model(self) -> nn.Module:
        """A copy of the model with the weights to keep, in evaluation mode."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.final_state())
        return model.eval()

    def prepare(self) -> None:
        """Check the folder and remove files left by a process that was killed while writing.

        Raises:
            DynaMaskError: the folder holds a later state than this run's.
        """
        self.ranks.from_first(self._prepare)

    def _prepare(self) -> None:
        found = checkpoints(self.out)
        if found and step_of(found[-1]) > self.step:
            raise DynaMaskError(
                f"{self.out} holds {found[-1].name} already, and this run is at step {self.step}; resume that run "
                "or choose another folder"
            )
        remove_partial_files(self.out)

    def save(self) -> None:
        """Write the state atomically to ``out/run-STEP.pt`` and keep the last ``config.keep`` states.

        With several processes the first one writes, and all must call this, because their random states are part of
        the state.

        Raises:
            DynaMaskError: the file cannot be written, or the weights are not finite; earlier states are intact.
        """
        random_states = self.ranks.gather(random_state())
        self.ranks.from_first(lambda: self._save(random_states))
        self.saved_step = self.step

    def _save(self, random_states: list[dict[str, Any]]) -> None:
        average = {"state": self.average.state, "updates": self.average.updates} if self.average else None
        state = {
            "step": self.step,
            "settings": self.settings,
            "model": self.model.state_dict(),
            "average": average,
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "random": random_states,
            "parts": [self.ranks.size, self.config.accumulate],
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "threads": torch.get_num_threads(),
        }
        try:
            name = next((key for key, p in self.model.named_parameters() if not torch.isfinite(p).all()), None)
            if name is not None:
                raise DynaMaskError(f"the weights are not finite after step {self.step} ({name}) and are not saved")
            save_run(self.out, state, self.config.keep)
        except DynaMaskError as error:
            found = checkpoints(self.out)
            left = (
                f"{found[-1].name} is intact, and --resume continues from it" if found else "no state was saved before"
            )
            raise DynaMaskError(f"{error}; {left}") from error

    def resume(self) -> None:
        """Continue from the newest state in ``out`` that can be read.

        Another number of threads, processes or micro-batches than before gives a warning.

        Raises:
            DynaMaskError: no state can be read, or it was made with other settings or data, which the message names.
        """
        state = self.ranks.from_first(lambda: load_newest_run(self.out))
        self.ranks.together(lambda: self._restore(state))

    def _restore(self, state: dict[str, Any]) -> None:
        self._check_settings(state["settings"])
        if state["step"] > self.config.iterations:
            raise DynaMaskError(
                f"the state in {self.out} is that of step {state['step']}, and the run has {self.config.iterations} "
                "steps; it is damaged: choose another --out"
            )
        self.loader.load_state_dict(state["loader"])
        try:
            self._load(state)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DynaMaskError(
                f"the run in {self.out} has another model, or its state is damaged ({first_sentence(error)}); choose "
                "another --out"
            ) from error
        threads = state.get("threads", torch.get_num_threads())
        if threads != torch.get_num_threads():
            warnings.warn(
                f"the run was saved with {threads} threads and continues with {torch.get_num_threads()}: its losses "
                "may differ in their last bits",
                stacklevel=2,
            )

    def _load(self, state: dict[str, Any]) -> None:
        """Load weights, optimizer, average and random state; raise various errors if they do not fit the model."""
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.average:
            stored, own = state["average"]["state"], self.average.state
            if {name: value.shape for name, value in stored.items()} != {name: v.shape for name, v in own.items()}:
                raise ValueError("the averaged weights have other names or shapes")
            self.average.state, self.average.updates = stored, state["average"]["updates"]
        if self.scaler and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.step = self.saved_step = state["step"]
        self._restore_random(state)

    def _restore_random(self, state: dict[str, Any]) -> None:
        """Restore the random state; with another number of processes each gets a new seed."""
        ours, theirs = [self.ranks.size, self.config.accumulate], state.get("parts", [1, 1])
        if ours != theirs:
            warnings.warn(
                f"the run was saved with {theirs[0]} processes and {theirs[1]} micro-batches and continues with "
                f"{ours[0]} and {ours[1]}: the pictures stay the same, random draws within a step do not",
                stacklevel=2,
            )
        if ours[0] == theirs[0]:
            restore_random_state(state["random"][self.ranks.rank])
        else:
            self._seed_rank()

    def _check_settings(self, stored: dict[str, Any]) -> None:
        """Raise if settings that are known on both sides differ."""
        theirs, ours = flattened(stored), flattened(self.settings)
        changed = [
            f"{key} {_shortened(theirs[key])}, now {_shortened(ours[key])}"
            for key in theirs
            if key in ours and key not in (*FREE_SETTINGS, CONTENTS) and theirs[key] != ours[key]
        ]
        if changed:
            raise DynaMaskError(
                f"the run in {self.out} was started with other settings ({'; '.join(changed)}); "
                "resume it with the same ones or choose another --out"
            )
        if theirs.get(CONTENTS) != ours.get(CONTENTS) and CONTENTS in theirs.keys() & ours.keys():
            raise DynaMaskError(
                f"the annotations have changed since the run in {self.out} was started; resume it with the same file, "
                f"or start a new run from its weights with --init {self.out}/last.safetensors and another --out"
            )


def flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names: {"train": {"lr": 1}} → {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _shortened(value: object) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
