"""Embeddings of long samples from those of their windows.

Shapes in names: N samples, K windows, D width of the shared space.
"""

from __future__ import annotations

import numpy as np
import torch

from hiervl_train.models import HierVL
from hiervl_train.models.speed import SpeedConfig, autocast

_SAMPLES_PER_PASS = 256


def is_order_sensitive(model: HierVL) -> bool:
    """Return whether the model distinguishes orders of windows; one that averages them does not."""
    aggregator = model.config.aggregator
    return aggregator is not None and aggregator.kind != "average"


def aggregate_windows(model: HierVL, windows_NKD: np.ndarray, speed: SpeedConfig, device: torch.device) -> np.ndarray:
    """Return the embeddings (N, D) of long samples from those of their windows in temporal order.

    The model's aggregator computes them on `device`, in float32. A model that averages windows, or has no aggregator,
    gets their mean in float64 instead: all orders of the same windows then tie exactly, rather than differ by rounding.
    """
    if not is_order_sensitive(model):
        mean_ND: np.ndarray = windows_NKD.astype(np.float64).mean(axis=1)
        return mean_ND
    blocks = [np.empty((0, windows_NKD.shape[-1]), np.float32)]
    for start in range(0, len(windows_NKD), _SAMPLES_PER_PASS):
        block = torch.from_numpy(np.ascontiguousarray(windows_NKD[start : start + _SAMPLES_PER_PASS])).to(device)
        with torch.inference_mode(), autocast(device, speed):
            blocks.append(model.aggregate(block).float().cpu().numpy())
    return np.concatenate(blocks)
