"""The training loop, for any model that returns named losses, in one process or in several started by torchrun.

python -m dynamask train --images DIR --annotations JSON --model NAME --out DIR [--resume]
torchrun --nproc-per-node N -m dynamask train …
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from tqdm import tqdm

from dynamask.data.loaders import Batch
from dynamask.engine.checkpoint import random_state, restore_random_state
from dynamask.engine.distributed import CONTINUE, FAIL, STOP
from dynamask.engine.folder_lock import locked
from dynamask.engine.log import LogError, RunLog
from dynamask.engine.run import Run
from dynamask.engine.step import train_step
from dynamask.structures import DynaMaskError, first_sentence

EXPECTED = (DynaMaskError, RuntimeError, MemoryError, OSError, ValueError, ArithmeticError)
"""Errors that data, settings or the machine can cause, such as too little memory; they are reported in a sentence."""


def freeze(model: nn.Module, part: str) -> None:
    """Exclude parameters from training.

    The features of frozen layers are still computed at every step.

    Args:
        model: changed in place.
        part: "detector" trains the mask branch and the modules that only it reads, "all-but-switch" the switch and
            the quality head alone.

    Raises:
        DynaMaskError: nothing would be left to train.
    """
    kept = ("mask_branch.switch.", "mask_branch.quality.")
    if part == "detector":
        detector = getattr(model, "detector", None)
        kept = ("mask_branch.", *(f"detector.{prefix}" for prefix in getattr(detector, "MASK_MODULES", ())))
    if not any(name.startswith(kept) for name, _ in model.named_parameters()):
        raise DynaMaskError(f"--freeze {part} leaves nothing to train: this mask branch has no switch; freeze less")
    for name, parameter in model.named_parameters():
        if not name.startswith(kept):
            parameter.requires_grad_(False)


@dataclass(frozen=True)
class Periodic:
    """An action that is repeated during training, such as an evaluation.

    Attributes:
        every: number of steps between two calls; 0 for never.
        act: called in every process with the run and, in the first process, its log (None in the others).
    """

    every: int
    act: Callable[[Run, RunLog | None], None]


def train(
    run: Run,
    on_save: Callable[[Run], None] | None = None,
    progress: bool = True,
    on_step: Callable[[Run, dict[str, float]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    periodic: Sequence[Periodic] = (),
) -> bool:
    """Train to ``config.iterations`` steps, or to ``config.stop_at``; calling it again continues.

    The state is saved every ``config.save_every`` steps, at the end, at a stop, and before an error ends the run, but
    not if a value is not finite or if the error is within a step of several processes. With several processes the first
    one logs, saves and shows the progress bar; a stop or an error in one of them ends all at the same step.

    Args:
        run: of a model and its data. During the warm start the switch of its mask branch is off.
        on_save: called in the first process after every saved state and at the end, to write weights.
        progress: show a progress bar.
        on_step: called after every step with the run and the values of :func:`train_step`.
        should_stop: called before every step; True saves the state and ends the training.
        periodic: further actions, in the order in which they are called.

    Returns:
        Whether the last step is done.

    Raises:
        DynaMaskError: a value is not finite, an image cannot be read, a file cannot be written, or another training
            uses the folder. The states saved before are intact.
    """
    with contextlib.ExitStack() as held:
        run.ranks.from_first(lambda: held.enter_context(locked(run.out)))
        return _train(run, on_save, progress, on_step, should_stop or (lambda: False), periodic)


def _train(
    run: Run,
    on_save: Callable[[Run], None] | None,
    progress: bool,
    on_step: Callable[[Run, dict[str, float]], None] | None,
    stopping: Callable[[], bool],
    periodic: Sequence[Periodic],
) -> bool:
    """:func:`train` in a folder that is locked."""
    config, ranks = run.config, run.ranks
    last = min(config.stop_at or config.iterations, config.iterations)
    completed = None  # the step of the last call of on_save
    run.prepare()
    log = RunLog(run.out, run.step) if ranks.first else None
    with (
        contextlib.closing(log) if log else contextlib.nullcontext(),
        tqdm(initial=run.step, total=last, disable=not (progress and log), unit="step", dynamic_ncols=True) as bar,
    ):
        while run.step < last and not ranks.agree(stop=stopping()):
            batch = _next_batch(run, stopping)
            if batch is None:
                break
            with _saved_on_error(run):
                run.set_phase()
                values = train_step(run, *batch)
                bar.update()
                if log and run.step % config.log_every == 0:
                    log.write(run.step, values)
                    bar.set_postfix(_bar_values(values))
                if on_step is not None:
                    on_step(run, values)
                for action in periodic:
                    if action.every and run.step % action.every == 0:
                        action.act(run, log)
            if run.step % config.save_every == 0:
                completed = _checkpoint(run, log, on_save)
        if completed != run.step:
            _checkpoint(run, log, on_save)
    return run.step >= last


def _bar_values(values: dict[str, float]) -> dict[str, str]:
    """The total loss and the loss of the masks, if the model has one, for the progress bar."""
    masks = [name for name in ("loss_mask", "loss_dice") if name in values][:1]
    return {name.removeprefix("loss_"): f"{values[name]:.3f}" for name in ("loss", *masks)}


def _checkpoint(run: Run, log: RunLog | None, on_save: Callable[[Run], None] | None) -> int:
    """Save the state of the run; returns its step."""
    if log:
        log.flush()
    if run.saved_step != run.step:
        run.save()
    if on_save is not None and run.ranks.first:
        on_save(run)
    return run.step


def _next_batch(run: Run, stopping: Callable[[], bool]) -> Batch | None:
    """The next batch; None if a process cannot read one because it is being stopped.

    Raises:
        Exception: a process cannot read its batch for another reason. The state is saved before.
    """
    batch, error = None, None
    try:
        batch = next(run.loader)
    except Exception as caught:
        error = caught
    # A signal that stops the processes of a training also stops their data loading workers.
    verdict = run.ranks.worst(CONTINUE if error is None else STOP if stopping() else FAIL)
    if verdict == CONTINUE:
        return batch
    if error is None:
        run.loader.give_back()
    if verdict == STOP:
        return None
    if run.step and run.saved_step != run.step:
        run.save()
    run.ranks.agree(error=None if error is None else _explained(run, error))
    return None


@contextlib.contextmanager
def _saved_on_error(run: Run) -> Iterator[None]:
    """Save the state before an error in a step, or in what follows it, ends the run.

    An error within a step leaves the state before that step. With several processes it is raised at once, since the
    others wait for this one; values that are not finite are as well, since the step would fail again. If the
    log cannot be written, the earlier state stays, whose log is complete.
    """
    step, random = run.step, random_state()
    try:
        yield
    except Exception as error:
        within = run.step == step
        if run.ranks.size > 1 or (within and isinstance(error, DynaMaskError)):
            raise
        if within:
            run.loader.give_back()
            restore_random_state(random)
        if run.step and run.saved_step != run.step and not isinstance(error, LogError):
            with contextlib.suppress(DynaMaskError):  # the first error is the one to report
                run.save()
        raise _explained(run, error) from error


def _explained(run: Run, error: Exception) -> Exception:
    """An error that ends a run, as a sentence that says which state is saved; errors of other kinds are mistakes in
    the program and get a note."""
    kept = bool(run.step) and run.saved_step == run.step
    saved = f"the state of step {run.step} is saved in {run.out}, and --resume continues from it" if kept else ""
    if not isinstance(error, EXPECTED):
        error.add_note(saved)
        return error
    text = str(error)
    if not isinstance(error, DynaMaskError):
        text = f"step {run.step} failed ({type(error).__name__}: {first_sentence(error)})"
    explained = DynaMaskError(f"{text}; {saved}" if saved else text)
    explained.__cause__ = error
    return explained
