"""The reader of multiple-choice questions: formats, malformed questions, and the companion file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocessing.annotations import AnnotationError
from tests.preprocessing.annotation_files import (
    UID,
    companion,
    leaf,
    only_reject,
    question,
    read_benchmarks,
    row,
    table,
    write,
)


def test_each_distinct_clip_is_one_item_and_questions_refer_to_it(tmp_path: Path) -> None:
    tree = {"0": question(), "1": question(2.0, 0.5, 9.0, 4.0, 6.0, answer=3, kind=2, text="#C C «schält» 人参")}
    annotations = read_benchmarks(egomcq=write(tmp_path / "egomcq.json", tree))
    items = annotations.sets["egomcq"].to_pylist()
    assert [item["clip_start"] for item in items] == [0.5, 2.0, 4.0, 6.0, 8.0, 9.0]
    assert items[0] == {
        "key": "0a1b-2c_q0_0000500000-0001500000",
        "video_uid": UID,
        "split": "test",
        "clip_start": 0.5,
        "clip_end": 1.5,
        "text": "#C C cuts",
    }
    made = companion(annotations, "egomcq/test/questions.json", tmp_path)
    assert [(q.id, q.type, q.text, q.answer) for q in made.questions] == [
        ("0", "inter", "#C C opens a drawer", 0),
        ("1", "intra", "#C C «schält» 人参", 3),
    ]
    assert made.questions[1].choices[1] == made.questions[0].choices[0] == items[0]["key"]
    assert set(made.keys()) == {item["key"] for item in items} and made.rejected == ()
    assert annotations.rejects.num_rows == 0 and set(annotations.sets) == {"egomcq"}


def test_summarymcq_is_a_separate_set_with_its_own_keys(tmp_path: Path) -> None:
    clips = write(tmp_path / "egomcq.json", {"0": question()})
    spans = write(tmp_path / "summarymcq_full.json", {"0": question(0.5, 60.0, kind=3)})
    annotations = read_benchmarks(egomcq=clips, summarymcq=spans)
    assert list(annotations.sets) == ["egomcq", "summarymcq"]
    assert annotations.sets["summarymcq"]["key"].to_pylist()[0] == "0a1b-2c_m0_0000500000-0001500000"
    made = companion(annotations, "summarymcq/test/questions.json", tmp_path)
    assert made.questions[0].type == "summary" and made.name == "summarymcq"


def test_clips_whose_times_differ_by_less_than_a_microsecond_are_one(tmp_path: Path) -> None:
    annotations = read_benchmarks(egomcq=write(tmp_path / "q.json", {"0": question(0.1 + 0.2, 0.3, 0.300002)}))
    assert annotations.sets["egomcq"].num_rows == 2


@pytest.mark.parametrize(
    ("bad", "reason", "value"),
    [
        ("text", "malformed question", "'text'"),
        (question(types=4), "malformed types", "types = 4"),
        (question(types="1"), "malformed types", "types = '1'"),
        (question(types=True), "malformed types", "types = True"),
        (question(query=None), "malformed query", "query.clip_text = None"),
        (question(text=" "), "malformed query", "query.clip_text = ' '"),
        (question(text="\ud800"), "malformed query", "query.clip_text"),
        (question(answer=5), "malformed answer", "answer = 5; expected one of 0 … 4"),
        (question(answer=-1), "malformed answer", "answer = -1"),
        (question(answer=None), "malformed answer", "answer = None"),
        (question(choices={}), "malformed choices", "choices = []"),
        (question(choices=[leaf(1.0)]), "malformed choices", "choices ="),
        (question(choices={"0": leaf(1), "2": leaf(2)}), "malformed choices", "['0', '2']"),
        (question(choices={"0": leaf(1), "1": None}), "malformed choice", "choices.1 = None"),
        (question(choices={"0": leaf(1), "1": leaf(2, uid="a/b")}), "malformed video_uid", "'a/b'"),
        (question(choices={"0": leaf(1), "1": leaf(2, uid=None)}), "malformed video_uid", "choices.1.video_uid"),
        (question(choices={"0": leaf(1, clip_end=None), "1": leaf(2)}), "malformed clip_end", "choices.0.clip_end"),
        (question(choices={"0": leaf(1, clip_start="x"), "1": leaf(2)}), "malformed clip_start", "'x'"),
        (question(choices={"0": leaf(1, clip_start=-1.0), "1": leaf(2)}), "malformed clip_start", "-1.0"),
        (question(choices={"0": leaf(1, clip_start=1e9), "1": leaf(2)}), "malformed clip_start", "seconds from 0"),
        (question(choices={"0": leaf(1), "1": leaf(2, seconds=-1.0)}), "reversed times", "clip_end = 1.0"),
        (question(choices={"0": leaf(1), "1": leaf(2, text=7)}), "malformed text", "choices.1.clip_text = 7"),
    ],
)  # fmt: skip
def test_a_malformed_question_is_rejected_and_the_others_are_kept(
    tmp_path: Path, bad: Any, reason: str, value: str
) -> None:
    path = write(tmp_path / "egomcq.json", {"0": question(), "17": bad, "2": question(3.0, 5.0)})
    annotations = read_benchmarks(egomcq=path)
    reject = only_reject(annotations)
    assert (reject["status"], reject["reason"]) == ("failed", reason)
    assert reject["item"] == "egomcq.json:17" and value in reject["detail"]
    made = companion(annotations, "egomcq/test/questions.json", tmp_path)
    assert [q.id for q in made.questions] == ["0", "2"]
    assert [q.id for q in made.rejected] == ["17"] and reason in made.rejected[0].reason
    assert annotations.sets["egomcq"].num_rows == 7, "the choices of a question that nobody is asked are no items"


def test_questions_with_one_number_are_all_kept_unless_they_are_equal(tmp_path: Path) -> None:
    first, second = json.dumps(question()), json.dumps(question(7.0, 9.0))
    asked = []
    for pair in ((first, second), (second, first)):
        text = f'{{"0": {pair[0]}, "0": {pair[1]}, "0": {pair[0]}, "1": {first}}}'
        annotations = read_benchmarks(egomcq=write(tmp_path / "egomcq.json", text))
        assert (only_reject(annotations)["reason"], only_reject(annotations)["status"]) == ("duplicate row", "filtered")
        assert annotations.sets["egomcq"].num_rows == 7
        made = companion(annotations, "egomcq/test/questions.json", tmp_path)
        asked.append({q.id: len(q.choices) for q in made.questions})
    assert asked[0] == asked[1] == {"0-eaa3c27f5397": 5, "0-1ebd98e06e8d": 2, "1": 5}


@pytest.mark.parametrize("old", ['"answer": 0', '"0": {"video_uid"', '"clip_start": 0.5'])
def test_a_question_with_a_field_twice_is_rejected(tmp_path: Path, old: str) -> None:
    text = json.dumps({"0": question(), "1": question()})
    twice = {'"answer": 0': '"answer": 1, "answer": 0', '"clip_start": 0.5': '"clip_start": 0.25, "clip_start": 0.5'}
    new = twice.get(old, f'"0": {json.dumps(leaf(3.0))}, {old}')
    annotations = read_benchmarks(egomcq=write(tmp_path / "egomcq.json", text.replace(old, new, 1)))
    assert only_reject(annotations)["reason"] == "repeated field"
    assert [r["id"] for r in annotations.companions["egomcq/test/questions.json"]["rejected"]] == ["0"]


def test_the_text_of_a_clip_does_not_depend_on_the_order_of_questions(tmp_path: Path) -> None:
    choices = [{"0": leaf(1, text=text), "1": leaf(5)} for text in ("#C C wipes", None, "#C C cuts")]
    kept = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        tree = {str(i): question(choices=choices[i]) for i in order}
        annotations = read_benchmarks(egomcq=write(tmp_path / "egomcq.json", tree))
        kept.append([item["text"] for item in annotations.sets["egomcq"].to_pylist()])
    assert kept == [["#C C cuts", "#C C cuts"]] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected an object of questions"),
        ("{}", "no question"),
        ('{"0": ', "not valid JSON"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_an_unusable_file_is_an_error(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_benchmarks(egomcq=write(tmp_path / "egomcq.json", content))


def test_exclusion_applies_to_pretraining_sets_but_not_to_benchmarks(tmp_path: Path) -> None:
    clips = write(tmp_path / "egoclip.csv", table([row(1), row(2, video_uid="other")]))
    asked = write(tmp_path / "egomcq.json", {"0": question()})
    annotations = read_benchmarks(egoclip=clips, egomcq=asked, exclude=(asked,))
    assert set(annotations.narrations["video_uid"].to_pylist()) == {"other"}
    assert set(annotations.sets["egomcq"]["video_uid"].to_pylist()) == {UID}
