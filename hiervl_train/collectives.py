"""Puts the batches of all ranks together with exact gradients, and averages gradients over ranks.

Every rank computes the loss of the whole batch from gathered embeddings. The gather's backward sums what all ranks'
losses say about this rank's embeddings, which is `world` times the gradient; the mean over ranks of the parameters'
gradients (`average_gradients`, or DDP) is then the gradient of the global batch, to rounding. (The published gather
kept only the rank's own slice, so its gradient was 1/world of the true one.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renamed both and warns of the old names; earlier ones have no others.
_gather_rows = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_sum = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def world_size() -> int:
    """Return the number of ranks, 1 where no process group was made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_gather(x_B: Tensor) -> Tensor:
    """Return the rows of all ranks in the order of ranks; gradients flow back to the rank that each row is of.

    Every rank must pass the same shape.
    """
    if world_size() == 1:
        return x_B
    return _AllGather.apply(x_B) if x_B.requires_grad else _gather(x_B)


def average_gradients(parameters: Iterable[torch.nn.Parameter], bucket_bytes: int = 32 * 2**20) -> None:
    """Replace gradients by their mean over ranks, in buckets; parameters without one are left without.

    The ranks must agree on which parameters have gradients: they do where they take the same kind of step.
    """
    world = world_size()
    if world == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flying = []
    for bucket in _buckets(gradients, bucket_bytes):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        flying.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in flying:
        work.wait()
        flat /= world
        for gradient, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(tensors: list[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Yield the tensors in order, in lists of one dtype and device and of about `limit` bytes at most."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        kind = (tensor.dtype, tensor.device)
        if bucket and (size + tensor.nbytes > limit or kind != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def _gather(x_B: Tensor) -> Tensor:
    out = x_B.new_empty((world_size() * x_B.shape[0], *x_B.shape[1:]))
    _gather_rows(out, x_B.contiguous())
    return out


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x_B: Tensor) -> Tensor:
        return _gather(x_B)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        rows = gradient.shape[0] // world_size()
        if dist.get_backend() == "gloo":  # has no reduce-scatter in all versions that are supported
            total = gradient.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total)
            return total[dist.get_rank() * rows :][:rows]
        own = gradient.new_empty((rows, *gradient.shape[1:]))
        _scatter_sum(own, gradient.contiguous())
        return own


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every rank the first rank's values."""
    if world_size() == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor.data, 0)
