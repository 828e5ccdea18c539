"""Cached gradients: a batch that does not fit, in micro-batches, with the exact gradient of the whole (GradCache).

A contrastive loss looks at all pairs of a batch, so adding up the losses of its parts is another objective. Here
the parts are encoded once without a graph; the loss of all embeddings together gives each embedding's gradient;
then the parts are encoded again, each with its graph, and given their gradients. The random numbers of the second
encoding are those of the first, so dropout is the same. Memory is that of one part (Gao et al. 2021).

What is not per part runs in the loss: gathering over ranks, and the aggregator of parent steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


def cached_backward(
    parts: Sequence[Batch],
    encode: Callable[[Batch], tuple[Tensor, ...]],
    loss: Callable[..., Tensor],
) -> Tensor:
    """Add the gradient of `loss(embeddings of all parts)` to the parameters; return the loss, without a graph.

    `encode(part)` returns one or more embeddings, each with the part's rows first; `loss` takes the same number,
    each with the rows of all parts in order. Parameters used in either get their gradients.
    """
    if not parts:
        raise ValueError("there is no micro-batch")
    states = []
    encoded = []
    for part in parts:
        states.append(RandomState.take())
        with torch.no_grad():
            encoded.append(encode(part))
    # Autocast may keep what it cast; cast without a graph, it would stop the gradients of the second encoding.
    torch.clear_autocast_cache()
    leaves = [torch.cat(rows).requires_grad_() for rows in zip(*encoded, strict=True)]
    total = loss(*leaves)
    total.backward()
    after_loss = RandomState.take()

    gradients = [_gradient(leaf).split([len(rows[which]) for rows in encoded]) for which, leaf in enumerate(leaves)]
    for index, (part, state) in enumerate(zip(parts, states, strict=True)):
        state.restore()
        embeddings = encode(part)
        pairs = [(x, slices[index]) for x, slices in zip(embeddings, gradients, strict=True) if x.requires_grad]
        torch.autograd.backward([x for x, _ in pairs], [gradient for _, gradient in pairs])
    after_loss.restore()  # or the next step would draw again what the loss drew
    return total.detach()


def _gradient(leaf: Tensor) -> Tensor:
    """Return the loss's gradient, zero where the loss does not use this embedding (as an ablation may)."""
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)


@dataclass(frozen=True, kw_only=True)
class RandomState:
    """The states of the generators that dropout draws from: the CPU's and the current CUDA device's."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def take(cls) -> RandomState:
        """Return the states as they are."""
        return cls(cpu=torch.get_rng_state(), cuda=torch.cuda.get_rng_state() if _on_cuda() else None)

    def restore(self) -> None:
        """Set the generators back to these states."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


def _on_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
