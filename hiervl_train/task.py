"""The types between the training loop and the tasks: what a task provides, what steps get and return, how runs end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from hiervl_train.data import StepLoaders
from hiervl_train.distributed import DistributedContext
from hiervl_train.fit import MicroBatches
from hiervl_train.models.hiervl import HierVL
from hiervl_train.tokenizer import Tokenizer
from shards.loader import Batch

CHANCE = "chance/"  # starts the name of the chance level of the score that is named after it
# Returns scores and their chance levels in percent by name, the same on every rank.
Evaluate = Callable[[HierVL, Tokenizer, DistributedContext], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """A step's loss, and how much work it was on this rank."""

    loss: Tensor  # of the global batch, detached, on the device
    clips: int  # videos that this rank encoded: clips, or windows of summaries
    # Floating-point operations of training them by the published architecture, recomputation not counted; None for a
    # text encoder whose operations are unknown.
    flops: int | None


class StepScope(Protocol):
    """What the loop wants to know of a step while it runs."""

    def phase(self, name: str) -> None:
        """Note that a phase begins, `forward` or `backward`, for the time report."""
        ...

    def last_backward(self) -> AbstractContextManager[None]:
        """Hold the backward passes that complete gradients: nothing is added to those afterwards."""
        ...


class NoScope:
    """Nobody wants to know: for steps outside the loop."""

    def phase(self, name: str) -> None:
        """See `StepScope`."""

    def last_backward(self) -> AbstractContextManager[None]:
        """See `StepScope`."""
        return nullcontext()


NO_SCOPE = NoScope()


class Step(Protocol):
    """A training step of one type."""

    def __call__(self, batch: Batch, scope: StepScope = NO_SCOPE) -> StepResult:
        """Add the gradients of a batch to the model's parameters."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: a model, its batches by step type, and what a step of each type does."""

    model: HierVL
    tokenizer: Tokenizer
    loaders: StepLoaders
    steps: Mapping[str, Step]  # by step type
    step_type: Callable[[int], str]  # of a step by its number, from 0
    steps_per_epoch: int
    total_steps: int
    micro_batches: MicroBatches | None = None  # of steps whose size may be measured
    zero_grad_parameters: tuple[nn.Parameter, ...] = ()  # get gradients of zero in steps that do not reach them
    eps_scale: int = 1  # see `optim.build_optimizer`
    evaluate: Evaluate | None = None
    identity: Mapping[str, object] = field(default_factory=dict)  # the configuration, stored in each checkpoint


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: after its last step, or earlier for a reason."""

    step: int  # steps done
    reason: str | None  # None: all steps are done
