"""Reads `egomcq.json` and `summarymcq_full.json`: multiple-choice questions whose choices are clips of videos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preprocessing.annotations.benchmark import BenchmarkItems, MalformedError, parse_uid, require_order, seconds
from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.json_stream import JsonCursor
from preprocessing.annotations.merge import ReaderOutput, RejectedRows
from preprocessing.annotations.tables import AnnotationError
from preprocessing.annotations.values import is_text, show
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


def _read(path: Path, set_name: str, rejects: RejectedRows) -> ReaderOutput:
    """Return the distinct clips of a file of questions, with the questions as their companion.

    A malformed question (answer out of range, choice without times, no text) is rejected as one failed row together
    with its choices. The number of input rows is that of distinct clips plus malformed questions.
    """
    items = BenchmarkItems(set_name, rejects)
    questions: dict[str, Question] = {}
    rejected: list[Rejected] = []
    cursor = JsonCursor(path)
    if cursor.peek() != "{":
        raise AnnotationError(f'{path}: expected an object of questions such as {{"0": {{"query": …}}}}')
    for number in cursor.members():
        location = f"{path.name}:{number}"
        value = cursor.value()
        try:
            if number in questions:
                raise MalformedError("duplicate identity", f"question {number} exists already; the first is kept")
            question, choices = _question(number, value, items)
        except MalformedError as error:
            items.input_rows += 1
            items.reject(error, location=location)
            rejected.append(Rejected(id=number, reason=str(error)))
            continue
        questions[number] = question
        for index, (key, choice) in enumerate(zip(question.choices, choices, strict=True)):
            items.input_rows += items.add(key, choice, location=f"{location}.choices.{index}")
    cursor.end()
    if not questions and not rejected:
        raise AnnotationError(f"{path}: contains no question")
    companion = Questions(
        set=set_name, split="test", name=set_name, questions=tuple(questions.values()), rejected=tuple(rejected)
    )
    items.set_companion("test", companion)
    return items.output()


def _question(number: str, value: Any, items: BenchmarkItems) -> tuple[Question, list[dict[str, Any]]]:
    """Return a question and the clips of its choices; raise `MalformedError` where it is malformed."""
    if not number or not is_text(number):
        raise MalformedError("malformed question", f"its name is {show(number)}; expected text")
    if not isinstance(value, dict):
        raise MalformedError("malformed question", f"expected an object, found {show(value)}")
    kind = value.get("types")
    if type(kind) is not int or kind not in _TYPES:
        known = ", ".join(f"{n} ({name})" for n, name in _TYPES.items())
        raise MalformedError("malformed types", f"types = {show(kind)}; expected one of {known}")
    query = value.get("query")
    text = query.get("clip_text") if isinstance(query, dict) else None
    if not isinstance(text, str) or not text.strip() or not is_text(text):
        raise MalformedError("malformed query", f"query.clip_text = {show(text)}; expected text")
    listed = value.get("choices")
    if not isinstance(listed, dict) or len(listed) < 2 or set(listed) != {str(i) for i in range(len(listed))}:
        names = sorted(listed) if isinstance(listed, dict) else listed
        raise MalformedError("malformed choices", f"choices = {show(names)}; expected two or more, named 0, 1, …")
    answer = value.get("answer")
    if type(answer) is not int or not 0 <= answer < len(listed):
        raise MalformedError("malformed answer", f"answer = {show(answer)}; expected one of 0 … {len(listed) - 1}")
    choices = [_choice(f"choices.{i}", listed[str(i)]) for i in range(len(listed))]
    keys = [items.key(choice["video_uid"], choice["clip_start"], choice["clip_end"]) for choice in choices]
    question = Question(id=number, type=_TYPES[kind], text=text, answer=answer, choices=tuple(keys))
    return question, choices


def _choice(where: str, value: Any) -> dict[str, Any]:
    """Return the clip of a choice; only video and times are required."""
    if not isinstance(value, dict):
        raise MalformedError("malformed choice", f"{where} = {show(value)}; expected an object")
    uid, text = parse_uid(value.get("video_uid"), f"{where}.video_uid"), value.get("clip_text")
    start, end = (seconds(value.get(name), f"{where}.{name}") for name in ("clip_start", "clip_end"))
    require_order(start, end, (f"{where}.clip_start", f"{where}.clip_end"))
    if text is not None and not (isinstance(text, str) and is_text(text)):
        raise MalformedError("malformed text", f"{where}.clip_text = {show(text)}; expected text or null")
    return {"video_uid": uid, "split": "test", "clip_start": start, "clip_end": end, "text": text or ""}
