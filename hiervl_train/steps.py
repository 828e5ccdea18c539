"""One training step of each level: from a batch of frames and texts to gradients of the global batch's loss.

Shapes in names: B summaries or clips of this rank, K windows or narrations, T frames, C colours, H and W pixels,
L tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hiervl_train.config import PretrainConfig
from hiervl_train.grad_cache import cached_backward
from hiervl_train.models import HierVL, flops
from hiervl_train.models.pixels import ChannelOrder, normalise
from hiervl_train.models.speed import SpeedConfig, autocast
from hiervl_train.objectives import Tags, child_loss, parent_loss
from hiervl_train.tokenizer import Tokenizer
from shards.loader import Batch


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did on this rank: its loss, and how much work that was."""

    loss: Tensor  # of the global batch, without a graph, on the device
    clips: int  # videos encoded by this rank: clips, or windows of summaries
    # Operations of their training by the published arithmetic, recomputation not counted; None for a text encoder
    # whose operations are not known.
    flops: int | None


class Encoder:
    """From frames and texts as batches have them to embeddings, float32: compared and gathered at full precision."""

    def __init__(self, model: HierVL, tokenizer: Tokenizer, *, speed: SpeedConfig, order: ChannelOrder) -> None:
        self._model, self._tokenizer, self._speed, self._order = model, tokenizer, speed, order

    def tokens(self, texts: Sequence[str], *, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids and mask (B, L) of texts, on the device of `like`."""
        ids_BL, mask_BL = self._tokenizer(texts)
        return ids_BL.to(like.device, non_blocking=True), mask_BL.to(like.device, non_blocking=True)

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
        """Return (B, D) of K embeddings in their order."""
        with autocast(x_BKD.device, self._speed):
            return self._model.aggregate(x_BKD).float()


class PretrainSteps:
    """The child and the parent step of a configuration. Each adds gradients to the model's parameters."""

    def __init__(self, model: HierVL, tokenizer: Tokenizer, config: PretrainConfig) -> None:
        self._config = config
        self._encoder = Encoder(model, tokenizer, speed=config.speed, order=config.compat.channel_order)
        self.backward: dict[str, Callable[[Batch], StepResult]] = {"child": self._child, "parent": self._parent}

    def _child(self, batch: Batch) -> StepResult:
        """Clips against their narrations."""
        config, tags = self._config, Tags(verbs_BV=batch.verbs_BV, nouns_BO=batch.nouns_BO)
        video = batch.video
        ids_BL, mask_BL = self._encoder.tokens(batch.texts, like=video)

        def encode(part: slice) -> tuple[Tensor, ...]:
            return self._encoder.video(video[part]), self._encoder.text(ids_BL[part], mask_BL[part])

        loss = backward(
            micro_batches(len(video), config.schedule.clip_micro_batch),
            encode,
            lambda video_BD, text_BD: child_loss(video_BD, text_BD, tags, config.objective),
        )
        one = self._flops(lambda: flops.clip(config.model, frames=video.shape[1], text_tokens=ids_BL.shape[1]).train)
        return StepResult(loss=loss, clips=len(video), flops=one and len(video) * one)

    def _parent(self, batch: Batch) -> StepResult:
        """Aggregated windows and aggregated narrations against the summary, as the objective says."""
        config, tags = self._config, Tags(verbs_BV=batch.verbs_BV, nouns_BO=batch.nouns_BO)
        video, objective = batch.video, config.objective
        count, windows = video.shape[:2]
        has_narrations, has_summary = objective.parent != "video_to_summary", objective.parent != "video_to_narrations"
        narrations = [text for texts in batch.narrations for text in texts]
        ids_BKL, mask_BKL = (x.unflatten(0, (count, -1)) for x in self._encoder.tokens(narrations, like=video))
        ids_BL, mask_BL = self._encoder.tokens(batch.texts, like=video)

        def encode(part: slice) -> tuple[Tensor, ...]:
            rows = video[part].shape[:1]
            encoded = [self._encoder.video(video[part].flatten(0, 1)).unflatten(0, (*rows, windows))]
            if has_narrations:
                ids, mask = ids_BKL[part].flatten(0, 1), mask_BKL[part].flatten(0, 1)
                encoded.append(self._encoder.text(ids, mask).unflatten(0, (*rows, -1)))
            if has_summary:
                encoded.append(self._encoder.text(ids_BL[part], mask_BL[part]))
            return tuple(encoded)

        def loss(windows_BKD: Tensor, *texts: Tensor) -> Tensor:
            others = iter(texts)
            narrations_BKD = next(others) if has_narrations else None
            summary_BD = next(others) if has_summary else None
            return parent_loss(windows_BKD, narrations_BKD, summary_BD, tags, self._encoder.aggregate, objective)

        value = backward(micro_batches(count, config.schedule.summary_micro_batch), encode, loss)
        one = self._flops(
            lambda: flops.summary_train(
                config.model,
                frames=video.shape[2],
                windows=windows,
                narrations=ids_BKL.shape[1] if has_narrations else 0,
                text_tokens=max(ids_BKL.shape[2], ids_BL.shape[1]),
            )
        )
        return StepResult(loss=value, clips=count * windows, flops=one and count * one)

    def _flops(self, count: Callable[[], int]) -> int | None:
        return count() if self._config.model.text.source is None else None


def micro_batches(count: int, micro_batch: int | None) -> list[slice]:
    """Return slices of at most `micro_batch` that cover 0 … count − 1; one slice where `micro_batch` is None."""
    size = micro_batch or max(1, count)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def backward(
    slices: Sequence[slice], encode: Callable[[slice], tuple[Tensor, ...]], loss: Callable[..., Tensor]
) -> Tensor:
    """Add the gradients of `loss(*encode(everything))`; return the loss without its graph.

    One part is encoded once; several are encoded twice, by cached gradients, with the memory of one.
    """
    if len(slices) > 1:
        return cached_backward(slices, encode, loss)
    value = loss(*encode(slices[0]))
    value.backward()
    return value.detach()
