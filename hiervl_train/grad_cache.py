"""Cached gradients: the exact gradient of a batch that does not fit into memory, computed in micro-batches (GradCache).

A contrastive loss compares all pairs of a batch, so adding up the losses of micro-batches would be another objective.
Here the micro-batches are encoded once, all but the last without a graph. The loss of all embeddings together gives
each embedding's gradient. The last micro-batch backpropagates at once, through the graph that it has; then the others
are encoded again, each with its graph. The second encoding draws the random numbers of the first one, so dropout is the
same. Memory is that of one micro-batch (Gao et al. 2021). Of m micro-batches m − 1 are encoded twice: two cost 7/6 of
the operations of a single pass, many 4/3.

What cannot be split runs in the loss: gathering over ranks, and the aggregator of parent steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from hiervl_train.random_states import RandomStates
from hiervl_train.task import NO_SCOPE, StepScope

MicroBatch = TypeVar("MicroBatch")


def cached_backward(
    micro_batches: Sequence[MicroBatch],
    encode: Callable[[MicroBatch], tuple[Tensor, ...]],
    loss: Callable[..., Tensor],
    scope: StepScope = NO_SCOPE,
) -> Tensor:
    """Add the gradient of `loss(embeddings of all micro-batches)` to the parameters; return the detached loss.

    `encode(micro_batch)` returns one or more embeddings, rows first; `loss` takes the same number of tensors, each with
    the rows of all micro-batches in order. Parameters used in either get their gradients.
    """
    if not micro_batches:
        raise ValueError("there is no micro-batch")
    *others, last = micro_batches
    states = []
    encoded = []
    scope.phase("forward")
    for micro_batch in others:
        states.append(RandomStates.take())
        with torch.no_grad():
            encoded.append(encode(micro_batch))
    # Autocast caches the weights that it cast; cast without a graph, they would stop the following gradients.
    torch.clear_autocast_cache()
    kept = encode(last)
    encoded.append(tuple(x.detach() for x in kept))
    leaves = [torch.cat(rows).requires_grad_() for rows in zip(*encoded, strict=True)]
    total = loss(*leaves)
    scope.phase("backward")
    with scope.last_backward():  # of what only the loss uses, as the aggregator
        total.backward()
    after_loss = RandomStates.take()

    gradients = [_gradient(leaf).split([len(rows[which]) for rows in encoded]) for which, leaf in enumerate(leaves)]
    with nullcontext() if others else scope.last_backward():
        _backward(kept, [slices[-1] for slices in gradients])  # first, as memory is that of one graph
    del kept
    for index, (micro_batch, state) in enumerate(zip(others, states, strict=True)):
        state.restore()
        scope.phase("forward")
        embeddings = encode(micro_batch)
        scope.phase("backward")
        is_last = index == len(others) - 1
        with scope.last_backward() if is_last else nullcontext():
            _backward(embeddings, [slices[index] for slices in gradients])
    after_loss.restore()  # otherwise the next step would repeat the loss's random numbers
    return total.detach()


def _backward(embeddings: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Go back from the embeddings of a micro-batch with the loss's gradients of them."""
    pairs = [(x, gradient) for x, gradient in zip(embeddings, gradients, strict=True) if x.requires_grad]
    torch.autograd.backward([x for x, _ in pairs], [gradient for _, gradient in pairs])


def _gradient(leaf: Tensor) -> Tensor:
    """Return the loss's gradient, zero where the loss does not use this embedding (as in an ablation)."""
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
