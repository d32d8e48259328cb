"""Training in several processes, one a device, as ``torchrun`` starts them.

Every process runs the same program. What has to be the same in all of them (whether to stop, whether something failed)
is agreed here: each method is one collective, which every process must call at the same place.
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

from dynamask.structures import DynaMaskError, ReportedElsewhereError

Value = TypeVar("Value")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells its processes."""
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "Timed out")
FINE, STOP, FAILED = range(3)
"""What a process may say of itself; the worst counts for all."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; by default it is alone, and every method is immediate.

    Attributes:
        rank: its number; 0 writes the files and speaks.
        size: how many there are.
        local_rank: its number on its machine, which is that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process: ``cuda`` becomes its own GPU, if there are several processes."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.size > 1 else name

    def share(self, values: list[Any]) -> list[Any]:
        """This process's run of a list; all of them, one after another, are the list."""
        return values[len(values) * self.rank // self.size : len(values) * (self.rank + 1) // self.size]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, without gradient; the tensor itself where there is one process."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes by rank, in every process; anything that pickle takes."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, in all of them; a :class:`DynaMaskError` there is raised in all."""
        if self.size == 1:
            return make()
        told: list[Any] = [None, None]
        error: DynaMaskError | None = None
        if self.first:
            try:
                told[0] = make()
            except DynaMaskError as caught:
                error, told[1] = caught, str(caught)
        dist.broadcast_object_list(told, src=0)
        if error is not None:
            raise error
        if told[1] is not None:
            raise ReportedElsewhereError(told[1])
        return told[0]

    def worst(self, verdict: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return verdict
        told = torch.tensor([verdict])
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told)

    def agree(self, stop: bool = False, error: Exception | None = None) -> bool:
        """Whether any process wants to stop; an error of any is raised in all, by the others as one told elsewhere.

        Raises:
            DynaMaskError: of another process, as :class:`ReportedElsewhereError`.
            Exception: its own error.
        """
        verdict = self.worst(FAILED if error else STOP if stop else FINE)
        if verdict == FAILED and self.size > 1:
            texts = self.gather(None if error is None else str(error))
            speaker = next(rank for rank, text in enumerate(texts) if text is not None)
            if self.rank != speaker:
                raise ReportedElsewhereError(str(texts[speaker])) from error
        if error is not None:
            raise error
        return verdict == STOP

    def together(self, act: Callable[[], Value]) -> Value:
        """Do something in every process; what the user or the system got wrong in one fails in all."""
        value, error = None, None
        try:
            value = act()
        except (DynaMaskError, OSError) as caught:
            error = caught
        self.agree(error=error)
        return value  # type: ignore[return-value]


ALONE = Ranks()
"""One process."""


def check_device(name: str) -> None:
    """Refuse a device that does not exist or is not there, with :class:`DynaMaskError`."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise DynaMaskError(f"device {name!r} is not available here; use cpu") from error


@contextlib.contextmanager
def joined(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Join the processes that torchrun started, gloo on the CPU and nccl on CUDA; without torchrun, be alone.

    Args:
        device: of the run, "cpu" or "cuda".
        environment: where torchrun's words are read.

    Raises:
        DynaMaskError: the environment is not torchrun's, a GPU is missing, or the others cannot be reached or ended.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
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
        with _others_alive():
            yield ranks
    finally:
        dist.destroy_process_group()


def _read(device: str, environment: Mapping[str, str]) -> Ranks:
    """Ranks from the environment, checked."""
    missing = [name for name in ENVIRONMENT if name not in environment]
    if missing:
        raise DynaMaskError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(missing)} is not set; start several processes "
            "with torchrun --nproc-per-node N -m dynamask train …, and one without WORLD_SIZE"
        )
    ranks = Ranks(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
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


@contextlib.contextmanager
def _others_alive() -> Iterator[None]:
    """Say in one sentence that another process ended in mid-collective."""
    try:
        yield
    except RuntimeError as error:
        if not any(text in str(error) for text in _LOST):
            raise
        raise DynaMaskError(
            "another process of this training ended; its own message says why, or it was killed (no memory left); "
            "--resume goes on from the last state"
        ) from error
