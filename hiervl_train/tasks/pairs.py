"""A step on clips with a text each: encodes both, in parts where asked for, and hands the embeddings to a loss.

Shapes in names: B this rank's clips, T frames, C colours, H and W pixels, L tokens, D embedding width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from hiervl_train.models import flops
from hiervl_train.models.finetuned import FineTuned
from hiervl_train.steps import Encoder, StepResult, backward, micro_batches


def pair_step(
    model: FineTuned,
    encoder: Encoder,
    video_BTCHW: Tensor,
    texts: Sequence[str],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    micro_batch: int | None,
) -> StepResult:
    """Add the gradients of `loss(video_BD, text_BD)`, which gathers over ranks itself."""
    ids_BL, mask_BL = encoder.tokens(texts, like=video_BTCHW)

    def encode(part: slice) -> tuple[Tensor, ...]:
        with graph_if(model.trains("video", "video_projection")):
            video_BD = encoder.video(video_BTCHW[part])
        with graph_if(model.trains("text", "text_projection")):
            return video_BD, encoder.text(ids_BL[part], mask_BL[part])

    value = backward(micro_batches(len(video_BTCHW), micro_batch), encode, loss)
    count = None
    if has_known_flops(model):
        one = flops.clip(model.config, frames=video_BTCHW.shape[1], text_tokens=ids_BL.shape[1])
        count = len(video_BTCHW) * (
            one.video * passes(model.trains("video"))
            + one.text * passes(model.trains("text"))
            + one.projections * (1 + flops.BACKWARD)
        )
    return StepResult(loss=value, clips=len(video_BTCHW), flops=count)


def graph_if(learns: bool) -> AbstractContextManager[object]:
    """Return the context of encoding: without a graph where nothing that encodes learns."""
    return contextlib.nullcontext() if learns else torch.no_grad()


def has_known_flops(model: FineTuned) -> bool:
    """Return whether `flops` knows the model's text encoder."""
    return model.config.text.source is None and not model.config.text.settings


def passes(learns: bool) -> int:
    """Return how many times the operations of its forward pass a part takes in a training step."""
    return 1 + flops.BACKWARD if learns else 1
