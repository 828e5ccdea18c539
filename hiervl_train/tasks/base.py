"""What a fine-tuning task is to the rest: which parts it uses, whether it has classes, and what its step does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

from hiervl_train.models.finetuned import FineTuned
from hiervl_train.steps import Encoder, StepResult
from hiervl_train.tasks.config import FinetuneConfig, ModelPart
from hiervl_train.trainer import Evaluate
from shards.loader import Batch
from shards.sources import Source

Step = Callable[[Batch], StepResult]


class FinetuneTask(ABC):
    """One task on one dataset."""

    set_name: ClassVar[str]

    @abstractmethod
    def __init__(self, config: FinetuneConfig, source: Source) -> None:
        """Look at the dataset; raise `ShardError` or `DataError` where the task cannot be learnt from it."""

    @property
    def parts(self) -> tuple[ModelPart, ...]:
        """The parts of the model that it uses; the others rest."""
        return ("video", "video_projection", "text", "text_projection")

    @property
    def classes(self) -> int | None:
        """How many classes the head has; None where there is no head."""
        return None

    @abstractmethod
    def loader(self) -> Mapping[str, object]:
        """Return what a sample holds, as fields of `LoaderConfig`."""

    @abstractmethod
    def step(self, model: FineTuned, encoder: Encoder) -> Step:
        """Return what adds the gradients of a batch to the model's parameters."""

    def evaluate(self, encoder: Encoder) -> Evaluate | None:
        """Return what scores the model inside the run; None where that is for the evaluation's own programs."""
        return None
