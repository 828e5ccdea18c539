"""The configuration of an extraction of features (`configs/features/*.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from hiervl_train.distributed import DistributedConfig
from hiervl_train.models.speed import SpeedConfig
from shards.config import ReadConfig
from shards.schema import SETS

ExtractorKind = Literal["towers", "timm", "transformers_vision", "transformers_text", "open_clip", "tokens"]


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """Which model computes the features, and which of its outputs they are."""

    # towers: ours, from `checkpoint`. timm, transformers_vision: each frame by an image model. open_clip: frames and
    # texts. transformers_text: texts by an encoder. tokens: texts as token ids.
    kind: ExtractorKind = "towers"
    # timm: a model's name. transformers_*, tokens: a hub name or local folder. open_clip: MODEL@WEIGHTS, where WEIGHTS
    # is a tag or a file. towers: not used.
    source: str | None = None
    weights: Path | None = None  # timm: a file of weights (.safetensors, .pth) instead of the hub's
    video: bool = True  # towers, open_clip: features of frames
    text: bool = True  # towers, open_clip: features of captions, and of a summary's narrations
    # towers: projected, into the space that video and text share; tower, before that: the projection can be trained.
    layer: Literal["projected", "tower"] = "projected"
    aggregate: bool = True  # towers, layer = projected: also the aggregate of a long sample's windows
    per_token: bool = False  # transformers_text: a row for each token instead of one for the text
    # transformers_text: the state that stands for a text: the first token's, or the mean over its tokens.
    pooling: Literal["first", "mean"] = "first"
    max_tokens: PositiveInt = 512  # texts are cut after so many tokens, or after the encoder's positions

    def __post_init__(self) -> None:
        if self.kind != "towers" and not self.source:
            raise ValueError(f"source is not set: extractor.kind = {self.kind} needs the model's name or folder")
        if not self.video and not self.text:
            raise ValueError("video and text are both false: there is nothing to extract")


@dataclass(frozen=True, kw_only=True)
class ExtractDataConfig(ReadConfig):
    """Which samples features are extracted of, and how they are read."""

    root: str = "data/embedded/shards"  # dataset: a folder, or an http(s):// or s3:// URL
    sets: tuple[str, ...] | None = None  # sets; null: all that the dataset has
    splits: tuple[str, ...] | None = None  # splits of each; null: all
    workers: NonNegativeInt = 2  # decoding processes per rank; 0: in the calling process

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.sets or ():
            if name not in SETS:
                raise ValueError(f"sets: {name} is unknown; known are {', '.join(SETS)}")


@dataclass(frozen=True, kw_only=True)
class ExtractSampleConfig:
    """What a sample holds; null: as in the checkpoint's run, else as published."""

    frames: PositiveInt | None = None  # per clip and per window; published: 4
    windows: PositiveInt | None = None  # per long sample; published: 16
    window_seconds: PositiveFloat | None = None  # greatest length of a window, s; published: 8


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """One feature set of one dataset."""

    OTHER_NAMES: ClassVar[Mapping[str, str]] = {"shards": "data.root", "model": "extractor"}

    name: str = "features"  # of the feature set: its folder in ROOT/features
    checkpoint: Path | None = None  # of kind towers: a run, one of its checkpoints, or a released .pth
    output: Path | None = None  # folder of the feature set; null: ROOT/features/<name>
    data: ExtractDataConfig = field(default_factory=ExtractDataConfig)
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    sample: ExtractSampleConfig = field(default_factory=ExtractSampleConfig)
    dtype: Literal["float16", "float32"] = "float16"  # of features; token ids are int32
    batch: PositiveInt = 32  # clips or windows per forward pass
    speed: SpeedConfig = field(default_factory=lambda: SpeedConfig(bf16=False, compile=False))
    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05  # failed samples above which the exit code is 3
    # Ranks wait for the slowest one to extract its shards; a dead one they notice at once.
    distributed: DistributedConfig = field(default_factory=lambda: DistributedConfig(timeout_seconds=6 * 3600.0))
