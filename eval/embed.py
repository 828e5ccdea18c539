"""Embeddings of a split's samples and of texts: each distinct one once, the same on any number of ranks, kept on disk.

What goes through the model together never depends on the number of ranks: samples are put into batches in the order of
the shards, and a rank takes whole batches, a stretch of them. So its sums are rounded the same way, and two evaluations
that differ in ranks only have the same numbers bit for bit, on one kind of machine.

The first rank gathers and scores; the others return None. Shapes in names: B samples of a batch, K windows, T frames,
C colours, H and W pixels, N samples or texts, D width of the shared space.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from configs.loading import to_dict
from eval.embedding_cache import CachedRows, CacheEntry
from hiervl_train.data import DeviceLoader
from hiervl_train.distributed import DistributedContext, all_true, broadcast_text
from hiervl_train.models import HierVL
from hiervl_train.models.pixels import ChannelOrder, normalise
from hiervl_train.models.speed import SpeedConfig, autocast
from hiervl_train.tokenizer import Tokenizer
from shards.config import LoaderConfig, SourceConfig
from shards.dataset import Split, read_rows
from shards.loader import Loader, LoaderError
from shards.reading import SampleFailedError
from shards.schema import set_spec
from shards.sources import Source, open_source
from shards.stats import ShardError
from shards.video.decode import DecoderName

_TEXTS = 256  # in one pass
_AGGREGATED = 256
_SUBSTITUTES = 64  # tried for a sample that cannot be decoded; they are not scored, a batch only has to be full
logger = logging.getLogger(__name__)
Span = tuple[int, int]  # batches, half-open
Progress = Callable[[int, int], None]  # told how many of this rank's samples are done, of how many


class EmbedError(RuntimeError):
    """Samples that could not be embedded, for a reason that is not theirs: storage, a worker, another rank."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """How samples become embeddings. What decides a number: all but workers, prefetch, limits, parts and source."""

    frames: int = 4  # of a clip, and of each window
    windows: int = 16  # of a long sample
    window_seconds: float = 8.0
    channel_order: ChannelOrder = "rgb"
    batch: int = 32  # clips in one pass
    speed: SpeedConfig = field(default_factory=lambda: SpeedConfig(bf16=False, compile=False))
    decoder: DecoderName = "pyav"
    workers: int = 0
    prefetch: int = 4
    worker_timeout_seconds: float = 1800.0
    max_consecutive_failures: int = 32
    part_samples: int = 4096
    source: SourceConfig = field(default_factory=SourceConfig)

    def samples(self, *, is_long: bool) -> int:
        """Return the samples of a batch: a long one is as many clips as it has windows."""
        return max(1, self.batch // self.windows) if is_long else self.batch

    def loader(self, *, is_long: bool, size: int) -> LoaderConfig:
        """Return what the loader is told."""
        return LoaderConfig(
            global_batch=self.samples(is_long=is_long),
            frames=self.frames,
            windows=self.windows,
            window_seconds=self.window_seconds,
            narrations=1,
            size=size,
            decoder=self.decoder,
            workers=self.workers,
            prefetch=self.prefetch,
            worker_timeout_seconds=self.worker_timeout_seconds,
            max_substitutes=_SUBSTITUTES,
            max_consecutive_failures=self.max_consecutive_failures,
            source=self.source,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """A split's samples, or those asked for, that could be embedded, and why the others could not."""

    keys: list[str]  # in the order of the shards
    vectors: np.ndarray  # float32, unnormalised: (N, D), of a long set (N, K, D)
    failed: dict[str, str]  # key → reason
    fingerprint: str  # of the split
    encoded: int  # clips and windows that went through the model for it now; 0 where all were in the cache

    @property
    def index(self) -> dict[str, int]:
        """Key → row."""
        return {key: row for row, key in enumerate(self.keys)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """Distinct texts and their embeddings."""

    index: dict[str, int]  # text → row
    vectors_ND: np.ndarray  # float32, unnormalised

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings (N, D) of texts, in their order, repeats as often as they are there."""
        return self.vectors_ND[[self.index[text] for text in texts]]


def embed_split(
    model: HierVL,
    root: str | Path | Source,
    set_name: str,
    split: str,
    settings: EmbedSettings,
    *,
    ranks: DistributedContext | None = None,
    keys: Collection[str] | None = None,
    cache: Path | None = None,
    digest: str = "",
    progress: Progress | None = None,
) -> Embedded | None:
    """Return the embeddings of a split's samples, or of those among `keys`; None on other ranks than the first.

    `cache` keeps them, by `digest` (of the model's weights), the split's fingerprint and the settings. A sample that
    cannot be decoded is in `failed`, and nothing is scored in its place. Raises `ShardError` or `SourceError` where the
    dataset cannot be opened, `EmbedError` where embedding fails on any rank: on all of them.
    """
    ranks = ranks or DistributedContext()
    source = open_source(root, settings.source) if isinstance(root, (str, Path)) else root
    entry = source.dataset.split(set_name, split)
    is_long = set_spec(set_name).is_long
    if settings.frames > model.config.num_frames:
        raise EmbedError(f"frames = {settings.frames}: the model has {model.config.num_frames} position slots")
    height, width = model.config.image_hw
    if height != width:
        raise EmbedError(f"img_size = {model.config.image_hw}: crops are square")
    wanted = _keys_in_order(source, entry, keys)
    kept = None
    if cache is not None:
        kept = CacheEntry(cache, _identity(model, entry, settings, wanted, digest, str(ranks.device.type), is_long))
    work = _Work(model, source, entry, settings, ranks, wanted, size=height)
    shape = (settings.windows, model.config.projection_dim) if is_long else (model.config.projection_dim,)
    found = _collect(work.batches, work.encode, kept, settings, ranks, shape, progress)
    if found is None:
        return None
    return Embedded(
        keys=[wanted[row] for row in found.rows.tolist()],
        vectors=found.values,
        failed={wanted[row]: reason for row, reason in sorted(found.failed.items())},
        fingerprint=entry.fingerprint,
        encoded=work.encoded,
    )


def embed_texts(
    model: HierVL,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    settings: EmbedSettings,
    *,
    ranks: DistributedContext | None = None,
    cache: Path | None = None,
    digest: str = "",
) -> Texts | None:
    """Return the embeddings of the distinct texts; None on other ranks than the first. See `embed_split`."""
    ranks = ranks or DistributedContext()
    distinct = sorted(set(texts), key=lambda text: (len(text), text))  # alike in length: little padding
    kept = None
    if cache is not None:
        listed = hashlib.sha256(json.dumps(distinct).encode()).hexdigest()
        words = hashlib.sha256(tokenizer.to_bytes()).hexdigest()
        identity: dict[str, Any] = {"checkpoint": digest, "texts": listed, "tokenizer": words, "model": _sizes(model)}
        identity |= {"speed": to_dict(settings.speed), "device": ranks.device.type}
        kept = CacheEntry(cache, identity)

    def encode(begin: int, end: int) -> Iterator[tuple[int, CachedRows]]:
        for number in range(begin, end):
            rows = range(number * _TEXTS, min((number + 1) * _TEXTS, len(distinct)))
            ids_BL, mask_BL = tokenizer([distinct[row] for row in rows])
            with torch.inference_mode(), autocast(ranks.device, settings.speed):
                found = model.encode_text(ids_BL.to(ranks.device), mask_BL.to(ranks.device))
            yield number, CachedRows(rows=np.array(rows, np.int64), values=found.float().cpu().numpy(), failed={})

    found = _collect(-(-len(distinct) // _TEXTS), encode, kept, settings, ranks, (model.config.projection_dim,))
    if found is None:
        return None
    return Texts(index={text: row for row, text in enumerate(distinct)}, vectors_ND=found.values)


def aggregate(model: HierVL, windows_NKD: np.ndarray, speed: SpeedConfig, device: torch.device) -> np.ndarray:
    """Return the embeddings (N, D) of long samples from those of their windows, in their order; on this rank alone."""
    parts = [np.empty((0, windows_NKD.shape[-1]), np.float32)]
    for start in range(0, len(windows_NKD), _AGGREGATED):
        block = torch.from_numpy(np.ascontiguousarray(windows_NKD[start : start + _AGGREGATED])).to(device)
        with torch.inference_mode(), autocast(device, speed):
            parts.append(model.aggregate(block).float().cpu().numpy())
    return np.concatenate(parts)


class _Work:
    """Encodes any stretch of a split's batches."""

    def __init__(
        self,
        model: HierVL,
        source: Source,
        split: Split,
        settings: EmbedSettings,
        ranks: DistributedContext,
        wanted: Sequence[str],
        *,
        size: int,
    ) -> None:
        self._model, self._source, self._split, self._settings = model, source, split, settings
        self._device, self._wanted = ranks.device, wanted
        self._is_long = set_spec(split.set_name).is_long
        self._config = settings.loader(is_long=self._is_long, size=size)
        self.batches = -(-len(wanted) // self._config.global_batch)
        self.encoded = 0

    def encode(self, begin: int, end: int) -> Iterator[tuple[int, CachedRows]]:
        """Yield the number and the rows of each batch from `begin` to before `end`."""
        loader = Loader(
            self._source, self._split.set_name, self._split.split, self._config, is_training=False, keys=self._wanted
        )
        with loader:
            batches = DeviceLoader(loader, self._device)
            batches.load_state_dict(loader.state_dict() | {"batch": begin})
            for batch in batches:
                values = self._encode(batch.video)
                first = batch.number * self._config.global_batch
                failed = {}
                for row, (key, tried) in enumerate(zip(batch.keys, batch.failures, strict=True), first):
                    if tried:
                        reason, detail = tried[0].reason, tried[0].detail
                        failed[row] = detail if detail.startswith(reason) else f"{reason}: {detail}"
                    elif key != self._wanted[row]:  # a shard that says otherwise than its table
                        failed[row] = f"the sample in its place is {key}: run shards.verify"
                rows = np.arange(first, first + len(batch.keys))
                yield batch.number, _without_failed(rows, values.float().cpu().numpy(), failed)
                if batch.number + 1 == end:
                    return

    def _encode(self, video: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(self._device, self._settings.speed):
            flat_BTCHW = video.flatten(0, 1) if self._is_long else video
            order = self._settings.channel_order
            parts = [
                self._model.encode_video(normalise(part_BTCHW, order=order))
                for part_BTCHW in flat_BTCHW.split(max(self._settings.batch, 1))
            ]
            self.encoded += len(flat_BTCHW)
            found = torch.cat(parts)
            return found.unflatten(0, video.shape[:2]) if self._is_long else found


def _without_failed(rows: np.ndarray, values: np.ndarray, failed: dict[int, str]) -> CachedRows:
    """Return the rows without those that failed, nor those whose embedding is no number."""
    for row in rows[~np.isfinite(values.reshape(len(values), -1)).all(axis=1)].tolist():
        failed.setdefault(row, "its embedding is not finite")
    is_sound = ~np.isin(rows, list(failed))
    return CachedRows(rows=rows[is_sound], values=values[is_sound], failed=failed)


def _keys_in_order(source: Source, split: Split, keys: Collection[str] | None) -> list[str]:
    """Return the keys of a split's samples (of those asked for), as they come; withdrawn videos are left out."""
    denied = source.dataset.denylist
    asked = None if keys is None else set(keys)
    found: list[str] = []
    for shard in split.shards:
        table = read_rows(source.parquet(shard), ["key", "video_uid"])
        for key, video in zip(table["key"].to_pylist(), table["video_uid"].to_pylist(), strict=True):
            if video not in denied and (asked is None or key in asked):
                found.append(key)
    return found


def _identity(
    model: HierVL,
    split: Split,
    settings: EmbedSettings,
    keys: Sequence[str],
    digest: str,
    device: str,
    is_long: bool,
) -> dict[str, Any]:
    listed = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    identity: dict[str, Any] = {
        "checkpoint": digest,
        "model": _sizes(model),
        "set": split.set_name,
        "split": split.split,
        "fingerprint": split.fingerprint,
        "keys": listed,  # those asked for, less the withdrawn
        "frames": settings.frames,
        "channel_order": settings.channel_order,
        "batch": settings.batch,
        "speed": to_dict(settings.speed),
        "decoder": settings.decoder,
        "device": device,
    }
    return identity | ({"windows": settings.windows, "window_seconds": settings.window_seconds} if is_long else {})


def _sizes(model: HierVL) -> str:
    """Return a hash of what decides embeddings beside the weights; slots past the frames shown are not used."""
    tree = to_dict(replace(model.config, aggregator=None, num_frames=1))
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _collect(
    batches: int,
    encode: Callable[[int, int], Iterator[tuple[int, CachedRows]]],
    kept: CacheEntry | None,
    settings: EmbedSettings,
    ranks: DistributedContext,
    shape: tuple[int, ...],
    progress: Progress | None = None,
) -> CachedRows | None:
    """Return the rows of all batches on the first rank: those in the cache, the others computed by all ranks."""
    parts: list[CachedRows] = []
    missing = list(range(batches))
    if ranks.is_main and kept is not None:
        whole = kept.read()
        parts = [whole] if whole is not None else list(kept.read_parts())
        covered = {number for part in parts for begin, end in part.covered for number in range(begin, end)}
        missing = [number for number in missing if number not in covered]
    told = broadcast_text(json.dumps(_spans(missing)) if ranks.is_main else None, ranks.control)
    missing = [number for begin, end in json.loads(told or "[]") for number in range(begin, end)]
    mine = missing[len(missing) * ranks.rank // ranks.world : len(missing) * (ranks.rank + 1) // ranks.world]
    own: list[CachedRows] = []
    problem: Exception | None = None
    try:
        for part in _encoded(mine, encode, settings, progress):
            own.append(part)
            if kept is not None and len(missing) > 1:
                kept.write_part(part)
    except (LoaderError, SampleFailedError, ShardError, OSError) as error:
        problem = error
    if not all_true(problem is None, ranks.control):
        if problem is None:
            raise EmbedError("another rank failed; it says why")
        raise EmbedError(f"rank {ranks.rank}: {problem}") from problem
    gathered = _gather(_join(own, shape), ranks)
    if gathered is None:
        return None
    found = _join([*parts, gathered], shape)
    if kept is not None and missing:
        kept.write(replace(found, covered=((0, batches),)))
    return found


def _encoded(
    numbers: Sequence[int],
    encode: Callable[[int, int], Iterator[tuple[int, CachedRows]]],
    settings: EmbedSettings,
    progress: Progress | None,
) -> Iterator[CachedRows]:
    """Yield parts of about `part_samples` samples, each over batches that follow one another."""
    done, batches = 0, 0
    for begin, end in _spans(numbers):
        waiting: list[CachedRows] = []
        since = begin
        try:
            for number, rows in encode(begin, end):
                waiting.append(rows)
                done, batches = done + len(rows.rows) + len(rows.failed), batches + 1
                if progress is not None:
                    progress(done, max(done, round(done / batches * len(numbers))))
                samples = sum(len(part.rows) + len(part.failed) for part in waiting)
                if samples >= settings.part_samples or number + 1 == end:
                    yield _part(waiting, since)
                    waiting, since = [], number + 1
        except GeneratorExit:
            raise
        except BaseException:  # also Ctrl-C: what was embedded by then is kept
            if waiting:
                yield _part(waiting, since)
            raise


def _part(batches: Sequence[CachedRows], first: int) -> CachedRows:
    """Return batches that follow one another as one part."""
    joined = _join(batches, batches[0].values.shape[1:])
    return replace(joined, covered=((first, first + len(batches)),))


def _spans(numbers: Sequence[int]) -> list[Span]:
    """Return ascending numbers as half-open ranges."""
    spans: list[Span] = []
    for number in numbers:
        if spans and spans[-1][1] == number:
            spans[-1] = (spans[-1][0], number + 1)
        else:
            spans.append((number, number + 1))
    return spans


def _join(parts: Sequence[CachedRows], shape: tuple[int, ...]) -> CachedRows:
    """Return parts as one, by row; of a row that is there twice one stays."""
    rows = np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)])
    values = np.concatenate([np.empty((0, *shape), np.float32), *(part.values for part in parts)])
    rows, first = np.unique(rows, return_index=True)
    failed = {row: reason for part in parts for row, reason in part.failed.items()}
    return CachedRows(rows=rows, values=values[first], failed=failed)


def _gather(own: CachedRows, ranks: DistributedContext) -> CachedRows | None:
    """Return the rows of all ranks on the first one, whatever the share of each; None on the others."""
    if ranks.world == 1:
        return own
    failed = np.frombuffer(json.dumps({str(row): reason for row, reason in own.failed.items()}).encode(), np.uint8)
    mine = [torch.from_numpy(array.copy()) for array in (own.rows, own.values, failed)]
    sizes_W2 = [torch.zeros(2, dtype=torch.int64) for _ in range(ranks.world)]
    dist.all_gather(sizes_W2, torch.tensor([len(own.rows), len(failed)]), group=ranks.control)
    if not ranks.is_main:
        for tensor in mine:
            if tensor.numel():
                dist.send(tensor, 0, group=ranks.control)
        return None
    parts = [own]
    for rank in range(1, ranks.world):
        rows, letters = sizes_W2[rank].tolist()
        theirs = [
            torch.empty(rows, dtype=torch.int64),
            torch.empty((rows, *own.values.shape[1:]), dtype=torch.float32),
            torch.empty(letters, dtype=torch.uint8),
        ]
        for tensor in theirs:
            if tensor.numel():
                dist.recv(tensor, rank, group=ranks.control)
        reasons = json.loads(theirs[2].numpy().tobytes())
        failures = {int(row): str(reason) for row, reason in reasons.items()}
        parts.append(CachedRows(rows=theirs[0].numpy(), values=theirs[1].numpy(), failed=failures))
    return _join(parts, own.values.shape[1:])
