"""What every export has in common: shards one after another, each marked as done, so that an export can be resumed.

OUT/.export/<set>/<split>/00000.json is written after all files of a shard, and says what they were made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from shards import files
from shards.dataset import Dataset, Shard, Split, hash_json, open_dataset, read_member
from shards.stats import ShardError, read_json_object

MARKS = ".export"
DEFAULT_PROMPTS: dict[str, Sequence[str]] = {
    "clips": ("What does the camera wearer do?",),
    "summaries": ("Summarise what happens in this video.",),
}
_OTHER_PROMPTS = ("Describe what happens in this video.",)


class ExportError(ValueError):
    """An export that cannot be made; the message names the option or file and the remedy."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line can choose; each format uses some of them."""

    features: str | None = None  # features-tar: name of the feature set, or its folder
    prompts: Mapping[str, Sequence[str]] = field(default_factory=lambda: dict(DEFAULT_PROMPTS))  # set → questions
    raw_captions: bool = False  # llava, qwen-vl: captions as annotated, with tags such as #C

    def prompts_of(self, set_name: str) -> Sequence[str]:
        """Return the questions about a sample of a set."""
        return self.prompts.get(set_name, _OTHER_PROMPTS)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of a shard."""

    key: str
    record: Mapping[str, Any]
    members: Mapping[str, bytes]  # extension → bytes, of those asked for


@dataclass(frozen=True, kw_only=True)
class ShardExport:
    """One shard to export."""

    dataset: Dataset
    split: Split
    shard: Shard
    out: Path
    options: Options

    @property
    def stem(self) -> str:
        """The number of the shard with five digits or more."""
        return self.shard.path.stem

    @property
    def place(self) -> str:
        """`<set>/<split>/<number>`: where a shard's files are, relative to OUT."""
        return f"{self.split.set_name}/{self.split.split}/{self.stem}"

    def samples(self, members: Sequence[str]) -> Iterator[Sample]:
        """Yield the samples in the order of the tar, without withdrawn videos; raise `ShardError` where damaged."""
        denied = self.dataset.denylist
        rows = self.shard.rows()
        for row in rows.to_pylist():
            if row["video_uid"] in denied:
                continue
            data = {
                ext: read_member(self.shard.path, row[f"{ext}_offset"], row[f"{ext}_size"])
                for ext in dict.fromkeys(("json", *members))
            }
            try:
                record = json.loads(data["json"])
            except ValueError as error:
                raise ShardError(f"{self.shard.path}: the record of {row['key']} is not JSON: {error}") from None
            yield Sample(key=row["key"], record=record, members={ext: data[ext] for ext in members})


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format: what it writes of a shard, and what it writes when all shards are done."""

    name: str
    title: str  # of the command's help
    shard: Callable[[ShardExport], Mapping[str, Any]] | None = None  # returns what `finish` needs of it, as JSON
    finish: Callable[[Dataset, Path, Options, Sequence[tuple[Split, Shard, Mapping[str, Any]]]], None] | None = None
    splits: Callable[[Split, Options], bool] = lambda split, options: True  # which splits it can export
    version: int = 1  # of what it writes: a higher one exports again


def chosen_splits(dataset: Dataset, sets: Sequence[str], splits: Sequence[str]) -> list[Split]:
    """Return the splits of some sets; all where nothing is named. Raises `ExportError` for unknown ones."""
    found = [split for _, _, split in dataset.splits()]
    for word, known in ((sets, {s.set_name for s in found}), (splits, {s.split for s in found})):
        unknown = [name for name in word if name not in known]
        if unknown:
            raise ExportError(f"{dataset.root} has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
    return [s for s in found if (not sets or s.set_name in sets) and (not splits or s.split in splits)]


def export(
    form: Format,
    root: Path,
    out: Path,
    options: Options,
    *,
    sets: Sequence[str] = (),
    splits: Sequence[str] = (),
    on_shard: Callable[[int, int, bool], None] = lambda samples, total, is_new: None,
) -> int:
    """Export a dataset; return the number of samples. What is done is not done again.

    `on_shard` is called after each shard with its samples, those of all, and whether it was exported now.
    """
    dataset = open_dataset(root)
    _require_apart(dataset.root, out)
    wanted = [split for split in chosen_splits(dataset, sets, splits) if form.splits(split, options)]
    if not wanted:
        raise ExportError(f"{root}: it has nothing that {form.name} can hold")
    if out.is_dir():
        files.remove_temporaries(out, is_locked=False)
    total = sum(split.samples for split in wanted)
    results: list[tuple[Split, Shard, Mapping[str, Any]]] = []
    for split in wanted:
        for shard in split.shards:
            work = ShardExport(dataset=dataset, split=split, shard=shard, out=out, options=options)
            result, is_new = _marked(form, work)
            results.append((split, shard, result))
            on_shard(shard.samples, total, is_new)
    if form.finish is not None:
        form.finish(dataset, out, options, results)
    return total


def _marked(form: Format, work: ShardExport) -> tuple[Mapping[str, Any], bool]:
    """Export a shard unless its mark says that this was done; return its result and whether it was done now."""
    if form.shard is None:
        return {}, True
    path = work.out / MARKS / f"{work.place}.json"
    made_of = {
        "format": form.name,
        "version": form.version,
        "sha256": work.shard.sha256,
        "denylist": hash_json({"videos": sorted(work.dataset.denylist)}),
        "options": hash_json(
            {
                "features": work.options.features,
                "prompts": {name: list(texts) for name, texts in sorted(work.options.prompts.items())},
                "raw_captions": work.options.raw_captions,
            }
        ),
    }
    if path.is_file():
        mark = read_json_object(path)
        if {name: mark.get(name) for name in made_of} == made_of:
            return mark["result"], False
    result = form.shard(work)
    files.write_json(path, {**made_of, "result": result})
    return result, True


def _require_apart(root: Path, out: Path) -> None:
    if out.resolve() == root.resolve() or out.resolve().is_relative_to(root.resolve()):
        raise ExportError(f"{out}: lies in the dataset {root}; choose a folder outside of it")


def caption_of(record: Mapping[str, Any], *, raw: bool) -> str:
    """Return a sample's caption; not `raw`: without Ego4D's tags, the camera wearer named.

    >>> caption_of({"text": "#C C opens the drawer"}, raw=False)
    'The camera wearer opens the drawer.'
    """
    text = " ".join(str(record["text"]).split())
    if raw:
        return str(record["text"])
    for tag in ("#C", "#c", "#Summary", "#summary", "#O", "#o"):
        text = text.removeprefix(f"{tag} ")
    if text[:2] in ("C ", "c "):
        text = f"The camera wearer {text[2:]}"
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) or not text else f"{text}."


def fields_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's fields that are text or numbers."""
    return {name: value for name, value in record.items() if isinstance(value, (str, int, float))}
