"""The configuration section `annotations`: the annotation files and the rules by which they are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

EGO4D_SPLIT_FIELDS = ("split_em", "split_av", "split_fho")


@dataclass(frozen=True, kw_only=True)
class EpicMirFiles:
    """EPIC-KITCHENS-100's retrieval tables: a table and its sentences for train, test or both."""

    train: Path | None = None  # EPIC_100_retrieval_train.csv
    train_sentences: Path | None = None  # EPIC_100_retrieval_train_sentence.csv
    test: Path | None = None  # EPIC_100_retrieval_test.csv
    test_sentences: Path | None = None  # EPIC_100_retrieval_test_sentence.csv

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            table, sentences = getattr(self, split), getattr(self, f"{split}_sentences")
            if (table is None) != (sentences is None):
                raise ValueError(
                    f"annotations.epic_mir.{split} = {table}, annotations.epic_mir.{split}_sentences = {sentences}: "
                    "give both or neither"
                )
        if self.train is None and self.test is None:
            raise ValueError("annotations.epic_mir: give train or test, with its sentences; or set epic_mir to null")


@dataclass(frozen=True, kw_only=True)
class CharadesEgoFiles:
    """Charades-Ego's action segments (train), whole videos (test), and the sentences of the classes."""

    classes: Path  # Charades_v1_classes.txt: a line `c000 Holding some clothes` for each class
    train: Path | None = None  # tab-separated: id, cls, t_start, t_end, narration
    test: Path | None = None  # CharadesEgo_v1_test_only1st.csv: id, actions; length where it has that column

    def __post_init__(self) -> None:
        if self.train is None and self.test is None:
            raise ValueError("annotations.charades_ego: give train or test; or set charades_ego to null")


@dataclass(frozen=True, kw_only=True)
class HowTo100mFiles:
    """HowTo100M's long videos and their classes."""

    train: Path | None = None  # tab-separated: video_uid, clip_start, clip_end, fps, label
    val: Path | None = None  # the same for validation
    classes: Path | None = None  # names, one a line, class 0 first; null: the classes have numbers only
    num_classes: PositiveInt = 100  # videos of later classes are left out, as in HierVL's probe

    def __post_init__(self) -> None:
        if self.train is None and self.val is None:
            raise ValueError("annotations.howto100m: give train or val; or set howto100m to null")


@dataclass(frozen=True, kw_only=True)
class AnnotationsConfig:
    """What to pretrain on, `egoclip` (with `egosummary`, or without) or `narrations`; benchmarks; what is known of all.

    A build may make any of these sets alone, and others may be added to the same dataset later. Own videos, with
    `captions` or without, are a dataset by themselves.
    """

    captions: Path | None = None  # own videos: a table of captions, CSV, TSV, JSON lines or parquet; see `captions`
    egoclip: Path | None = None  # egoclip.csv: clips, tab-separated
    egosummary: Path | None = None  # egosummary_full.csv: summaries, tab-separated
    # Ego4D's narration.json: narrations, made into clips by EgoClip's rule, and summaries.
    narrations: Path | None = None
    egomcq: Path | None = None  # egomcq.json: questions over clips
    summarymcq: Path | None = None  # summarymcq_full.json: questions over spans of minutes
    epic_mir: EpicMirFiles | None = None  # EPIC-KITCHENS-100 multi-instance retrieval
    charades_ego: CharadesEgoFiles | None = None  # Charades-Ego action recognition
    howto100m: HowTo100mFiles | None = None  # HowTo100M classification of long videos
    metadata: Path | None = None  # ego4d.json or manifest.csv: durations, stereo, splits
    split_fields: tuple[str, ...] = EGO4D_SPLIT_FIELDS  # metadata fields that name a video's split; others must exist
    val_list: Path | None = None  # video uids of the val split, one a line
    exclude: tuple[Path, ...] = ()  # files naming videos that evaluation uses: never pretrained on
    # exclude: leave out clips and summaries that touch one of the `redacted_intervals` of ego4d.json; keep: use them.
    redacted: Literal["exclude", "keep"] = "exclude"
    # EgoClip's α, s; null: measured over the data (EgoClip measured 4.9).
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    match_pass: bool = False  # a summary gets the narrations of its own annotator pass only

    def __post_init__(self) -> None:
        if self.captions is not None:
            self.require_own_only()
        if self.narrations is not None and self.egoclip is not None:
            raise ValueError(
                f"annotations.egoclip = {self.egoclip} and annotations.narrations = {self.narrations}: "
                "give one of the two and set the other to null, they describe the same clips"
            )
        if self.egosummary is not None and self.egoclip is None:
            raise ValueError(
                f"annotations.egosummary = {self.egosummary} goes with annotations.egoclip, which is not given"
            )
        if self.alpha is not None and self.egoclip is not None:
            raise ValueError("annotations.alpha has no effect on egoclip.csv, which states the clips; set it to null")
        if not all(self.split_fields):
            raise ValueError(f"annotations.split_fields = {self.split_fields}: an empty field name")

    def require_own_only(self) -> None:
        """Raise `ValueError` where a file of another dataset's format is configured beside own videos."""
        for name in (
            "egoclip",
            "narrations",
            "egomcq",
            "summarymcq",
            "epic_mir",
            "charades_ego",
            "howto100m",
            "metadata",
        ):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"annotations.{name} = {getattr(self, name)} is of another dataset than own videos "
                    f"(captions, annotations.captions): build the two into different outputs; set "
                    f"annotations.{name} to null"
                )
