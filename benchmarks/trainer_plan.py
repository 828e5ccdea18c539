"""Computes parameters, bytes, network time and hours of training at the published size; nothing is timed.

    python benchmarks/trainer_plan.py [--peak 790] [--utilisation 0.2 0.3 0.4] [--activations]

Prints JSON. `--peak` is the peak of a GPU in TFLOP/s (bfloat16) and `--utilisation` the fraction of it that training
reaches; both are assumptions until measured. `--activations` encodes two clips on this CPU and counts the bytes that
are kept for the backward pass.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this folder's files have the names of packages
from hiervl_train.config import PretrainConfig  # noqa: E402
from hiervl_train.models import (  # noqa: E402
    HierVL,
    ModelConfig,
    flops,
)
from hiervl_train.models.speed import SpeedConfig, autocast  # noqa: E402
from shards.loader import NOUNS, VERBS  # noqa: E402

EGOCLIP = 3_847_723  # clips
FLOAT = 4  # bytes of a float32, the type of weights, gradients and moments
LINKS_GBIT = (100, 200, 400)  # Gb/s of a node's link
NODE = 8  # GPUs per node
BUCKET = 32 * 2**20  # bytes of gradients in a message
FIRST_GRADIENT = 0.09  # of the backward pass after which the first gradients are complete
CONFIG = PretrainConfig()


def sizes() -> dict[str, int]:
    """Return the parameters of each part of the published model, and the bytes that a step of each type averages."""
    with torch.device("meta"):
        model = HierVL(CONFIG.model)
    parts = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    total = sum(parts.values())
    assert total == sum(p.numel() for p in model.parameters())
    child = total - parts["aggregator"]
    return {**parts, "all": total, "child_gradient_bytes": FLOAT * child, "parent_gradient_bytes": FLOAT * total}


def gathered_bytes() -> int:
    """Return the bytes of a child step's embeddings, tags and gradients of embeddings that each rank receives."""
    clips, width = CONFIG.schedule.clips, CONFIG.model.projection_dim
    return FLOAT * clips * (2 * width + VERBS + NOUNS + 2 * width)


def reduce_seconds(size: int, ranks: int, gbit: float) -> float:
    """Return the seconds in which a ring all-reduce averages `size` bytes over nodes with links of `gbit` Gb/s.

    Each of W ranks sends 2 (W − 1) / W times the bytes. The ring enters and leaves each node once, so the node's link
    carries the same, whatever its number of GPUs.
    """
    return 2 * (ranks - 1) / ranks * size * 8 / (gbit * 1e9)


def schedule() -> dict[str, int]:
    """Return the numbers of steps in an epoch of EgoClip, and their operations."""
    every = CONFIG.schedule.child_steps_per_parent_step
    child = EGOCLIP // CONFIG.schedule.clips
    parent = child // every
    clip = flops.clip(CONFIG.model, frames=CONFIG.sample.frames).train
    summary = flops.summary_train(CONFIG.model, frames=CONFIG.sample.frames)
    return {
        "child_steps": child,
        "parent_steps": parent,
        "child_flop": CONFIG.schedule.clips * clip,
        "parent_flop": CONFIG.schedule.summaries * summary,
        "epoch_flop": child * CONFIG.schedule.clips * clip + parent * CONFIG.schedule.summaries * summary,
    }


def overlapped_seconds(computing: float, averaging: float, size: int) -> float:
    """Return the seconds of a step whose gradients of `size` bytes are averaged during its backward pass.

    The backward pass is 2/3 of the computing. Its first gradients are complete after `FIRST_GRADIENT` of it (seen on a
    CPU, block by block); the last bucket is sent after its end.
    """
    backward = 2 / 3 * computing
    last = averaging * min(1.0, BUCKET / size)
    return computing - backward + max(backward + last, FIRST_GRADIENT * backward + averaging)


def changes(gpus: int, rate: float, gbit: float | None) -> dict[str, float]:
    """Return the hours of the published epochs with and without each change of the trainer, cumulatively but the last.

    `gbit` None is a single node, whose averaging is not counted. `micro-batches of 32` is what a share of more than 32
    clips cost with cached gradients, of which all were encoded twice; now the last one is kept, or all are in one pass.
    """
    joint = dataclasses.replace(CONFIG.model, attention="joint", patch_dropout=0.5)
    parts = -(-(CONFIG.schedule.clips // gpus) // 32)
    return {
        "micro-batches of 32, averaging after": _hours(gpus, rate, gbit, passes=4 / 3 if parts > 1 else 1.0),
        "the last micro-batch kept": _hours(gpus, rate, gbit, passes=1 + (1 - 1 / parts) / 3),
        "one pass": _hours(gpus, rate, gbit),
        "and averaging during the backward pass": _hours(gpus, rate, gbit, overlap=True),
        "and in bfloat16": _hours(gpus, rate, gbit, overlap=True, share=0.5),
        "and joint attention, half the patches": _hours(gpus, rate, gbit, overlap=True, share=0.5, model=joint),
        "moments divided, averaging during the backward pass": _hours(gpus, rate, gbit, overlap=True, sharded=True),
    }


def _hours(
    gpus: int,
    rate: float,
    gbit: float | None,
    *,
    passes: float = 1.0,
    overlap: bool = False,
    share: float = 1.0,
    sharded: bool = False,
    model: ModelConfig = CONFIG.model,
) -> float:
    """Return the hours of the published epochs: `passes` of computing a step, `share` of the bytes of float32."""
    size, steps = sizes(), schedule()
    clip = flops.clip(model, frames=CONFIG.sample.frames, training=True).train
    summary = flops.summary_train(model, frames=CONFIG.sample.frames)
    total = 0.0
    for level, flop in (("child", CONFIG.schedule.clips * clip), ("parent", CONFIG.schedule.summaries * summary)):
        computing = passes * flop / gpus / rate
        gradients = size[f"{level}_gradient_bytes"]
        averaging = 0.0 if gbit is None else reduce_seconds(int(share * gradients), gpus, gbit)
        seconds = overlapped_seconds(computing, averaging, gradients) if overlap else computing + averaging
        if sharded and gbit is not None:
            seconds += averaging / 2  # a ring broadcast sends each byte once
        total += steps[f"{level}_steps"] * seconds
    return CONFIG.schedule.epochs * total / 3600


def step_seconds(clips: int, rate: float) -> float:
    """Return the seconds to compute a child step of `clips` clips per GPU at `rate` operations/s."""
    return clips * flops.clip(CONFIG.model, frames=CONFIG.sample.frames).train / rate


def hours(gpus: int, rate: float, gbit: float | None) -> float:
    """Return the hours of the published epochs; with `gbit` None, averaging gradients takes no time."""
    size, steps = sizes(), schedule()
    computing = CONFIG.schedule.epochs * steps["epoch_flop"] / gpus / rate
    if gbit is None:
        return computing / 3600
    averaging = steps["child_steps"] * reduce_seconds(size["child_gradient_bytes"], gpus, gbit)
    averaging += steps["parent_steps"] * reduce_seconds(size["parent_gradient_bytes"], gpus, gbit)
    return (computing + CONFIG.schedule.epochs * averaging) / 3600


def activation_bytes(clips: int = 2, *, config: PretrainConfig = CONFIG) -> dict[str, float]:
    """Return the bytes per clip, and per text of 32 tokens, that autograd keeps for backward; eager, bfloat16."""
    torch.manual_seed(0)
    model = HierVL(config.model).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    video = torch.rand(clips, config.sample.frames, 3, *config.model.image_hw)
    ids = torch.randint(0, config.model.text.vocab_size, (clips, 32))
    per_sample = {}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast("cpu", SpeedConfig()):
        for name, encode in {
            "video": lambda: model.encode_video(video),
            "text": lambda: model.encode_text(ids, torch.ones_like(ids)),
        }.items():
            kept.clear()
            embeddings = encode()
            layers = [
                m for m in model.get_submodule(name).modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
            ]
            cast = sum(2 * layer.weight.numel() for layer in layers)  # weights as bfloat16, kept once, not per clip
            per_sample[name] = (sum(kept.values()) - cast) / clips
            del embeddings
    return per_sample


def plan(peak: float, utilisations: Sequence[float]) -> dict[str, Any]:
    """Return all computed figures; `peak` is in TFLOP/s."""
    size, steps = sizes(), schedule()
    best = peak * 1e12 * max(utilisations)
    network: list[Mapping[str, Any]] = []
    for clips in (16, 32, 64):
        ranks = CONFIG.schedule.clips // clips
        seconds = {f"{gbit} Gb/s": round(reduce_seconds(size["child_gradient_bytes"], ranks, gbit), 4)
                   for gbit in LINKS_GBIT}  # fmt: skip
        network.append({"clips": clips, "gpus": ranks, "compute_s": round(step_seconds(clips, best), 4), **seconds})
    even = {
        f"{gbit} Gb/s": round(reduce_seconds(size["child_gradient_bytes"], 32, gbit) / step_seconds(1, best), 1)
        for gbit in LINKS_GBIT
    }
    table = []
    for gpus in (8, 32, 64):
        links: tuple[int | None, ...] = (None,) if gpus <= NODE else (None, *LINKS_GBIT)
        for utilisation in utilisations:
            rate = peak * 1e12 * utilisation
            row = {"gpus": gpus, "utilisation": utilisation}
            row |= {"no network" if gbit is None else f"{gbit} Gb/s": round(hours(gpus, rate, gbit), 2)
                    for gbit in links}  # fmt: skip
            table.append(row)
    return {
        "assumed": {"peak_tflops": peak, "utilisation": list(utilisations)},
        "parameters": size,
        "state_bytes": 3 * FLOAT * size["all"],
        "gathered_bytes": gathered_bytes(),
        "schedule": steps,
        "network_s_a_child_step": network,
        "clips_a_gpu_at_which_computing_takes_as_long_as_averaging": even,
        "hours_of_10_epochs": table,
        "hours_with_and_without_each_change": {
            f"{gpus} GPUs" + ("" if gbit is None else f", {gbit} Gb/s"): {
                name: round(value, 2) for name, value in changes(gpus, best, gbit).items()
            }
            for gpus, gbit in ((8, None), (8, 400), (8, 100), (32, 400), (32, 100), (64, 400), (64, 100))
        },
        "gpu_hours_computing": round(hours(1, best, None), 1),
    }


def main() -> int:
    """Print the plan as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--peak", type=float, default=790.0, help="TFLOP/s of a GPU, bfloat16")
    parser.add_argument("--utilisation", type=float, nargs="+", default=[0.2, 0.3, 0.4])
    parser.add_argument("--activations", action="store_true")
    options = parser.parse_args()
    figures = plan(options.peak, options.utilisation)
    if options.activations:
        figures["activation_bytes_a_clip"] = activation_bytes()
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
