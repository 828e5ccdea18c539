"""From decoded frames (uint8) to what the video tower takes: ImageNet's mean and deviation, on the device.

Shapes in names: B batch, T frames, C colours, H and W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

ChannelOrder = Literal["rgb", "bgr"]


def normalise(frames_BTCHW: Tensor, *, order: ChannelOrder = "rgb", dtype: torch.dtype = torch.float32) -> Tensor:
    """Return RGB frames of 0–255 (uint8) as normalised floats.

    `order="bgr"` swaps red and blue before ImageNet's RGB statistics are applied, which is wrong and is what the
    released EPIC loader fed: it is here to reproduce the published zero-shot numbers, and for nothing else.
    """
    if frames_BTCHW.dtype != torch.uint8:
        raise TypeError(f"frames are {frames_BTCHW.dtype}: uint8 of 0–255 is expected, normalised only once")
    if frames_BTCHW.shape[-3] != 3:
        raise ValueError(f"frames are {tuple(frames_BTCHW.shape)}: 3 colours are expected third from the end")
    if order == "bgr":
        frames_BTCHW = frames_BTCHW.flip(-3)
    mean = torch.tensor(MEAN, device=frames_BTCHW.device).view(3, 1, 1)
    std = torch.tensor(STD, device=frames_BTCHW.device).view(3, 1, 1)
    return ((frames_BTCHW.float() / 255 - mean) / std).to(dtype)
