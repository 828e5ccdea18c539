"""HierVL: two towers into one embedding space, and an aggregator from clips to summaries.

Shapes in names: B batch, T frames, C colours, H and W pixels, L text tokens, K embeddings of a summary,
D width of the shared space.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor, nn

from hiervl_train.models.aggregator import build_aggregator
from hiervl_train.models.config import ModelConfig
from hiervl_train.models.text import TextTower, resolve
from hiervl_train.models.video import VideoTower


class HierVL(nn.Module):
    """The model of HierVL and, without an aggregator, of EgoVLP; embeddings come out unnormalised."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        config = config or ModelConfig()
        self.config = dataclasses.replace(config, text=resolve(config.text))
        self.video = VideoTower(self.config)
        self.text = TextTower(self.config.text)
        self.video_projection = nn.Linear(self.config.embed_dim, self.config.projection_dim)
        self.text_projection = nn.Linear(self.text.width, self.config.projection_dim)
        self.aggregator = build_aggregator(self.config.projection_dim, self.config.aggregator)

    @classmethod
    def from_checkpoint(cls, path: str | Path, config: ModelConfig | None = None) -> HierVL:
        """Return the model in a checkpoint, ours (a folder or its .safetensors) or a released .pth, for evaluation.

        Ours brings its configuration. A released one without `config` is loaded at the published size, which its
        shapes must have: head counts cannot be read off weights. What was ignored or resized is logged as a
        warning, by name; `storage.load_checkpoint` returns it. Raises `CheckpointError` on missing or mis-shaped
        parts, by name.
        """
        from hiervl_train.models.storage import load_checkpoint

        model, report = load_checkpoint(path, config)
        report.log()
        return model.eval()

    def encode_video(self, video_BTCHW: Tensor) -> Tensor:
        """Return (B, D) of normalised frames (see `pixels.normalise`), T up to the model's temporal slots."""
        return self.video_projection(self.video(video_BTCHW))

    def encode_text(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Return (B, D) of tokenised text; the mask is 1 on tokens and 0 on padding."""
        return self.text_projection(self.text(input_ids_BL, attention_mask_BL).relu())

    def aggregate(self, x_BKD: Tensor) -> Tensor:
        """Return (B, D): K embeddings of clips, or of narrations, in their order, as one of their summary."""
        if self.aggregator is None:
            raise ValueError(
                "this model has no aggregator (aggregator: null); "
                "give it a configuration with aggregator: {kind: average} to take means"
            )
        return self.aggregator(x_BKD)

    def forward(self, video_BTCHW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of clips and of their narrations."""
        return self.encode_video(video_BTCHW), self.encode_text(input_ids_BL, attention_mask_BL)
