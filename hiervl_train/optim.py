"""The optimiser of pretraining, and what makes it behave as the released one did where that is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW at a constant rate, with the published numbers (torch's defaults of eps and weight decay differ)."""

    lr: float = 3e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    # On child steps the aggregator has no gradient. false: it rests. true, as released: its gradient counts as
    # zero, so that Adam's momentum moves it on.
    coast: bool = False

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.eps <= 0 or self.weight_decay < 0:
            raise ValueError("lr and eps must be positive and weight_decay at least 0")


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimConfig, *, released_eps_world: int = 1
) -> torch.optim.AdamW:
    """Return AdamW over the parameters.

    `released_eps_world` is the number of ranks where `compat.released_eps` is set: the released gradients were
    1/world of the true ones, against which an eps of 1e-6 weighs as much as world · 1e-6 does against ours.
    """
    trained = list(parameters)
    return torch.optim.AdamW(
        trained,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps * released_eps_world,
        weight_decay=config.weight_decay,
        fused=all(parameter.is_cuda for parameter in trained),
    )


def coast(parameters: Iterable[nn.Parameter]) -> None:
    """Give parameters without a gradient one of zeros, so that the optimiser's momentum moves them on."""
    for parameter in parameters:
        if parameter.grad is None and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
