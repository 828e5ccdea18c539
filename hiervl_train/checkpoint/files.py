"""The files of a checkpoint: written, sealed with their hashes, verified, read. Nothing is unpickled.

step-00001000/model.safetensors, config.yaml    the model: `HierVL.from_checkpoint(folder)` reads these
              optimizer.safetensors             `<parameter name>.exp_avg`, …
              ema.safetensors                   where the run keeps an average of the weights
              state.json                        step, world, cursors, counters, identity, the optimiser's scalars
              random-00000.safetensors          the generators of rank 0, and so on
              tokenizer.json, …                 extra files
              complete.json                     size and SHA-256 of every file above; without it the folder is ignored
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.loading import ConfigError, read_yaml
from hiervl_train.checkpoint.state import OptimizerState, RunState
from hiervl_train.models.errors import CheckpointError
from hiervl_train.models.storage import CONFIG, WEIGHTS
from hiervl_train.random_states import RandomStates
from shards.files import fsync, json_bytes, replacing, write_json

VERSION = 1
COMPLETE = "complete.json"
OPTIMIZER = "optimizer.safetensors"
EMA = "ema.safetensors"
STATE = "state.json"
OURS = frozenset({WEIGHTS, CONFIG, OPTIMIZER, EMA, STATE, COMPLETE})
_HASHERS = 4  # files hashed at once
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of complete.json."""

    step: int
    world: int
    save: str  # unique to the save that wrote it
    files: Mapping[str, tuple[int, str]]  # name → bytes, SHA-256


def random_file(rank: int) -> str:
    """Return the name of a rank's random states."""
    return f"random-{rank:05d}.safetensors"


def write_random(folder: Path, rank: int, tensors: Mapping[str, Tensor]) -> None:
    """Write a rank's random states; rank 0 waits for the file, which is complete once it has its name."""
    with replacing(folder / random_file(rank)) as temporary:
        save_file(dict(tensors), temporary)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous CPU tensors durably into a folder that is not sealed yet."""
    save_file(dict(tensors), path, metadata={"format": "pt"})
    fsync(path)


def write_plain(path: Path, data: bytes) -> None:
    """Write bytes durably into a folder that is not sealed yet."""
    path.write_bytes(data)
    fsync(path)


def seal(folder: Path, *, step: int, world: int, save: str, names: Iterable[str]) -> None:
    """Write complete.json for the named files: last, and atomically."""
    with ThreadPoolExecutor(_HASHERS) as pool:
        paths = [folder / name for name in sorted(names)]
        hashes = list(pool.map(sha256, paths))
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest} for path, digest in zip(paths, hashes, strict=True)
    }
    write_json(folder / COMPLETE, {"version": VERSION, "step": step, "world": world, "save": save, "files": files})


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Return the content of complete.json; raise `CheckpointError` where it is missing or damaged."""
    path = folder / COMPLETE
    try:
        tree = json.loads(path.read_bytes())
        if tree["version"] != VERSION:
            raise CheckpointError(
                f"{path}: version {tree['version']} is not supported: this code reads version {VERSION}"
            )
        return Manifest(
            step=int(tree["step"]),
            world=int(tree["world"]),
            save=str(tree["save"]),
            files={name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in tree["files"].items()},
        )
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing, so the checkpoint is incomplete") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged: {error}") from error


def check(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Compare files with the manifest, sizes before hashes; raise `CheckpointError` naming the first that differs."""
    paths = []
    for name in names:
        path = folder / name
        if name not in manifest.files:
            raise CheckpointError(f"{path}: not listed in {COMPLETE}")
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        if size != manifest.files[name][0]:
            raise CheckpointError(f"{path}: {size} bytes instead of {manifest.files[name][0]}")
        paths.append(path)
    with ThreadPoolExecutor(_HASHERS) as pool:
        for path, digest in zip(paths, pool.map(sha256, paths), strict=True):
            if digest != manifest.files[path.name][1]:
                raise CheckpointError(f"{path}: its SHA-256 differs from {COMPLETE}: the file is damaged")


def state_json(state: RunState, world: int) -> bytes:
    """Return state.json; raise TypeError on values that JSON cannot represent."""
    return json_bytes(
        {
            "version": VERSION,
            "step": state.step,
            "world": world,
            "cursors": {name: dict(cursor) for name, cursor in state.cursors.items()},
            "counters": dict(state.counters),
            "identity": dict(state.identity),
            "optimizer": {
                "groups": [dict(group) for group in state.optimizer.groups],
                "scalars": dict(state.optimizer.scalars),
            },
        }
    )


def read(folder: Path, *, rank: int, world: int, seed: int, everything: bool) -> RunState:
    """Return a rank's state from a checkpoint; raise `CheckpointError` where a file is missing or damaged.

    Verifies the files that it reads, and with `everything` also those of other ranks. If another number of ranks saved
    the checkpoint, the random states are derived from (seed, step, rank): a rank then has other samples.
    """
    manifest = read_manifest(folder)
    own = random_file(rank)
    others = {name for name in manifest.files if name.startswith("random-") and name != own}
    same_world = manifest.world == world
    wanted = set(manifest.files) - (set() if everything else others)
    check(folder, manifest, {WEIGHTS, OPTIMIZER, STATE, *([own] if same_world else []), *wanted})
    tree = _json(folder / STATE)
    if same_world:
        random_states = RandomStates.from_tensors(_tensors(folder / own))
    else:
        random_states = RandomStates.seeded(seed, manifest.step, rank)
        if rank == 0:
            logger.warning(
                "%s was saved by %d ranks and is loaded by %d: data and weights continue as saved, the random states "
                "of dropout are derived from (seed, step, rank)",
                folder,
                manifest.world,
                world,
            )
    try:
        return RunState(
            step=manifest.step,
            model=_tensors(folder / WEIGHTS),
            optimizer=OptimizerState(
                tensors=_tensors(folder / OPTIMIZER),
                scalars=tree["optimizer"]["scalars"],
                groups=tree["optimizer"]["groups"],
            ),
            random=random_states,
            ema=_tensors(folder / EMA) if EMA in manifest.files else None,
            cursors=tree["cursors"],
            counters=tree["counters"],
            model_config=read_yaml(folder / CONFIG) if CONFIG in manifest.files else None,
            extra_files={name: (folder / name).read_bytes() for name in manifest.files if _is_extra(name)},
            identity=tree["identity"],
        )
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{folder}: damaged state: {error}") from error


def _is_extra(name: str) -> bool:
    return name not in OURS and not name.startswith("random-")


def checked_extra(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return extra files if their names are plain and unused; raise ValueError otherwise."""
    for name in files:
        if not _is_extra(name) or name != Path(name).name or name.startswith("."):
            raise ValueError(f"extra file {name!r}: expected a plain file name that a checkpoint does not use")
    return dict(files)


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return tree


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged or incomplete safetensors file: {error}") from error
