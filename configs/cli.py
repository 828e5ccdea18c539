"""The command-line shell of every entry: flags, `key=value` overrides, `--help`, completion, exit codes, errors.

    def main(argv: Sequence[str] | None = None) -> int:
        command = Command("python eval/egomcq.py", __doc__, EvalConfig, default=EMBEDDED)
        command.flag("--shards", key="data.root", metavar="ROOT", help="the dataset")
        return command.run(work, argv)

    def work(request: Request) -> int | None: ...

An exception whose class declares `exit_code: ClassVar[int]` is an error that the user can act on: it becomes one line,
and its code the exit code. Any other exception is a bug: its traceback goes to the log and, with `--debug`, to the
terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import json
import logging
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar, overload

from rich.console import Console
from rich.markup import escape

from configs import help as key_help
from configs.loading import ConfigError, hint_of, load

C = TypeVar("C")
_OVERRIDE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*=", re.ASCII)
_OURS = ("configs", "shards", "preprocessing", "hiervl_train", "eval")  # loggers that --debug opens
_REPORTED = "is_reported"  # attribute of a log record whose error `report` prints: the handler of stderr passes it over
logger = logging.getLogger(__name__)


class ExitCode(enum.IntEnum):
    """What every command exits with. torchrun turns each code but 0 into 1; srun passes them on."""

    OK = 0
    FAILED = 1  # an unexpected error, or what a check looked for: `shards.verify` found a fault
    USAGE = 2  # the request cannot be carried out: a key, a path, a checkpoint that does not fit
    TOO_MANY_FAILURES = 3  # more failed inputs, missing items or non-finite losses than the configuration allows
    TRANSIENT = 4  # the machine failed, not the input (a full disk, a lost mount): rerun the same command
    STOPPED = 85  # training was asked to stop, and saved: rerun the same command
    INTERRUPTED = 130  # by Ctrl-C


_EPILOG = (
    "exit codes: 0 done, 1 failed, 2 usage, 3 too many failures, 4 the machine failed (rerun), "
    "85 training stopped and saved (rerun), 130 interrupted"
)
_LABELS: dict[int, str] = {ExitCode.USAGE: "cannot run", ExitCode.TOO_MANY_FAILURES: "too many failures"}
_ADVICE: dict[int, str] = {ExitCode.TRANSIENT: "Nothing is lost: fix the cause and run the same command again."}


def exit_code_of(error: BaseException) -> int | None:
    """Return the exit code that an exception's class declares; None for an unexpected exception."""
    code = getattr(type(error), "exit_code", None)
    return int(code) if isinstance(code, int) else None


def report(error: BaseException, *, where: str = "", is_debug: bool = False) -> int:
    """Say on stderr what went wrong, and return the exit code; `where` names a rank or a part of the work.

    One of our exceptions is one line. Of any other exception the traceback is logged, and printed with `is_debug` or
    where stderr is no terminal and therefore a log itself; without any log it goes to a file that the line names.
    """
    code = exit_code_of(error)
    place = f"{where}: " if where else ""
    if code is None:
        name = _log_traceback(error, is_debug=is_debug)
        hint = f" (traceback: {name}; --debug prints it)" if name else ""
        _stderr().print(f"[red]unexpected error:[/] {escape(f'{place}{type(error).__name__}: {error}{hint}')}")
        return ExitCode.FAILED
    if is_debug:
        sys.stderr.write("".join(traceback.format_exception(error)))
    _stderr().print(f"[red]{_LABELS.get(code, 'failed')}:[/] {escape(f'{place}{error}')}")
    if code in _ADVICE:
        _stderr().print(_ADVICE[code])
    return code


@contextlib.contextmanager
def bugs_logged() -> Iterator[None]:
    """Log the traceback of an unexpected exception that leaves the block; for a log that ends with the block.

    It does not reach the terminal, where `report` says it.
    """
    try:
        yield
    except Exception as error:
        if exit_code_of(error) is None:
            _log(error)
        raise


@dataclass(frozen=True, kw_only=True)
class Request(Generic[C]):
    """What the command line asks for."""

    flags: argparse.Namespace  # the entry's own flags and positional arguments
    file: Path | None  # of the configuration: as given, or the entry's default
    overrides: tuple[str, ...]  # key=value: flags that stand for a key, then those given, which count more
    cls: type[C] | None
    is_default: bool = False  # whether the file is the entry's default
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=not sys.stdout.isatty()))

    @cached_property
    def config(self) -> C:
        """The configuration; raises `ConfigError`."""
        assert self.cls is not None, "this command has no configuration"
        return load(self.cls, self.file, self.overrides)

    def gives(self, *names: str) -> str | None:
        """Return the first override of a key in `names`, or of a key below one of them; None where there is none."""
        return next((word for word in self.overrides if _is_below(word.partition("=")[0], names)), None)


class Command(Generic[C]):
    """One entry's command line."""

    @overload
    def __init__(self: Command[None], prog: str, doc: str | None) -> None: ...
    @overload
    def __init__(
        self,
        prog: str,
        doc: str | None,
        cls: type[C],
        *,
        default: Path | None = None,
        default_unless: Sequence[str] = (),
    ) -> None: ...
    def __init__(
        self,
        prog: str,
        doc: str | None,
        cls: type[C] | None = None,
        *,
        default: Path | None = None,
        default_unless: Sequence[str] = (),
    ) -> None:
        """`prog`: as one types it. `doc`: the entry's docstring, whose first sentence is the description.

        `cls` is the configuration's class; None for a command without one. `default` is the file that is read without
        `--config`, unless one of the keys in `default_unless` is given.
        """
        self._cls, self._default, self._default_unless = cls, default, tuple(default_unless)
        self._positionals: list[_Positional] = []
        self._keys: dict[str, str] = {}
        self._resume = ""
        description = " ".join((doc or "").split("\n\n")[0].split())
        self._parser = argparse.ArgumentParser(prog=prog, description=description, epilog=_EPILOG, add_help=False)
        self._parser.add_argument("-h", "--help", action="store_true", help="show this help with every key, and exit")
        self._parser.add_argument("--debug", action="store_true", help="log more, and print tracebacks")
        if cls is not None:
            shown = f" (default: {_relative(default)})" if default is not None else ""
            self._parser.add_argument("--config", type=Path, metavar="FILE", help=f"YAML of the keys below{shown}")
        words = self._parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        words.completer = self._complete  # type: ignore[attr-defined]  # argcomplete's protocol

    def flag(self, name: str, *, key: str | None = None, **options: Any) -> None:
        """Add a flag as `argparse.add_argument` does; with `key`, one that stands for `key=VALUE`."""
        action = self._parser.add_argument(name, **options)
        if key is not None:
            self._keys[action.dest] = key

    def positional(
        self,
        name: str,
        *,
        key: str | None = None,
        type: Callable[[str], Any] = str,
        required: bool = True,
        help: str = "",
    ) -> None:
        """Add a positional argument; with `key`, one that stands for `key=VALUE`.

        `request.flags` has it under `name`, None where it is left out.
        """
        self._positionals.append(_Positional(name=name, type=type, required=required, help=help))
        if key is not None:
            self._keys[name] = key

    def resumes(self, how: str) -> None:
        """Set what is printed when the command is interrupted: what is kept and how to go on."""
        self._resume = how

    def error(self, message: str) -> NoReturn:
        """Print usage and message and end the command with exit code 2, as argparse does."""
        self._parser.error(message)

    def run(self, work: Callable[[Request[C]], int | None], argv: Sequence[str] | None = None) -> int:
        """Parse the command line and call `work`; return the exit code. Raises `SystemExit` as argparse does."""
        self._parser.usage = self._usage()
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self._parser)
        words = list(sys.argv[1:] if argv is None else argv)
        if "-h" in words or "--help" in words:
            return self._help(words)
        arguments = self._parser.parse_intermixed_args(words)
        log = _log_to_stderr(is_debug=arguments.debug)
        try:
            with _debug_logging(arguments.debug):
                return int(work(self._request(arguments)) or ExitCode.OK)
        except KeyboardInterrupt:
            _stderr().print(f"\nInterrupted. {self._resume}".rstrip())
            return ExitCode.INTERRUPTED
        except Exception as error:  # noqa: BLE001  # reported with its traceback, never passed over
            return report(error, is_debug=arguments.debug)
        finally:
            logging.getLogger().removeHandler(log)

    def _request(self, arguments: argparse.Namespace) -> Request[C]:
        words: list[str] = arguments.words
        overrides = [word for word in words if self._cls is not None and _OVERRIDE.match(word)]
        given = [word for word in words if word not in overrides]
        for positional, word in zip(self._positionals, given, strict=False):
            setattr(arguments, positional.name, self._converted(positional, word))
        for positional in self._positionals[len(given) :]:
            if positional.required:
                self._parser.error(f"{positional.metavar} is missing")
            setattr(arguments, positional.name, None)
        extra = given[len(self._positionals) :]
        if extra and self._cls is not None:
            raise ConfigError(f"{extra[0]!r}: an override has the form key=value")
        if extra:
            self._parser.error(f"unrecognized arguments: {' '.join(extra)}")
        keyed = [
            f"{key}={json.dumps(value, ensure_ascii=False, default=str)}"
            for dest, key in self._keys.items()
            if (value := getattr(arguments, dest)) is not None
        ]
        overrides = [*keyed, *overrides]
        file: Path | None = getattr(arguments, "config", None)
        is_default = file is None and not any(
            _is_below(word.partition("=")[0], self._default_unless) for word in overrides
        )
        return Request(
            flags=arguments,
            file=self._default if is_default else file,
            overrides=tuple(overrides),
            cls=self._cls,
            is_default=is_default,
        )

    def _converted(self, positional: _Positional, word: str) -> Any:
        try:
            return positional.type(word)
        except ValueError:
            self._parser.error(f"{positional.metavar}: invalid value {word!r}")

    def _usage(self) -> str:
        """Return argparse's usage with the positional arguments, which it does not know one by one."""
        self._parser.usage = None
        flags = self._parser.format_usage().removeprefix("usage: ").rstrip()
        words = [p.metavar if p.required else f"[{p.metavar}]" for p in self._positionals]
        words += ["[key=value ...]"] if self._cls is not None else []
        return " ".join([flags, *words]).replace("%", "%%")

    def _help(self, words: Sequence[str]) -> int:
        """Print flags and every key, with the values of `--config` as defaults."""
        console = Console(highlight=False)
        text = self._parser.format_help().rstrip()
        if self._positionals:
            lines = "".join(f"  {each.metavar:<20}  {each.help}\n" for each in self._positionals)
            text = text.replace("\noptions:\n", f"\narguments:\n{lines}\noptions:\n", 1)
        console.print(text, markup=False, soft_wrap=True)
        if self._cls is None:
            return ExitCode.OK
        file = self._config_of(words)
        try:
            defaults = load(self._cls, file)
        except ConfigError as error:
            return report(error)
        source = f" (defaults: {_relative(file)})" if file is not None else ""
        console.print(f"\nkeys, given as key=value{source}:", markup=False, soft_wrap=True)
        key_help.print_keys(self._cls, console, defaults)
        return ExitCode.OK

    def _config_of(self, words: Sequence[str]) -> Path | None:
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        parser.add_argument("--config", type=Path)
        try:
            found = parser.parse_known_args(list(words))[0].config
        except argparse.ArgumentError:
            found = None
        return found or self._default

    def _complete(self, prefix: str, **_: Any) -> list[str]:
        """Return the keys, or behind `key=` the values, that a word may become; for argcomplete."""
        if self._cls is None:
            return []
        return complete(self._cls, prefix)


@dataclass(frozen=True, kw_only=True)
class _Positional:
    name: str
    type: Callable[[str], Any]
    required: bool
    help: str

    @property
    def metavar(self) -> str:
        return self.name.upper()


def complete(cls: type, prefix: str) -> list[str]:
    """Return what a word that begins with `prefix` may become: `key=` of every key, or `key=value`."""
    key, equals, _ = prefix.partition("=")
    if equals:
        found: Iterable[str] = (f"{key}={value}" for value in key_help.choices(hint_of(cls, key)))
    else:
        found = (f"{each.name}=" for each in key_help.keys(cls))
    return [word for word in found if word.startswith(prefix)]


def _is_below(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _relative(path: Path | None) -> str:
    """Return a path from the folder one is in, where it lies below."""
    if path is None:
        return ""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


def _stderr() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _log_to_stderr(*, is_debug: bool) -> logging.Handler:
    """Send warnings (with `--debug`, messages of any level) to stderr; return the handler."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: not hasattr(record, _REPORTED))
    handler.setLevel(logging.DEBUG if is_debug else logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    return handler


@contextlib.contextmanager
def _debug_logging(is_debug: bool) -> Iterator[None]:
    """Log all messages of our packages while the command runs, if `is_debug`."""
    loggers = [logging.getLogger(name) for name in _OURS] if is_debug else []
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def _log(error: BaseException) -> None:
    """Log a traceback, but not on the terminal."""
    if logging.getLogger().handlers:  # without one, logging would print the traceback by itself
        logger.critical("unexpected error", exc_info=error, extra={_REPORTED: True})


def _log_traceback(error: BaseException, *, is_debug: bool) -> str:
    """Log a traceback; return the name of the file that has it, empty where it was printed."""
    root = logging.getLogger()
    _log(error)
    lines = "".join(traceback.format_exception(error))
    if not is_debug and sys.stderr.isatty():
        logs = [handler.baseFilename for handler in root.handlers if isinstance(handler, logging.FileHandler)]
        if any(log != os.devnull for log in logs):
            return next(log for log in logs if log != os.devnull)
        try:
            file = _crash_file()
            file.write_text(lines, encoding="utf-8")
            return str(file)
        except OSError:
            pass  # no room for a file: better on the terminal than nowhere
    sys.stderr.write(lines)
    return ""


def _crash_file() -> Path:
    """Return a new file for a traceback in this user's temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"hiervl-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{Path(sys.argv[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
