"""The batch scripts as programs: sound shell, arguments that stay whole, ranks on every node, containers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.paths import REPOSITORY

CLUSTER = REPOSITORY / "cluster"
SCRIPTS = sorted([*CLUSTER.glob("*.sh"), *CLUSTER.glob("*.sbatch")])
_ENTRY = """\
import json, os, sys
rank = int(os.environ["RANK"])
said = {name: os.environ[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "SLURM_NODEID", "MASTER_PORT")}
with open(f"{os.environ['TOLD']}/rank{rank}.json", "w") as file:
    json.dump({**said, "arguments": sys.argv[1:]}, file)
sys.exit(4 if "fail" in sys.argv else 0)
"""


def bash(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run shell code in the repository, with nothing of this process's environment but PATH."""
    command = ["bash", "-euo", "pipefail", "-c", code, "bash", *arguments]
    environment = {"PATH": "/usr/bin:/bin", **variables}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound_shell(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not here; bash parses it")
    done = subprocess.run(
        ["shellcheck", "--external-sources", f"--source-path={REPOSITORY}", script],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.suffix == ".sbatch"], ids=lambda path: path.name)
def test_what_a_job_asks_for_is_at_the_top_of_its_script(script: Path) -> None:
    lines = script.read_text().splitlines()
    first_code = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    asked = [line for line in lines[:first_code] if line.startswith("#SBATCH ")]
    assert asked == [line for line in lines if line.startswith("#SBATCH")]  # below code SLURM would not see it
    for option in ("--nodes=", "--cpus-per-task=", "--mem=", "--time=", "--requeue", "--open-mode=append"):
        assert sum(line.startswith(f"#SBATCH {option}") for line in asked) == 1, option


def test_a_child_is_waited_for_through_signals_and_its_own_exit_code_counts() -> None:
    code = """
    source cluster/job.sh
    trap 'echo signalled' USR2
    (trap '' USR2; sleep 0.6; exit 7) &
    child=$!
    (sleep 0.2; kill -USR2 $$; sleep 0.2; kill -USR2 $$) &
    wait_through_signals "$child" || echo "code $?"
    """
    done = bash(code)
    assert done.stdout.splitlines() == ["signalled", "signalled", "code 7"], done.stderr


@pytest.mark.parametrize("status", [0, 1, 85, 143])
def test_a_child_that_ends_while_a_trap_runs_keeps_its_exit_code(status: int) -> None:
    code = f"""
    source cluster/job.sh
    trap 'sleep 0.5' USR2
    (trap '' USR2; sleep 0.3; exit {status}) &
    child=$!
    (sleep 0.1; kill -USR2 $$) &
    result=0
    wait_through_signals "$child" || result=$?
    echo "code $result"
    """
    assert bash(code).stdout == f"code {status}\n"


def test_arguments_stay_whole() -> None:
    code = 'source cluster/job.sh; read_arguments "$@"; printf "<%s>" "$CONFIG" "$ENTRY" "${OVERRIDES[@]}"'
    done = bash(code, "--config", "a b.yaml", "--entry=x.py", "a={b: '$(id)'}", "c=*  d", "e=")
    assert done.stdout == "<a b.yaml><x.py><a={b: '$(id)'}><c=*  d><e=>"
    wrong = bash('source cluster/job.sh; read_arguments "$@"', "lr")
    assert wrong.returncode == 2 and "lr: expected --config F" in wrong.stderr


def test_a_container_is_entered_by_variable() -> None:
    code = 'source cluster/env.sh; printf "%s\\n" "${ENTER[@]}" -- "${SRUN_CONTAINER[@]}"'
    apptainer = bash(code, HIERVL_CONTAINER="/images/a b.sif", HIERVL_MOUNTS="/data,/scratch", SLURM_GPUS_ON_NODE="4")
    bind = f"{REPOSITORY},/data,/scratch"
    expected = ["apptainer", "exec", "--pwd", str(REPOSITORY), "--bind", bind, "--nv", "/images/a b.sif", "--"]
    assert apptainer.stdout.split("\n")[:-1] == expected, apptainer.stderr
    pyxis = bash(code, HIERVL_CONTAINER="registry#image", HIERVL_MOUNTS="/data")
    mounts = f"--container-mounts={REPOSITORY}:{REPOSITORY},/data:/data"
    expected = ["--", "--container-image=registry#image", mounts, f"--container-workdir={REPOSITORY}"]
    assert pyxis.stdout.split("\n")[:-1] == expected, pyxis.stderr


def test_no_environment_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    done = bash("source cluster/env.sh", HIERVL_VENV=str(tmp_path))
    assert done.returncode == 2 and "make env" in done.stderr and str(tmp_path) in done.stderr


def evaluate(slurm: Slurm, folder: Path, *arguments: str) -> int:
    """Submit `eval.sbatch` on two nodes with two ranks each, with a stand-in that writes down what it was told."""
    (folder / "entry.py").write_text(_ENTRY)
    size = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=2", "--mem=2G", "--time=5")
    variables = {"ENTRY": str(folder / "entry.py"), "TOLD": str(folder), "RANKS_PER_NODE": "2"}
    return slurm.submit(*size, f"--output={folder}/log", "cluster/eval.sbatch", *arguments, **variables)


def test_an_evaluation_runs_with_its_arguments_on_the_ranks_of_all_nodes(slurm: Slurm, tmp_path: Path) -> None:
    arguments = ["--checkpoint", "a b", "--shards", "root", "batch={a: 1}"]
    job = slurm.wait(evaluate(slurm, tmp_path, *arguments))
    assert job["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    told = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(4)]
    assert all(rank["arguments"] == arguments and rank["WORLD_SIZE"] == "4" for rank in told)
    # Ranks are counted along SLURM's nodes, so that rank 0 is where the batch script is.
    assert [(rank["SLURM_NODEID"], rank["GROUP_RANK"], rank["LOCAL_RANK"]) for rank in told] == [
        ("0", "0", "0"),
        ("0", "0", "1"),
        ("1", "1", "0"),
        ("1", "1", "1"),
    ]


def test_an_evaluation_that_fails_fails_its_job(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.wait(evaluate(slurm, tmp_path, "fail"))
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "1:0"), (tmp_path / "log").read_text()


@pytest.mark.parametrize("name", ["pretrain", "eval", "preprocess"])
def test_submitted_from_elsewhere_it_says_where_from(slurm: Slurm, tmp_path: Path, name: str) -> None:
    size = (
        "--nodes=1",
        "--cpus-per-task=1",
        "--mem=1G",
        "--time=1",
        *(("--gpus-per-node=0",) if name != "preprocess" else ()),
    )
    number = slurm.submit(*size, "--output=log", str(CLUSTER / f"{name}.sbatch"), cwd=tmp_path)
    job = slurm.wait(number)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
    assert "submit from the root of the repository" in (tmp_path / "log").read_text()


HOSTILE = [
    "x[$(touch PWNED)]",
    "a[$(touch PWNED)]+1",
    "$(touch PWNED)",
    "`touch PWNED`",
    "1;touch PWNED",
    "PATH=PWNED",
    "CODE",
    "-1",
    "1e3",
    "0x10",
    "9" * 30,
    "1\n2",
    " 7",
    "",
]
_ARITHMETIC = re.compile(
    r"\(\((.*?)\)\)|\[\[?\s+(\S+)\s+-(?:eq|ne|gt|ge|lt|le)\s+(\S+)\s+\]|\b(?:declare|local|typeset) -\S*i"
)
# What scripts compute with: exit codes, counts of arguments, and numbers that passed `number_in` or `require_number`.
_CHECKED = {
    "code",
    "last",
    "ranks",
    "now",
    "before",
    "count",
    "MIN_STEPS",
    "MAX_FRUITLESS",
    "SLURM_JOB_ID",
    "SLURM_RESTART_COUNT",
}
_COUNTS = {"$#", "${#overrides[@]}", "10#$1", "10#$value"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_computes_only_with_numbers_that_were_checked(script: Path) -> None:
    for line in script.read_text().splitlines():
        for found in _ARITHMETIC.finditer(line.partition(" # ")[0]):
            expressions = [group for group in found.groups() if group is not None]
            assert expressions, f"{script.name}: an integer variable evaluates what it is assigned: {line.strip()}"
            for text in expressions:
                for count in sorted(_COUNTS, key=len, reverse=True):
                    text = text.replace(count, "0")
                assert "$" not in text and "[" not in text, line
                assert set(re.findall(r"[A-Za-z_]\w*", text)) <= _CHECKED, line


@pytest.mark.parametrize("text", HOSTILE)
def test_text_that_is_no_number_is_not_computed_with(tmp_path: Path, text: str) -> None:
    code = f'source {CLUSTER}/job.sh; cd "$1"; echo "<$(number_in "$2")>"; N=$2; require_number N 3; echo "[$N]"'
    done = bash(code, str(tmp_path), text)
    assert done.stdout.startswith("<0>\n")
    if text:
        assert done.returncode == 2 and "expected a whole number" in done.stderr and "[" not in done.stdout[4:]
    else:
        assert done.stdout == "<0>\n[3]\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "number"), [("0", "0"), ("7", "7"), ("007", "7"), ("0900", "900"), ("9" * 15, "9" * 15)]
)
def test_a_number_is_decimal_whatever_zeros_it_starts_with(text: str, number: str) -> None:
    done = bash('source cluster/job.sh; number_in "$1"; N=$1; require_number N 3; echo "$N"', text)
    assert done.stdout == f"{number}\n{number}\n", done.stderr


_STOPPED_ENTRY = """\
import json, pathlib, sys
run = pathlib.Path(sys.argv[-1].removeprefix("run.folder="))
status = {"state": "stopped", "step": "x[$(touch PWNED)]", "total": "a[$(touch PWNED)]"}
(run / "status.json").write_text(json.dumps(status))
sys.exit(85)
"""


def test_a_run_folder_with_hostile_content_runs_no_command(slurm: Slurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "entry.py").write_text(_STOPPED_ENTRY)
    for name in (".fruitless", "stop", ".started"):
        (run / name).write_text("x[$(touch PWNED)]\n")
    (run / "status.json").write_text('{"state": "stopped", "step": CODE[$(touch PWNED)], "total": 1}')
    size = ("--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=1G", "--time=5")
    entry = os.path.relpath(tmp_path / "entry.py", REPOSITORY)
    command = [*size, f"--output={tmp_path}/log", "cluster/pretrain.sbatch", "--entry", entry, f"run.folder={run}"]
    before = set(REPOSITORY.iterdir())
    job = slurm.wait(slurm.submit(*command, MAX_FRUITLESS="1"))
    log = (tmp_path / "log").read_text()
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "1:0"), log
    assert "1 starts in a row" in log
    job = slurm.wait(slurm.submit(*command, MIN_STEPS="x[$(touch PWNED)]"))
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
    assert "MIN_STEPS = x[$(touch PWNED)]: expected a whole number" in (tmp_path / "log").read_text()
    assert not [
        *tmp_path.rglob("PWNED"),
        *(path for path in set(REPOSITORY.iterdir()) - before if path.name == "PWNED"),
    ]
