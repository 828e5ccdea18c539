"""Questions and labels that lie beside a benchmark's shards: what `questions.json` and `labels.json` say, typed.

Samples are named by key. A key whose clip could not be packed stands here all the same, and in no shard: a score says
on how many of how many items it was taken.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from shards import files, schema
from shards.keys import is_key
from shards.sources import Source
from shards.stats import ShardError, read_json_object

VERSION = 1
EPIC_VERBS, EPIC_NOUNS = 97, 300  # classes of EPIC-KITCHENS-100
QuestionType = Literal["inter", "intra", "summary"]


class CompanionError(ShardError):
    """Questions or labels that cannot be used; the message names the file, the place in it and the value."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A question of the source file that nobody could be asked, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """A text, and the clips of which one shows it."""

    id: str  # as the source file numbers it
    type: QuestionType
    text: str
    answer: int  # index into `choices`
    choices: tuple[str, ...]  # keys of samples, packed or not


@dataclass(frozen=True, kw_only=True)
class Questions:
    """`questions.json`: every question of a multiple-choice benchmark, in the order of its source."""

    version: int = VERSION
    set: str  # whose samples the choices are
    split: str
    name: str  # of the benchmark: egomcq, summarymcq, or that of a set of questions made here
    questions: tuple[Question, ...]
    rejected: tuple[Rejected, ...] = ()  # malformed ones: part of the benchmark, though no one can answer them

    def keys(self) -> list[str]:
        """Return the distinct keys of all choices, in the order of first mention."""
        return list(dict.fromkeys(key for question in self.questions for key in question.choices))


@dataclass(frozen=True, kw_only=True)
class EpicVideo:
    """One row of EPIC-KITCHENS-100's retrieval table: a video clip and what is done in it."""

    key: str
    narration_id: str
    text: str
    verb_class: int
    noun_classes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class EpicSentence:
    """One row of its sentence table; text and classes are those of the row of its narration_id in the other."""

    narration_id: str
    text: str
    verb_class: int
    noun_classes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class EpicLabels:
    """`labels.json` of epic_mir: both tables in their own order."""

    version: int = VERSION
    videos: tuple[EpicVideo, ...]
    sentences: tuple[EpicSentence, ...]


@dataclass(frozen=True, kw_only=True)
class CharadesVideo:
    """A video and the classes that are done in it; none is allowed."""

    key: str
    actions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CharadesLabels:
    """`labels.json` of charades_ego/test."""

    version: int = VERSION
    classes: tuple[str, ...]  # sentences, by class
    videos: tuple[CharadesVideo, ...]


@dataclass(frozen=True, kw_only=True)
class HowToVideo:
    """A video and its class."""

    key: str
    label: int


@dataclass(frozen=True, kw_only=True)
class HowToLabels:
    """`labels.json` of howto100m."""

    version: int = VERSION
    classes: tuple[str, ...]  # names by class, or none where the source gives numbers only
    videos: tuple[HowToVideo, ...]


Companion = Questions | EpicLabels | CharadesLabels | HowToLabels
C = TypeVar("C", bound=Companion)
_KINDS: dict[str, type[Companion]] = {
    "egomcq": Questions,
    "summarymcq": Questions,
    "epic_mir": EpicLabels,
    "charades_ego": CharadesLabels,
    "howto100m": HowToLabels,
}


def companion_path(set_name: str, split: str) -> str:
    """Return where the companion of a benchmark's split lies, relative to ROOT; raise `CompanionError` if it has none.

    `companion_path("egomcq", "test")` is `egomcq/test/questions.json`.
    """
    name = schema.set_spec(set_name).companions.get(split)
    if name is None:
        raise CompanionError(f"{set_name}/{split} has no questions or labels beside its shards")
    return f"{set_name}/{split}/{name}"


@overload
def read_companion(source: Source | Path | str, set_name: str, split: str) -> Companion: ...
@overload
def read_companion(source: Source | Path | str, set_name: str, split: str, kind: type[C]) -> C: ...
def read_companion(source: Source | Path | str, set_name: str, split: str, kind: type[Any] | None = None) -> Companion:
    """Return the checked questions or labels of a benchmark's split.

    `source` is an opened dataset, local or remote, or the local folder of one. `kind` is the class that the caller
    expects. Raises `CompanionError` if there is no such file, if it is malformed or if it is not of this kind, and
    `SourceError` if it cannot be fetched.

        questions = read_companion(open_source(url, config), "egomcq", "test", Questions)
    """
    name = companion_path(set_name, split)
    known = _KINDS[set_name]
    if kind is not None and not issubclass(known, kind):
        raise CompanionError(f"{name} holds {known.__name__}, not {kind.__name__}")
    return _read(Path(source) / name if isinstance(source, (str, Path)) else source.file(name), known)


def read_questions(path: Path | str) -> Questions:
    """Return a file of questions, those of a benchmark or any of the same form; raise `CompanionError`."""
    return _read(Path(path), Questions)


def to_json(companion: Companion) -> dict[str, Any]:
    """Return a companion as it stands in its file; what has a default and that value is left out, the version kept."""
    value: dict[str, Any] = {"version": companion.version}
    for field in dataclasses.fields(companion):
        item = getattr(companion, field.name)
        if field.name != "version" and item != field.default:
            value[field.name] = _plain(item)
    return value


def write_companion(path: Path, companion: Companion) -> None:
    """Check a companion and write it atomically, the same bytes for the same value; raise `CompanionError`."""
    value = to_json(companion)
    _parse(value, typing.cast(Any, type(companion)), str(path))
    files.write_json(path, value)


def require_keys(companion: Companion, packed: Sequence[str] | set[str], *, where: str) -> None:
    """Raise `CompanionError`, naming some, where a companion names keys that are not among `packed`.

    For those who need every clip; a score over what is there counts instead.
    """
    there = set(packed)
    absent = [key for key in keys_of(companion) if key not in there]
    if absent:
        shown = ", ".join(absent[:5]) + (" …" if len(absent) > 5 else "")
        raise CompanionError(f"{where}: {len(absent)} clips are named and not in the shards: {shown}")


def keys_of(companion: Companion) -> list[str]:
    """Return the distinct keys that a companion names, in the order of first mention."""
    if isinstance(companion, Questions):
        return companion.keys()
    return list(dict.fromkeys(video.key for video in companion.videos))


def _read(path: Path, kind: type[C]) -> C:
    try:
        value = read_json_object(path)
    except ShardError as error:
        raise CompanionError(f"{error}; it is written by preprocessing/build_shards.py") from None
    return _parse(value, kind, str(path))


def _parse(value: Mapping[str, Any], kind: type[C], where: str) -> C:
    if value.get("version") != VERSION:
        raise CompanionError(f"{where}: version {value.get('version')!r}, this code reads {VERSION}: build it again")
    companion = typing.cast(C, _typed(kind, value, where))
    for problem in _CHECKS[kind](companion):
        raise CompanionError(f"{where}: {problem}")
    return companion


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Return a JSON value as `hint` says; raise `CompanionError` naming the place where it is anything else."""
    if dataclasses.is_dataclass(hint):
        return _object(typing.cast(type, hint), value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        item, _ = typing.get_args(hint)
        if not isinstance(value, list):
            raise CompanionError(f"{where}: a list is expected, not {_show(value)}")
        return tuple(_typed(item, element, f"{where}[{i}]") for i, element in enumerate(value))
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise CompanionError(f"{where}: one of {', '.join(typing.get_args(hint))} is expected, not {_show(value)}")
        return value
    if type(value) is not hint:
        raise CompanionError(f"{where}: {hint.__name__} is expected, not {_show(value)}")
    return value


def _object(cls: type, value: Any, where: str) -> Any:
    hints, required = _fields(cls)
    if not isinstance(value, dict):
        raise CompanionError(f"{where}: an object is expected, not {_show(value)}")
    missing, extra = required - value.keys(), value.keys() - hints.keys()
    if missing or extra:
        raise CompanionError(f"{where}: missing fields {sorted(missing)}, unknown fields {sorted(extra)}")
    return cls(**{name: _typed(hints[name], item, f"{where}: {name}") for name, item in value.items()})


@functools.cache
def _fields(cls: type) -> tuple[Mapping[str, Any], frozenset[str]]:
    """Return a class's field types, and the names of those without a default; looked up once for many thousands."""
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    return types.MappingProxyType(typing.get_type_hints(cls)), frozenset(required)


def _question_problems(found: Questions) -> Iterator[str]:
    yield from _repeated("question", [question.id for question in found.questions])
    for question in found.questions:
        where = f"question {question.id}"
        if len(question.choices) < 2:
            yield f"{where}: {len(question.choices)} choices; two or more are needed"
        if not 0 <= question.answer < len(question.choices):
            yield f"{where}: answer = {question.answer}; there are choices 0 … {len(question.choices) - 1}"
        for key in question.choices:
            if not is_key(key):
                yield f"{where}: {_show(key)} is no key of a sample"
        if not question.text.strip():
            yield f"{where}: its text is empty"


def _epic_problems(found: EpicLabels) -> Iterator[str]:
    yield from _key_problems(found.videos)
    for kind, rows in (("videos", found.videos), ("sentences", found.sentences)):
        yield from _repeated(f"{kind}: narration_id", [row.narration_id for row in rows])
        for row in rows:
            if not 0 <= row.verb_class < EPIC_VERBS:
                yield f"{kind}: {row.narration_id}: verb_class = {row.verb_class}; 0 … {EPIC_VERBS - 1} is expected"
            if not row.noun_classes or not all(0 <= noun < EPIC_NOUNS for noun in row.noun_classes):
                yield (
                    f"{kind}: {row.narration_id}: noun_classes = {list(row.noun_classes)}; one or more of "
                    f"0 … {EPIC_NOUNS - 1} are expected"
                )


def _charades_problems(found: CharadesLabels) -> Iterator[str]:
    yield from _key_problems(found.videos)
    yield from _repeated("videos: key", [video.key for video in found.videos])
    for video in found.videos:
        if not all(0 <= action < len(found.classes) for action in video.actions):
            yield f"{video.key}: actions = {list(video.actions)}; there are classes 0 … {len(found.classes) - 1}"


def _howto_problems(found: HowToLabels) -> Iterator[str]:
    yield from _key_problems(found.videos)
    yield from _repeated("videos: key", [video.key for video in found.videos])
    for video in found.videos:
        if video.label < 0 or (found.classes and video.label >= len(found.classes)):
            known = f"there are classes 0 … {len(found.classes) - 1}" if found.classes else "classes count from 0"
            yield f"{video.key}: label = {video.label}; {known}"


def _key_problems(videos: Sequence[EpicVideo | CharadesVideo | HowToVideo]) -> Iterator[str]:
    for number, video in enumerate(videos):
        if not is_key(video.key):
            yield f"videos[{number}]: {_show(video.key)} is no key of a sample"


def _repeated(what: str, names: Sequence[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"{what} {name} is there twice"
        seen.add(name)


_CHECKS: dict[type, Callable[[Any], Iterator[str]]] = {
    Questions: _question_problems,
    EpicLabels: _epic_problems,
    CharadesLabels: _charades_problems,
    HowToLabels: _howto_problems,
}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
