"""The folder of a run: its paths, the files that describe each start of the run, its log and its lock.

RUN/README.md            says what each file is
RUN/config.yaml          the resolved configuration of the last start; all of them in configs/
RUN/environment.json     versions, devices, command line, and every start of the run
RUN/log.txt              the log; log-rank00001.txt: warnings of another rank
RUN/metrics.jsonl        metrics by step; tensorboard/ and wandb/ have the same
RUN/index.html           state and curves
RUN/checkpoints/         step-00001000/ …
RUN/profile/, evaluation/
RUN/stop                 create this file to stop the run at the next step
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

from configs import loading
from configs.revision import code_revision
from hiervl_train.collectives import world_size
from hiervl_train.monitor.metrics import METRICS, TENSORBOARD
from shards import files

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_OURS = "hiervl_train"  # the logger whose INFO lines go into the log

_README = """\
# A training run

| file | what it is |
|---|---|
| `index.html` | state and curves, with `bokeh-*.min.js`; `python -m hiervl_train.monitor.page .` writes it again |
| `config.yaml` | the resolved configuration, with the code's revision on top; `--config` accepts it |
| `configs/` | the configuration of each start, numbered, where it changed |
| `environment.json` | versions, devices, command line, seed, and all starts of the run |
| `status.json` | running, done, stopped or failed, at which step, why |
| `log.txt` | the log; `log-rank00001.txt` has the warnings of another rank |
| `metrics.jsonl` | one JSON object per line: metrics by step, averages and counts since the previous line |
| `tensorboard/`, `wandb/` | the same for `tensorboard --logdir` and `wandb sync`, where configured |
| `checkpoints/` | `step-00001000/` has model, optimiser and data cursors after 1,000 steps |
| `profile/` | `table.txt`, and a trace for https://ui.perfetto.dev, if `profile.start` is set |
| `evaluation/` | results of the evaluations during the run |
| `stop` | create this file to make the run save and stop at the next step |
"""


class RunFolderError(RuntimeError):
    """A run's folder cannot be written to; the message names it and the remedy."""

    exit_code: ClassVar[int] = 2


class RunFolder:
    """The paths in a run's folder (it is a path itself), and what each start of the run writes there."""

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
        """The folder of the starts' configurations, from config-00001.yaml on; one is added where it changed."""
        return self.path / "configs"

    @property
    def environment(self) -> Path:
        """Versions, devices, command line and starts (JSON)."""
        return self.path / "environment.json"

    @property
    def status(self) -> Path:
        """The run's state, step, and how it ended (JSON)."""
        return self.path / "status.json"

    @property
    def readme(self) -> Path:
        """The description of every file."""
        return self.path / "README.md"

    @property
    def log(self) -> Path:
        """The first rank's log."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """Metrics by step (JSON lines)."""
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
        """The page with state and curves."""
        return self.path / "index.html"

    @property
    def stop(self) -> Path:
        """The file whose presence stops the run."""
        return self.path / "stop"

    def rank_log(self, rank: int) -> Path:
        """The log of a rank: everything on the first, warnings and errors on the others."""
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
        """Write the files that describe a start, on the first rank: README, configuration, environment.

        `config` is a configuration dataclass; `hostnames` are the nodes' (default: this one's); `facts` are added to
        environment.json: the page reads `total_steps` and `mfu_denominator`.
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
            "world_size": world_size(),
            "job": os.environ.get("SLURM_JOB_ID"),
        }
        starts = [*self._starts(), start]
        files.write_json(
            self.environment, describe_environment() | {"seed": seed} | dict(facts or {}) | {"starts": starts}
        )

    def _write_config(self, config: Any) -> int:
        """Write the configuration, also under a new number if it changed since the last start; return its number."""
        content = f"# {code_revision()}\n{loading.to_yaml(config)}".encode()
        files.write_bytes(self.config, content)
        numbers = [
            int(match[1]) for path in _listed(self.configs) if (match := re.fullmatch(r"config-(\d+)", path.stem))
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
        """Append the log of the block to this rank's file; warnings are also printed on the terminal."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(self.rank_log(rank), encoding="utf-8", delay=True)
        file.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        terminal = logging.StreamHandler()
        terminal.setLevel(logging.WARNING)
        root, ours = logging.getLogger(), logging.getLogger(_OURS)
        # Python prints warnings only where there is no handler at all, so the file's handler alone would hide them.
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
        """Lock the folder against other runs during the block; raise `RunFolderError` where another run has it.

        A record lock: the kernel releases it when this process dies, even if forked loader workers live a few seconds
        longer (they would share an `flock`), and it works over NFS.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / ".lock"
        with path.open("a+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    logging.getLogger(__name__).warning(
                        "%s: this file system has no locks (%s); make sure that no other run writes here",
                        self.path,
                        error.strerror,
                    )
                else:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise RunFolderError(
                        f"{self.path} is in use by another run ({holder}); stop it with `touch {self.stop}`, or set "
                        "run.folder to another folder"
                    ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            file.flush()
            yield


def describe_environment() -> dict[str, Any]:
    """Return what a run's results may depend on besides its configuration, as plain values."""
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
        "world_size": world_size(),
        "packages": _packages(),
    }


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, or None."""
    if not torch.cuda.is_available():
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.splitlines()[0].strip() if output.strip() else None


def _packages() -> dict[str, str]:
    """Return the versions of the installed direct requirements, those of the tests excepted."""
    try:
        requirements = metadata.requires("hiervl") or []
    except metadata.PackageNotFoundError:
        return {}
    names = [re.split(r"[^A-Za-z0-9_.-]", text)[0] for text in requirements if 'extra == "dev"' not in text]
    versions = {}
    for name in sorted(set(names), key=str.lower):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
