"""Checkpoints of a run: written atomically by a thread during training; loads the newest undamaged one.

At a step boundary the state is copied to buffers in memory (from a GPU to pinned ones, by copies that the device queues
before the next step, so that the host does not wait). A thread writes the copy:

1. Every rank writes its file into `.tmp-<save>-step-00001000`, a name that is unique to this save.
2. Rank 0 polls the folder until it has the files of all ranks. A collective in a thread would run concurrently with
   the training's own and could be matched with it.
3. Rank 0 writes complete.json with the hash of every file, and renames the folder to `step-00001000`.
4. `best.json` names the best one; older checkpoints are renamed and removed.

A folder gets its name only when it is complete, so that people and batch scripts see complete checkpoints only;
complete.json detects later damage (a failing disk, an interrupted copy).
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from configs.loading import to_yaml
from hiervl_train.checkpoint import files
from hiervl_train.checkpoint.state import RunState
from hiervl_train.collectives import all_true, broadcast_json
from hiervl_train.models.errors import CheckpointError
from hiervl_train.models.storage import CONFIG, WEIGHTS
from shards.files import TEMPORARY, fsync, write_json

BEST = "best.json"
_NAME = re.compile(r"step-(\d{8,})")
_REPLACED = f"{TEMPORARY}old-"  # a checkpoint that another one of the same step is about to replace
_REMOVED = f"{TEMPORARY}removed-"
_LAST_WRITE_SECONDS = 10.0  # that rank 0 of a failing run of several ranks gives the thread to finish
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """When checkpoints are written, and which are kept."""

    every_steps: PositiveInt | None = 1000  # steps between checkpoints; null: by time alone
    every_minutes: PositiveFloat | None = 15.0  # minutes since the last checkpoint; null: by steps alone
    keep_last: PositiveInt = 3  # newest checkpoints that are kept
    keep_best: bool = True  # also keep the best one by the evaluation inside the run
    timeout_seconds: PositiveFloat = 600.0  # seconds that a rank waits for the files of the others


class Checkpoints:
    """The checkpoints in a folder. All ranks create one and call its methods at the same steps.

    with Checkpoints(folder, config, rank=context.rank, world=context.world, group=context.control) as checkpoints:
        state = checkpoints.load_latest(seed=seed)
        ...
        agreed = consensus.agreed()
        consensus.begin({"save": checkpoints.is_time()})
        if checkpoints.is_due(step) or agreed.get("save"):
            checkpoints.save(state_of_the_run)

    An error in the thread is raised as `CheckpointError` by the next call of any method.
    """

    def __init__(
        self,
        folder: Path,
        config: SaveConfig,
        *,
        rank: int = 0,
        world: int = 1,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`group` has all ranks, preferably `DistributedContext.control`; None is the default group."""
        if world > 1 and not dist.is_initialized():
            raise RuntimeError(f"checkpoints of {world} ranks need an initialised process group")
        self._folder = folder
        self._config = config
        self._rank = rank
        self._world = world
        self._group = group
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            _clean_up(folder)
        # Also a barrier: no rank writes before rank 0 has cleaned up.
        self._session: str = broadcast_json(secrets.token_hex(4) if rank == 0 else None, group)
        self._saves = 0
        self._saved: int | None = None  # the step of the last save that this process started
        self._saved_at = time.monotonic()
        self._buffers = _Buffers()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._damaged: set[str] = set()  # found while loading; they are neither deleted nor counted

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, SystemExit):
            self.close()
        elif self._thread is not None:
            # The copy that is being written is valid, but other ranks may be gone: do not wait for them for long.
            self._thread.join(None if self._world == 1 else _LAST_WRITE_SECONDS if self._rank == 0 else 0.5)

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after this many steps; the same on all ranks."""
        self._raise_failure()
        return self._config.every_steps is not None and step > 0 and step % self._config.every_steps == 0

    def is_time(self) -> bool:
        """Return, once and on rank 0 only, whether `every_minutes` have passed since the last save.

        Pass it to `FlagConsensus.begin`, and save when the ranks have agreed: their clocks differ.
        """
        self._raise_failure()
        minutes = self._config.every_minutes
        if self._rank or minutes is None or time.monotonic() - self._saved_at < minutes * 60:
            return False
        self._saved_at = time.monotonic()
        return True

    def save(self, state: RunState, *, score: float | None = None, wait: bool = False) -> float:
        """Copy the state and start writing it; return the seconds that this call took.

        `score` (higher is better) decides whether it is the best one. With `wait`, return when the checkpoint is
        complete on disk, on every rank: for the last save of a process. Ranks other than 0 use only `random` and `step`
        of the state. A second save of the same step writes nothing again, but its score and `wait` count. Waits for the
        previous save.
        """
        began = time.monotonic()
        self.wait()
        if state.step != self._saved:
            self._saves += 1
            job = self._copy(state, score)
            self._saved, self._saved_at = state.step, time.monotonic()
            # A daemon, so that a failed process can end while its thread waits for ranks that are gone.
            self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint", daemon=True)
            self._thread.start()
        elif self._rank == 0:
            self._mark_best(_name(state.step), state.step, score)
        if wait:
            self.wait()
        return time.monotonic() - began

    def wait(self) -> None:
        """Wait until the current save is written; raise its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_failure()

    def close(self) -> None:
        """Wait until the current save is written; raise its error."""
        self.wait()

    def load_latest(self, *, seed: int = 0) -> RunState | None:
        """Return the newest undamaged checkpoint, the same one on every rank; None where there is none yet.

        Rank 0 verifies every file of its proposal, each rank the files that it reads. A checkpoint that any rank finds
        damaged is skipped with a warning that names it and the damage, and is not deleted. `seed` is for the random
        states where the number of ranks changed. Raises `CheckpointError` where all checkpoints are damaged.
        """
        self.wait()
        proposals = iter(self._names()[::-1] if self._rank == 0 else ())
        problems = 0
        while (name := broadcast_json(next(proposals, None), self._group)) is not None:
            state = None
            try:
                state = self._read(self._folder / name, seed)
            except CheckpointError as error:
                logger.warning("checkpoint %s is skipped: %s", name, error)
            if all_true(state is not None, self._group):
                return state
            self._damaged.add(name)
            problems += 1
        if problems:
            raise CheckpointError(
                f"{self._folder}: all {problems} checkpoints are damaged (see the warnings); move them away to "
                "start from the beginning"
            )
        return None

    def load(self, folder: Path, *, seed: int = 0) -> RunState:
        """Return the state in one folder; raise `CheckpointError` where it is damaged."""
        self.wait()
        return self._read(folder, seed)

    def _read(self, folder: Path, seed: int) -> RunState:
        try:
            return files.read(folder, rank=self._rank, world=self._world, seed=seed, everything=self._rank == 0)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be read: {error}") from error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise CheckpointError(
                f"{self._folder}: writing the checkpoint of step {self._saved} failed: {failure}"
            ) from failure

    def _copy(self, state: RunState, score: float | None) -> _Job:
        """Copy what this rank writes, so that training can continue; from a GPU, in its current stream."""
        job = _Job(
            step=state.step,
            save=f"{self._session}-{self._saves}",
            score=score,
            random={name: tensor.clone() for name, tensor in state.random.tensors().items()},
        )
        if self._rank == 0:
            job.plain.update(files.checked_extra(state.extra_files))
            job.plain[files.STATE] = files.state_json(state, self._world)
            if state.model_config is not None:
                job.plain[CONFIG] = to_yaml(state.model_config).encode()
            sections = {WEIGHTS: state.model, files.OPTIMIZER: state.optimizer.tensors}
            if state.ema is not None:
                sections[files.EMA] = state.ema
            job.tensors.update({name: self._buffers.copy(name, section) for name, section in sections.items()})
            job.copied = self._buffers.event()
        return job

    def _run(self, job: _Job) -> None:
        """Write a checkpoint in the thread; keep an error for the next call."""
        temporary = self._folder / f"{TEMPORARY}{job.save}-{_name(job.step)}"
        try:
            temporary.mkdir(exist_ok=True)
            files.write_random(temporary, self._rank, job.random)
            if self._rank == 0:
                self._write(job, temporary)
            else:
                self._wait_until(lambda: self._is_published(job), f"rank 0 to complete {_name(job.step)}")
        except BaseException as error:  # noqa: BLE001  # raised by the next call, in the thread that can handle it
            self._failure = error
            if self._rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)  # leave no partial files on a full disk

    def _write(self, job: _Job, temporary: Path) -> None:
        if job.copied is not None:
            job.copied.synchronize()
        for name, data in job.plain.items():
            files.write_plain(temporary / name, data)
        for name, tensors in job.tensors.items():
            files.write_tensors(temporary / name, tensors)
        random_files = [files.random_file(rank) for rank in range(self._world)]
        self._wait_until(lambda: _listing(temporary).issuperset(random_files), f"{self._world} ranks' files")
        names = [*job.plain, *job.tensors, *random_files]
        files.seal(temporary, step=job.step, world=self._world, save=job.save, names=names)
        self._publish(temporary, self._folder / _name(job.step))
        self._mark_best(_name(job.step), job.step, job.score)
        self._prune(_name(job.step))
        logger.info("checkpoint %s is complete", _name(job.step))

    def _wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Poll, with growing pauses, until `done()`; raise TimeoutError after `timeout_seconds`."""
        end = time.monotonic() + self._config.timeout_seconds
        pause = 0.01
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(f"timed out after {self._config.timeout_seconds:g} s waiting for {what}")
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _is_published(self, job: _Job) -> bool:
        if _name(job.step) not in _listing(self._folder):
            return False
        try:
            return files.read_manifest(self._folder / _name(job.step)).save == job.save
        except CheckpointError:  # the old one, which is about to be replaced
            return False

    def _publish(self, temporary: Path, path: Path) -> None:
        """Give a complete folder its name; `_clean_up` restores the folder that had it if this is interrupted."""
        fsync(temporary)
        replaced = None
        if path.exists():
            replaced = path.with_name(f"{_REPLACED}{path.name}")
            path.rename(replaced)
        temporary.rename(path)
        fsync(self._folder)
        self._damaged.discard(path.name)
        if replaced is not None:
            shutil.rmtree(replaced)

    def _mark_best(self, name: str, step: int, score: float | None) -> None:
        """Record a checkpoint in best.json if its score is higher than the recorded one; NaN is not higher."""
        if score is None or not self._config.keep_best or math.isnan(score):
            return
        best = _best(self._folder)
        if best is None or score > best[1]:
            write_json(self._folder / BEST, {"folder": name, "step": step, "score": float(score)})

    def _prune(self, newest: str) -> None:
        """Remove all checkpoints but those to keep. The newest is undamaged, so one such checkpoint always remains."""
        complete = [name for name in self._names() if name not in self._damaged and _is_sealed(self._folder / name)]
        keep = {newest, *complete[-self._config.keep_last :]}
        best = _best(self._folder) if self._config.keep_best else None
        if best is not None:
            keep.add(best[0])
        for name in complete:
            if name not in keep:
                try:
                    shutil.rmtree((self._folder / name).rename(self._folder / f"{_REMOVED}{name}"))
                except OSError as error:  # no reason to end a run: the next start tries again
                    logger.warning("%s cannot be removed: %s", self._folder / name, error)

    def _names(self) -> list[str]:
        """Return the names of all checkpoints, damaged ones too, by step."""
        names = [name for name in _listing(self._folder) if _NAME.fullmatch(name)]
        return sorted(names, key=lambda name: int(name.removeprefix("step-")))


@dataclass(kw_only=True)
class _Job:
    """The content of one save."""

    step: int
    save: str
    score: float | None
    random: Mapping[str, Tensor]
    plain: dict[str, bytes] = field(default_factory=dict)  # file → bytes
    tensors: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)  # file → copies
    copied: torch.cuda.Event | None = None  # recorded after the copies


class _Buffers:
    """Buffers for copies of tensors, reused by every save: pinned for tensors on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, dict[str, Tensor]] = {}
        self._device: torch.device | None = None

    def copy(self, section: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies on the CPU; those of tensors on a GPU are valid only after `event`."""
        old = self._buffers.get(section, {})
        copies = {}
        for name, tensor in tensors.items():
            buffer = old.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copies[name] = buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
            if tensor.is_cuda:
                self._device = tensor.device
        self._buffers[section] = copies
        return copies

    def event(self) -> torch.cuda.Event | None:
        """Return the event that the thread waits for before it reads the copies; None without a GPU."""
        if self._device is None:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _listing(folder: Path) -> set[str]:
    """Return the names in a folder: NFS refreshes listings, but may cache that a single name is missing."""
    return set(os.listdir(folder))


def _is_sealed(folder: Path) -> bool:
    try:
        files.read_manifest(folder)
    except (CheckpointError, OSError):
        return False
    return True


def _best(folder: Path) -> tuple[str, float] | None:
    """Return the name and score of the best checkpoint; None where there is none, or it was removed."""
    try:
        best = json.loads((folder / BEST).read_bytes())
        name, score = str(best["folder"]), float(best["score"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return (name, score) if (folder / name).is_dir() else None


def _clean_up(folder: Path) -> None:
    """Remove the files of killed saves, and restore a checkpoint whose replacement was interrupted.

    Only for the run that holds the folder's lock, before any rank writes.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        original = folder / path.name.removeprefix(_REPLACED)
        if path.name.startswith(_REPLACED) and not original.exists():
            path.rename(original)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
