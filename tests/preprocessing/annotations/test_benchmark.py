"""The readers of benchmarks: official formats, every malformed row named at its place, sums that close."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.loading import ConfigError, from_dict
from preprocessing.annotations import AnnotationError, Annotations, AnnotationsConfig, read_annotations
from preprocessing.annotations.config import CharadesEgoFiles, EpicMirFiles, HowTo100mFiles
from preprocessing.annotations.epic_mir import frame_rate
from shards import companions
from shards.keys import is_key
from tests.paths import shared
from tests.preprocessing.annotation_files import row, table, write

UID = "0a1b-2c"


def read(**files: Any) -> Annotations:
    """Read the files; check that every row is accounted for once and that keys are legal and unique."""
    found = read_annotations(AnnotationsConfig(**files))
    rejects = found.rejects.to_pylist()
    keys = []
    for name, kept in found.sets.items():
        assert found.input_rows[name] == kept.num_rows + sum(r["set"] == name for r in rejects)
        keys += kept["key"].to_pylist()
    assert all(map(is_key, keys)) and len(set(keys)) == len(keys)
    assert len({(r["set"], r["item"]) for r in rejects}) == len(rejects)
    return found


def companion(found: Annotations, path: str, folder: Path) -> Any:
    """Return a companion as it is read from a file."""
    write(folder / path.rpartition("/")[2], found.companions[path])
    set_name, split, _ = path.split("/")
    (folder / set_name / split).mkdir(parents=True, exist_ok=True)
    write(folder / path, found.companions[path])
    return companions.read_companion(folder, set_name, split)


def only_reject(found: Annotations) -> dict[str, str]:
    (reject,) = found.rejects.to_pylist()
    return reject


def leaf(start: float, *, uid: str = UID, seconds: float = 1.0, text: str | None = "#C C cuts", **more: Any) -> Any:
    """Return a choice as the files have it: some fields are null."""
    times = {"clip_start": start, "clip_end": start + seconds, "narration_time": None, "tag_verb": None}
    return {"video_uid": uid, "clip_text": text, **times, **more}


def question(*starts: float, answer: int = 0, kind: int = 1, text: str = "#C C opens a drawer", **more: Any) -> Any:
    choices = {str(i): leaf(start) for i, start in enumerate(starts or (0.5, 2.0, 4.0, 6.0, 8.0))}
    return {
        "query": {"clip_text": text, "video_uid": None},
        "answer": answer,
        "choices": choices,
        "types": kind,
        **more,
    }


class TestQuestions:
    def test_each_distinct_clip_is_an_item_and_every_question_names_its_own(self, tmp_path: Path) -> None:
        tree = {"0": question(), "1": question(2.0, 0.5, 9.0, 4.0, 6.0, answer=3, kind=2, text="#C C «schält» 人参")}
        found = read(egomcq=write(tmp_path / "egomcq.json", tree))
        items = found.sets["egomcq"].to_pylist()
        assert [item["clip_start"] for item in items] == [0.5, 2.0, 4.0, 6.0, 8.0, 9.0]
        assert items[0] == {
            "key": "0a1b-2c_q0_0000500000-0001500000",
            "video_uid": UID,
            "split": "test",
            "clip_start": 0.5,
            "clip_end": 1.5,
            "text": "#C C cuts",
        }
        made = companion(found, "egomcq/test/questions.json", tmp_path)
        assert [(q.id, q.type, q.text, q.answer) for q in made.questions] == [
            ("0", "inter", "#C C opens a drawer", 0),
            ("1", "intra", "#C C «schält» 人参", 3),
        ]
        assert made.questions[1].choices[1] == made.questions[0].choices[0] == items[0]["key"]
        assert set(made.keys()) == {item["key"] for item in items} and made.rejected == ()
        assert found.rejects.num_rows == 0 and set(found.sets) == {"egomcq"}

    def test_summaries_are_a_set_of_their_own_with_other_keys(self, tmp_path: Path) -> None:
        clips = write(tmp_path / "egomcq.json", {"0": question()})
        spans = write(tmp_path / "summarymcq_full.json", {"0": question(0.5, 60.0, kind=3)})
        found = read(egomcq=clips, summarymcq=spans)
        assert list(found.sets) == ["egomcq", "summarymcq"]
        assert found.sets["summarymcq"]["key"].to_pylist()[0] == "0a1b-2c_m0_0000500000-0001500000"
        made = companion(found, "summarymcq/test/questions.json", tmp_path)
        assert made.questions[0].type == "summary" and made.name == "summarymcq"

    def test_clips_that_begin_and_end_less_than_a_microsecond_apart_are_one(self, tmp_path: Path) -> None:
        found = read(egomcq=write(tmp_path / "q.json", {"0": question(0.1 + 0.2, 0.3, 0.300002)}))
        assert found.sets["egomcq"].num_rows == 2

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
    def test_a_question_that_cannot_be_asked_is_named_and_the_others_go_on(
        self, tmp_path: Path, bad: Any, reason: str, value: str
    ) -> None:
        path = write(tmp_path / "egomcq.json", {"0": question(), "17": bad, "2": question(3.0, 5.0)})
        found = read(egomcq=path)
        reject = only_reject(found)
        assert (reject["status"], reject["reason"]) == ("failed", reason)
        assert reject["item"] == "egomcq.json:17" and value in reject["detail"]
        made = companion(found, "egomcq/test/questions.json", tmp_path)
        assert [q.id for q in made.questions] == ["0", "2"]
        assert [q.id for q in made.rejected] == ["17"] and reason in made.rejected[0].reason
        assert found.sets["egomcq"].num_rows == 7, "the choices of a question that nobody is asked are no items"

    def test_of_two_questions_of_one_number_the_first_is_kept(self, tmp_path: Path) -> None:
        text = f'{{"0": {json.dumps(question())}, "0": {json.dumps(question(7.0, 9.0))}}}'
        found = read(egomcq=write(tmp_path / "egomcq.json", text))
        assert only_reject(found)["reason"] == "duplicate identity" and found.sets["egomcq"].num_rows == 5

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[]", "expected an object of questions"),
            ("{}", "no question"),
            ('{"0": ', "not valid JSON"),
            (b"\xff", "not UTF-8"),
        ],
    )
    def test_a_file_that_cannot_be_used_as_a_whole_is_an_error(
        self, tmp_path: Path, content: str | bytes, message: str
    ) -> None:
        with pytest.raises(AnnotationError, match=message):
            read(egomcq=write(tmp_path / "egomcq.json", content))

    def test_exclusion_keeps_videos_out_of_training_and_not_out_of_the_benchmark(self, tmp_path: Path) -> None:
        clips = write(tmp_path / "egoclip.csv", table([row(1), row(2, video_uid="other")]))
        asked = write(tmp_path / "egomcq.json", {"0": question()})
        found = read(egoclip=clips, egomcq=asked, exclude=(asked,))
        assert set(found.narrations["video_uid"].to_pylist()) == {"other"}
        assert set(found.sets["egomcq"]["video_uid"].to_pylist()) == {UID}


EPIC_COLUMNS = [
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
]  # fmt: skip


def epic_row(index: int, **changes: Any) -> dict[str, Any]:
    """Return a good row of a retrieval table; `index` makes its identity."""
    return {
        "narration_id": f"P01_11_{index}", "participant_id": "P01", "video_id": "P01_11",
        "narration_timestamp": "00:00:00.560", "start_timestamp": f"00:01:{index:02d}.50",
        "stop_timestamp": f"00:01:{index + 1:02d}.00", "start_frame": int((60 + index + 0.5) * 50),
        "stop_frame": int((61 + index) * 50), "narration": f"take, \"plate\" {index}", "verb": "take",
        "verb_class": index, "noun": "plate", "noun_class": 2, "all_nouns": "['plate', 'cup']",
        "all_noun_classes": "[2, 13]", **changes,
    }  # fmt: skip


def delimited(rows: Iterable[dict[str, Any]], columns: Sequence[str], delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def epic(folder: Path, rows: Iterable[dict[str, Any]], names: Iterable[str], *, split: str = "test") -> Annotations:
    path = write(folder / f"EPIC_100_retrieval_{split}.csv", delimited(rows, EPIC_COLUMNS, ","))
    sentences = [{"narration_id": name, "narration": "another text"} for name in names]
    listed = write(folder / f"{split}_sentence.csv", delimited(sentences, ["narration_id", "narration"], ","))
    return read(epic_mir=EpicMirFiles(**{split: path, f"{split}_sentences": listed}))


class TestEpic:
    def test_a_good_row_becomes_a_typed_one(self, tmp_path: Path) -> None:
        found = epic(tmp_path, [epic_row(0), epic_row(1)], ["P01_11_1"])
        assert found.sets["epic_mir"].to_pylist()[1] == {
            "key": "P01__11_e0_0061500000-0062000000",
            "video_uid": "P01_11",
            "split": "test",
            "clip_start": 61.5,
            "clip_end": 62.0,
            "text": 'take, "plate" 1',
            "narration_id": "P01_11_1",
            "verb_class": 1,
            "noun_classes": [2, 13],
        }
        labels = companion(found, "epic_mir/test/labels.json", tmp_path)
        assert [video.key for video in labels.videos] == found.sets["epic_mir"]["key"].to_pylist()
        (sentence,) = labels.sentences
        assert (sentence.text, sentence.verb_class, sentence.noun_classes) == ('take, "plate" 1', 1, (2, 13)), (
            "text and classes are those of the row of its narration_id"
        )
        assert found.frame_rates == {"P01_11": 50.0}

    def test_labels_keep_the_order_of_the_file_whatever_the_order_in_time(self, tmp_path: Path) -> None:
        rows = [epic_row(i) for i in (5, 1, 9)]
        labels = companion(epic(tmp_path, rows, ["P01_11_9", "P01_11_5"]), "epic_mir/test/labels.json", tmp_path)
        assert [video.narration_id for video in labels.videos] == ["P01_11_5", "P01_11_1", "P01_11_9"]
        assert [sentence.narration_id for sentence in labels.sentences] == ["P01_11_9", "P01_11_5"]

    def test_a_clip_that_two_rows_describe_is_stored_once_and_labelled_twice(self, tmp_path: Path) -> None:
        twin = epic_row(0, narration_id="P01_11_99", verb_class=7)
        found = epic(tmp_path, [epic_row(0), twin], [])
        reject = only_reject(found)
        assert (reject["status"], reject["reason"]) == ("filtered", "repeated clip")
        assert reject["video_uid"] == "P01_11" and "EPIC_100_retrieval_test.csv:2" in reject["detail"]
        labels = companion(found, "epic_mir/test/labels.json", tmp_path)
        assert labels.videos[0].key == labels.videos[1].key
        assert [video.verb_class for video in labels.videos] == [0, 7]

    @pytest.mark.parametrize(
        ("changes", "reason", "value"),
        [
            ({"video_id": "../P01"}, "malformed video_id", "'../P01'"),
            ({"narration_id": " "}, "malformed narration_id", "' '"),
            ({"narration_id": "P01_11_0"}, "duplicate identity", "EPIC_100_retrieval_test.csv:2; the first"),
            ({"start_timestamp": "61.5"}, "malformed start_timestamp", "'61.5'; expected a time such as 00:01:59.56"),
            ({"stop_timestamp": "00:61:00.00"}, "malformed stop_timestamp", "'00:61:00.00'"),
            ({"stop_timestamp": "00:00:01.00"}, "reversed times", "stop_timestamp = 1.0"),
            ({"verb_class": "97"}, "malformed verb_class", "'97'; expected a class 0 … 96"),
            ({"verb_class": "-1"}, "malformed verb_class", "'-1'"),
            ({"all_noun_classes": "[]"}, "malformed all_noun_classes", "'[]'"),
            ({"all_noun_classes": "[300]"}, "malformed all_noun_classes", "0 … 299"),
            ({"all_noun_classes": "__import__('os')"}, "malformed all_noun_classes", "__import__"),
            ({"narration": ""}, "empty text", "narration = ''"),
        ],
    )
    def test_a_row_that_cannot_be_used_is_named(
        self, tmp_path: Path, changes: dict[str, Any], reason: str, value: str
    ) -> None:
        found = epic(tmp_path, [epic_row(0), epic_row(1, **changes), epic_row(2)], ["P01_11_0"])
        reject = only_reject(found)
        assert (reject["status"], reject["reason"]) == ("failed", reason)
        assert reject["item"] == "EPIC_100_retrieval_test.csv:3" and value in reject["detail"]
        assert found.sets["epic_mir"].num_rows == 2

    def test_a_sentence_without_a_row_is_named(self, tmp_path: Path) -> None:
        found = epic(tmp_path, [epic_row(0)], ["P01_11_0", "P99_1", "P01_11_0"])
        assert [(r["item"], r["reason"]) for r in found.rejects.to_pylist()] == [
            ("test_sentence.csv:3", "unknown narration_id"),
            ("test_sentence.csv:4", "duplicate identity"),
        ]

    def test_missing_columns_are_an_error_that_names_them(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.csv", "narration_id,video_id\n")
        with pytest.raises(AnnotationError, match=r"t\.csv: missing columns start_timestamp, stop_timestamp"):
            read(epic_mir=EpicMirFiles(test=path, test_sentences=path))

    def test_the_same_clip_in_both_splits_is_kept_in_the_first(self, tmp_path: Path) -> None:
        path = write(tmp_path / "both.csv", delimited([epic_row(0)], EPIC_COLUMNS, ","))
        files = EpicMirFiles(train=path, train_sentences=path, test=path, test_sentences=path)
        found = read(epic_mir=files)
        assert found.sets["epic_mir"]["split"].to_pylist() == ["train"]
        assert Counter(r["reason"] for r in found.rejects.to_pylist()) == {
            "duplicate identity": 1,
            "unknown narration_id": 1,
        }

    @pytest.mark.parametrize(
        ("stamps", "rate"),
        [
            ([(558.24, 33494)], 60.0),
            ([(558.24, 33461)], 60000 / 1001),
            ([(100.0, 5000), (1.0, 51)], 50.0),
            ([(100.0, 1234)], None),
            ([], None),
        ],
    )
    def test_the_rate_of_pictures_follows_from_their_numbers(self, stamps: Any, rate: float | None) -> None:
        assert frame_rate(stamps) == rate

    def test_the_real_files(self, tmp_path: Path) -> None:
        folder = shared("epic100")
        files = EpicMirFiles(
            test=folder / "EPIC_100_retrieval_test.csv", test_sentences=folder / "EPIC_100_retrieval_test_sentence.csv"
        )
        found = read(epic_mir=files)
        assert found.sets["epic_mir"].num_rows == 9668 and found.rejects.num_rows == 0
        labels = companion(found, "epic_mir/test/labels.json", tmp_path)
        assert (len(labels.videos), len(labels.sentences)) == (9668, 3842)
        with files.test_sentences.open(newline="") as file:  # type: ignore[union-attr]
            listed = list(csv.DictReader(file))
        assert [s.narration_id for s in labels.sentences] == [row["narration_id"] for row in listed]
        assert sum(s.text != row["narration"] for s, row in zip(labels.sentences, listed, strict=True)) == 6
        assert set(found.frame_rates.values()) == {60.0}
        with files.test.open(newline="") as file:  # type: ignore[union-attr]
            for video, line in zip(labels.videos, csv.DictReader(file), strict=True):
                assert (video.narration_id, video.verb_class) == (line["narration_id"], int(line["verb_class"]))
                assert list(video.noun_classes) == list(dict.fromkeys(json.loads(line["all_noun_classes"])))


CLASSES = "c000 Holding some clothes\nc001 FfmpegInput a door\n\nc002 Closing a door\n"


def charades(folder: Path, *, train: str | None = None, test: str | None = None, classes: str = CLASSES) -> Annotations:
    files = CharadesEgoFiles(
        classes=write(folder / "classes.txt", classes),
        train=None if train is None else write(folder / "train.csv", train),
        test=None if test is None else write(folder / "test.csv", test),
    )
    return read(charades_ego=files)


TRAIN = "id\tcls\tt_start\tt_end\tnarration\n"


class TestCharades:
    def test_a_segment_is_of_one_class_and_has_the_text_that_is_given_or_the_class_sentence(
        self, tmp_path: Path
    ) -> None:
        rows = "AAA1EGO\tc001\t1.5\t3.0\topens it\nAAA1EGO\tc002\t1.5\t3.0\t\n"
        items = charades(tmp_path, train=TRAIN + rows).sets["charades_ego"].to_pylist()
        assert [(i["action"], i["text"], i["split"]) for i in items] == [
            (1, "opens it", "train"),
            (2, "Closing a door", "train"),
        ]
        assert items[0]["key"] == "AAA1EGO_a0_0001500000-0003000000-c001"

    def test_a_video_to_test_on_is_taken_whole_with_all_its_classes(self, tmp_path: Path) -> None:
        rows = 'id,subject,actions,length\nBBB2EGO,X,c002 0.00 12.60;c000 11.90 21.20;c002 1 2,31.5\nCCC3EGO,"a,b",,\n'
        found = charades(tmp_path, test=rows)
        whole, empty = found.sets["charades_ego"].to_pylist()
        assert (whole["key"], whole["clip_start"], whole["clip_end"]) == ("BBB2EGO_a0_whole", 0.0, math.inf)
        assert whole["text"] == "Holding some clothes; Closing a door" and whole["action"] == -1
        assert empty["text"] == ""
        labels = companion(found, "charades_ego/test/labels.json", tmp_path)
        assert labels.classes == ("Holding some clothes", "FfmpegInput a door", "Closing a door")
        assert [video.actions for video in labels.videos] == [(0, 2), ()]
        durations = dict(zip(*(found.videos[n].to_pylist() for n in ("video_uid", "duration")), strict=True))
        assert durations["BBB2EGO"] == 31.5 and math.isnan(durations["CCC3EGO"])

    @pytest.mark.parametrize(
        ("line", "status", "reason", "value"),
        [
            ("AAA1EGO\tc003\t1\t2\tx", "failed", "malformed cls", "'c003'; expected a class c000 … c002"),
            ("AAA1EGO\t1\t1\t2\tx", "failed", "malformed cls", "'1'"),
            ("a/b\tc001\t1\t2\tx", "failed", "malformed id", "'a/b'"),
            ("AAA1EGO\tc001\tone\t2\tx", "failed", "malformed t_start", "'one'"),
            ("AAA1EGO\tc001\t1\tnan\tx", "failed", "malformed t_end", "'nan'"),
            ("AAA1EGO\tc001\t3\t2\tx", "failed", "reversed times", "t_end = 2.0"),
            ("AAA1EGO\tc001\t3", "failed", "wrong number of columns", "3 instead of 5"),
            ("OKAYEGO\tc001\t1.0\t2.0\tagain", "filtered", "repeated clip", "train.csv:2"),
        ],
    )
    def test_a_segment_that_cannot_be_used_is_named(
        self, tmp_path: Path, line: str, status: str, reason: str, value: str
    ) -> None:
        found = charades(tmp_path, train=f"{TRAIN}OKAYEGO\tc001\t1\t2\tx\n{line}\n")
        reject = only_reject(found)
        assert (reject["status"], reject["reason"], reject["item"]) == (status, reason, "train.csv:3")
        assert value in reject["detail"] and found.sets["charades_ego"].num_rows == 1

    @pytest.mark.parametrize(
        ("line", "reason", "value"),
        [
            ("BBB2EGO,c157 0 1", "malformed actions", "'c157'"),
            ("BBB2EGO,walking", "malformed actions", "'walking'"),
            ("OKAYEGO,c001 0 1", "duplicate identity", "different actions"),
            ("OKAYEGO,c000 0 1", "repeated clip", "test.csv:2"),
        ],
    )
    def test_a_video_that_cannot_be_used_is_named(self, tmp_path: Path, line: str, reason: str, value: str) -> None:
        found = charades(tmp_path, test=f"id,actions\nOKAYEGO,c000 1 2\n{line}\n")
        reject = only_reject(found)
        assert (reject["reason"], reject["item"]) == (reason, "test.csv:3") and value in reject["detail"]

    @pytest.mark.parametrize("classes", ["", "c000\n", "c001 first\n", "c000 a\nc002 b\n", "Holding some clothes\n"])
    def test_classes_that_are_not_numbered_in_a_row_are_an_error(self, tmp_path: Path, classes: str) -> None:
        with pytest.raises(AnnotationError, match=r"classes\.txt"):
            charades(tmp_path, test="id,actions\n", classes=classes)


HOWTO = "video_uid\tclip_start\tclip_end\tfps\tlabel\n"


def howto(folder: Path, *, train: str, val: str = "", **more: Any) -> Annotations:
    files = HowTo100mFiles(
        train=write(folder / "train.csv", HOWTO + train), val=write(folder / "val.csv", HOWTO + val), **more
    )
    return read(howto100m=files)


class TestHowTo:
    def test_each_split_has_its_labels_and_names_where_they_are_given(self, tmp_path: Path) -> None:
        names = write(tmp_path / "names.txt", "tea\nsoup\n")
        found = howto(tmp_path, train="a_b\t0.0\t300\t29.97\t1\n", val="cd\t10\t70.5\t30\t0\n", classes=names)
        items = {item["split"]: item for item in found.sets["howto100m"].to_pylist()}
        assert (items["train"]["label"], items["train"]["text"], items["val"]["text"]) == (1, "soup", "tea")
        labels = companion(found, "howto100m/val/labels.json", tmp_path)
        assert labels.classes == ("tea", "soup")
        assert [(video.key, video.label) for video in labels.videos] == [(items["val"]["key"], 0)]

    @pytest.mark.parametrize(
        ("line", "status", "reason", "value"),
        [
            ("v\t0\t60\t30\t-1", "failed", "malformed label", "'-1'"),
            ("v\t0\t60\t30\tsoup", "failed", "malformed label", "'soup'"),
            ("v\t0\t60\t30\t100", "filtered", "class left out", "num_classes = 100"),
            ("v\t0\t\t30\t5", "failed", "malformed clip_end", "''"),
            ("v\t60\t0\t30\t5", "failed", "reversed times", "clip_end = 0.0"),
            (".\t0\t60\t30\t5", "failed", "malformed video_uid", "'.'"),
            ("okay\t0\t60\t30\t6", "failed", "duplicate identity", "label = 6, but 5 at train.csv:2"),
            ("okay\t0\t60\t25\t5", "filtered", "repeated clip", "train.csv:2"),
        ],
    )
    def test_a_row_that_cannot_be_used_is_named(
        self, tmp_path: Path, line: str, status: str, reason: str, value: str
    ) -> None:
        found = howto(tmp_path, train=f"okay\t0\t60\t30\t5\n{line}\n")
        reject = only_reject(found)
        assert (reject["status"], reject["reason"], reject["item"]) == (status, reason, "train.csv:3")
        assert value in reject["detail"]
        assert len(found.companions["howto100m/train/labels.json"]["videos"]) == 1

    def test_a_label_without_a_name_is_malformed(self, tmp_path: Path) -> None:
        found = howto(tmp_path, train="v\t0\t60\t30\t2\n", classes=write(tmp_path / "n.txt", "tea\nsoup\n"))
        assert "names for 0 … 1" in only_reject(found)["detail"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"epic_mir": {"test": "a"}}, "give both or neither"),
        ({"epic_mir": {}}, "give train or test"),
        ({"charades_ego": {"classes": "c"}}, "give train or test"),
        ({"charades_ego": {"test": "t"}}, "classes"),
        ({"howto100m": {}}, "give train or val"),
        ({"howto100m": {"train": "t", "num_classes": 0}}, "num_classes = 0: .*greater than 0"),
        ({"epic_mir": {"tests": "a"}}, "did you mean epic_mir.test"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_an_error(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(AnnotationsConfig, tree)


def test_a_file_that_is_not_there_is_named_with_its_key(tmp_path: Path) -> None:
    gone = tmp_path / "gone.csv"
    with pytest.raises(AnnotationError, match=r"annotations\.epic_mir\.test = .*gone\.csv: there is no such file"):
        read(epic_mir=EpicMirFiles(test=gone, test_sentences=gone))


def test_a_duration_that_one_file_states_is_not_forgotten_for_another_that_does_not(tmp_path: Path) -> None:
    clips = write(tmp_path / "egoclip.csv", table([row(1)]))
    found = read(egoclip=clips, egomcq=write(tmp_path / "egomcq.json", {"0": question()}))
    assert found.videos.to_pylist()[0]["duration"] == 480.5
