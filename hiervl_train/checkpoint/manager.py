"""Checkpoints of a run: written by a thread while training goes on, whole or not at all; the newest sound one loaded.

At a step boundary the state is copied to buffers in memory (on a GPU: pinned ones, by copies that the device queues
before the next step, so that not even the host waits). A thread writes the copy:

1. Every rank puts its file into `.tmp-<save>-step-00001000`, a name that only this save has.
2. Rank 0 waits until the files of all ranks are there. It looks at the folder: a collective in a thread would run
   beside the training's own and could be matched with it.
3. Rank 0 writes complete.json with the hash of every file, and renames the folder to `step-00001000`.
4. `best.json` names the best one; older checkpoints are renamed away and removed.

Renaming makes the name itself say that the writing was finished, so whoever lists the folder, a person or a batch
script, sees whole checkpoints only; complete.json finds what happened to them later (a disk, a copy cut short).
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
from torch import Tensor

from configs.loading import to_yaml
from hiervl_train.checkpoint import files as files
from hiervl_train.checkpoint.state import OptimizerState, RandomStates, RunState
from hiervl_train.distributed import all_true, broadcast_text
from hiervl_train.models.released import CheckpointError
from hiervl_train.models.storage import CONFIG, WEIGHTS
from shards.files import TEMPORARY, fsync, write_json

__all__ = ["CheckpointConfig", "CheckpointError", "Checkpoints", "OptimizerState", "RandomStates", "RunState"]

BEST = "best.json"
_NAME = re.compile(r"step-(\d{8,})")
_ASIDE = f"{TEMPORARY}old-"  # a checkpoint that another one of the same step is about to replace
_GONE = f"{TEMPORARY}removed-"
_LAST_WORDS_SECONDS = 10.0  # that rank 0 of a failing run of several gives the thread to finish; others hardly any
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept."""

    every_steps: int | None = 1000  # null: by the clock alone
    every_minutes: float | None = 15.0  # since the last one; null: by steps alone
    keep_last: int = 3
    keep_best: bool = True  # by the score of the evaluation inside the run
    timeout_seconds: float = 600.0  # that a rank waits for the files of the others

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"every_steps = {self.every_steps}: at least 1 is needed, or null")
        if self.every_minutes is not None and self.every_minutes <= 0:
            raise ValueError(f"every_minutes = {self.every_minutes}: it must be positive, or null")
        if self.keep_last < 1:
            raise ValueError(f"keep_last = {self.keep_last}: at least 1 is needed")
        if self.timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds = {self.timeout_seconds}: it must be positive")


class Checkpoints:
    """The checkpoints in a folder. All ranks make one and call its methods at the same steps.

    with Checkpoints(folder, config, rank=ranks.rank, world=ranks.world, group=ranks.control) as checkpoints:
        state = checkpoints.load_latest(seed=seed)
        ...
        agreed = control.agreed()
        control.begin({"save": checkpoints.wants()})
        if checkpoints.due(step) or agreed.get("save"):
            checkpoints.save(state_of_the_run)

    What fails in the thread is raised as `CheckpointError` by the next call of any method.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        *,
        rank: int = 0,
        world: int = 1,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`group`: of all ranks, best `DistributedContext.control`; the default group where None."""
        if world > 1 and not dist.is_initialized():
            raise RuntimeError(f"checkpoints of {world} ranks need torch.distributed, to agree")
        self._folder = folder
        self._config = config
        self._rank = rank
        self._world = world
        self._group = group
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            _tidy(folder)
        # Also says that rank 0 has tidied: before that, no rank writes.
        self._session = broadcast_text(secrets.token_hex(4) if rank == 0 else None, group)
        self._saves = 0
        self._saved: int | None = None  # the step of the last save that was begun here
        self._clock = time.monotonic()
        self._buffers = _Buffers()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._unsound: set[str] = set()  # seen while loading; they are not deleted and do not count

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, SystemExit):
            self.close()
        elif self._thread is not None:
            # What is being written is sound; but other ranks may be gone, and nobody may wait for them for long.
            self._thread.join(None if self._world == 1 else _LAST_WORDS_SECONDS if self._rank == 0 else 0.5)

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after this many steps: the same on all ranks, as the clock is not."""
        self._raise_failure()
        return self._config.every_steps is not None and step > 0 and step % self._config.every_steps == 0

    def wants(self) -> bool:
        """Return on rank 0, once, that `every_minutes` have passed since the last save; False on other ranks.

        Rank 0's clock is for all: give this to `FlagConsensus.begin`, and save when the ranks agreed.
        """
        self._raise_failure()
        minutes = self._config.every_minutes
        if self._rank or minutes is None or time.monotonic() - self._clock < minutes * 60:
            return False
        self._clock = time.monotonic()
        return True

    def save(self, state: RunState, *, score: float | None = None, wait: bool = False) -> float:
        """Copy the state now and have it written; return the seconds that this call took.

        `score` (higher is better) makes it the best one where it is. `wait`: return when it is complete on disk, on
        every rank: for the last save of a process. Only `random` and `step` of ranks other than 0 are looked at.
        A second save of the same step writes nothing anew; its score and `wait` count. Waits for the save before.
        """
        began = time.monotonic()
        self.wait()
        if state.step != self._saved:
            self._saves += 1
            job = self._copy(state, score)
            self._saved, self._clock = state.step, time.monotonic()
            # A daemon: a process that fails must be able to end while its thread waits for ranks that are gone.
            self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint", daemon=True)
            self._thread.start()
        elif self._rank == 0:
            self._mark_best(_name(state.step), state.step, score)
        if wait:
            self.wait()
        return time.monotonic() - began

    def wait(self) -> None:
        """Wait until what was begun is written; raise what failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_failure()

    def close(self) -> None:
        """Wait until what was begun is written; raise what failed."""
        self.wait()

    def load_latest(self, *, seed: int = 0) -> RunState | None:
        """Return the newest sound checkpoint, the same one on every rank; None where there is none yet.

        Rank 0 checks every file and proposes; each rank checks what it reads; one that any rank finds unsound is
        passed over with a warning that names it and what is wrong, and left where it is. `seed` is for random states
        where the world is another one. Raises `CheckpointError` where there are checkpoints and none is sound.
        """
        self.wait()
        proposals = iter(self._found()[::-1] if self._rank == 0 else ())
        problems = 0
        while (name := broadcast_text(next(proposals, None), self._group)) is not None:
            state = None
            try:
                state = self._read(self._folder / name, seed)
            except CheckpointError as error:
                logger.warning("checkpoint %s is passed over: %s", name, error)
            if all_true(state is not None, self._group):
                return state
            self._unsound.add(name)
            problems += 1
        if problems:
            raise CheckpointError(
                f"{self._folder}: none of its {problems} checkpoints is sound (see the warnings); move them away to "
                "begin anew"
            )
        return None

    def load(self, folder: Path, *, seed: int = 0) -> RunState:
        """Return the state in one folder; raise `CheckpointError` where it is not sound."""
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
        """Copy what this rank writes, so that training may go on; on the device's queue where it has one."""
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
        """Write in the thread; keep what goes wrong for the next call."""
        temporary = self._folder / f"{TEMPORARY}{job.save}-{_name(job.step)}"
        try:
            temporary.mkdir(exist_ok=True)
            files.write_random(temporary, self._rank, job.random)
            if self._rank == 0:
                self._write(job, temporary)
            else:
                self._wait_until(lambda: self._is_published(job), f"rank 0 to complete {_name(job.step)}")
        except BaseException as error:  # noqa: BLE001  # raised by the next call, in the thread that can act on it
            self._failure = error
            if self._rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)  # a full disk is not left fuller than it was

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
        """Look, ever less often, until a file of another rank is there; raise TimeoutError when it takes too long."""
        end = time.monotonic() + self._config.timeout_seconds
        pause = 0.01
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {self._config.timeout_seconds:g} s for {what}")
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _is_published(self, job: _Job) -> bool:
        if _name(job.step) not in _listing(self._folder):
            return False
        try:
            return files.read_manifest(self._folder / _name(job.step)).save == job.save
        except CheckpointError:  # the one that is about to be replaced
            return False

    def _publish(self, temporary: Path, path: Path) -> None:
        """Give a whole folder its name; one that has it already is renamed back by `_tidy` if this is cut short."""
        fsync(temporary)
        aside = None
        if path.exists():
            aside = path.with_name(f"{_ASIDE}{path.name}")
            path.rename(aside)
        temporary.rename(path)
        fsync(self._folder)
        self._unsound.discard(path.name)
        if aside is not None:
            shutil.rmtree(aside)

    def _mark_best(self, name: str, step: int, score: float | None) -> None:
        """Note in best.json a checkpoint with a higher score than the one there; not a number is not higher."""
        if score is None or not self._config.keep_best or math.isnan(score):
            return
        best = _best(self._folder)
        if best is None or score > best[1]:
            write_json(self._folder / BEST, {"folder": name, "step": step, "score": float(score)})

    def _prune(self, newest: str) -> None:
        """Remove checkpoints beyond those to keep. The one just written is sound, so never the only sound one goes."""
        complete = [name for name in self._found() if name not in self._unsound and _is_sealed(self._folder / name)]
        keep = {newest, *complete[-self._config.keep_last :]}
        best = _best(self._folder) if self._config.keep_best else None
        if best is not None:
            keep.add(best[0])
        for name in complete:
            if name not in keep:
                try:
                    gone = (self._folder / name).rename(self._folder / f"{_GONE}{name}")
                    shutil.rmtree(gone)
                except OSError as error:  # not worth a run: the next start tries again
                    logger.warning("%s cannot be removed: %s", self._folder / name, error)

    def _found(self) -> list[str]:
        """Return the names of all checkpoints, sound or not, by step."""
        names = [name for name in _listing(self._folder) if _NAME.fullmatch(name)]
        return sorted(names, key=lambda name: int(name.removeprefix("step-")))


@dataclass(kw_only=True)
class _Job:
    """What one save writes."""

    step: int
    save: str
    score: float | None
    random: Mapping[str, Tensor]
    plain: dict[str, bytes] = field(default_factory=dict)  # file → bytes
    tensors: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)  # file → copies
    copied: torch.cuda.Event | None = None  # the copies are there


class _Buffers:
    """Memory for copies of tensors, used again by every save: pinned for what comes from a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, dict[str, Tensor]] = {}
        self._device: torch.device | None = None

    def copy(self, section: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies on the CPU; of tensors on a GPU they are there only after `event`."""
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
        """Return what the thread waits for before it reads the copies; None where there was no GPU."""
        if self._device is None:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _listing(folder: Path) -> set[str]:
    """Return the names in a folder. NFS asks the server anew for a listing, and not always for a single name."""
    return set(os.listdir(folder))


def _is_sealed(folder: Path) -> bool:
    try:
        files.read_manifest(folder)
    except (CheckpointError, OSError):
        return False
    return True


def _best(folder: Path) -> tuple[str, float] | None:
    """Return the name and score of the best checkpoint; None where there is none, or it is gone."""
    try:
        best = json.loads((folder / BEST).read_bytes())
        name, score = str(best["folder"]), float(best["score"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return (name, score) if (folder / name).is_dir() else None


def _tidy(folder: Path) -> None:
    """Remove what killed saves left, and give back its name to a checkpoint that was about to be replaced.

    Only for a run that is alone in its folder, before any rank writes.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        original = folder / path.name.removeprefix(_ASIDE)
        if path.name.startswith(_ASIDE) and not original.exists():
            path.rename(original)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
