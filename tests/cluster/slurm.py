"""A real SLURM cluster of two nodes on this machine: a controller, two node daemons, and their own munge.

Everything lies in one temporary folder and listens on free ports; every daemon is a child of this process and is ended
by its id. Debian: `apt-get install --no-install-recommends slurm-wlm munge`.
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.paths import REPOSITORY

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_PATHS = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/usr/local/sbin"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
KILL_WAIT_SECONDS = 10  # from a job's SIGTERM to its SIGKILL; SLURM's default is 30

# The number of a job decides the port of its ranks: that of a cluster beside this one must be another.
# cred_expire is also how long a requeued job waits before it starts anew (default: 120 s).
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
FirstJobId={first_job}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait={kill_wait}
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=4 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=4 RealMemory=8000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n[1-2] MaxTime=60 State=UP PriorityTier=10
"""


@dataclass(frozen=True)
class Slurm:
    """A running cluster."""

    folder: Path
    environment: Mapping[str, str]

    def call(self, *command: str, cwd: Path = REPOSITORY, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of the cluster would."""
        environment = {**self.environment, **variables}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)

    def submit(self, *arguments: str, cwd: Path = REPOSITORY, **variables: str) -> int:
        """Run `sbatch` and return the job's id."""
        done = self.call("sbatch", "--parsable", *arguments, cwd=cwd, **variables)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def job(self, number: int) -> dict[str, str]:
        """Return what the controller knows of a job, as JobState, Restarts, ExitCode."""
        text = self.call("scontrol", "--oneliner", "show", "job", str(number)).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def jobs(self) -> list[int]:
        """Return the jobs that wait or run."""
        return [int(line) for line in self.call("squeue", "--noheader", "--format=%A").stdout.split()]

    def wait(self, number: int, states: Sequence[str] = (), *, seconds: float = 180) -> dict[str, str]:
        """Wait until a job is in one of `states`, by default an end; return what is known of it."""
        end = time.monotonic() + seconds
        wanted = set(states) or ENDED
        while True:
            job = self.job(number)
            if job.get("JobState") in wanted:
                return job
            if time.monotonic() > end:
                raise AssertionError(f"after {seconds} s: {job}\n{self.logs()}")
            time.sleep(0.2)

    def wait_for_nothing(self, seconds: float = 30) -> None:
        """Wait until no job waits or runs."""
        end = time.monotonic() + seconds
        while self.jobs():
            assert time.monotonic() < end, self.call("squeue").stdout
            time.sleep(0.2)

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return "\n".join(f"== {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*-D*.log")))


@contextmanager
def running() -> Iterator[Slurm]:
    """Start a cluster; end it, and whatever it still runs, with the block. Skips the test where SLURM is not here."""
    absent = [name for name in DAEMONS if shutil.which(name, path=_PATHS) is None]
    if absent:
        pytest.skip(f"{', '.join(absent)} not here: apt-get install --no-install-recommends slurm-wlm munge")
    # Not below pytest's folder: munge wants to be reachable by every user, and sockets have short names.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        slurm = Slurm(folder, _environment(folder))
        _start_munge(folder, stack)
        _write_configuration(folder)
        _daemon(stack, slurm, "slurmctld", "-D")
        for node in ("n1", "n2"):
            _daemon(stack, slurm, "slurmd", "-D", "-N", node)
        stack.callback(_end_jobs, slurm)
        _wait_for_nodes(slurm)
        yield slurm


def _environment(folder: Path) -> dict[str, str]:
    """Return this process's environment without what another scheduler or launcher left in it."""
    foreign = re.compile(r"SLURM|SBATCH|SRUN|PYTEST|RANK$|WORLD_SIZE$|LOCAL_RANK$|MASTER_|PYTHONPATH$|HIERVL_")
    kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    return {**kept, "PATH": _PATHS, "SLURM_CONF": str(folder / "slurm.conf")}


def _start_munge(folder: Path, stack: ExitStack) -> None:
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    _spawn(stack, folder, "munge", ["munged", "--foreground", f"--key-file={key}", *options], os.environ)
    end = time.monotonic() + 20
    while not (folder / "munge.socket").exists():
        if time.monotonic() > end:
            raise AssertionError(f"munged does not start: {(folder / 'munge.log').read_text()}")
        time.sleep(0.05)


def _write_configuration(folder: Path) -> None:
    (folder / "state").mkdir()
    for node in ("n1", "n2"):
        (folder / f"spool-{node}").mkdir()
    controller_port, port_1, port_2 = _free_ports(3)
    text = _CONFIGURATION.format(
        host=socket.gethostname().split(".")[0],
        user=getpass.getuser(),
        folder=folder,
        kill_wait=KILL_WAIT_SECONDS,
        controller_port=controller_port,
        first_job=100 * secrets.randbelow(119) + 1,
        port_1=port_1,
        port_2=port_2,
    )
    (folder / "slurm.conf").write_text(text)


def _daemon(stack: ExitStack, slurm: Slurm, name: str, *options: str) -> None:
    command = [name, *options, "-f", str(slurm.folder / "slurm.conf")]
    _spawn(stack, slurm.folder, "-".join((name, *options)), command, slurm.environment)


def _spawn(stack: ExitStack, folder: Path, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
    program = shutil.which(command[0], path=_PATHS)
    assert program is not None
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [program, *command[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a daemon and what it left behind."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def _end_jobs(slurm: Slurm) -> None:
    """Kill every job: what a step runs belongs to the daemon of its step, not to those that are ended by id."""
    for number in slurm.jobs():
        slurm.call("scancel", "--signal=KILL", "--full", str(number))
        slurm.call("scancel", str(number))
    end = time.monotonic() + 2 * KILL_WAIT_SECONDS
    while slurm.jobs() and time.monotonic() < end:
        time.sleep(0.2)


def _wait_for_nodes(slurm: Slurm) -> None:
    end = time.monotonic() + 40
    while slurm.call("sinfo", "--noheader", "--Node", "--partition=main", "--format=%t").stdout.split() != [
        "idle",
        "idle",
    ]:
        if time.monotonic() > end:
            raise AssertionError(f"the nodes do not come up\n{slurm.logs()}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Return ports of the loopback that nobody listens on now, all different."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
