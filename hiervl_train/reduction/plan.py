"""The plan of a step type: which gradients are averaged together, in which order, and where each lies in its bucket.

The sum over more than two ranks depends on where a number lies in its bucket. A plan is therefore made once per step
type, from the first step's order of gradients, and kept: however and whenever buckets are filled later, the sums are
the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BucketPlan:
    """Buckets of parameters, by number, in the order in which they are averaged."""

    buckets: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, order: Sequence[int], parameters: Sequence[Tensor], bucket_bytes: int) -> BucketPlan:
        """Divide parameters, in this order, into buckets of one dtype and device and at most about `bucket_bytes`."""
        buckets: list[list[int]] = []
        size = 0
        for number in order:
            parameter = parameters[number]
            last = parameters[buckets[-1][-1]] if buckets else None
            is_alike = last is not None and (last.dtype, last.device) == (parameter.dtype, parameter.device)
            if not is_alike or size + parameter.nbytes > bucket_bytes:
                buckets.append([])
                size = 0
            buckets[-1].append(number)
            size += parameter.nbytes
        return cls(buckets=tuple(map(tuple, buckets)))

    @property
    def parameters(self) -> frozenset[int]:
        """The numbers of all parameters in the plan."""
        return frozenset(number for bucket in self.buckets for number in bucket)
