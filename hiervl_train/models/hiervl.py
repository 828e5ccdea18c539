"""HierVL: two towers with one embedding space, and an aggregator from clips to summaries.

Shapes in names: B batch, T frames, C colours, H and W pixels, L text tokens, K embeddings of a summary,
D width of the shared space.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor, nn

from hiervl_train.models.aggregator import build_aggregator
from hiervl_train.models.config import ModelConfig
from hiervl_train.models.joint import JointTower
from hiervl_train.models.storage import LoadReport, StoredWeights, fit, read_weights
from hiervl_train.models.text import TextTower, resolve
from hiervl_train.models.video import VideoTower


class HierVL(nn.Module):
    """The model of HierVL and, without an aggregator, of EgoVLP; embeddings are not normalised.

    model = HierVL.from_checkpoint("runs/mine/checkpoints/step-00001000")
    clips_BD = model.encode_video(normalise(frames_BTCHW))
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        config = config or ModelConfig()
        self.config = dataclasses.replace(config, text=resolve(config.text))
        self.video = VideoTower(self.config) if self.config.attention == "divided" else JointTower(self.config)
        self.text = TextTower(self.config.text)
        self.video_projection = nn.Linear(self.config.embed_dim, self.config.projection_dim)
        self.text_projection = nn.Linear(self.text.width, self.config.projection_dim)
        self.aggregator = build_aggregator(self.config.projection_dim, self.config.aggregator)

    @classmethod
    def from_checkpoint(cls, path: str | Path, config: ModelConfig | None = None) -> HierVL:
        """Return the model of a checkpoint, ours (a folder or its .safetensors) or a released .pth, in evaluation mode.

        `config` gives the sizes of a released checkpoint that are not the published ones: head counts cannot be derived
        from weights. Ours has its own configuration. Ignored and resized tensors are logged as a warning, by name;
        `load` returns them. Raises `CheckpointError`, by name, on missing tensors and wrong shapes.
        """
        model, report = HierVL.load(path, config)
        report.log()
        return model.eval()

    @staticmethod
    def load(path: str | Path, config: ModelConfig | None = None) -> tuple[HierVL, LoadReport]:
        """Return the model of a checkpoint in training mode, and the load report; see `from_checkpoint`."""
        stored = read_weights(path)
        model = HierVL(config or stored.config)
        return model, model.load_weights(stored)

    def load_weights(self, stored: StoredWeights, *, may_be_fresh: str | None = None) -> LoadReport:
        """Copy the weights of a checkpoint into this model; see `storage.fit` for what may differ, and for errors."""
        tensors, report = fit(stored, self.state_dict(), may_be_fresh=may_be_fresh)
        # Not strict because of `may_be_fresh`, which is in the report; `fit` has checked everything else.
        self.load_state_dict(tensors, strict=False)
        return report

    def encode_video(self, video_BTCHW: Tensor) -> Tensor:
        """Return (B, D) of normalised frames (see `pixels.normalise`), T up to the model's temporal slots."""
        out_BD: Tensor = self.video_projection(self.video(video_BTCHW))
        return out_BD

    def encode_text(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Return (B, D) of tokenised text; the mask is 1 on tokens and 0 on padding."""
        out_BD: Tensor = self.text_projection(self.text(input_ids_BL, attention_mask_BL).relu())
        return out_BD

    def aggregate(self, x_BKD: Tensor) -> Tensor:
        """Return (B, D): K ordered embeddings of clips, or of narrations, as one embedding of their summary.

        Raises ValueError where the model has no aggregator, or fewer position slots than K.
        """
        if self.aggregator is None:
            raise ValueError(
                "this model has no aggregator (aggregator: null); "
                "give it a configuration with aggregator: {kind: average} to take means"
            )
        out_BD: Tensor = self.aggregator(x_BKD)
        return out_BD

    def forward(self, video_BTCHW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of clips and of their narrations, (B, D) each."""
        return self.encode_video(video_BTCHW), self.encode_text(input_ids_BL, attention_mask_BL)
