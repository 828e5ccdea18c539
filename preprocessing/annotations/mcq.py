"""Reads `egomcq.json` and `summarymcq_full.json`: multiple-choice questions whose choices are clips of videos."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessing.annotations.benchmark import (
    BenchmarkItems,
    Clip,
    MalformedError,
    parse_uid,
    require_order,
    seconds,
)
from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.json_stream import JsonCursor, repeated_name
from preprocessing.annotations.merge import ReaderOutput, RejectedRows
from preprocessing.annotations.tables import AnnotationError
from preprocessing.annotations.values import MAX_NAME, is_name, plain, show, text_problem
from shards.companions import Question, Questions, QuestionType, Rejected

_TYPES: dict[int, QuestionType] = {1: "inter", 2: "intra", 3: "summary"}


def read_egomcq(config: AnnotationsConfig, durations: Mapping[str, float], rejects: RejectedRows) -> ReaderOutput:
    """Read `config.egomcq`; `durations` is unused, since the file states the clips."""
    assert config.egomcq is not None
    return _read(config.egomcq, "egomcq", rejects)


def read_summarymcq(config: AnnotationsConfig, durations: Mapping[str, float], rejects: RejectedRows) -> ReaderOutput:
    """Read `config.summarymcq`; `durations` is unused, since the file states the clips."""
    assert config.summarymcq is not None
    return _read(config.summarymcq, "summarymcq", rejects)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A question whose choices are clips without final keys."""

    type: QuestionType
    text: str
    answer: int
    choices: tuple[Clip, ...]


def _read(path: Path, set_name: str, rejects: RejectedRows) -> ReaderOutput:
    """Return the distinct clips of a file of questions, with the questions as their companion.

    A malformed question (answer out of range, choice without times, no text) is rejected as one failed row together
    with its choices. A question that repeats another is filtered; those that have the same number but differ are
    different questions, and a hash of the content is appended to their numbers. The number of input rows is that of
    distinct clips plus rejected questions.
    """
    items = BenchmarkItems(set_name, rejects)
    asked: dict[tuple[str, str], _Asked] = {}  # by number and hash of the content, in the order of the file
    rejected: list[Rejected] = []
    cursor = JsonCursor(path)
    if cursor.peek() != "{":
        raise AnnotationError(f'{path}: expected an object of questions such as {{"0": {{"query": …}}}}')
    for number in cursor.members():
        location = f"{path.name}:{plain(number, MAX_NAME)}"
        value = cursor.value()
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        try:
            if (number, digest) in asked:
                detail = f"question {show(number)} occurs twice, word for word"
                raise MalformedError("duplicate row", detail, status="filtered")
            asked[number, digest] = _question(number, value, items, location)
        except MalformedError as error:
            items.input_rows += 1
            items.reject(error, location=location)
            if error.status == "failed":
                rejected.append(Rejected(id=plain(number, MAX_NAME), reason=plain(str(error))))
    cursor.end()
    uses = Counter(number for number, _ in asked)
    questions = tuple(
        Question(
            id=number if uses[number] == 1 else f"{number}-{digest[:12]}",
            type=question.type,
            text=question.text,
            answer=question.answer,
            choices=tuple(map(items.key_of, question.choices)),
        )
        for (number, digest), question in asked.items()
    )
    items.set_companion(
        "test",
        Questions(set=set_name, split="test", name=set_name, questions=questions, rejected=tuple(rejected)),
    )
    problem = "" if asked or rejected else f"{path}: contains no question"
    return dataclasses.replace(items.output(), problem=problem)


def _question(number: str, value: Any, items: BenchmarkItems, location: str) -> _Asked:
    """Return a question and add the clips of its choices; raise `MalformedError` where it is malformed."""
    if not is_name(number):
        raise MalformedError("malformed question", f"its name is {show(number)}; expected text of at most 255 bytes")
    if not isinstance(value, dict):
        raise MalformedError("malformed question", f"expected an object, found {show(value)}")
    if (repeated := repeated_name(value)) is not None:
        detail = f"the field {show(repeated)} occurs more than once, with different values"
        raise MalformedError("repeated field", detail)
    kind = value.get("types")
    if type(kind) is not int or kind not in _TYPES:
        known = ", ".join(f"{n} ({name})" for n, name in _TYPES.items())
        raise MalformedError("malformed types", f"types = {show(kind)}; expected one of {known}")
    query = value.get("query")
    text = query.get("clip_text") if isinstance(query, dict) else None
    if not isinstance(text, str) or not text.strip() or text_problem(text):
        problem = text_problem(text) or "expected text"
        raise MalformedError("malformed query", f"query.clip_text = {show(text)}: {problem}")
    listed = value.get("choices")
    if not isinstance(listed, dict) or len(listed) < 2 or set(listed) != {str(i) for i in range(len(listed))}:
        names = sorted(listed) if isinstance(listed, dict) else listed
        raise MalformedError("malformed choices", f"choices = {show(names)}; expected two or more, named 0, 1, …")
    answer = value.get("answer")
    if type(answer) is not int or not 0 <= answer < len(listed):
        raise MalformedError("malformed answer", f"answer = {show(answer)}; expected one of 0 … {len(listed) - 1}")
    choices = [_choice(f"choices.{i}", listed[str(i)]) for i in range(len(listed))]
    clips = []
    for index, choice in enumerate(choices):
        key = items.key(choice["video_uid"], choice["clip_start"], choice["clip_end"])
        clip, is_new = items.add(key, choice, location=f"{location}.choices.{index}")
        items.input_rows += is_new
        clips.append(clip)
    return _Asked(type=_TYPES[kind], text=text, answer=answer, choices=tuple(clips))


def _choice(where: str, value: Any) -> dict[str, Any]:
    """Return the clip of a choice; only video and times are required."""
    if not isinstance(value, dict):
        raise MalformedError("malformed choice", f"{where} = {show(value)}; expected an object")
    uid, text = parse_uid(value.get("video_uid"), f"{where}.video_uid"), value.get("clip_text")
    start, end = (seconds(value.get(name), f"{where}.{name}") for name in ("clip_start", "clip_end"))
    require_order(start, end, (f"{where}.clip_start", f"{where}.clip_end"))
    if text is not None and (problem := text_problem(text)):
        raise MalformedError("malformed text", f"{where}.clip_text = {show(text)}: {problem}")
    return {"video_uid": uid, "split": "test", "clip_start": start, "clip_end": end, "text": text or ""}
