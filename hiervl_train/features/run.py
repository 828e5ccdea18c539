"""An extraction as a whole: which shards are missing, who extracts them, and the feature set that they make."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs.loading import from_dict, to_dict
from hiervl_train.collectives import all_true, broadcast_json, gather_json
from hiervl_train.distributed import DistributedContext
from hiervl_train.features.build import build_extractor
from hiervl_train.features.config import ExtractConfig
from hiervl_train.features.extract import OnSamples, ShardDone, extract_shards
from hiervl_train.features.extractor import Extractor, ExtractorError
from shards.dataset import Split
from shards.features import FeatureSet, FeatureWriter, features_folder
from shards.files import remove_temporaries
from shards.sources import LocalSource, Source, open_source

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class Extraction:
    """A configured extraction: an extractor over the splits of a dataset."""

    config: ExtractConfig
    source: Source
    extractor: Extractor
    writer: FeatureWriter
    splits: tuple[Split, ...]
    device: torch.device

    def missing(self) -> list[tuple[Split, int]]:
        """Return the shards without features; raise `FeatureError` where the folder has those of another extractor."""
        found = []
        for split in self.splits:
            arrays = self.extractor.arrays(split.set_name)
            for place, shard in enumerate(split.shards):
                if not self.writer.is_done(split.set_name, split.split, shard.name, shard.sha256, arrays):
                    found.append((split, place))
        return found

    def extract(
        self, work: Sequence[tuple[Split, int]], *, on_samples: OnSamples = lambda _: None
    ) -> Iterator[ShardDone]:
        """Extract some shards in this process; see `extract_shards`."""
        for split in self.splits:
            places = [place for one, place in work if one is split]
            yield from extract_shards(
                self.extractor,
                self.source,
                split,
                places,
                self.writer,
                self.config,
                device=self.device,
                on_samples=on_samples,
            )

    def finish(self) -> FeatureSet:
        """Write feature.json; raise `FeatureError` where a shard is not extracted."""
        arrays = {split.set_name: self.extractor.arrays(split.set_name) for split in self.splits}
        covered = {
            (split.set_name, split.split): (split.fingerprint, [shard.name for shard in split.shards])
            for split in self.splits
        }
        return self.writer.finish(arrays, covered)


def open_extraction(config: ExtractConfig, device: torch.device = CPU) -> Extraction:
    """Open dataset and extractor; raise the errors of either, and `ExtractorError` where no split is chosen."""
    source = open_source(config.data.root, config.data.source)
    extractor = build_extractor(config, device)
    wanted = config.data.sets
    splits = tuple(
        split
        for set_name, name, split in source.dataset.splits()
        if (wanted is None or set_name in wanted)
        and (config.data.splits is None or name in config.data.splits)
        and extractor.arrays(set_name)
    )
    if not splits:
        known = ", ".join(f"{a}/{b}" for a, b, _ in source.dataset.splits())
        raise ExtractorError(f"data.sets and data.splits choose nothing of {config.data.root}: it has {known}")
    made_by = identity(config, extractor, device)
    writer = FeatureWriter(output_folder(config, source), name=config.name, extractor=made_by)
    return Extraction(config=config, source=source, extractor=extractor, writer=writer, splits=splits, device=device)


def output_folder(config: ExtractConfig, source: Source) -> Path:
    """Return the folder of the feature set; raise `ExtractorError` for a URL without `output`."""
    if config.output is not None:
        return config.output
    if not isinstance(source, LocalSource):
        raise ExtractorError(f"output is not set: features of {config.data.root} cannot be written beside it")
    return features_folder(source.dataset, config.name)


def identity(config: ExtractConfig, extractor: Extractor, device: torch.device) -> dict[str, Any]:
    """Return all that affects the features, ready for JSON."""
    reads = extractor.reads
    return {
        "kind": config.extractor.kind,
        "dtype": config.dtype,
        "reads": None if reads is None else vars(reads) | {"decoder": config.data.decoder, "batch": config.batch},
        "made_with": {"torch": torch.__version__, "device": device.type},
        **extractor.identity(),
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """How an extraction ended."""

    features: FeatureSet | None  # on the first rank, if every shard has features
    samples: int  # extracted by this run, all ranks together
    failed: int  # of them, without features
    errors: tuple[str, ...]  # this rank's shards that could not be extracted, and why
    is_whole: bool  # whether every shard of every rank has features


def extract_on_ranks(
    config: ExtractConfig,
    ranks: DistributedContext,
    *,
    on_start: Callable[[Extraction, int, int], None],
    on_samples: OnSamples,
) -> Outcome:
    """Extract what is missing, each rank a share of the shards; a dead rank ends the job, see `distributed_context`.

    `on_start` is called on the first rank with the samples of all and of the missing shards.
    """
    extraction = open_extraction(config, ranks.device)
    plan: list[list[int]] = []
    if ranks.is_main:
        remove_temporaries(extraction.writer.folder, is_locked=False)
        work = extraction.missing()
        places = {id(split): number for number, split in enumerate(extraction.splits)}
        plan = [[places[id(split)], place] for split, place in work]
        missing = sum(split.shards[place].samples for split, place in work)
        on_start(extraction, sum(split.samples for split in extraction.splits), missing)
    plan = broadcast_json(plan, ranks.control)
    own = [(extraction.splits[number], place) for number, place in plan[ranks.rank :: ranks.world]]
    done = list(extraction.extract(own, on_samples=on_samples))
    is_whole = all_true(not any(one.error for one in done), ranks.control)
    counts = gather_json([sum(one.samples for one in done), sum(one.failed for one in done)], ranks)
    features = extraction.finish() if ranks.is_main and is_whole else None
    return Outcome(
        features=features,
        samples=sum(samples for samples, _ in counts),
        failed=sum(failed for _, failed in counts),
        errors=tuple(f"{one.set_name}/{one.split}/{one.shard}: {one.error}" for one in done if one.error),
        is_whole=is_whole,
    )


@dataclass(frozen=True, kw_only=True)
class ExtractTask:
    """Some shards of one split, for a worker process: `extract_task` opens the extractor there once."""

    config: str  # JSON of an `ExtractConfig`
    set_name: str
    split: str
    places: tuple[int, ...]

    @property
    def name(self) -> str:
        """The task's name, unique in an extraction."""
        return f"{self.set_name}/{self.split}/{self.places[0]}"


def extract_task(task: ExtractTask) -> list[ShardDone]:
    """Extract the shards of a task on the CPU with one thread; return what was done."""
    torch.set_num_threads(1)
    extraction = _opened(task.config)
    (split,) = (one for one in extraction.splits if (one.set_name, one.split) == (task.set_name, task.split))
    return list(extraction.extract([(split, place) for place in task.places]))


@functools.lru_cache(maxsize=1)
def _opened(config: str) -> Extraction:
    return open_extraction(from_dict(ExtractConfig, json.loads(config)), CPU)


def tasks_of(extraction: Extraction, config: ExtractConfig, work: Sequence[tuple[Split, int]]) -> list[ExtractTask]:
    """Return a task for each shard of `work`."""
    text = json.dumps(to_dict(config))
    return [
        ExtractTask(config=text, set_name=split.set_name, split=split.split, places=(place,)) for split, place in work
    ]
