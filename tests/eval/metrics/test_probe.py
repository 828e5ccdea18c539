"""The linear probe is at its optimum, whatever the order of the videos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.metrics.probe import fit_probe


def test_a_probe_is_at_its_optimum_whatever_the_order_of_the_videos() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = rng.normal(size=(60, 5)) + 3 * np.eye(3, 5)[labels]
    probe = fit_probe(x, labels, 3, penalty=1e-2, steps=300)
    assert (probe.scores(x).argmax(axis=1) == labels).mean() > 0.95
    weight = torch.tensor(probe.weight_CD, requires_grad=True)
    inputs = torch.from_numpy((x - probe.mean_D) * probe.scale_D)
    logits = inputs @ weight.T + torch.from_numpy(probe.bias_C)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)) + 5e-3 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None and weight.grad.abs().max() < 1e-4
    order = rng.permutation(60)
    shuffled = fit_probe(x[order], labels[order], 3, penalty=1e-2, steps=300)
    np.testing.assert_allclose(shuffled.weight_CD, probe.weight_CD, atol=1e-3)
    with pytest.raises(ValueError, match="video 2: class 3 of 3"):
        fit_probe(x[:3], [0, 1, 3], 3, penalty=1e-2, steps=5)
