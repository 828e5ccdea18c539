"""Reads `egomcq.json` and `summarymcq_full.json`: questions of five choices, each choice a stretch of a video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preprocessing.annotations.benchmark import Items, MalformedError, require_order, seconds
from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.json_stream import JsonText
from preprocessing.annotations.merge import ReaderOutput, Rejects, is_text, is_uid, show
from preprocessing.annotations.tables import AnnotationError
from shards.companions import Question, Questions, QuestionType, Rejected

_TYPES: dict[int, QuestionType] = {1: "inter", 2: "intra", 3: "summary"}


def read_egomcq(config: AnnotationsConfig, durations: Mapping[str, float], rejects: Rejects) -> ReaderOutput:
    """Read `config.egomcq`; `durations` is not needed, as the clips are ready-made."""
    assert config.egomcq is not None
    return _read(config.egomcq, "egomcq", rejects)


def read_summarymcq(config: AnnotationsConfig, durations: Mapping[str, float], rejects: Rejects) -> ReaderOutput:
    """Read `config.summarymcq`; `durations` is not needed, as the spans are ready-made."""
    assert config.summarymcq is not None
    return _read(config.summarymcq, "summarymcq", rejects)


def _read(path: Path, set_name: str, rejects: Rejects) -> ReaderOutput:
    """Return the distinct clips of a file of questions, and the questions as their companion.

    A question that cannot be asked (an answer out of range, a choice without times, no text) is one failed row, and
    its choices count for nothing; the account has a row for each distinct clip and each such question.
    """
    items = Items(set_name, rejects)
    questions: dict[str, Question] = {}
    rejected: list[Rejected] = []
    text = JsonText(path)
    if text.peek() != "{":
        raise AnnotationError(f'{path}: an object of questions is expected, as {{"0": {{"query": …}}}}')
    for number in text.members():
        place = f"{path.name}:{number}"
        value = text.value()
        try:
            if number in questions:
                raise MalformedError("duplicate identity", f"there is a question {number} already; the first is kept")
            question, choices = _question(number, value, items)
        except MalformedError as error:
            items.input_rows += 1
            items.reject(error, place=place)
            rejected.append(Rejected(id=number, reason=str(error)))
            continue
        questions[number] = question
        for index, (key, choice) in enumerate(zip(question.choices, choices, strict=True)):
            items.input_rows += items.add(key, choice, place=f"{place}.choices.{index}")
    text.end()
    if not questions and not rejected:
        raise AnnotationError(f"{path}: there is no question in it")
    found = Questions(
        set=set_name, split="test", name=set_name, questions=tuple(questions.values()), rejected=tuple(rejected)
    )
    items.accompany("test", found)
    return items.part()


def _question(number: str, value: Any, items: Items) -> tuple[Question, list[dict[str, Any]]]:
    """Return a question and the clips of its choices; raise `MalformedError` where it cannot be asked."""
    if not number or not is_text(number):
        raise MalformedError("malformed question", f"its name is {show(number)}; text is needed")
    if not isinstance(value, dict):
        raise MalformedError("malformed question", f"an object is needed, not {show(value)}")
    kind = value.get("types")
    if type(kind) is not int or kind not in _TYPES:
        known = ", ".join(f"{n} ({name})" for n, name in _TYPES.items())
        raise MalformedError("malformed types", f"types = {show(kind)}; one of {known} is needed")
    query = value.get("query")
    text = query.get("clip_text") if isinstance(query, dict) else None
    if not isinstance(text, str) or not text.strip() or not is_text(text):
        raise MalformedError("malformed query", f"query.clip_text = {show(text)}; text is needed")
    listed = value.get("choices")
    if not isinstance(listed, dict) or len(listed) < 2 or set(listed) != {str(i) for i in range(len(listed))}:
        names = sorted(listed) if isinstance(listed, dict) else listed
        raise MalformedError("malformed choices", f"choices = {show(names)}; objects named 0, 1, … are needed")
    answer = value.get("answer")
    if type(answer) is not int or not 0 <= answer < len(listed):
        raise MalformedError("malformed answer", f"answer = {show(answer)}; one of 0 … {len(listed) - 1} is needed")
    choices = [_choice(f"choices.{i}", listed[str(i)]) for i in range(len(listed))]
    keys = [items.key(choice["video_uid"], choice["clip_start"], choice["clip_end"]) for choice in choices]
    question = Question(id=number, type=_TYPES[kind], text=text, answer=answer, choices=tuple(keys))
    return question, choices


def _choice(where: str, value: Any) -> dict[str, Any]:
    """Return the clip of a choice; what it lacks beyond video and times is not needed."""
    if not isinstance(value, dict):
        raise MalformedError("malformed choice", f"{where} = {show(value)}; an object is needed")
    uid, text = value.get("video_uid"), value.get("clip_text")
    if not is_uid(uid):
        raise MalformedError("malformed video_uid", f"{where}.video_uid = {show(uid)}; an id that can name a file")
    start, end = (seconds(value.get(name), f"{where}.{name}") for name in ("clip_start", "clip_end"))
    require_order(start, end, (f"{where}.clip_start", f"{where}.clip_end"))
    if text is not None and not (isinstance(text, str) and is_text(text)):
        raise MalformedError("malformed text", f"{where}.clip_text = {show(text)}; text or null is needed")
    return {"video_uid": uid, "split": "test", "clip_start": start, "clip_end": end, "text": text or ""}
