"""The interface of a fine-tuning task: the model parts it uses, its number of classes, and its training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from hiervl_train.models.config import ModelPart
from hiervl_train.models.finetuned import FineTuned
from hiervl_train.steps import Encoder
from hiervl_train.task import Evaluate, Step
from hiervl_train.tasks.config import FinetuneConfig
from shards.sources import Source


class FinetuneTask(ABC):
    """One task on one dataset."""

    set_name: ClassVar[str]

    @abstractmethod
    def __init__(self, config: FinetuneConfig, source: Source) -> None:
        """Check the dataset; raise `ShardError` or `DataError` where the task cannot be trained on it."""

    @property
    def parts(self) -> tuple[ModelPart, ...]:
        """The parts of the model that the task uses; the others are frozen."""
        return ("video", "video_projection", "text", "text_projection")

    @property
    def classes(self) -> int | None:
        """The number of classes of the head; None where there is no head."""
        return None

    @abstractmethod
    def loader(self) -> Mapping[str, object]:
        """Return the fields of `LoaderConfig` that define a sample."""

    @abstractmethod
    def step(self, model: FineTuned, encoder: Encoder) -> Step:
        """Return the function that adds a batch's gradients to the model's parameters."""

    def evaluate(self, encoder: Encoder) -> Evaluate | None:
        """Return the function that scores the model during the run; None where `eval` has the task's benchmark."""
        return None
