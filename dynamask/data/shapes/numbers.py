"""Random numbers that are the same on every machine and with every version of NumPy.

NumPy guarantees the raw stream of its PCG64 generator and the mixing of its seed sequences, but not the numbers that
the methods of `Generator` derive from them. Therefore all draws are derived from the raw stream here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


class Stream:
    """A stream of draws that depends on its keys alone.

    Args:
        keys: non-negative integers, for example (seed, scene index, purpose).
    """

    def __init__(self, *keys: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(keys))

    def unit(self) -> float:
        """One draw, uniform in [0, 1)."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        """One draw, uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def integer(self, low: int, high: int) -> int:
        """One integer from low to high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def choice(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[int(self.unit() * len(items))]

    def bytes(self, *shape: int) -> np.ndarray:
        """Array of this shape, uint8, uniform in 0-255."""
        count = int(np.prod(shape))
        raw = np.asarray(self._bits.random_raw((count + 7) // 8), dtype="<u8")
        return raw.view(np.uint8)[:count].reshape(shape)
