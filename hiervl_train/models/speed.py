"""Options that make a model faster or smaller in memory without changing its outputs: see `SpeedConfig`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pydantic import PositiveFloat
from torch import nn

from hiervl_train.models.aggregator import SelfAttentionAggregator
from hiervl_train.models.hiervl import HierVL
from hiervl_train.models.layers import TimeAttention

# One compiled graph per shape: {child, parent, summary} × {training, encoding, evaluation} × text lengths.
GRAPHS = 256


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Speed against memory and start-up time; the numbers that come out agree to rounding."""

    bf16: bool = True  # autocast of matrix products; weights, normalisation and losses stay float32
    compile: bool = True  # each transformer block by itself: one graph serves all blocks of a tower
    # GiB of memory of a rank's device for which a micro-batch of `auto` is chosen. null: all of a GPU's; a CPU has no
    # limit.
    memory_gib: PositiveFloat | None = None
    checkpoint_activations: bool = False  # recompute the video blocks in the backward pass: less memory, more time
    # Keep the residual stream of the video tower in bfloat16 (with bf16): less memory and traffic, at a numeric cost.
    bf16_residual: bool = False
    channels_last: bool = False  # layout of the patch embedding's convolution
    # Time attention as products of pairs of frames, which the compiler fuses, not as an attention kernel with a mask.
    pairwise_time: bool = False


def prepare(model: HierVL, config: SpeedConfig) -> HierVL:
    """Apply the configuration to a model in place and return it. `bf16` is applied by `autocast`."""
    model.video.checkpoint_activations = config.checkpoint_activations
    model.video.bf16_residual = config.bf16_residual
    for module in model.modules():
        if isinstance(module, TimeAttention):
            module.pairwise = config.pairwise_time
    if config.channels_last:
        weight = model.video.patch_embed.proj.weight
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    if config.compile:
        compile_blocks(model)
    return model


def compile_blocks(model: HierVL, backend: str = "inductor") -> None:
    """Compile every transformer block in place, without graph breaks; parameter names stay as they are.

    Shapes are static: each (batch, frames) and each text length is compiled on first use, so text should be padded to
    a few lengths. Weights are inputs of a graph, so that all blocks of a tower share one.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, 4 * GRAPHS)
    for block in transformer_blocks(model):
        block.compile(fullgraph=True, dynamic=False, backend=backend)


def transformer_blocks(model: HierVL) -> Iterator[nn.Module]:
    """Yield the blocks of the video tower, the text tower and the aggregator."""
    yield from model.video.blocks
    yield from model.text.blocks
    if isinstance(model.aggregator, SelfAttentionAggregator):
        yield from model.aggregator.blocks


def autocast(device: torch.device | str, config: SpeedConfig) -> contextlib.AbstractContextManager[object]:
    """Return the context of a forward pass: bfloat16 autocast if `bf16` is set."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=config.bf16)
