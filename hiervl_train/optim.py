"""The optimiser, its learning rate over a run, and what makes it behave as the released one did where that is asked.

Nothing here waits for the GPU: whether a gradient is finite is decided where it lies, and a step that must be skipped
is skipped there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW at a constant rate, with the published numbers (torch's defaults of eps and weight decay differ)."""

    lr: float = 3e-5
    schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up
    warmup_steps: int = 0  # the rate rises linearly over so many
    final_lr: float = 0.0  # where cosine ends
    decay_epochs: tuple[int, ...] = ()  # after each of these epochs the rate is multiplied by `decay_factor`
    decay_factor: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    clip_norm: float | None = None  # the longest that the gradient of all parameters together may be
    ema: float | None = None  # keep an average of the weights that forgets at this rate, as 0.9999; evaluated, too
    # On child steps the aggregator has no gradient. false: it rests. true, as released: its gradient counts as
    # zero, so that Adam's momentum moves it on.
    apply_zero_grads: bool = False

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.eps <= 0 or self.weight_decay < 0:
            raise ValueError("lr and eps must be positive and weight_decay at least 0")
        if self.warmup_steps < 0 or not 0 <= self.final_lr <= self.lr or self.decay_factor <= 0:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} (at least 0), final_lr = {self.final_lr} (0 to lr), "
                f"decay_factor = {self.decay_factor} (above 0)"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm = {self.clip_norm}: a positive number is needed, or null")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema = {self.ema}: between 0 and 1, as 0.9999, or null")


def learning_rate(config: OptimConfig, step: int, *, total: int, epoch: int) -> float:
    """Return the rate of step number `step` (from 0) of `total`, in epoch number `epoch` (from 0)."""
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
    """Return fused AdamW over the parameters.

    `eps_scale` is the number of ranks where `compat.released_eps` is set: the released gradients were
    1/world of the true ones, against which an eps of 1e-6 weighs as much as world · 1e-6 does against ours.
    """
    return torch.optim.AdamW(
        list(parameters),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps * eps_scale,
        weight_decay=config.weight_decay,
        fused=True,
    )


def update(optimizer: torch.optim.AdamW, parameters: Iterable[nn.Parameter], config: OptimConfig, lr: float) -> Tensor:
    """Clip the gradients and take a step at rate `lr`; return the gradient's norm before clipping.

    Where the norm is not finite nothing changes, weights and moments alike: the kernel looks at the flag itself, so
    nobody waits for the device to know.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if config.clip_norm is not None:
        torch._foreach_mul_(gradients, (config.clip_norm / (norm + 1e-6)).clamp(max=1.0))
    for group in optimizer.param_groups:
        group["lr"] = lr
    # The two attributes by which torch.amp has a fused optimiser skip a step.
    vars(optimizer).update(grad_scale=None, found_inf=(~norm.isfinite()).float())
    optimizer.step()
    return norm


def apply_zero_grads(parameters: Iterable[nn.Parameter]) -> None:
    """Give parameters without a gradient one of zeros, so that the optimiser's momentum moves them on."""
    for parameter in parameters:
        if parameter.grad is None and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


class EMA:
    """An exponential moving average of a model's weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights as they are."""
        now = [parameter.detach() for parameter in model.parameters()]
        torch._foreach_lerp_(list(self.weights.values()), now, 1 - self._decay)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Go on with a saved average."""
        for name, average in self.weights.items():
            average.copy_(weights[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let a model have the average as its weights while the block runs."""
        parameters = [parameter.detach() for parameter in model.parameters()]
        kept = [parameter.clone() for parameter in parameters]
        torch._foreach_copy_(parameters, list(self.weights.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(parameters, kept)
