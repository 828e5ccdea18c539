"""When a run evaluates itself, and on how many questions; `eval.in_training` does it, joined in the entry script."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import PositiveInt


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Multiple-choice questions inside the run, made of the dataset's own test or validation sets."""

    every_steps: PositiveInt | None = None  # steps between evaluations; null: none in between
    at_end: bool = False  # also after the last step
    questions: PositiveInt = 500  # of each kind, at most
    seed: int = 0  # of the choice of questions and of their wrong options

    @property
    def is_on(self) -> bool:
        """Whether anything is evaluated at all."""
        return self.every_steps is not None or self.at_end

    def is_due(self, step: int, total: int) -> bool:
        """Return whether to evaluate after `step` of `total` steps."""
        regular = self.every_steps is not None and step % self.every_steps == 0
        return regular or (self.at_end and step == total)
