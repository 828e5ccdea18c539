"""The sizes of a HierVL model as typed, frozen dataclasses, which a checkpoint stores with its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from configs.loading import from_dict
from shards.config import require_bounds

Fraction = Annotated[float, Field(ge=0, lt=1)]

ModelPart = Literal["video", "video_projection", "text", "text_projection", "aggregator"]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder: DistilBERT of these sizes, or any other encoder that transformers can load."""

    vocab_size: PositiveInt = 30522  # tokens
    max_position_embeddings: PositiveInt = 512  # tokens of the longest text
    n_layers: PositiveInt = 6  # transformer blocks
    n_heads: PositiveInt = 12  # attention heads per block
    dim: PositiveInt = 768  # width
    hidden_dim: PositiveInt = 3072  # width of the feed-forward layers
    dropout: Fraction = 0.1  # probability
    attention_dropout: Fraction = 0.1  # probability
    # Hub name or local folder of another encoder: its own configuration then replaces the eight sizes above.
    source: str | None = None
    # That configuration, `model_type` included. A model fills it in from `source`, so that what is saved needs no hub.
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_bounds(self)
        _divides(self.n_heads, "n_heads", self.dim, "dim")
        if self.settings and "model_type" not in self.settings:
            raise ValueError("settings: model_type is missing, so no architecture is named")


@dataclass(frozen=True, kw_only=True)
class AggregatorConfig:
    """What makes one summary-level embedding of many clip-level ones; shared by video and narrations."""

    kind: Literal["self_attention", "average"] = "self_attention"  # average: the mean, without weights
    depth: PositiveInt = 6  # transformer blocks
    num_heads: PositiveInt = 8  # attention heads per block
    tokens: PositiveInt = 16  # position slots: up to this many embeddings can be aggregated
    drop_path: Fraction = 0.1  # stochastic depth of the last block; it rises linearly from 0
    position_std: NonNegativeFloat = 0.02  # initial scale of the positions; a larger one learns order from less data

    def __post_init__(self) -> None:
        require_bounds(self)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """HierVL's sizes; the defaults are the published ones (ViT-B/16, DistilBERT base, aggregator SA)."""

    # A timm ViT by name: it then gives patch_size, embed_dim, depth and num_heads, which are left out.
    vit: str | None = None
    img_size: int | tuple[int, int] = 224  # pixels; one number for a square, else height and width
    patch_size: PositiveInt = 16  # pixels, height and width
    embed_dim: PositiveInt = 768  # width of the video transformer
    depth: PositiveInt = 12  # blocks of the video transformer
    num_heads: PositiveInt = 12  # attention heads per block
    # divided: time attention, then space attention, as published. joint: every patch attends to every other (AVION).
    attention: Literal["divided", "joint"] = "divided"
    # joint: whose ViT it is in its details. clip: a norm before the blocks; siglip: no CLS token, pooled by attention.
    style: Literal["vit", "clip", "siglip"] = "vit"
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"  # joint: of the MLPs; OpenAI's CLIP has quick_gelu
    patch_dropout: Fraction = 0.0  # joint: share of a clip's patches that is left out in training, at random
    num_frames: PositiveInt = 16  # temporal position slots; a video of T frames uses the first T
    text: TextConfig = field(default_factory=TextConfig)  # text tower
    projection_dim: PositiveInt = 256  # width of the space that video and text share
    aggregator: AggregatorConfig | None = field(default_factory=AggregatorConfig)  # null: clip level only

    def __post_init__(self) -> None:
        if self.vit is not None:
            self._take_sizes(self.vit)
        require_bounds(self)
        if self.attention == "divided":
            for name, plain in (("style", "vit"), ("activation", "gelu"), ("patch_dropout", 0.0)):
                if getattr(self, name) != plain:
                    raise ValueError(f"{name} = {getattr(self, name)} needs attention = joint")
        _divides(self.num_heads, "num_heads", self.embed_dim, "embed_dim")
        for side in self.image_hw:
            if side < 1 or side % self.patch_size:
                raise ValueError(f"img_size = {self.img_size}: not a multiple of patch_size = {self.patch_size}")
        if self.aggregator is not None and self.aggregator.kind == "self_attention":
            _divides(self.aggregator.num_heads, "aggregator.num_heads", self.projection_dim, "projection_dim")

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> ModelConfig:
        """Return the configuration in nested mappings; raise `ConfigError` on unknown keys and wrong values."""
        return from_dict(cls, tree)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of patches in a frame."""
        height, width = self.image_hw
        return height // self.patch_size, width // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of one frame."""
        rows, columns = self.grid_hw
        return rows * columns

    def kept_patches(self, count: int, *, training: bool = True) -> int:
        """Return how many of a clip's `count` patches are encoded: in training without those that are left out."""
        return max(1, round(count * (1 - self.patch_dropout))) if training else count

    def _take_sizes(self, vit: str) -> None:
        from hiervl_train.models.timm_vit import vit_sizes  # timm takes seconds to import: only where it is named

        defaults = {spec.name: spec.default for spec in dataclasses.fields(self)}
        for name, size in vit_sizes(vit).items():
            given = getattr(self, name)
            if given not in (defaults[name], size):
                raise ValueError(f"{name} = {given}, but vit = {vit} has {size}: leave {name} out")
            object.__setattr__(self, name, size)


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """What the towers of a new model start from; null starts one from random weights."""

    # A timm ViT by name (fetched from its hub) or a file of such weights (.safetensors or .pth); for a joint tower also
    # transformers:NAME of a CLIP or SigLIP, a hub name or folder, or open_clip:MODEL@WEIGHTS.
    video: str | None = "vit_base_patch16_224.orig_in21k_ft_in1k"
    # A text encoder by hub name or local folder; the tokenizer comes from there too.
    text: str | None = "distilbert-base-uncased"
    # How many times larger than usual the matrices of what starts from random weights are. A narrow model's first
    # outputs hardly differ from input to input; 4 gets a small one past that hundreds of steps sooner.
    gain: PositiveFloat = 1.0


def _divides(divisor: int, divisor_name: str, number: int, number_name: str) -> None:
    if number % divisor:
        raise ValueError(f"{number_name} = {number} is not a multiple of {divisor_name} = {divisor}")
