"""A run's folder: where each thing lies, what a start of the run writes into it, and that only one run does.

RUN/README.md            says what each file is
RUN/config.yaml          the resolved configuration of the last start; all of them in configs/
RUN/environment.json     versions, devices, command line, and every start of the run
RUN/log.txt              what the run said; log-rank00001.txt: warnings of another rank
RUN/metrics.jsonl        numbers by step; tensorboard/ the same
RUN/index.html           their curves
RUN/checkpoints/         step-00001000/ …
RUN/profile/, evaluation/
RUN/stop                 a file that asks the run to stop at the next step
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from configs import loading
from configs.revision import code_revision
from hiervl_train.monitor.metrics import METRICS, TENSORBOARD
from shards import files

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_OURS = "hiervl_train"  # the logger whose INFO lines belong into the log

_README = """\
# A training run

| file | what it is |
|---|---|
| `index.html` | curves and state; `python -m hiervl_train.monitor.page .` makes it anew |
| `config.yaml` | the resolved configuration, with the code's revision on top; it can be given to `--config` |
| `configs/` | the configuration of each start that changed it, in order |
| `environment.json` | versions, devices, command line, seed, and when the run was started and resumed |
| `status.json` | running, done, stopped or failed, at which step, why |
| `log.txt` | what the run said; `log-rank00001.txt` has the warnings of another rank |
| `metrics.jsonl` | a JSON object a line: numbers by step, averaged since the line before; counts are since then, too |
| `tensorboard/` | the same for `tensorboard --logdir` |
| `checkpoints/` | `step-00001000/` has model, optimiser and cursors after that many steps |
| `profile/` | `table.txt`, and a trace for https://ui.perfetto.dev, where `profile.start` asked for them |
| `evaluation/` | results of the evaluations inside the run |
| `stop` | make this file to have the run save and stop at the next step |
"""


class RunFolderError(RuntimeError):
    """A run's folder that cannot be written to; the message names it and what to do."""

    exit_code: ClassVar[int] = 2


class RunFolder:
    """The paths in a run's folder (it is a path itself) and what is written there at a start."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def config(self) -> Path:
        """The resolved configuration of the last start (YAML)."""
        return self.path / "config.yaml"

    @property
    def configs(self) -> Path:
        """The folder of all starts' configurations, config-00001.yaml first; one is added where it differs."""
        return self.path / "configs"

    @property
    def environment(self) -> Path:
        """Versions, devices, command line and starts (JSON)."""
        return self.path / "environment.json"

    @property
    def status(self) -> Path:
        """How far the run is and how it ended (JSON)."""
        return self.path / "status.json"

    @property
    def readme(self) -> Path:
        """What each file is."""
        return self.path / "README.md"

    @property
    def log(self) -> Path:
        """The first rank's log."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """Numbers by step (JSON lines)."""
        return self.path / METRICS

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / TENSORBOARD

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def profile(self) -> Path:
        """The folder of the profiler's trace and table."""
        return self.path / "profile"

    @property
    def evaluation(self) -> Path:
        """The folder of evaluations' results."""
        return self.path / "evaluation"

    @property
    def page(self) -> Path:
        """The page with the curves."""
        return self.path / "index.html"

    @property
    def stop(self) -> Path:
        """The file that asks the run to stop."""
        return self.path / "stop"

    def rank_log(self, rank: int) -> Path:
        """The log of a rank: everything of the first, warnings and errors of the others."""
        return self.log if rank == 0 else self.path / f"log-rank{rank:05d}.txt"

    def create(
        self,
        config: Any,
        *,
        is_resumed: bool,
        seed: int | None = None,
        hostnames: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what describes a start: README, configuration, environment. Only the first rank does.

        `config` is a configuration dataclass; `hostnames` are the nodes' (this one's where empty); `facts` join the
        environment under their names: the page reads `total_steps` and `mfu_denominator`. Nothing is refused.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        files.write_bytes(self.readme, _README.encode())
        number = self._write_config(config)
        start = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "is_resumed": is_resumed,
            "config": self._numbered(number).name,
            "revision": code_revision(),
            "hostnames": list(hostnames) or [socket.gethostname()],
            "world_size": _world_size(),
            "job": os.environ.get("SLURM_JOB_ID"),
        }
        starts = [*self._starts(), start]
        files.write_json(
            self.environment, describe_environment() | {"seed": seed} | dict(facts or {}) | {"starts": starts}
        )

    def _write_config(self, config: Any) -> int:
        """Write the configuration, and once more under the next number where the last start's differs; return that."""
        content = f"# {code_revision()}\n{loading.to_yaml(config)}".encode()
        files.write_bytes(self.config, content)
        numbers = [
            int(found[1]) for path in _listed(self.configs) if (found := re.fullmatch(r"config-(\d+)", path.stem))
        ]
        last = max(numbers, default=0)
        if last and self._numbered(last).read_bytes() == content:
            return last
        files.write_bytes(self._numbered(last + 1), content)
        return last + 1

    def _numbered(self, number: int) -> Path:
        return self.configs / f"config-{number:05d}.yaml"

    def _starts(self) -> list[Any]:
        try:
            starts = json.loads(self.environment.read_bytes())["starts"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return []
        return starts if isinstance(starts, list) else []

    @contextmanager
    def logged(self, *, rank: int = 0) -> Iterator[None]:
        """Append what is logged while the block runs to this rank's file; warnings still come on the terminal, too."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(self.rank_log(rank), encoding="utf-8", delay=True)
        file.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        terminal = logging.StreamHandler()
        terminal.setLevel(logging.WARNING)
        root, ours = logging.getLogger(), logging.getLogger(_OURS)
        # Without a handler, Python shows warnings by itself; with the file's alone it no longer would.
        handlers: list[logging.Handler] = [file] if root.handlers else [file, terminal]
        level = ours.level
        for handler in handlers:
            handler.setFormatter(logging.Formatter(_FORMAT))
            root.addHandler(handler)
        ours.setLevel(logging.INFO)
        try:
            yield
        finally:
            ours.setLevel(level)
            for handler in handlers:
                root.removeHandler(handler)
            file.close()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other processes' runs out of the folder while the block runs; raise `RunFolderError` where one is in.

        A record lock: the kernel drops it when this very process dies, also where loader workers that were forked
        from it live a few seconds longer (an `flock` would be theirs, too), and it is seen over NFS.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / ".lock"
        with path.open("a+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    logging.getLogger(__name__).warning(
                        "%s: this file system has no locks (%s); see to it that no other run writes here",
                        self.path,
                        error.strerror,
                    )
                else:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise RunFolderError(
                        f"{self.path}: another run writes there ({holder}); stop it with `touch {self.stop}`, or give "
                        f"this run another folder"
                    ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            file.flush()
            yield


def describe_environment() -> dict[str, Any]:
    """Return what the numbers of a run may depend on besides its configuration, as plain values."""
    return {
        "command": [sys.executable, *sys.argv],
        "folder": os.getcwd(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "driver": _driver(),
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "world_size": _world_size(),
        "packages": _packages(),
    }


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _driver() -> str | None:
    """Return the version of NVIDIA's driver; None where there is none."""
    if not torch.cuda.is_available():
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.splitlines()[0].strip() if found.stdout.strip() else None


def _packages() -> dict[str, str]:
    """Return the versions of the project's direct requirements, as far as they are installed, without the tests'."""
    try:
        requirements = metadata.requires("hiervl") or []
    except metadata.PackageNotFoundError:
        return {}
    names = [re.split(r"[^A-Za-z0-9_.-]", text)[0] for text in requirements if 'extra == "dev"' not in text]
    found = {}
    for name in sorted(set(names), key=str.lower):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
