"""A training step on clips with one text each: encodes both, in micro-batches, and passes the embeddings to a loss.

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
from hiervl_train.steps import Encoder, backward, micro_batches
from hiervl_train.task import NO_SCOPE, StepResult, StepScope


def pair_step(
    model: FineTuned,
    encoder: Encoder,
    video_BTCHW: Tensor,
    texts: Sequence[str],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    micro_batch: int | None,
    scope: StepScope = NO_SCOPE,
) -> StepResult:
    """Add the gradients of `loss(video_BD, text_BD)`, which gathers over ranks itself."""
    ids_BL, mask_BL = encoder.tokens(texts, like=video_BTCHW)

    def encode(rows: slice) -> tuple[Tensor, ...]:
        with graph_if(model.trains("video", "video_projection")):
            video_BD = encoder.video(video_BTCHW[rows])
        with graph_if(model.trains("text", "text_projection")):
            return video_BD, encoder.text(ids_BL[rows], mask_BL[rows])

    value = backward(micro_batches(len(video_BTCHW), micro_batch), encode, loss, scope)
    operations = None
    if has_known_flops(model):
        clip = flops.clip(model.config, frames=video_BTCHW.shape[1], text_tokens=ids_BL.shape[1], training=True)
        operations = len(video_BTCHW) * (
            clip.video * passes(model.trains("video"))
            + clip.text * passes(model.trains("text"))
            + clip.projections * (1 + flops.BACKWARD)
        )
    return StepResult(loss=value, clips=len(video_BTCHW), flops=operations)


def graph_if(is_trained: bool) -> AbstractContextManager[object]:
    """Return a context that records a graph only if something that encodes is trained."""
    return contextlib.nullcontext() if is_trained else torch.no_grad()


def has_known_flops(model: FineTuned) -> bool:
    """Return whether `flops` can count the operations of the model's text encoder."""
    return model.config.text.source is None and not model.config.text.settings


def passes(is_trained: bool) -> int:
    """Return the cost of a part in a training step, in forward passes."""
    return 1 + flops.BACKWARD if is_trained else 1
