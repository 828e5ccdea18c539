"""Faults of the release that can be switched on to reproduce released numbers; none of them is on by default."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hiervl_train.models.pixels import ChannelOrder


@dataclass(frozen=True, kw_only=True)
class CompatConfig:
    """One key a fault; `optim.apply_zero_grads` is one more."""

    channel_order: ChannelOrder = "rgb"  # bgr: the released EPIC loader's swapped red and blue
    released_eps: bool = False  # optim.eps times the number of GPUs: the released gradients were 1/GPUs
    dual_softmax: bool = False  # the released EPIC test's normalisation over all queries, see `dual_softmax`


def dual_softmax(text_ND: Tensor, video_MD: Tensor, temperature: float = 500.0) -> Tensor:
    """Return the released EPIC test's scores (N, M) of unnormalised embeddings, every sentence against every video.

    S = T·Vᵀ; softmax over videos of S / 500, times S; then softmax over sentences. A sentence's score so depends
    on all other sentences of the test, which a retrieval system would not have: report it beside plain cosine.
    """
    scores_NM = text_ND.double() @ video_MD.double().T
    return ((scores_NM / temperature).softmax(dim=1) * scores_NM).softmax(dim=0)
