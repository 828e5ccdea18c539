"""The child and the parent training step: from a batch of frames and texts to gradients of the global batch's loss.

Shapes in names: B summaries or clips of this rank, K windows or narrations, T frames, C colours, H and W pixels,
L tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hiervl_train.config import PretrainConfig
from hiervl_train.fit import MicroBatches, Size
from hiervl_train.grad_cache import cached_backward
from hiervl_train.models import flops
from hiervl_train.models.hiervl import HierVL
from hiervl_train.models.pixels import ChannelOrder, normalise
from hiervl_train.models.speed import SpeedConfig, autocast
from hiervl_train.objectives import Tags, child_loss, parent_loss
from hiervl_train.task import NO_SCOPE, Step, StepResult, StepScope
from hiervl_train.tokenizer import Tokenizer
from hiervl_train.transfer import to_device
from shards.loader import Batch

_PROBE_TOKENS = 64  # of the texts with which memory is measured: more than narrations have


class Encoder:
    """Encodes frames and texts as batches have them, to float32, in which they are gathered and compared."""

    def __init__(self, model: HierVL, tokenizer: Tokenizer, *, speed: SpeedConfig, order: ChannelOrder) -> None:
        self._model, self._tokenizer, self._speed, self._order = model, tokenizer, speed, order

    def tokens(self, texts: Sequence[str], *, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids and mask (B, L) of texts, on the device of `like`."""
        ids_BL, mask_BL = self._tokenizer(texts)
        return to_device(ids_BL, like.device), to_device(mask_BL, like.device)

    def video(self, frames_BTCHW: Tensor) -> Tensor:
        """Return (B, D) of uint8 frames."""
        pixels = normalise(frames_BTCHW, order=self._order)
        with autocast(frames_BTCHW.device, self._speed):
            return self._model.encode_video(pixels).float()

    def text(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return (B, D) of tokens."""
        with autocast(ids_BL.device, self._speed):
            return self._model.encode_text(ids_BL, mask_BL).float()

    def aggregate(self, x_BKD: Tensor) -> Tensor:
        """Return (B, D) of K ordered embeddings."""
        with autocast(x_BKD.device, self._speed):
            return self._model.aggregate(x_BKD).float()


class PretrainSteps:
    """The child and the parent step of a configuration; each adds gradients to the model's parameters."""

    def __init__(self, model: HierVL, tokenizer: Tokenizer, config: PretrainConfig, *, world: int = 1) -> None:
        """`world` is the number of ranks, which share each global batch."""
        self._config, self._model = config, model
        self._encoder = Encoder(model, tokenizer, speed=config.speed, order=config.compat.channel_order)
        self.by_type: dict[str, Step] = {"child": self._child, "parent": self._parent}
        schedule = config.schedule
        share: dict[str, int] = {}
        if config.objective.child is not None:
            share["child"] = max(1, schedule.clips // world)
        if config.objective.parent is not None:
            share["parent"] = max(1, schedule.summaries // world)
        size: dict[str, Size] = {"child": schedule.clip_micro_batch, "parent": schedule.summary_micro_batch}
        self.micro_batches = MicroBatches(share=share, size={name: size[name] for name in share}, probe=self._probe)

    def _child(self, batch: Batch, scope: StepScope = NO_SCOPE) -> StepResult:
        """Compare clips with their narrations."""
        config, tags = self._config, Tags(verbs_BV=batch.verbs_BV, nouns_BO=batch.nouns_BO)
        video_BTCHW = batch.video
        ids_BL, mask_BL = self._encoder.tokens(batch.texts, like=video_BTCHW)
        loss = backward(
            micro_batches(len(video_BTCHW), self.micro_batches.of("child")),
            lambda rows: self._encode_clips(video_BTCHW[rows], ids_BL[rows], mask_BL[rows]),
            lambda video_BD, text_BD: child_loss(video_BD, text_BD, tags, config.objective),
            scope,
        )
        operations = None
        if self._has_known_flops:
            clip = flops.clip(config.model, frames=video_BTCHW.shape[1], text_tokens=ids_BL.shape[1], training=True)
            operations = len(video_BTCHW) * clip.train
        return StepResult(loss=loss, clips=len(video_BTCHW), flops=operations)

    def _parent(self, batch: Batch, scope: StepScope = NO_SCOPE) -> StepResult:
        """Compare aggregated windows and aggregated narrations with the summary, as the objective says."""
        config, tags = self._config, Tags(verbs_BV=batch.verbs_BV, nouns_BO=batch.nouns_BO)
        video_BKTCHW, objective = batch.video, config.objective
        count, windows = video_BKTCHW.shape[:2]
        narrations = [text for texts in batch.narrations for text in texts]
        ids_BKL, mask_BKL = (x.unflatten(0, (count, -1)) for x in self._encoder.tokens(narrations, like=video_BKTCHW))
        ids_BL, mask_BL = self._encoder.tokens(batch.texts, like=video_BKTCHW)
        texts = (ids_BKL, mask_BKL, ids_BL, mask_BL)

        def loss(windows_BKD: Tensor, *texts: Tensor) -> Tensor:
            remaining = iter(texts)
            narrations_BKD = next(remaining) if self._has_narrations else None
            summary_BD = next(remaining) if self._has_summary else None
            return parent_loss(windows_BKD, narrations_BKD, summary_BD, tags, self._encoder.aggregate, objective)

        value = backward(
            micro_batches(count, self.micro_batches.of("parent")),
            lambda rows: self._encode_summaries(video_BKTCHW[rows], *(x[rows] for x in texts)),
            loss,
            scope,
        )
        operations = None
        if self._has_known_flops:
            operations = count * flops.summary_train(
                config.model,
                frames=video_BKTCHW.shape[2],
                windows=windows,
                narrations=ids_BKL.shape[1] if self._has_narrations else 0,
                text_tokens=max(ids_BKL.shape[2], ids_BL.shape[1]),
            )
        return StepResult(loss=value, clips=count * windows, flops=operations)

    def _encode_clips(self, video_BTCHW: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, ...]:
        """Return the embeddings of clips and of their texts, (B, D) each."""
        return self._encoder.video(video_BTCHW), self._encoder.text(ids_BL, mask_BL)

    def _encode_summaries(
        self, video_BKTCHW: Tensor, ids_BKL: Tensor, mask_BKL: Tensor, ids_BL: Tensor, mask_BL: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the embeddings of windows (B, K, D) and, if used, of narrations (B, K, D) and summaries (B, D)."""
        size, windows = video_BKTCHW.shape[:2]
        encoded = [self._encoder.video(video_BKTCHW.flatten(0, 1)).unflatten(0, (size, windows))]
        if self._has_narrations:
            embeddings = self._encoder.text(ids_BKL.flatten(0, 1), mask_BKL.flatten(0, 1))
            encoded.append(embeddings.unflatten(0, (size, -1)))
        if self._has_summary:
            encoded.append(self._encoder.text(ids_BL, mask_BL))
        return tuple(encoded)

    def _probe(self, step_type: str, rows: int) -> None:
        """Encode made-up rows with their graph, and go back: what a micro-batch of this size needs; see `fit`."""
        sample, device = self._config.sample, next(self._model.parameters()).device
        size = (3, *self._config.model.image_hw)
        length = min(_PROBE_TOKENS, self._model.text.max_length)

        def tokens(*shape: int) -> tuple[Tensor, Tensor]:
            ids = torch.zeros(*shape, length, dtype=torch.long, device=device)
            return ids, torch.ones_like(ids)

        if step_type == "child":
            video = torch.zeros(rows, sample.frames, *size, dtype=torch.uint8, device=device)
            encoded = self._encode_clips(video, *tokens(rows))
        else:
            video = torch.zeros(rows, sample.windows, sample.frames, *size, dtype=torch.uint8, device=device)
            encoded = self._encode_summaries(video, *tokens(rows, sample.narrations), *tokens(rows))
        torch.autograd.backward(encoded, [torch.ones_like(x) for x in encoded])

    @property
    def _has_narrations(self) -> bool:
        return self._config.objective.parent != "video_to_summary"

    @property
    def _has_summary(self) -> bool:
        return self._config.objective.parent != "video_to_narrations"

    @property
    def _has_known_flops(self) -> bool:
        return self._config.model.text.source is None


def micro_batches(count: int, size: int | None) -> list[slice]:
    """Return slices of at most `size` that cover 0 … count − 1; a single slice where `size` is None."""
    size = size or max(1, count)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def backward(
    slices: Sequence[slice],
    encode: Callable[[slice], tuple[Tensor, ...]],
    loss: Callable[..., Tensor],
    scope: StepScope = NO_SCOPE,
) -> Tensor:
    """Add the gradients of `loss(*encode(everything))`; return the detached loss.

    A single slice is encoded once; several are encoded twice, by cached gradients, with the memory of one.
    """
    if len(slices) > 1:
        return cached_backward(slices, encode, loss, scope)
    scope.phase("forward")
    value = loss(*encode(slices[0]))
    scope.phase("backward")
    with scope.last_backward():
        value.backward()
    return value.detach()
