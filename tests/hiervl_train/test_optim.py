"""The optimiser's switches: gradients of zero, and the released eps."""

from __future__ import annotations

import torch

from hiervl_train.optim import OptimConfig, apply_zero_grads, build_optimizer
from tests.hiervl_train.tiny import random_video, tiny_model


def test_without_gradients_the_aggregator_moves_only_with_apply_zero_grads():
    def after_a_child_step(zero_grad_parameters: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model = tiny_model()
        optimizer = build_optimizer(model.parameters(), OptimConfig(lr=0.1))
        model.aggregate(random_video(2, 3, 8)).sum().backward()
        optimizer.step()  # a parent step gives the aggregator momentum
        before = model.aggregator.pos_embed.detach().clone()
        optimizer.zero_grad()
        model.encode_video(random_video(2, 2, 3, 16, 16)).sum().backward()
        if zero_grad_parameters:
            apply_zero_grads(model.aggregator.parameters())
        optimizer.step()
        return before, model.aggregator.pos_embed.detach()

    assert torch.equal(*after_a_child_step(zero_grad_parameters=False))
    assert not torch.equal(*after_a_child_step(zero_grad_parameters=True))


def test_the_released_eps_equals_the_plain_eps_on_scaled_gradients():
    """Adam divides by the root of squared gradients plus eps, so gradients / W with eps are gradients with W · eps."""
    world, gradient = 32, torch.tensor([1e-5, -3e-6, 1e-4], dtype=torch.float64)

    def step(eps_scale: int, scale: float) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = build_optimizer([parameter], OptimConfig(), eps_scale=eps_scale)
        for _ in range(3):
            parameter.grad = gradient * scale
            optimizer.step()
        return parameter.detach()

    torch.testing.assert_close(step(world, 1.0), step(1, 1 / world), rtol=1e-9, atol=0)
    assert not torch.allclose(step(1, 1.0), step(1, 1 / world), rtol=1e-2, atol=0)
