"""Plans of buckets: order, sizes, and what may share a bucket."""

from __future__ import annotations

import random

import torch

from hiervl_train.reduction.plan import BucketPlan


def test_a_plan_keeps_the_order_and_divides_by_bytes_and_dtype() -> None:
    tensors = [torch.zeros(3), torch.zeros(4), torch.zeros(100), torch.zeros(1).double(), torch.zeros(1).double()]
    assert BucketPlan.of([0, 1, 2, 3, 4], tensors, 32).buckets == ((0, 1), (2,), (3, 4))
    assert BucketPlan.of([4, 0, 3], tensors, 32).buckets == ((4,), (0,), (3,))
    assert BucketPlan.of([], tensors, 32).buckets == ()


def test_every_parameter_is_in_one_bucket_in_the_given_order() -> None:
    rng = random.Random(0)
    for _ in range(50):
        tensors = [torch.empty(rng.randint(1, 40)) for _ in range(20)]
        order = rng.sample(range(20), rng.randint(1, 20))
        plan = BucketPlan.of(order, tensors, 200)
        assert [number for bucket in plan.buckets for number in bucket] == order
        assert plan.parameters == set(order)
        assert all(len(b) == 1 or sum(tensors[n].nbytes for n in b) <= 200 for b in plan.buckets)
