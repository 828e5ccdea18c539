"""The dataset card, ROOT/README.md: YAML for Hugging Face `datasets`, and a description for people."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from shards import schema
from shards.dataset import Dataset
from shards.summary import human_bytes, human_hours, summarize

_HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_HUB_TYPES = {str: "string", int: "int64", float: "float64"}
_MEMBER_FEATURES = {"jpg": "image", "mp4": "video", "txt": "string"}
_MEMBER_DOCS = {
    "jpg": "the stored key frame nearest the middle of the clip",
    "json": "the record; its fields are below",
    "mp4": "the clip: H.264, yuv420p, constant frame rate, first frame a key frame, no audio",
    "txt": "the caption, UTF-8",
}
_PROSE = """\
Tar shards of egocentric video with narrations and summaries, for contrastive pretraining. Each tar is plain USTAR in
the WebDataset convention and can be read by `webdataset`, `wids`, `datasets`, `open_clip` and `tar`. Beside each tar
are an index (`.parquet`: a row per sample, with the offset and size of every member) and its hash (`_stats.json`).
`dataset.json` lists all shards with their hashes. `python -m shards.verify` checks every byte and decodes every sample;
`python -m shards.inspect` shows the contents."""
_COMPANIONS = """\
Questions and labels of the benchmarks, as UTF-8 JSON; `shards.companions` reads them. They refer to samples by key,
including samples that could not be packed, so that a score can report how many of the items it covers."""
_READING = """\
```python
from datasets import load_dataset, Video

clips = load_dataset("{root}", "{name}", split="{split}")
clips = clips.cast_column("mp4", Video(decode=False))  # bytes; omit this line if torchcodec is installed
```"""


def render(dataset: Dataset) -> str:
    """Return the text of the card; equal datasets give equal text."""
    front = yaml.safe_dump(_front_matter(dataset), sort_keys=False, allow_unicode=True, width=120)
    sections = [f"---\n{front}---", "# Egocentric video, narrations and summaries", _PROSE]
    sections += ["## Sizes", _sizes(dataset), "## Reading it", _reading(dataset)]
    sections += ["## Members of a sample", _table(("member", "contents"), list(_MEMBER_DOCS.items()))]
    for set_name in dict.fromkeys(name for name, _, _ in dataset.splits()):
        title = schema.set_spec(set_name).title
        has_extra = bool(dataset.provenance.get("extra_columns"))
        sections += [f"## Fields of `json` in `{set_name}`: {title}", _fields(set_name, has_extra=has_extra)]
    companions = [name for name in dataset.files if name.rpartition("/")[2] in (schema.QUESTIONS, schema.LABELS)]
    if companions:
        sections += ["## Questions and labels", _COMPANIONS, "\n".join(f"- `{name}`" for name in companions)]
    sections += ["## How it was built", _made(dataset), "## Licence of the source", _licence(dataset)]
    return "\n\n".join(sections) + "\n"


def _front_matter(dataset: Dataset) -> dict[str, Any]:
    configs: dict[str, list[dict[str, str]]] = {}
    samples = 0
    for set_name, split, entry in dataset.splits():
        samples += entry.samples
        if entry.shards:  # `datasets` fails on a pattern that matches no file
            files = configs.setdefault(set_name, [])
            files.append({"split": _HUB_SPLITS[split], "path": f"{set_name}/{split}/*.tar"})
    extra = dataset.provenance.get("extra_columns") or []
    return {
        "pretty_name": "Egocentric video, narrations and summaries",
        "license": "other",
        "task_categories": ["video-classification", "feature-extraction"],
        "tags": ["webdataset", "video", "egocentric", "video-text"],
        "size_categories": [_size_category(samples)],
        "configs": [
            {"config_name": name, "default": index == 0, "data_files": files}
            for index, (name, files) in enumerate(configs.items())
        ],
        # Given types, `datasets` infers none from the first samples, so a split without any tag can be read, too.
        "dataset_info": [{"config_name": name, "features": _features(name, extra)} for name in configs],
    }


def _features(set_name: str, extra: Sequence[str]) -> list[dict[str, Any]]:
    """Return the features of a set for `datasets`; `extra` are the names in the field of that name."""
    members = []
    for ext in schema.MEMBERS:
        if ext == "json":
            members.append({"name": ext, "struct": _struct(typing.cast(type, schema.record_class(set_name)), extra)})
        else:
            members.append({"name": ext, "dtype": _MEMBER_FEATURES[ext]})
    return [*members, {"name": "__key__", "dtype": "string"}, {"name": "__url__", "dtype": "string"}]


def _struct(cls: type, extra: Sequence[str] = ()) -> list[dict[str, Any]]:
    features = []
    for name, hint in typing.get_type_hints(cls).items():
        if typing.get_origin(hint) is not dict:
            features.append({"name": name, **_feature(hint)})
        elif extra:
            features.append({"name": name, "struct": [{"name": each, "dtype": "string"} for each in extra]})
    return features


def _feature(hint: Any) -> dict[str, Any]:
    if typing.get_origin(hint) is list:
        (item,) = typing.get_args(hint)
        return {"list": _struct(typing.cast(type, item)) if dataclasses.is_dataclass(item) else _HUB_TYPES[item]}
    return {"dtype": _HUB_TYPES[hint]}


def _size_category(samples: int) -> str:
    if samples < 1000:
        return "n<1K"
    for low, high, limit in (("1K", "10K", 10**4), ("10K", "100K", 10**5), ("100K", "1M", 10**6)):
        if samples < limit:
            return f"{low}<n<{high}"
    return "1M<n<10M" if samples < 10**7 else "n>10M"


def _sizes(dataset: Dataset) -> str:
    rows = []
    for _, _, split in dataset.splits():
        total = summarize(split)
        hours, stored = human_hours(total.clip_hours), human_hours(total.stored_hours)
        numbers = (f"{total.samples:,}", f"{total.videos:,}", hours, stored, f"{total.shards:,}")
        size = (human_bytes(total.bytes), human_bytes(total.bytes_per_sample), f"`{total.fingerprint[:16]}`")
        rows.append((f"{total.set_name}/{total.split}", *numbers, *size))
    head = ("split", "samples", "videos", "clips", "stored", "shards", "bytes", "bytes/sample", "fingerprint")
    return _table(head, rows)


def _reading(dataset: Dataset) -> str:
    filled = [(set_name, split) for set_name, split, entry in dataset.splits() if entry.shards]
    if not filled:
        return "There are no samples to read: all of them failed; the stats files have the reasons."
    set_name, split = filled[0]
    return _READING.format(root="path/to/this/folder", name=set_name, split=_HUB_SPLITS[split])


def _fields(set_name: str, *, has_extra: bool) -> str:
    docs = schema.field_docs(set_name)
    rows = [(f"`{name}`", kind, meaning) for name, (kind, meaning) in docs.items() if has_extra or name != "extra"]
    return _table(("field", "type", "meaning"), rows)


def _made(dataset: Dataset) -> str:
    rows = [(name, f"`{version}`") for name, version in dataset.toolchain.items()]
    parts = [
        "The resolved configuration is in `dataset.json`. Equal inputs, configuration and toolchain give equal bytes. "
        "Toolchain:",
        _table(("part", "version"), rows),
    ]
    for name, value in dataset.provenance.items():
        if name in ("licence_notice", "licences"):
            continue
        title = f"{name.replace('_', ' ').capitalize()}:"
        if isinstance(value, Mapping):
            parts += [title, "\n".join(f"- {key}: `{_cell(item)}`" for key, item in value.items()) or "none"]
        else:
            parts.append(f"{title} `{_cell(value)}`")
    return "\n\n".join(parts)


def _licence(dataset: Dataset) -> str:
    notice = dataset.provenance.get("licence_notice")
    return str(notice) if notice else "The build was given no licence notice: the terms of the source videos apply."


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("<", "\\<").replace("\n", " ")
