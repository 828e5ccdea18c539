"""What one rank computes for the tests of collectives and objectives, with gloo in float64; see `rank_results`.

    python -m tests.hiervl_train.ranks RANK WORLD FOLDER

Each rank takes its slice of every scenario's batch; then the first half of the ranks does so again as a smaller world.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from hiervl_train.collectives import (
    all_gather,
    broadcast_json,
    gather_json,
    sum_over_ranks,
    world_size,
)
from hiervl_train.distributed import DistributedContext
from hiervl_train.grad_cache import cached_backward
from hiervl_train.models import HierVL
from hiervl_train.objectives import ObjectiveConfig, Tags, child_loss, parent_loss
from hiervl_train.reduction.reducer import GradientReducer
from hiervl_train.tasks.epic_mir import margin_loss
from tests.hiervl_train.reduction import rank_steps
from tests.hiervl_train.tiny import random_tags, random_text, random_video, tiny_config, tiny_model

WORLD = 4
CLIPS = 8  # of the global batch
SUMMARIES = 4
OBJECTIVE = ObjectiveConfig()
Result = tuple[Tensor, dict[str, Tensor]]


def scenarios() -> dict[str, Callable[[HierVL, int, int], Tensor]]:
    """Return, by name, the functions that compute a loss and its gradients on one rank of a world."""
    return {
        "child": child,
        "parent": parent,
        "margin": margin,
        "cached child": cached_child,
        "cached parent": cached_parent,
        "cached margin": cached_margin,
    }


def run(rank: int, world: int) -> dict[str, Result]:
    """Return, by scenario, the loss and the gradients averaged over ranks."""
    results = {}
    for name, scenario in scenarios().items():
        model = tiny_model(tiny_config(depth=1)).train()
        reducer = GradientReducer(dict(model.named_parameters()), bucket_bytes=2000)
        reducer.begin(name)
        loss = scenario(model, rank, world)
        reducer.finish()
        results[name] = (loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    return results


def mine(tensor: Tensor, rank: int, world: int) -> Tensor:
    """Return a rank's part of a global batch."""
    return tensor.chunk(world)[rank]


def tags_for(count: int, rank: int, world: int) -> Tags:
    verbs, nouns = random_tags(count)
    return Tags(verbs_BV=mine(verbs, rank, world), nouns_BO=mine(nouns, rank, world))


def clips_for(rank: int, world: int) -> tuple[Tensor, ...]:
    tensors = (random_video(CLIPS, 2, 3, 16, 16), *random_text(CLIPS, 6))
    return tuple(mine(tensor, rank, world) for tensor in tensors)


def child(model: HierVL, rank: int, world: int) -> Tensor:
    loss = child_loss(*model(*clips_for(rank, world)), tags_for(CLIPS, rank, world), OBJECTIVE)
    loss.backward()
    return loss


def cached_child(model: HierVL, rank: int, world: int) -> Tensor:
    parts = list(zip(*(tensor.split(1) for tensor in clips_for(rank, world)), strict=True))
    tags = tags_for(CLIPS, rank, world)
    return cached_backward(parts, lambda part: model(*part), lambda v, t: child_loss(v, t, tags, OBJECTIVE))


def relevancy_for(rank: int, world: int) -> Tensor:
    return mine(torch.linspace(0.1, 1.0, CLIPS, dtype=torch.float64), rank, world)


def margin(model: HierVL, rank: int, world: int) -> Tensor:
    loss = margin_loss(*model(*clips_for(rank, world)), relevancy_for(rank, world), margin=0.4)
    loss.backward()
    return loss


def cached_margin(model: HierVL, rank: int, world: int) -> Tensor:
    parts = list(zip(*(tensor.split(1) for tensor in clips_for(rank, world)), strict=True))
    relevancy = relevancy_for(rank, world)
    return cached_backward(parts, lambda part: model(*part), lambda v, t: margin_loss(v, t, relevancy, margin=0.4))


def summaries_for(rank: int, world: int) -> tuple[Tensor, ...]:
    windows = random_video(SUMMARIES, 3, 2, 3, 16, 16)
    ids, mask = (tensor.unflatten(0, (SUMMARIES, 4)) for tensor in random_text(SUMMARIES * 4, 6))
    return tuple(mine(tensor, rank, world) for tensor in (windows, ids, mask, *random_text(SUMMARIES, 5, seed=8)))


def encode(model: HierVL, part: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    windows, ids, mask, own_ids, own_mask = part
    return (
        model.encode_video(windows.flatten(0, 1)).unflatten(0, windows.shape[:2]),
        model.encode_text(ids.flatten(0, 1), mask.flatten(0, 1)).unflatten(0, ids.shape[:2]),
        model.encode_text(own_ids, own_mask),
    )


def parent(model: HierVL, rank: int, world: int) -> Tensor:
    embeddings = encode(model, summaries_for(rank, world))
    loss = parent_loss(*embeddings, tags_for(SUMMARIES, rank, world), model.aggregate, OBJECTIVE)
    loss.backward()
    return loss


def cached_parent(model: HierVL, rank: int, world: int) -> Tensor:
    tags = tags_for(SUMMARIES, rank, world)
    parts = list(zip(*(tensor.split(1) for tensor in summaries_for(rank, world)), strict=True))
    return cached_backward(
        parts,
        lambda part: encode(model, part),
        lambda *embeddings: parent_loss(*embeddings, tags, model.aggregate, OBJECTIVE),
    )


def gather_whose_loss_differs_by_rank(rank: int) -> Tensor:
    """Return this rank's gradient if each rank weights the gathered rows differently."""
    x = torch.arange(6, dtype=torch.float64).view(2, 3).add(rank).requires_grad_()
    gathered = all_gather(x)
    weights = torch.arange(gathered.numel(), dtype=torch.float64).view_as(gathered) * (rank + 1)
    (gathered * weights).sum().backward()
    assert x.grad is not None
    return x.grad


def exchange(rank: int, world: int) -> dict[str, object]:
    """Return what this rank receives of small values."""
    context = DistributedContext(rank=rank, world=world)
    try:
        gather_json("x" * 9000, context)
    except ValueError as error:
        too_long = str(error)
    return {
        "gathered": gather_json({"rank": rank, "text": "é" * rank}, context),
        "summed": sum_over_ranks({"all": 1.0, f"only {rank}": 1.5}, context),
        "broadcast": [broadcast_json(f"from {rank}", None), broadcast_json(None if rank == 0 else "other", None)],
        "too long": too_long,
    }


def worlds(whole: int) -> Iterator[int]:
    yield whole
    yield whole // 2


def main(rank: int, whole: int, folder: Path) -> None:
    torch.set_num_threads(1)
    for world in worlds(whole):
        if rank >= world:
            return
        store = f"file://{folder}/store-{world}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        assert world_size() == world
        results = {
            "gather": gather_whose_loss_differs_by_rank(rank),
            "values": exchange(rank, world),
            **run(rank, world),
            "reduction": rank_steps.results(rank, world),
        }
        torch.save(results, folder / f"{world}-{rank}.pt")
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
