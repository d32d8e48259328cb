"""Training in several processes, one per device, as started by ``torchrun``.

All processes run the same program. Every method of :class:`Ranks` that communicates is one collective operation, which
all processes must call at the same place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dynamask.ops.devices import AUTO, best_device
from dynamask.structures import DynaMaskError, ReportedElsewhereError

Value = TypeVar("Value")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables set by torchrun."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "Timed out")
CONTINUE, STOP, FAIL = range(3)
"""States of a process; the largest of them holds for all processes."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; the default is a single process, without communication.

    Attributes:
        rank: number of this process; process 0 writes files and messages.
        size: number of processes.
        local_rank: number of this process on its machine, which is the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """True for process 0."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process: if there are several, "cuda" becomes its own GPU, and "auto" is not MPS."""
        if self.size == 1:
            return name
        name = best_device(mps=False) if name == AUTO else name
        return f"cuda:{self.local_rank}" if name == "cuda" else name

    def share(self, values: list[Any]) -> list[Any]:
        """The consecutive part of a list that is this process's share."""
        return values[len(values) * self.rank // self.size : len(values) * (self.rank + 1) // self.size]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, without gradient; the same tensor if there is one process."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes by rank, in every process; they are pickled."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_first(self, make: Callable[[], Value]) -> Value:
        """Call a function in process 0 and return its result in all; its :class:`DynaMaskError` is raised in all."""
        value, error = None, None
        if self.first:
            try:
                value = make()
            except DynaMaskError as caught:
                error = caught
        self.agree(error=error)
        if self.size > 1:
            values = [value]
            dist.broadcast_object_list(values, src=0)
            value = values[0]
        return value  # type: ignore[return-value]

    def worst(self, state: int) -> int:
        """The largest of the processes' states."""
        if self.size == 1:
            return state
        joint = torch.tensor([state])
        dist.all_reduce(joint, dist.ReduceOp.MAX)
        return int(joint)

    def agree(self, stop: bool = False, error: Exception | None = None) -> bool:
        """Return True if any process stops; if any process has an error, all raise.

        Raises:
            ReportedElsewhereError: with the error of the first other process that has one.
            Exception: the error of this process, if it is the first that has one.
        """
        state = self.worst(FAIL if error else STOP if stop else CONTINUE)
        if state == FAIL and self.size > 1:
            texts = self.gather(None if error is None else str(error))
            reporting = next(rank for rank, text in enumerate(texts) if text is not None)
            if self.rank != reporting:
                raise ReportedElsewhereError(str(texts[reporting])) from error
        if error is not None:
            raise error
        return state == STOP

    def together(self, act: Callable[[], Value]) -> Value:
        """Call a function in every process; a :class:`DynaMaskError` or OSError in one of them ends all."""
        value, error = None, None
        try:
            value = act()
        except (DynaMaskError, OSError) as caught:
            error = caught
        self.agree(error=error)
        return value  # type: ignore[return-value]


SINGLE_PROCESS = Ranks()


@contextlib.contextmanager
def joined(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Join the processes started by torchrun, with gloo on the CPU and NCCL on CUDA; without torchrun, one process.

    Args:
        device: of the run, "cpu", "cuda" or "auto".
        environment: environment variables.

    Raises:
        DynaMaskError: variables of torchrun are missing, a GPU is missing, or another process cannot be reached or has
            ended.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return
    ranks = _read(device, environment)
    own = torch.device(ranks.device(device))
    if own.type == "cuda":
        torch.cuda.set_device(own)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo",
            rank=ranks.rank,
            world_size=ranks.size,
            device_id=own if own.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        raise DynaMaskError(
            f"process {ranks.rank} of {ranks.size} cannot reach the others at {environment['MASTER_ADDR']}:"
            f"{environment['MASTER_PORT']} ({error}); start all machines with the same torchrun address"
        ) from error
    try:
        yield ranks
    except RuntimeError as error:
        if not any(text in str(error) for text in _LOST):
            raise
        raise DynaMaskError(
            "another process of this training ended; its message says why, or it was killed (no memory left); "
            "--resume continues from the last state"
        ) from error
    finally:
        dist.destroy_process_group()


def _read(device: str, environment: Mapping[str, str]) -> Ranks:
    """Read and check the variables of torchrun."""
    missing = [name for name in ENVIRONMENT if name not in environment]
    if missing:
        raise DynaMaskError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(missing)} is not set; start several processes "
            "with torchrun --nproc-per-node N -m dynamask train …, and one without WORLD_SIZE"
        )
    ranks = Ranks(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    device = best_device(mps=False) if device == AUTO else device
    if device.startswith("mps"):
        raise DynaMaskError("--device mps is for one process; start without torchrun, or give --device cpu")
    if torch.device(device).type == "cuda":
        if ":" in device:
            raise DynaMaskError(f"--device {device} is one GPU for {ranks.size} processes; give --device cuda")
        found = torch.cuda.device_count()
        if ranks.local_rank >= found:
            raise DynaMaskError(
                f"process {ranks.local_rank} of this machine has no GPU, there are {found}; give torchrun "
                f"--nproc-per-node {found or 1}, or --device cpu"
            )
    return ranks
