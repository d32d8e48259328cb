"""Tensors in safetensors files: written with equal bytes for equal content, and checked when they are read."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from dynamask.files import replacing

_LARGEST = 1e10
"""No trained weight or running variance is nearly as large."""


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file atomically; equal arguments give equal bytes.

    The library writes the header in random order, so the header is added here: length (8 bytes, little-endian), JSON,
    spaces up to a multiple of 8 bytes.
    """
    plain = save(tensors)
    end = 8 + int.from_bytes(plain[:8], "little")
    text = json.dumps({"__metadata__": header, **json.loads(plain[8:end])}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.write(memoryview(plain)[end:])


def value_problems(stored: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """What is wrong with the numbers of a file's tensors, each a clause."""
    found: dict[str, list[str]] = {}
    for key, mine in own.items():
        value = stored[key]
        if value.is_floating_point() != mine.is_floating_point() or value.is_complex():
            found.setdefault("hold numbers of another type than the model's", []).append(key)
            continue
        largest = float(value.float().abs().max()) if value.is_floating_point() and value.numel() else 0.0
        if not math.isfinite(largest):
            found.setdefault("hold numbers that are not finite", []).append(key)
        elif largest > _LARGEST:
            found.setdefault(f"hold numbers above {_LARGEST:g}", []).append(key)
        elif largest == 0 and mine.dim() > 1 and mine.any():
            found.setdefault("hold only zeros", []).append(key)
    return [f"{len(keys)} tensors {problem}, first {keys[0]}" for problem, keys in found.items()]
