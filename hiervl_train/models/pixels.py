"""Normalises decoded frames (uint8) for the video tower with ImageNet's mean and deviation, on the device.

Shapes in names: B batch, T frames, C colours, H and W pixels.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

ChannelOrder = Literal["rgb", "bgr"]


def normalise(frames_BTCHW: Tensor, *, order: ChannelOrder = "rgb", dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normalised floats of RGB frames, uint8 in 0–255, of any shape (…, 3, H, W).

    `order="bgr"` swaps red and blue before ImageNet's RGB statistics are applied. The released EPIC loader did so by
    mistake: use it only to reproduce the published zero-shot numbers. Raises TypeError on other dtypes, so that
    nothing is normalised twice.
    """
    if frames_BTCHW.dtype != torch.uint8:
        raise TypeError(f"frames are {frames_BTCHW.dtype}: expected uint8 in 0–255, not normalised yet")
    if frames_BTCHW.shape[-3] != 3:
        raise ValueError(f"frames are {tuple(frames_BTCHW.shape)}: expected (…, 3, height, width)")
    if order == "bgr":
        frames_BTCHW = frames_BTCHW.flip(-3)
    mean, std = _statistics(frames_BTCHW.device)
    return ((frames_BTCHW.float() / 255 - mean) / std).to(dtype)


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation on a device, (3, 1, 1) each; made once, as copying them there waits for the device."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, device="cpu").view(3, 1, 1).to(device) for values in (MEAN, STD))
    return mean, std
