"""Creates a small dataset with a shard of every benchmark split, and its questions or labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shards import companions, schema
from shards.dataset import Dataset
from shards.index import finish_split, write_dataset
from shards.keys import make_key
from tests.shards.samples import TOOLCHAIN, clip, write_shard

ABSENT = make_key("absent", "q", 0, 0)  # key of a clip in a question but in no shard
_OWN: dict[str, dict[str, Any]] = {
    "egomcq": {},
    "summarymcq": {},
    "epic_mir": {"narration_id": "P01_01_0", "verb_class": 3, "noun_classes": [1, 5]},
    "charades_ego": {"action": 12},
    "howto100m": {"label": 1},
}


def sample(set_name: str, index: int, *, split: str = "test", frames: int = 8) -> schema.Sample:
    """Return the `index`th sample of a benchmark's split."""
    base = clip(index, video=f"video-{split}", frames=frames)
    common = {name: getattr(base.record, name) for name in schema.MediaRecord.__dataclass_fields__}
    record = schema.from_json(set_name, {**common, **_OWN[set_name]})
    return schema.Sample(key=key(set_name, index, split), record=record, jpg=base.jpg, mp4=base.mp4)


def key(set_name: str, index: int, split: str = "test") -> str:
    """Return the key of that sample."""
    return make_key(f"video-{split}", schema.SETS[set_name].letter, 0, index)


def companion(set_name: str, split: str) -> companions.Companion:
    """Return questions or labels for the three samples of a split; the last question also has the key `ABSENT`."""
    keys = [key(set_name, index, split) for index in range(3)]
    if set_name in ("egomcq", "summarymcq"):
        kind: companions.QuestionType = "summary" if set_name == "summarymcq" else "inter"
        asked = [(*keys,), (keys[1], keys[0]), (keys[2], ABSENT)]
        return companions.Questions(
            set=set_name,
            split=split,
            name=set_name,
            questions=tuple(
                companions.Question(id=str(i), type=kind, text=f"#C C does {i}", answer=0, choices=choices)
                for i, choices in enumerate(asked)
            ),
        )
    if set_name == "epic_mir":
        rows = [
            {"narration_id": f"P01_01_{i}", "text": "cut", "verb_class": i, "noun_classes": (i, 9)} for i in range(3)
        ]
        return companions.EpicLabels(
            videos=tuple(companions.EpicVideo(key=k, **row) for k, row in zip(keys, rows, strict=False)),
            sentences=tuple(companions.EpicSentence(**row) for row in rows),
        )
    if set_name == "charades_ego":
        videos = tuple(companions.CharadesVideo(key=k, actions=(0,) * (i > 0)) for i, k in enumerate(keys))
        return companions.CharadesLabels(classes=("Holding some clothes", "Opening a door"), videos=videos)
    return companions.HowToLabels(
        classes=(), videos=tuple(companions.HowToVideo(key=k, label=i) for i, k in enumerate(keys))
    )


def make_benchmarks(root: Path) -> Dataset:
    """Write three samples of every benchmark split, and their companions."""
    paths = []
    for set_name, spec in schema.SETS.items():
        for split in spec.splits if spec.is_benchmark else ():
            write_shard(root, [sample(set_name, i, split=split) for i in range(3)], set_name=set_name, split=split)
            finish_split(root, set_name, split)
            if split in spec.companions:
                paths.append(companions.companion_path(set_name, split))
                companions.write_companion(root / paths[-1], companion(set_name, split))
    return write_dataset(
        root,
        config={},
        toolchain=TOOLCHAIN,
        provenance={
            "code_revision": "0" * 40,
            "annotations": {"egomcq.json": "ab" * 32},
            "licence_notice": "Made for tests.",
            "counts": {},
        },
        companions=paths,
    )
