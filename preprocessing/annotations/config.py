"""The configuration section `annotations`: which files say what happens in the videos, and by which rules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

EGO4D_SPLIT_FIELDS = ("split_em", "split_av", "split_fho")


@dataclass(frozen=True, kw_only=True)
class AnnotationsConfig:
    """Either `egoclip` (with `egosummary`, or without) or `narrations`; the rest may be left out."""

    egoclip: Path | None = None  # egoclip.csv: clips, tab-separated
    egosummary: Path | None = None  # egosummary_full.csv: summaries, tab-separated
    narrations: Path | None = (
        None  # Ego4D's narration.json: narrations, made into clips by EgoClip's rule, and summaries
    )
    metadata: Path | None = None  # ego4d.json or manifest.csv: durations, stereo, splits
    split_fields: tuple[str, ...] = EGO4D_SPLIT_FIELDS  # metadata fields that name a video's split; others must exist
    val_list: Path | None = None  # video uids of the val split, one a line
    exclude: tuple[Path, ...] = ()  # files naming videos that evaluation uses: their items never enter any set
    alpha: float | None = None  # s, EgoClip's α; None: measured over the data (EgoClip measured 4.9)
    match_pass: bool = False  # a summary gets the narrations of its own annotator pass only

    def __post_init__(self) -> None:
        if self.narrations is not None and self.egoclip is not None:
            raise ValueError(
                f"annotations.egoclip = {self.egoclip} and annotations.narrations = {self.narrations}: "
                "give one of the two and set the other to null, they describe the same clips"
            )
        if self.egosummary is not None and self.egoclip is None:
            raise ValueError(
                f"annotations.egosummary = {self.egosummary} goes with annotations.egoclip, which is not given"
            )
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"annotations.alpha = {self.alpha}: a positive number of seconds is needed, as 4.9")
        if self.alpha is not None and self.egoclip is not None:
            raise ValueError(
                "annotations.alpha has no effect on egoclip.csv, whose clips are ready-made; set it to null"
            )
        if not all(self.split_fields):
            raise ValueError(f"annotations.split_fields = {self.split_fields}: an empty field name")
