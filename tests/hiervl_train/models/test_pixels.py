"""Frames are normalised once, in RGB unless the released fault is switched on."""

from __future__ import annotations

import pytest
import torch

from hiervl_train.models.pixels import MEAN, STD, normalise

FRAMES = torch.randint(0, 256, (2, 3, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_frames_are_normalised_by_imagenets_statistics():
    out = normalise(FRAMES)
    for channel in range(3):
        expected = (FRAMES[:, :, channel].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(out[:, :, channel].double(), expected, rtol=1e-5, atol=1e-5)
    assert normalise(FRAMES, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_bgr_swaps_colours_before_normalisation():
    torch.testing.assert_close(normalise(FRAMES, order="bgr"), normalise(FRAMES.flip(2)))
    assert not torch.equal(normalise(FRAMES, order="bgr"), normalise(FRAMES))


def test_normalising_twice_or_other_shapes_are_errors():
    with pytest.raises(TypeError, match="not normalised yet"):
        normalise(normalise(FRAMES))
    with pytest.raises(ValueError, match=r"\(…, 3, height, width\)"):
        normalise(FRAMES.transpose(2, 4))
