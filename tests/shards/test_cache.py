"""The cache fetches each file once for all processes, keeps its budget, and recovers from killed processes."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import cache as cache_module
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


def test_a_stopped_prefetcher_gives_up_its_fetch(tmp_path: Path) -> None:
    cache, began = ShardCache(tmp_path, budget=1000), time.monotonic()
    is_filling = threading.Event()

    def fill(sink: Sink) -> None:
        while True:
            is_filling.set()
            time.sleep(0.01)
            sink.restart()

    prefetcher = Prefetcher(lambda _: cache.ensure("0" * 64, 10, fill, is_prefetch=True))
    prefetcher.want([0])
    assert is_filling.wait(5)
    prefetcher.stop()
    assert time.monotonic() - began < 5
    assert list((tmp_path / "filling").iterdir()) == []


def test_the_cache_belongs_to_its_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "cache"
    put(ShardCache(folder, budget=100), b"abc")
    kept = [path for path in (folder, *folder.rglob("*")) if path.is_dir()]
    assert len(kept) == 4 and {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} <= {0o600, 0o644}
    folder.chmod(0o777)  # by mistake
    ShardCache(folder, budget=100)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.parametrize("part", [".", "objects", "filling", "sums"])
def test_links_and_folders_of_others_are_refused(tmp_path: Path, part: str) -> None:
    folder, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    ShardCache(folder, budget=100)
    shutil.move(folder / part if part != "." else folder, elsewhere)
    (folder / part if part != "." else folder).symlink_to(elsewhere)
    with pytest.raises(CacheError, match=r"a symbolic link.*give the folder itself"):
        ShardCache(folder, budget=100)
    (folder / part if part != "." else folder).unlink()
    (folder / part if part != "." else folder).write_text("a file")
    with pytest.raises(CacheError, match="not a folder"):
        ShardCache(folder, budget=100)
    if os.geteuid() == 0:
        (folder / part if part != "." else folder).unlink()
        shutil.move(elsewhere, folder / part if part != "." else folder)
        os.chown(folder / part, 12345, 12345)
        with pytest.raises(CacheError, match="belongs to user 12345, not to 0"):
            ShardCache(folder, budget=100)


def test_a_parent_where_anyone_may_rename_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_parent = tmp_path / "open"
    open_parent.mkdir()
    open_parent.chmod(0o1777)
    ShardCache(open_parent / "cache", budget=100)
    assert not caplog.records
    open_parent.chmod(0o777)
    ShardCache(open_parent / "cache", budget=100)
    assert f"anyone may rename what is in {open_parent}" in caplog.text


@pytest.mark.parametrize("planted", ["link", "fifo", "short", "long", "foreign"])
def test_what_others_planted_is_neither_read_nor_written(tmp_path: Path, planted: str) -> None:
    cache, victim = ShardCache(tmp_path / "c", budget=1000), tmp_path / "victim"
    victim.write_bytes(b"xyz")
    name = name_of(b"abc")
    for folder, file in (("objects", name), ("filling", name), (".", "budget.lock"), ("sums", name)):
        path = tmp_path / "c" / folder / file
        path.unlink(missing_ok=True)
        if planted == "link":
            path.symlink_to(victim)
        elif planted == "fifo":
            os.mkfifo(path)
        elif planted == "foreign" and os.geteuid() == 0:
            path.write_bytes(b"xyz")
            os.chown(path, 12345, 12345)
        else:
            path.write_bytes(b"xy" if planted == "short" else b"wxyz")
    assert put(cache, b"abc") is not None
    assert cache.read(name, 0, 3) == b"abc"
    assert victim.read_bytes() == b"xyz"


@pytest.mark.parametrize("place", ["objects", "filling", "."])
def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path, place: str) -> None:
    cache = ShardCache(tmp_path, budget=1000)
    path = tmp_path / place / ("budget.lock" if place == "." else name_of(b"abc"))
    path.mkdir()
    with pytest.raises(CacheError, match=f"{path}: Is a directory: remove it"):
        put(cache, b"abc")


def test_every_flipped_bit_is_found_where_it_is_read(tmp_path: Path) -> None:
    data, rng = random.Random(1).randbytes(200_000), random.Random(2)
    cache = ShardCache(tmp_path, budget=10**6)
    path = put(cache, data)
    assert path is not None
    for trial in range(60):
        at = rng.randrange(len(data))
        with path.open("r+b") as handle:
            handle.seek(at)
            handle.write(bytes([data[at] ^ 1 << rng.randrange(8)]))
        begin = max(0, at - rng.randrange(30_000))
        if trial % 2:  # another process, which has no checksums in memory
            cache = ShardCache(tmp_path, budget=10**6)
        assert cache.read(name_of(data), begin, at - begin + 1 + rng.randrange(3000)) is None
        assert cache.find(name_of(data)) is None  # removed
        assert put(cache, data) == path
        size = rng.randrange(len(data) - begin)
        assert cache.read(name_of(data), begin, size) == data[begin : begin + size]


def test_absent_and_wrong_checksums_are_made_anew(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(70_000)
    put(ShardCache(tmp_path, budget=10**6), data)
    sums = tmp_path / "sums" / name_of(data)
    right = sums.read_bytes()
    for wrong in (None, b"", right[:-1], bytes([right[0] ^ 1]) + right[1:], bytes(len(right))):
        sums.unlink() if wrong is None else sums.write_bytes(wrong)
        cache = ShardCache(tmp_path, budget=10**6)
        parts = [cache.read(name_of(data), 5, 100) for _ in range(2)]
        assert parts[1] == data[5:105] and parts[0] in (None, parts[1])
        assert sums.read_bytes() == right
        assert cache.counts.repairs == 0 and cache.find(name_of(data)) is not None


def test_repair_hashes_a_sound_file_once_and_a_changed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    data = bytes(100_000)
    cache = ShardCache(tmp_path, budget=10**6)
    path = put(cache, data)
    assert path is not None
    cache.read(name_of(data), 0, 10)
    hashed = []
    hash_of = cache_module._hash
    monkeypatch.setattr(cache_module, "_hash", lambda handle: hashed.append(1) or hash_of(handle))
    assert [cache.repair(name_of(data)) for _ in range(3)] == [False] * 3
    assert len(hashed) == 1
    assert not cache.repair(name_of(data), is_forced=True) and len(hashed) == 2
    path.write_bytes(b"\1" + data[1:])
    cache.read(name_of(data), 50_000, 10)  # of another block: seen only by hashing the file
    assert cache.repair(name_of(data)) and len(hashed) == 3
    assert cache.find(name_of(data)) is None
    assert "its hash is another: removed" in caplog.text
    assert cache.repair(name_of(data))  # gone: another read fetches it anew


def _kill_while_filling(folder: Path, data: bytes, delay: float) -> None:
    child = FORK.Process(target=_fill_slowly, args=(folder, data, folder.parent / "log"))
    child.start()
    time.sleep(delay)
    os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
    child.join()


def test_killed_processes_leave_nothing_that_is_used(tmp_path: Path) -> None:
    data, rng = random.Random(4).randbytes(12_000), random.Random(5)
    for _ in range(12):
        _kill_while_filling(tmp_path / "c", data, rng.uniform(0.0, 0.35))
        for path in (tmp_path / "c" / "objects").glob("*"):
            assert path.read_bytes() == data
            path.unlink()
    cache = ShardCache(tmp_path / "c", budget=13_000)
    assert put(cache, data) is not None and cache.read(name_of(data), 0, 12_000) == data
    assert list((tmp_path / "c" / "filling").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_evicts_files_and_then_says_so(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mount.stderr.decode().strip()}")
    try:
        cache = ShardCache(disk / "cache", budget=1 << 30)
        for number in range(6):
            data = bytes([number]) * 300_000
            assert put(cache, data) is not None
            assert cache.read(name_of(data), 299_000, 1000) == data[-1000:]
        assert cache.find(name_of(bytes([5]) * 300_000)) and not cache.find(name_of(bytes(300_000)))
        with pytest.raises(CacheError, match=r"no space on this disk for a file of 2000000 bytes.*lower data.source"):
            put(cache, bytes(2_000_000))
        assert put(cache, bytes(300_000)) is not None
        assert list((disk / "cache" / "filling").iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
