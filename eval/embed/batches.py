"""Computes numbered batches of embeddings: what the cache lacks, shared among the ranks, gathered on the first one.

The content of a batch never depends on the number of ranks: a rank takes a contiguous range of whole batches. So sums
are rounded the same way, and evaluations on any number of ranks of the same kind of machine agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from configs.cli import exit_code_of
from eval.embed.cache import CacheEntry
from eval.embed.rows import BatchRange, EmbeddedRows, gather_rows, join_rows
from eval.embed.settings import EmbedError
from hiervl_train.collectives import all_true, broadcast_json
from hiervl_train.distributed import DistributedContext

Encode = Callable[[int, int], Iterator[tuple[int, EmbeddedRows]]]  # batches begin … end − 1 → their numbers and rows
Progress = Callable[[int, int], None]  # samples of this rank done, samples of this rank in all


def compute_batches(
    batches: int,
    encode: Encode,
    *,
    shape: tuple[int, ...],
    part_samples: int,
    ranks: DistributedContext,
    cache: CacheEntry | None = None,
    progress: Progress | None = None,
) -> EmbeddedRows | None:
    """Return the rows of all batches on the first rank, None on the others.

    `shape` is that of one entry. Parts of about `part_samples` samples are cached as they are finished, also on
    Ctrl-C. If any rank fails, all raise: it `EmbedError`, or what is unexpected as it is; the others `EmbedError`.
    """
    cached: list[EmbeddedRows] = []
    missing = list(range(batches))
    if ranks.is_main and cache is not None:
        whole = cache.read()
        cached = [replace(whole, covered=((0, batches),))] if whole is not None else list(cache.read_parts())
        covered = {number for part in cached for begin, end in part.covered for number in range(begin, end)}
        missing = [number for number in missing if number not in covered]
    ranges = broadcast_json(_ranges(missing) if ranks.is_main else None, ranks.control)
    missing = [number for begin, end in ranges for number in range(begin, end)]
    share = missing[len(missing) * ranks.rank // ranks.world : len(missing) * (ranks.rank + 1) // ranks.world]
    own: list[EmbeddedRows] = []
    problem: Exception | None = None
    try:
        for part in _parts(share, encode, part_samples, progress):
            own.append(part)
            if cache is not None and len(missing) > 1:
                cache.write_part(part)
    except Exception as error:  # noqa: BLE001  # raised below, when the other ranks know not to wait for these rows
        problem = error
    if not all_true(problem is None, ranks.control):
        if problem is None:
            raise EmbedError("another rank failed; its own message says why")
        if exit_code_of(problem) is None:
            raise problem  # a bug, or a fault of this machine's storage: with its own traceback
        raise EmbedError(f"rank {ranks.rank}: {problem}") from problem
    gathered = gather_rows(join_rows(own, shape), ranks)
    if gathered is None:
        return None
    rows = join_rows([*cached, gathered], shape)
    if cache is not None and missing:
        cache.write(rows)
    return rows


def _parts(
    numbers: Sequence[int], encode: Encode, part_samples: int, progress: Progress | None
) -> Iterator[EmbeddedRows]:
    """Yield parts of about `part_samples` samples, each of consecutive batches.

    If encoding is interrupted, the batches that are finished are yielded as a part before the exception goes on.
    """
    done, batches = 0, 0
    for begin, end in _ranges(numbers):
        pending: list[EmbeddedRows] = []
        first = begin
        try:
            for number, rows in encode(begin, end):
                pending.append(rows)
                done, batches = done + rows.samples, batches + 1
                if progress is not None:
                    progress(done, max(done, round(done / batches * len(numbers))))
                if sum(part.samples for part in pending) >= part_samples or number + 1 == end:
                    yield _part(pending, first)
                    pending, first = [], number + 1
        except GeneratorExit:
            raise
        except BaseException:
            if pending:
                yield _part(pending, first)
            raise


def _part(batches: Sequence[EmbeddedRows], first: int) -> EmbeddedRows:
    """Return consecutive batches, starting with number `first`, as one part."""
    joined = join_rows(batches, batches[0].values.shape[1:])
    return replace(joined, covered=((first, first + len(batches)),))


def _ranges(numbers: Sequence[int]) -> list[BatchRange]:
    """Return ascending numbers as half-open ranges."""
    ranges: list[BatchRange] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return ranges
