"""The optimiser, its learning-rate schedule, the moving average of the weights, and the switches of the released code.

Nothing here waits for the GPU: whether a gradient is finite is decided on the device, and so is skipping the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from hiervl_train.collectives import world_size
from hiervl_train.reduction.sharding import ShardedAdamW


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW at a constant rate, with the published numbers (torch's defaults of eps and weight decay differ)."""

    lr: PositiveFloat = 3e-5  # peak learning rate
    schedule: Literal["constant", "cosine"] = "constant"  # shape of the learning rate after the warm-up
    warmup_steps: NonNegativeInt = 0  # steps in which the learning rate rises linearly
    final_lr: NonNegativeFloat = 0.0  # learning rate at the end of a cosine schedule
    decay_epochs: tuple[int, ...] = ()  # epochs after each of which the learning rate is multiplied by `decay_factor`
    decay_factor: PositiveFloat = 0.1  # see `decay_epochs`
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's
    eps: PositiveFloat = 1e-6  # AdamW's; torch's default is 1e-8
    weight_decay: NonNegativeFloat = 0.0  # AdamW's; torch's default is 0.01
    clip_norm: PositiveFloat | None = None  # greatest norm of the gradient of all parameters; null: no clipping
    # Decay of an exponential moving average of the weights, as 0.9999, which is saved and evaluated too; null: none.
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    # Divide the moments (8 bytes a parameter) over the ranks: ZeRO stage 1. The network carries half as many bytes
    # again. The same weights bit for bit, and the same checkpoints.
    shard_states: bool = False
    # On child steps the aggregator has no gradient. false: it stays as it is. true, as released: its gradient is taken
    # as zero, so that Adam's momentum still moves it.
    apply_zero_grads: bool = False

    def __post_init__(self) -> None:
        if self.final_lr > self.lr:
            raise ValueError(f"final_lr = {self.final_lr}: must be at most lr = {self.lr}")


def learning_rate(config: OptimConfig, step: int, *, total: int, epoch: int) -> float:
    """Return the learning rate of step number `step` (from 0) of `total`, in epoch number `epoch` (from 0)."""
    rate = config.lr * config.decay_factor ** sum(epoch >= after for after in config.decay_epochs)
    if step < config.warmup_steps:
        return rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return rate
    share = min(1.0, (step - config.warmup_steps) / max(1, total - config.warmup_steps))
    return config.final_lr + (rate - config.final_lr) * (1 + math.cos(math.pi * share)) / 2


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimConfig, *, eps_scale: int = 1
) -> torch.optim.AdamW:
    """Return fused AdamW over the parameters, with `shard_states` and several ranks one that divides its moments.

    `eps_scale` is the number of ranks if `compat.released_eps` is set: the released gradients were 1/world of the exact
    ones, relative to which an eps of 1e-6 is as large as world · 1e-6 relative to ours.
    """
    kind = ShardedAdamW if config.shard_states and world_size() > 1 else torch.optim.AdamW
    return kind(
        list(parameters),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps * eps_scale,
        weight_decay=config.weight_decay,
        fused=True,
    )


def update(optimizer: torch.optim.AdamW, parameters: Iterable[nn.Parameter], config: OptimConfig, lr: float) -> Tensor:
    """Clip the gradients and take a step at rate `lr`; return the gradient's norm before clipping, on the device.

    Where the norm is not finite, neither weights nor moments change: the fused kernel reads the flag itself, so the
    host need not wait for it.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if config.clip_norm is not None:
        torch._foreach_mul_(gradients, (config.clip_norm / (norm + 1e-6)).clamp(max=1.0))
    for group in optimizer.param_groups:
        group["lr"] = lr
    # The attributes by which torch.amp makes a fused optimiser skip a step.
    vars(optimizer).update(grad_scale=None, found_inf=(~norm.isfinite()).float())
    optimizer.step()
    return norm


def apply_zero_grads(parameters: Iterable[nn.Parameter]) -> None:
    """Give parameters without a gradient one of zeros, so that the optimiser's momentum still updates them."""
    for parameter in parameters:
        if parameter.grad is None and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


class EMA:
    """An exponential moving average of a model's weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, model: nn.Module) -> None:
        """Move the average towards the current weights."""
        current = [parameter.detach() for parameter in model.parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - self._decay)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from a saved average."""
        for name, average in self.weights.items():
            average.copy_(weights[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give a model the average as its weights while the block runs."""
        parameters = [parameter.detach() for parameter in model.parameters()]
        original = [parameter.clone() for parameter in parameters]
        torch._foreach_copy_(parameters, list(self.weights.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(parameters, original)
