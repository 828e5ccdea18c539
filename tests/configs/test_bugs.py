"""A bug deep inside any entry keeps its traceback and exits with 1, whatever its type; a declared error is one line."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.eval.checkpoints import READING, tiny_checkpoint
from tests.hiervl_train.runs import TINY
from tests.paths import REPOSITORY

pytestmark = pytest.mark.medium

BUGS: tuple[Callable[[], Exception], ...] = (
    lambda: ValueError("a bug"),
    lambda: OSError("a bug"),
    lambda: KeyError("a bug"),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a bug"),
)
# Entry → the functions of it that break, as module:name, from its beginning to its end.
PLACES = {
    "eval.egomcq": (
        "eval.run:open_source",
        "eval.embed.samples:Loader.__iter__",
        "hiervl_train.models.hiervl:HierVL.encode_text",
        "eval.benchmark:interval_of_mean",
        "eval.results:Result.save",
        "eval.report.page:render",
    ),
    "eval.all": ("eval.all:plan", "eval.benchmark:interval_of_mean", "eval.all:write_overview"),
    "eval.search": ("eval.search:open_source",),
    "hiervl_train.pretrain": (
        "hiervl_train.launch:_use_deterministic_kernels",
        "hiervl_train.pretrain:pretraining_task",
        "hiervl_train.trainer:learning_rate",
        "hiervl_train.checkpoint.files:state_json",
        "hiervl_train.launch:write_page",
    ),
    "preprocessing.build_shards": ("preprocessing.selection:plan_shards", "preprocessing.build_shards:select"),
    "shards.verify.__main__": ("shards.verify.__main__:verify", "shards.verify.__main__:human_bytes"),
    "shards.inspect.__main__": ("shards.inspect.__main__:tables", "shards.inspect.tables:table"),
}
CASES = [(entry, place) for entry, places in PLACES.items() for place in places]
# Breaks `sys.argv[1]` with the exception `sys.argv[2]`, and runs the file `sys.argv[3]` as the command line would.
_AS_SCRIPT = """
import importlib, runpy, sys
module, _, name = sys.argv[1].partition(":")
error = getattr(__import__("builtins"), sys.argv[2])("a bug")
def broken(*_, **__):
    raise error
setattr(importlib.import_module(module), name, broken)
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def checkpoint(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), embedded)


@pytest.fixture
def words(embedded: Path, checkpoint: Path, tmp_path: Path) -> dict[str, list[str]]:
    """Entry → arguments with which it would do its work."""
    evaluation = [f"--checkpoint={checkpoint}", f"--shards={embedded}", *READING, f"output={tmp_path / 'out'}"]
    evaluation += ["cache=null", "max_missing_fraction=1", "data.workers=0"]
    tiny = [*TINY, f"data.root={embedded}", f"run.folder={tmp_path / 'run'}", "run.max_steps=2"]
    source = embedded.parent / "source"
    return {
        "eval.egomcq": evaluation,
        "eval.all": [*evaluation, "--only", "egomcq", "report=false"],
        "eval.search": [str(embedded), "cuts", "--checkpoint", str(checkpoint)],
        "hiervl_train.pretrain": [*tiny, "data.workers=0", "data.summary_workers=0", "run.deterministic=false"],
        "preprocessing.build_shards": [f"output={tmp_path / 'built'}", f"demo_root={source}", "demo.size=tiny"],
        "shards.verify.__main__": [str(embedded), "--workers", "1"],
        "shards.inspect.__main__": [str(embedded)],
    }


def main_of(entry: str) -> Callable[[list[str]], int]:
    module: Any = importlib.import_module(entry)
    if entry == "eval.egomcq":
        return lambda words: int(importlib.import_module("eval.command").main(module.BENCHMARK, words))
    return lambda words: int(module.main(words))


def break_it(monkeypatch: pytest.MonkeyPatch, place: str, error: Exception) -> None:
    def broken(*_: Any, **__: Any) -> NoReturn:
        raise error

    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, last = name.split(".")
    for cls in classes:
        owner = getattr(owner, cls)
    assert hasattr(owner, last), f"{place}: there is no such function any more"
    monkeypatch.setattr(owner, last, broken)


@pytest.mark.parametrize(("entry", "place"), CASES, ids=[place for _, place in CASES])
def test_a_bug_has_its_traceback_and_exit_code_1(
    entry: str,
    place: str,
    words: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    main = main_of(entry)  # imported before anything is broken: it would keep the broken function
    error = BUGS[CASES.index((entry, place)) % len(BUGS)]()  # each type at some place of most entries
    break_it(monkeypatch, place, error)
    assert main(words[entry]) == 1
    errors = capfd.readouterr().err
    # The training loop also logs its own failure at once: later, it may wait for ranks that are gone.
    most = 2 if "failed after step" in errors else 1
    assert errors.count("Traceback (most recent call last)") == most and "in broken" in errors, errors
    said = errors[errors.rindex("unexpected error:") :].strip()
    assert f"{type(error).__name__}: {error}" in said and "\n" not in said


SCRIPTS = {"eval.egomcq": "ValueError", "hiervl_train.pretrain": "OSError", "preprocessing.build_shards": "KeyError"}


@pytest.mark.parametrize("entry", SCRIPTS)
def test_a_bug_of_a_script_has_its_traceback_too(entry: str, words: dict[str, list[str]], tmp_path: Path) -> None:
    file = f"{entry.replace('.', '/')}.py"
    command = [sys.executable, "-c", _AS_SCRIPT, PLACES[entry][0], SCRIPTS[entry], file, *words[entry]]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("Traceback (most recent call last)") == 1 and "in broken" in done.stderr
    if entry == "hiervl_train.pretrain":
        assert "in broken" in (tmp_path / "run" / "log.txt").read_text()


DECLARED = {
    "eval.egomcq": ["data.root=/nowhere"],
    "eval.all": ["--checkpoint=/nowhere"],
    "eval.search": ["--checkpoint=/nowhere"],
    "hiervl_train.pretrain": ["data.root=/nowhere"],
    "preprocessing.build_shards": ["ffmpeg=/nowhere"],
    "shards.inspect.__main__": ["--key", "nowhere"],
}


@pytest.mark.parametrize("entry", DECLARED)
def test_a_declared_error_is_one_line(
    entry: str, words: dict[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    code = main_of(entry)([*words[entry], *DECLARED[entry]])
    errors = capfd.readouterr().err
    assert code in (1, 2) and "Traceback" not in errors and "nowhere" in errors
    assert len(errors.strip().splitlines()) == 1, errors
