"""The one command-line shell: words in any order, help, completion, exit codes, errors as one line or a traceback."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import PositiveInt

from configs.cli import Command, ExitCode, Request, complete
from configs.loading import ConfigError


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where it is."""

    root: str = "here"  # the dataset
    workers: PositiveInt = 2  # processes


@dataclass(frozen=True, kw_only=True)
class Config:
    order: Literal["rgb", "bgr"] = "rgb"  # of channels
    data: Data = field(default_factory=Data)


class Refused(RuntimeError):
    exit_code: ClassVar[int] = 3


class Away(RuntimeError):
    exit_code: ClassVar[int] = 4


class Odd(RuntimeError):
    exit_code: ClassVar[int] = 77


def command(**options: Any) -> Command[Config]:
    made = Command("python thing.py", "Does a thing.\n\nMore about it.", Config, **options)
    made.flag("--shards", key="data.root", metavar="ROOT", help="the dataset")
    made.flag("--only", action="append", help="more than once")
    made.positional("text", required=False, help="what to look for")
    return made


def run(*argv: str, made: Command[Config] | None = None) -> Request[Config]:
    seen: list[Request[Config]] = []
    assert (made or command()).run(lambda request: seen.append(request), argv) == ExitCode.OK
    return seen[0]


def test_flags_overrides_and_arguments_come_in_any_order() -> None:
    request = run("data.workers=4", "--only", "a", "a = b", "--shards", "s3://x", "order=bgr", "--only", "b")
    assert request.config == Config(order="bgr", data=Data(root="s3://x", workers=4))
    assert request.flags.only == ["a", "b"] and request.flags.text == "a = b"


def test_a_given_key_counts_more_than_the_flag_that_stands_for_it() -> None:
    assert run("data.root=b", "--shards", "a").config.data.root == "b"


@pytest.mark.parametrize("root", ["[a]", "null", "1e5", "ä\"b'", "🎥", "*"])
def test_a_flag_that_stands_for_a_key_takes_any_text(root: str) -> None:
    assert run("--shards", root).config.data.root == root


def test_the_default_file_is_read_unless_something_else_is_named(tmp_path: Path) -> None:
    default = tmp_path / "default.yaml"
    default.write_text("order: bgr\n")
    other = tmp_path / "other.yaml"
    other.write_text("data: {workers: 7}\n")

    def made() -> Command[Config]:
        return command(default=default, default_unless=("data.root",))

    assert run(made=made()).config == Config(order="bgr")
    assert run("data.workers=3", made=made()).is_default
    assert run("--shards", "a", made=made()).config == Config(data=Data(root="a"))
    assert run("--config", str(other), made=made()).config == Config(data=Data(workers=7))
    assert run("data.workers=3", made=made()).gives("data") == "data.workers=3"
    assert run("data.workers=3", made=made()).gives("data.root", "dat") is None


def test_help_has_usage_flags_and_every_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: {workers: 9}\n")
    assert command().run(lambda _: 1, ["--config", str(file), "-h", "--only"]) == 0
    printed = capsys.readouterr().out
    for said in ("python thing.py", "[TEXT] [key=value ...]", "Does a thing.", "--shards ROOT", "what to look for"):
        assert said in printed
    assert "More about it" not in printed
    assert "data.workers=9" in printed and "int ≥ 1" in printed and "processes" in printed
    assert "85 training stopped" in " ".join(printed.split())


def test_a_command_without_configuration_has_no_keys(capsys: pytest.CaptureFixture[str]) -> None:
    made = Command("check", "Checks.")
    made.positional("root", type=Path, help="the folder")
    assert made.run(lambda _: 1, ["--help"]) == 0
    printed = capsys.readouterr().out
    assert "key" not in printed.split("every key")[-1] and "check [-h] [--debug] ROOT" in printed
    seen: list[Request[None]] = []
    assert made.run(lambda request: seen.append(request), ["a=b"]) == 0
    assert seen[0].flags.root == Path("a=b")
    for words in ([], ["a", "b"], ["--config", "x", "a"]):
        with pytest.raises(SystemExit) as stopped:
            made.run(lambda _: 0, words)
        assert stopped.value.code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("a = 1: [no]"), 2, "cannot run: a = 1: [no]"),
        (Refused("5 of 6"), 3, "too many failures: 5 of 6"),
        (Away("disk full"), 4, "run the same command again"),
        (Odd("odd"), 77, "failed: odd"),
        (KeyboardInterrupt(), 130, "Interrupted. What is done is kept."),
    ],
)
def test_our_exceptions_are_one_line_and_an_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(_: Request[Config]) -> int:
        raise error

    made = command()
    made.resumes("What is done is kept.")
    assert made.run(work, []) == code
    printed = capsys.readouterr().err
    assert said in printed and "Traceback" not in printed
    if not isinstance(error, KeyboardInterrupt):
        assert made.run(work, ["--debug"]) == code
        assert "Traceback" in capsys.readouterr().err


def boom(_: Request[Config]) -> int:
    raise ValueError("a bug of ours")


def test_a_bug_has_its_traceback_in_the_log_and_where_stderr_is_a_log(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert command().run(boom, []) == ExitCode.FAILED
    printed = capsys.readouterr().err
    assert "Traceback" in printed and printed.endswith("unexpected error: ValueError: a bug of ours\n")
    assert printed.count("Traceback") == 1
    assert caplog.records[-1].exc_info is not None and "a bug of ours" in caplog.text


def test_on_a_terminal_a_bug_is_one_line_that_names_the_file_with_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert command().run(boom, []) == ExitCode.FAILED
    printed = capsys.readouterr().err
    assert "Traceback" not in printed and "ValueError: a bug of ours" in printed
    (file,) = tmp_path.rglob("*.log")
    assert str(file) in printed.replace("\n", "") and "in boom" in file.read_text()
    assert command().run(boom, ["--debug"]) == ExitCode.FAILED
    assert "in boom" in capsys.readouterr().err and len(list(tmp_path.rglob("*.log"))) == 1


def test_warnings_reach_the_terminal_and_handlers_do_not_pile_up(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger().handlers)

    def work(_: Request[Config]) -> None:
        logging.getLogger("shards.thing").warning("careful")

    assert command().run(work, []) == 0
    assert "careful" in capsys.readouterr().err
    assert logging.getLogger().handlers == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["data.workerz=1"], "did you mean data.workers?"),
        (["one", "two"], "'two': an override has the form key=value"),
        (["--config", "none.yaml"], "none.yaml: there is no such configuration file"),
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command().run(lambda request: print(request.config), argv) == ExitCode.USAGE
    assert said in capsys.readouterr().err


def test_an_unknown_flag_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command().run(lambda _: 0, ["--nope"])
    assert stopped.value.code == ExitCode.USAGE and "--nope" in capsys.readouterr().err


def test_keys_and_values_are_completed() -> None:
    assert complete(Config, "da") == ["data.root=", "data.workers="]
    assert complete(Config, "order=") == ["order=rgb", "order=bgr"]
    assert complete(Config, "order=b") == ["order=bgr"]
    assert complete(Config, "nope=") == []


def test_the_shell_is_answered(tmp_path: Path) -> None:
    script = tmp_path / "thing.py"
    script.write_text(
        "from tests.configs.test_cli import command\nimport sys\nsys.exit(command().run(lambda request: 0))\n"
    )
    line = "thing.py --sh"
    answer = tmp_path / "answer"
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    subprocess.run([sys.executable, str(script)], env=environment, check=True, timeout=60)
    assert answer.read_text().strip() == "--shards"
