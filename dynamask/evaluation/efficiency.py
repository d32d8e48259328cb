"""Timing of several cases in one process, memory use, and a description of the machine.

In every round each case runs once, in rotating order, so that a machine that slows down affects all cases alike.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

Case = Callable[[int], object]
"""A function that is timed; its argument is the number of the round."""


def cpu_name() -> str:
    """Model name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident(field: str) -> int:
    """Resident memory of this process in bytes (Linux): "VmRSS" now, "VmHWM" its peak since the start or a reset.

    The peak that ``getrusage`` gives for a child process includes its parent's, so it cannot compare cases.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def machine() -> dict[str, Any]:
    """The machine and the library versions; ``load`` is the current one-minute load average."""
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def machine_line(facts: dict[str, Any]) -> str:
    """The result of :func:`machine` in one line."""
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, torch {facts['torch']}, "
        f"torchvision {facts['torchvision']}, load {facts['load']} at the start"
    )


def synchronise(device: torch.device) -> None:
    """Wait for all work that was submitted to a CUDA device; nothing to do for other devices."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Name of the GPU or the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def interleave(
    cases: dict[str, Case], rounds: int, warmup: int = 2, device: torch.device | None = None
) -> dict[str, np.ndarray]:
    """Time cases in interleaved rounds.

    Args:
        cases: functions by name.
        rounds: timed runs of each case.
        warmup: rounds before these that are not timed; their numbers are negative.
        device: synchronised before and after every case.

    Returns:
        (rounds,) milliseconds by case.
    """
    on = device or torch.device("cpu")
    names, times = list(cases), {name: np.zeros(rounds) for name in cases}
    for number in range(-warmup, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            synchronise(on)
            start = time.perf_counter()
            cases[name](number)
            synchronise(on)
            if number >= 0:
                times[name][number] = (time.perf_counter() - start) * 1e3
    return times


def rows_of(
    part: str, times: dict[str, np.ndarray], reference: str, extra: dict[str, dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """One row per case: quantiles in milliseconds, median ratio to the reference case, and its ``extra`` values."""
    return [
        {
            "part": part,
            "case": name,
            "median_ms": float(np.median(values)),
            "p10_ms": float(np.quantile(values, 0.1)),
            "p90_ms": float(np.quantile(values, 0.9)),
            "ratio": float(np.median(values / times[reference])),
            "reference": reference,
            **(extra or {}).get(name, {}),
        }
        for name, values in times.items()
    ]
