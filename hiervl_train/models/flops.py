"""Counts the floating-point operations of the model's matrix products, module by module (a multiply-add counts as 2).

Linear layers, the patch embedding and attention's two products count, as in `torch.utils.flop_counter`. By default
the figures follow the published architecture: every token passes through every block, and each query attends only to
the keys that it may see. `executed=True` counts what this implementation computes: patch positions of time attention
share tiles (`layers.packing`), and the last block is computed for the CLS token only.
"""

from __future__ import annotations

from dataclasses import dataclass

from hiervl_train.models.config import ModelConfig
from hiervl_train.models.layers import packing

BACKWARD = 2  # forward passes that a backward pass costs: two products of the same size per linear layer


@dataclass(frozen=True, kw_only=True)
class ClipFlops:
    """Forward operations of one clip with its text, by module."""

    patch_embedding: int
    linear: int  # qkv, projections and MLPs of the video tower
    space_attention: int
    time_attention: int
    text: int
    projections: int

    @property
    def video(self) -> int:
        """The video tower alone."""
        return self.patch_embedding + self.linear + self.space_attention + self.time_attention

    @property
    def forward(self) -> int:
        """A clip and its text."""
        return self.video + self.text + self.projections

    @property
    def train(self) -> int:
        """Forward and backward; the loss and the optimiser are not counted."""
        return (1 + BACKWARD) * self.forward


def clip(
    config: ModelConfig, *, frames: int = 4, text_tokens: int = 32, executed: bool = False, training: bool = False
) -> ClipFlops:
    """Return the operations of one clip of `frames` frames with a text of `text_tokens` tokens.

    With `training` a joint tower is counted without the patches that it leaves out.
    """
    if config.attention == "joint":
        return _joint_clip(config, frames, text_tokens, executed, training)
    width, depth, patches = config.embed_dim, config.depth, frames * config.patches
    tokens = 1 + patches
    blocks = depth - 1 if executed else depth  # computed for all tokens
    packed = packing(frames, config.patches) if executed else 1
    # CLS passes the linear layer of queries, keys and values with every group, and is among the keys of each.
    time_cls, space_cls = (config.patches // packed, frames) if executed else (1, 1)
    time_linear, space_linear = (3 * (patches + rows) + patches + 1 for rows in (time_cls, space_cls))
    linear = blocks * (time_linear + space_linear + 8 * tokens)
    space = blocks * (_attention(patches, 1 + config.patches, width) + _attention(1, patches + space_cls, width))
    if executed:  # last block: time attention for all tokens, of space attention only keys and values
        linear += time_linear + 2 * tokens + 10
        space += _attention(1, tokens, width)
    time = depth * (_attention(patches, 1 + packed * frames, width) + _attention(1, patches + time_cls, width))
    return ClipFlops(
        patch_embedding=2 * patches * 3 * config.patch_size**2 * width,
        linear=2 * linear * width**2,
        space_attention=space,
        time_attention=time,
        text=text_encoder(config, tokens=text_tokens),
        projections=2 * (width + config.text.dim) * config.projection_dim,
    )


def _joint_clip(config: ModelConfig, frames: int, text_tokens: int, executed: bool, training: bool) -> ClipFlops:
    width, depth, patches = config.embed_dim, config.depth, frames * config.patches
    has_cls = config.style != "siglip"
    tokens = int(has_cls) + config.kept_patches(patches, training=training)
    is_short = executed and has_cls  # the last block is computed for CLS only
    blocks = depth - 1 if is_short else depth
    linear = blocks * 12 * tokens + (2 * tokens + 10 if is_short else 0)
    attention = blocks * _attention(tokens, tokens, width) + (_attention(1, tokens, width) if is_short else 0)
    if not has_cls:  # the query that pools is of the weights alone, once a batch
        linear += 2 * tokens + 10
        attention += _attention(1, tokens, width)
    return ClipFlops(
        patch_embedding=2 * patches * 3 * config.patch_size**2 * width,
        linear=2 * linear * width**2,
        space_attention=attention,
        time_attention=0,
        text=text_encoder(config, tokens=text_tokens),
        projections=2 * (width + config.text.dim) * config.projection_dim,
    )


def text_encoder(config: ModelConfig, *, tokens: int) -> int:
    """Return the forward operations of DistilBERT on one text."""
    text = config.text
    if text.source is not None or text.settings:
        raise ValueError("operations can be counted for DistilBERT text encoders only")
    linear = 2 * tokens * (4 * text.dim**2 + 2 * text.dim * text.hidden_dim)
    return text.n_layers * (linear + _attention(tokens, tokens, text.dim))


def aggregator(config: ModelConfig, *, tokens: int) -> int:
    """Return the forward operations of aggregating one set of `tokens` embeddings."""
    if config.aggregator is None or config.aggregator.kind != "self_attention":
        return 0
    width, count = config.projection_dim, 1 + tokens
    return config.aggregator.depth * (2 * count * 12 * width**2 + _attention(count, count, width))


def summary_train(
    config: ModelConfig, *, frames: int = 4, windows: int = 16, narrations: int = 16, text_tokens: int = 32
) -> int:
    """Return the forward and backward operations of one summary: its windows, narrations, own text, aggregations."""
    one = clip(config, frames=frames, text_tokens=text_tokens, training=True)
    towers = windows * one.video + (narrations + 1) * one.text
    aggregated = aggregator(config, tokens=windows) + aggregator(config, tokens=narrations)
    return (1 + BACKWARD) * (towers + aggregated)


def _attention(queries: int, keys: int, width: int) -> int:
    """Return the operations of queries × keys and weights × values, over all heads."""
    return 2 * 2 * queries * keys * width
