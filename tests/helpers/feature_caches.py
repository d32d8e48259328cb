"""Caches of features without a model behind them."""

from __future__ import annotations

import torch

from dynamask.engine.frozen_features import FeatureCache
from helpers.small_models import tiny_model


def synthetic_cache(count: int = 120, views: int = 2, seed: int = 0) -> FeatureCache:
    """Instances, three an image, whose first feature channel says how much they gain from a finer mask."""
    generator = torch.Generator().manual_seed(seed)
    needs = torch.rand(count, generator=generator)
    rows = needs.repeat(views)
    quality = 0.9 - 0.5 * rows[:, None] * torch.tensor([1.0, 0.6, 0.3, 0.0])
    noise = torch.rand(count * views, 4, generator=generator)
    feature = 0.1 * torch.randn(count * views, 16, 14, 14, generator=generator)
    feature[:, 0] += rows[:, None, None] * 2 - 1
    instances = torch.arange(count).repeat(views)
    box = torch.tensor([[0.0, 0.0, 40.0, 40.0]]) + noise.cumsum(1)
    return FeatureCache(
        feature=feature.half(),
        mask_loss=1 - quality,
        edge_loss=1 - quality,
        boundary_error=1 - quality,
        overlap_error=1 - quality,
        mask_iou=quality,
        boundary_iou=quality + 0.01 * noise,
        switch_logits=noise,
        box=box,
        roi=box.clone(),
        label=torch.ones_like(instances),
        image_id=instances // 3,
        instance=instances,
        view=torch.arange(views).repeat_interleave(count),
        complexity=rows,
        about={"config": tiny_model().config.to_dict(), "macs_per_instance": [10, 30, 60, 100], "weights": "w"},
    )
