"""A linear probe: multinomial logistic regression on frozen embeddings, solved to its optimum.

The objective is convex, so the result depends on the data and the penalty alone: not on a seed, an order or a schedule.
(HierVL trained its probe by AdamW for 100 epochs at lr 1e-3, which stops before the optimum.)

Shapes in names: N videos, D width of the embeddings, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_MIN_VARIANCE = 1e-12  # a dimension of smaller variance over the training videos is ignored


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A fitted probe."""

    weight_CD: np.ndarray  # float64, for standardised embeddings
    bias_C: np.ndarray
    mean_D: np.ndarray  # of the training embeddings
    scale_D: np.ndarray  # 1 / their standard deviation
    losses: tuple[float, ...]  # per step, penalty included

    def scores(self, x_ND: np.ndarray) -> np.ndarray:
        """Return the logits (N, C) of embeddings, in float64."""
        standardised_ND = (x_ND.astype(np.float64) - self.mean_D) * self.scale_D
        logits_NC: np.ndarray = standardised_ND @ self.weight_CD.T + self.bias_C
        return logits_NC


def fit_probe(
    x_ND: np.ndarray, labels_N: Sequence[int] | np.ndarray, classes: int, *, penalty: float, steps: int
) -> Probe:
    """Return the probe that minimises cross entropy + penalty / 2 · Σ weight², by L-BFGS in float64 on the CPU.

    `steps` bounds the iterations. Each dimension is standardised over these videos first. Raises `ValueError` for a
    label out of range or if there are no videos.
    """
    labels_N = np.asarray(labels_N, np.int64)
    if len(x_ND) != len(labels_N) or not len(x_ND):
        raise ValueError(f"{len(x_ND)} embeddings and {len(labels_N)} labels: as many of both are needed, at least one")
    outside = np.flatnonzero((labels_N < 0) | (labels_N >= classes))
    if len(outside):
        raise ValueError(f"video {outside[0]}: class {labels_N[outside[0]]} of {classes}")
    x_ND = x_ND.astype(np.float64)
    mean_D, variance_D = x_ND.mean(axis=0), x_ND.var(axis=0)
    scale_D = np.where(variance_D > _MIN_VARIANCE, 1 / np.sqrt(np.maximum(variance_D, _MIN_VARIANCE)), 0.0)
    inputs, targets = torch.from_numpy((x_ND - mean_D) * scale_D), torch.from_numpy(labels_N)
    weight_CD = torch.zeros(classes, x_ND.shape[1], dtype=torch.float64, requires_grad=True)
    bias_C = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight_CD, bias_C], max_iter=1, history_size=20, line_search_fn="strong_wolfe")
    losses: list[float] = []

    def loss() -> Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(inputs @ weight_CD.T + bias_C, targets)
        value = value + penalty / 2 * weight_CD.square().sum()
        value.backward()
        return value

    for _ in range(steps):
        value = solver.step(loss)
        losses.append(float(value.detach() if isinstance(value, Tensor) else value))
        if len(losses) > 1 and losses[-2] - losses[-1] <= 1e-10 * max(1.0, abs(losses[-1])):
            break
    return Probe(
        weight_CD=weight_CD.detach().numpy(),
        bias_C=bias_C.detach().numpy(),
        mean_D=mean_D,
        scale_D=scale_D,
        losses=tuple(losses),
    )
