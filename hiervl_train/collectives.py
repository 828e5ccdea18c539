"""What ranks exchange: batches with exact gradients, and small values as JSON.

Every rank computes the loss of the whole batch from gathered embeddings. The backward of the gather sums what all
ranks' losses contribute to this rank's embeddings, which is `world` times the gradient. The mean over ranks of the
parameters' gradients (`reduction.reducer`, or DDP) is then the gradient of the global batch, up to rounding. (The
published gather kept only the rank's own slice, so its gradient was 1/world of the exact one.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hiervl_train.distributed import DistributedContext

GATHERED_BYTES = 8192  # of a rank's value as JSON, at most
# torch 2.13 renamed both and warns about the old names; earlier versions have only those.
_gather_rows = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_sum = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def world_size() -> int:
    """Return the number of ranks; 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_gather(x_B: Tensor) -> Tensor:
    """Return the rows of all ranks, in the order of ranks; gradients flow back to each row's own rank.

    Every rank must pass the same shape.
    """
    if world_size() == 1:
        return x_B
    if not x_B.requires_grad:
        return _gather(x_B)
    gathered: Tensor = _AllGather.apply(x_B)  # type: ignore[no-untyped-call]  # torch's Function is not annotated
    return gathered


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every rank the first rank's values."""
    if world_size() == 1:
        return
    for tensor in tensors:
        dist.broadcast(tensor.data, 0)


def broadcast_json(value: Any, group: dist.ProcessGroup | None) -> Any:
    """Return rank 0's value on every rank of a group, as JSON gives it back; without process groups, `value`."""
    if not dist.is_initialized():
        return value
    device = _device_for(group)
    data = json.dumps(value).encode()
    size = torch.tensor([len(data)], device=device)
    dist.broadcast(size, 0, group=group)
    codes = list(data) if dist.get_rank() == 0 else [0] * int(size.item())
    letters = torch.tensor(codes, dtype=torch.uint8, device=device)
    dist.broadcast(letters, 0, group=group)
    return json.loads(bytes(letters.tolist()))


def gather_json(value: Any, context: DistributedContext) -> list[Any]:
    """Return the values of all ranks, in the order of ranks; as JSON each has `GATHERED_BYTES` at most."""
    if context.world == 1:
        return [value]
    data = json.dumps(value).encode()
    if len(data) > GATHERED_BYTES:
        raise ValueError(f"a rank gathers {len(data)} bytes of JSON: at most {GATHERED_BYTES} are supported")
    own = torch.zeros(GATHERED_BYTES, dtype=torch.uint8)
    own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    everyone = [torch.empty_like(own) for _ in range(context.world)]
    dist.all_gather(everyone, own, group=context.control)
    return [json.loads(bytes(row.tolist()).rstrip(b"\0")) for row in everyone]


def sum_over_ranks(counts: Mapping[str, float], context: DistributedContext) -> dict[str, float]:
    """Return named counts summed over ranks; the ranks may have different names."""
    total: Counter[str] = Counter()
    for theirs in gather_json(dict(counts), context):
        total.update(theirs)
    return dict(total)


def all_true(flag: bool, group: dist.ProcessGroup | None) -> bool:
    """Return whether the flag is set on every rank of a group; waits for all of them."""
    if not dist.is_initialized():
        return flag
    least = torch.tensor([int(flag)], device=_device_for(group))
    dist.all_reduce(least, dist.ReduceOp.MIN, group=group)
    return bool(least.item())


def _device_for(group: dist.ProcessGroup | None) -> torch.device:
    """Return the device that a group's tensors must be on."""
    return torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")


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
        if dist.get_backend() == "gloo":  # not all supported versions have its reduce-scatter
            total = gradient.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total)
            return total[dist.get_rank() * rows :][:rows]
        own = gradient.new_empty((rows, *gradient.shape[1:]))
        _scatter_sum(own, gradient.contiguous())
        return own
