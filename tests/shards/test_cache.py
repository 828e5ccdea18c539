"""The cache fetches each file once for all processes, keeps its budget, and recovers from killed processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.cache import CacheError, Prefetcher, ShardCache, Sink, WrongBytesError

FORK = multiprocessing.get_context("fork")


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(cache: ShardCache, data: bytes, **options: bool) -> Path | None:
    return cache.ensure(name_of(data), len(data), lambda sink: sink.write(data), **options)


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "objects").iterdir())


def test_a_file_is_filled_once_and_found_again(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, budget=100)
    assert put(cache, b"abc").read_bytes() == b"abc"  # type: ignore[union-attr]
    assert cache.ensure(name_of(b"abc"), 3, lambda sink: pytest.fail("filled twice")) is not None
    assert (cache.counts.fills, cache.counts.hits) == (1, 1)


def test_wrong_bytes_are_not_cached(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, budget=100)
    for data in (b"abd", b"ab", b"abcd"):
        with pytest.raises(WrongBytesError):
            cache.ensure(name_of(b"abc"), 3, lambda sink, data=data: sink.write(data))
    assert list((tmp_path / "objects").iterdir()) == [] == list((tmp_path / "filling").iterdir())


def test_a_fill_can_start_over(tmp_path: Path) -> None:
    def fill(sink: Sink) -> None:
        sink.write(b"xyz")
        sink.restart()
        sink.write(b"abc")

    path = ShardCache(tmp_path, budget=100).ensure(name_of(b"abc"), 3, fill)
    assert path is not None and path.read_bytes() == b"abc"


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 40)), max_size=30), st.integers(40, 120))
@settings(max_examples=40, deadline=None)
def test_the_budget_holds_and_the_least_recently_used_file_is_evicted_first(
    tmp_path_factory: pytest.TempPathFactory, uses: list[tuple[int, int]], budget: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = ShardCache(folder, budget=budget)
    recent: list[bytes] = []
    for clock, (which, size) in enumerate(uses):
        data = bytes([which]) * size
        path = put(cache, data)
        assert path is not None and path.read_bytes() == data
        os.utime(path, (clock, clock))
        recent = [other for other in recent if other != data] + [data]
        assert held(folder) <= budget
        kept = {path.name for path in (folder / "objects").iterdir()}
        present = [name_of(other) in kept for other in recent]
        assert present == sorted(present)  # evicted files were used before all cached ones
        recent = [other for other, is_there in zip(recent, present, strict=True) if is_there]


def test_a_file_above_the_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="a file of 11 bytes exceeds the cache's budget of 10"):
        put(ShardCache(tmp_path, budget=10), b"x" * 11)


def test_prefetching_does_not_evict_recently_used_files(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, budget=10)
    used = put(cache, b"a" * 8)
    assert put(cache, b"b" * 8, is_prefetch=True) is None
    assert used is not None and used.exists()
    os.utime(used, (0, 0))
    assert put(cache, b"b" * 8, is_prefetch=True) is not None


def _fill_slowly(folder: Path, data: bytes, log: Path) -> None:
    def fill(sink: Sink) -> None:
        with log.open("a") as handle:
            handle.write("fill\n")
        for at in range(0, len(data), 1000):
            sink.write(data[at : at + 1000])
            time.sleep(0.02)

    ShardCache(folder, budget=10**6).ensure(name_of(data), len(data), fill)


def test_concurrent_processes_fill_a_file_once(tmp_path: Path) -> None:
    data, log = os.urandom(10_000), tmp_path / "log"
    processes = [FORK.Process(target=_fill_slowly, args=(tmp_path / "c", data, log)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert log.read_text() == "fill\n"
    assert (tmp_path / "c" / "objects" / name_of(data)).read_bytes() == data


def test_after_a_killed_fill_the_waiting_process_takes_over(tmp_path: Path) -> None:
    data, log = os.urandom(40_000), tmp_path / "log"
    first = FORK.Process(target=_fill_slowly, args=(tmp_path / "c", data, log))
    first.start()
    while not log.exists():
        time.sleep(0.01)
    second = FORK.Process(target=_fill_slowly, args=(tmp_path / "c", data, log))
    second.start()
    time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)  # type: ignore[arg-type]
    second.join(30)
    assert second.exitcode == 0
    assert log.read_text() == "fill\n" * 2
    assert (tmp_path / "c" / "objects" / name_of(data)).read_bytes() == data
    assert list((tmp_path / "c" / "filling").iterdir()) == []
    first.join()


def test_partial_files_of_killed_processes_do_not_occupy_the_budget(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, budget=100)
    (tmp_path / "filling" / ("0" * 64)).write_bytes(bytes(90))
    assert put(cache, b"y" * 80) is not None
    assert list((tmp_path / "filling").iterdir()) == []


def test_threads_under_a_tight_budget_all_get_their_files(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, budget=100)
    files = [bytes([i]) * 40 for i in range(12)]

    def use(data: bytes) -> bool:
        for _ in range(50):
            path = put(cache, data)
            try:
                return path is not None and path.read_bytes() == data
            except FileNotFoundError:
                continue  # evicted between lookup and opening, which readers of shards handle, too
        return False

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(use, files * 3))
    assert held(tmp_path) <= 100


def test_the_prefetcher_fetches_in_order_can_be_redirected_and_continues_after_errors() -> None:
    seen: list[int] = []

    def fetch(shard: int) -> None:
        seen.append(shard)
        if shard == 1:
            raise OSError("no route")

    prefetcher = Prefetcher(fetch)
    prefetcher.want([0, 1, 2])
    deadline = time.monotonic() + 5
    while len(seen) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    prefetcher.want([7])
    while len(seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    prefetcher.stop()
    assert seen == [0, 1, 2, 7]
