"""Pictures to the network's input: torchvision's transform with a test size of its own."""

from __future__ import annotations

from torchvision.models.detection.transform import GeneralizedRCNNTransform


class TwoSizeTransform(GeneralizedRCNNTransform):
    """torchvision's transform, whose last ``min_size`` is the test size: training draws from the others alone."""

    def torch_choice(self, k: list[int]) -> int:
        """One of the training sizes, from torch's global generator."""
        return super().torch_choice(list(k)[:-1])
