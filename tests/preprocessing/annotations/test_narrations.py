"""The reader of Ego4D's narration.json: both releases' formats, EgoClip's rule, keys, and malformed entries."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocessing.annotations import AnnotationError, Annotations, AnnotationsConfig, read_annotations
from shards.keys import escape_id
from tests.preprocessing.annotation_files import write

FAST = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
TIMES = {("u.1", 1): [1.0, 3.0, 4.5, 9.0], ("u.1", 2): [2.0, 2.5], ("u2", 1): [50.0, 350.0, 1000.0], ("u3", 2): [7.0]}


def say(time: Any, text: Any = "#C C walks", **more: Any) -> dict[str, Any]:
    return {"timestamp_sec": time, "timestamp_frame": 30, "narration_text": text, "annotation_uid": "x", **more}


def summary(start: Any, end: Any, text: Any = "#Summary C cooks") -> dict[str, Any]:
    return {"start_sec": start, "end_sec": end, "summary_text": text, "annotation_uid": "x"}


def file(times: dict[tuple[str, int], list[float]] = TIMES) -> dict[str, Any]:
    """Return narration.json's content with narrations at the given times, and a summary in every pass."""
    videos: dict[str, Any] = {}
    for (uid, number), moments in times.items():
        content = {"narrations": [say(t, f"#C C walks {t}") for t in moments], "summaries": [summary(0, 300.5)]}
        videos.setdefault(uid, {"status": "complete"})[f"narration_pass_{number}"] = content
    return videos


def read(folder: Path, content: Any, **config: Any) -> Annotations:
    """Read narration.json; check that every entry is accounted for."""
    path = write(folder / "narration.json", content)
    annotations = read_annotations(AnnotationsConfig(narrations=path, **config))
    sets = annotations.rejects["set"].to_pylist()
    assert annotations.input_rows["clips"] == annotations.narrations.num_rows + sets.count("clips")
    assert annotations.input_rows["summaries"] == annotations.summaries.num_rows + sets.count("summaries")
    return annotations


def entries(value: Any) -> list[Any]:
    """Return every narration and summary of a file's content."""
    if isinstance(value, dict):
        lists = [item for name, items in value.items() if name in ("narrations", "summaries") for item in items]
        return lists + [
            entry for name in value if name not in ("narrations", "summaries") for entry in entries(value[name])
        ]
    return []


def by_formula(times: dict[tuple[str, int], list[float]], alpha: float | None, duration: float) -> dict[Any, Any]:
    """Return (uid, pass, t) → (start, end) by the rule t ± β/2α, clamped, at most 60 s long."""
    betas = {}
    for name, moments in times.items():
        moments = sorted(moments)
        gaps = [b - a for a, b in itertools.pairwise(moments)]
        if gaps and sum(gaps) > 0:
            betas[name] = sum(gaps) / len(gaps)
    if alpha is None:
        alpha = sum(betas.values()) / len(betas) if betas else 1.0
    windows = {}
    for name, moments in times.items():
        for t in moments:
            half = min(betas.get(name, alpha) / (2 * alpha), 30.0)
            windows[(*name, t)] = (max(0.0, t - half), min(duration, t + half))
    return windows


def windows_of(annotations: Annotations) -> dict[Any, Any]:
    rows = annotations.narrations.to_pylist()
    return {
        (r["video_uid"], int(r["narration_source"][-1]), r["narration_time"]): (r["clip_start"], r["clip_end"])
        for r in rows
    }


@given(
    times=st.dictionaries(
        st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from([1, 2])),
        st.lists(st.floats(0, 3000).map(lambda t: round(t, 2)), min_size=1, max_size=8, unique=True),
        min_size=1,
        max_size=6,
    ),
    alpha=st.none() | st.floats(0.01, 100),
)
@FAST
def test_clips_follow_the_formula(tmp_path: Path, times: dict[Any, Any], alpha: float | None) -> None:
    metadata = {"videos": [{"video_uid": uid, "duration_sec": 4000.0} for uid in "abc"]}
    annotations = read(tmp_path, file(times), alpha=alpha, metadata=write(tmp_path / "ego4d.json", metadata))
    expected = by_formula(times, alpha, 4000.0)
    actual = windows_of(annotations)
    assert actual.keys() == expected.keys()
    for name, (start, end) in expected.items():
        assert actual[name] == pytest.approx((start, end), abs=1e-9)
        assert 0 <= actual[name][0] < actual[name][1] <= 4000.0
        assert actual[name][1] - actual[name][0] <= 60.0 + 1e-9


def test_alpha_is_the_mean_over_passes_unless_configured(tmp_path: Path) -> None:
    assert read(tmp_path, file()).alpha == pytest.approx((8 / 3 + 0.5 + 475) / 3)
    assert read(tmp_path, file(), alpha=4.9).alpha == 4.9
    assert read(tmp_path, file({("u", 1): [5.0]})).narrations["clip_start"].to_pylist() == [4.5]


def test_a_clip_is_at_most_a_minute_long(tmp_path: Path) -> None:
    annotations = read(tmp_path, file(), alpha=1.0)
    assert windows_of(annotations)[("u2", 1, 350.0)] == (320.0, 380.0)


def renamed(content: Any) -> Any:
    """Return the content in the other releases' field names."""
    names = {"timestamp_sec": "time", "narration_text": "text", "start_sec": "start_time", "end_sec": "end_time"}
    names["summary_text"] = "text"
    if isinstance(content, dict):
        return {names.get(name, name): renamed(value) for name, value in content.items()}
    return [renamed(item) for item in content] if isinstance(content, list) else content


@pytest.mark.parametrize("rename", [renamed, lambda content: content])
@pytest.mark.parametrize(
    "wrap", [lambda v: {"version": "2", "taxonomy": {"a": []}, "videos": v, "date": 1}, lambda v: v]
)
def test_both_releases_give_equal_tables(tmp_path: Path, rename: Any, wrap: Any) -> None:
    content = file()
    content["u2"]["narration_pass_1"]["narrations"] += [say(3.0, "#Unsure"), say(-1.0), say(350.0, "#C C walks 350.0")]
    first, other = read(tmp_path, content), read(tmp_path, wrap(rename(content)))
    assert (first.narrations, first.summaries) == (other.narrations, other.summaries)
    assert first.videos.drop_columns("duration") == other.videos.drop_columns("duration")  # NaN here
    assert (first.alpha, first.input_rows) == (other.alpha, other.input_rows)
    columns = ["set", "item", "video_uid", "status", "reason"]
    assert first.rejects.select(columns) == other.rejects.select(columns)


def test_bare_lists_are_pass_one_with_gaps_measured_per_annotator(tmp_path: Path) -> None:
    items = [say(t, f"a{t}", annotation_uid="A") for t in (10, 20, 30)]
    items += [say(t, f"b{t}", annotation_uid="B") for t in (11, 31)]
    items += [{"timestamp_sec": t, "narration_text": f"c{t}"} for t in (15, 55)]
    annotations = read(tmp_path, {"videos": {"u": {"narrations": items, "summaries": [summary(1, 2)]}}}, alpha=10.0)
    assert set(annotations.narrations["narration_source"].to_pylist()) == {"narration_pass_1"}
    assert windows_of(annotations)[("u", 1, 20.0)] == (19.5, 20.5)
    assert windows_of(annotations)[("u", 1, 11.0)] == (10.0, 12.0)
    assert windows_of(annotations)[("u", 1, 15.0)] == (13.0, 17.0)
    assert annotations.summaries.num_rows == 1


def test_keys_depend_on_time_and_text_only(tmp_path: Path) -> None:
    annotations = read(
        tmp_path, {"u.1": {"narration_pass_2": {"narrations": [say(1.2345, "é")], "summaries": [summary(3, 4.5, "s")]}}}
    )
    digest = hashlib.sha256("é".encode()).hexdigest()[:6]
    row = annotations.narrations.to_pylist()[0]
    assert row["key"] == f"{escape_id('u.1')}_c2_00001234-{digest}"
    assert (row["tag_verb"], row["tag_noun"], row["text"]) == ([], [], "é")
    digest = hashlib.sha256(b"s").hexdigest()[:6]
    row = annotations.summaries.to_pylist()[0]
    assert row["key"] == f"{escape_id('u.1')}_s2_00003000-00004500-{digest}"
    assert (row["narration_time"], row["clip_start"], row["clip_end"]) == (3.0, 3.0, 4.5)


def test_keys_do_not_depend_on_order_or_on_other_entries(tmp_path: Path) -> None:
    whole = read(tmp_path, file(), alpha=4.9)
    content = dict(reversed(file().items()))
    for passes in content.values():
        for name in ("narration_pass_1", "narration_pass_2"):
            if name in passes:
                random.Random(1).shuffle(passes[name]["narrations"])
    shuffled = read(tmp_path, content, alpha=4.9)
    assert (shuffled.narrations, shuffled.summaries) == (whole.narrations, whole.summaries)
    assert whole.narrations["narration_ind"].to_pylist()[:2] == [0, 0]  # the first of either pass
    for passes in content.values():
        for name in ("narration_pass_1", "narration_pass_2"):
            if name in passes:
                del passes[name]["narrations"][0]
    fewer = read(tmp_path, content, alpha=4.9)
    assert set(fewer.narrations["key"].to_pylist()) < set(whole.narrations["key"].to_pylist())


def test_filtered_narrations_do_not_change_other_clips(tmp_path: Path) -> None:
    content = file()
    before = read(tmp_path, content)
    content["u.1"]["narration_pass_1"]["narrations"] += [
        say(900.0, "#unsure"),
        say(901.0, "#C C takes #Unsure thing"),
        say(902.0, " \n"),
        say(3.0, "#C C walks 3.0"),
    ]
    annotations = read(tmp_path, content)
    assert windows_of(annotations) == windows_of(before)
    assert sorted(annotations.rejects["reason"].to_pylist()) == ["duplicate row", "empty text", "unsure", "unsure"]
    assert set(annotations.rejects["status"].to_pylist()) == {"filtered"}
    assert "u.1_" not in annotations.rejects["item"].to_pylist()
    details = annotations.rejects["detail"].to_pylist()
    assert any("narration.json:u.1.narration_pass_1.narrations[7]" in d and "narrations[1]" in d for d in details)


def test_clips_are_clamped_to_the_video_or_filtered(tmp_path: Path) -> None:
    metadata = write(tmp_path / "ego4d.json", {"videos": [{"video_uid": "u", "duration_sec": 100.0}]})
    content = {"u": {"narration_pass_1": {}}}
    content["u"]["narration_pass_1"]["narrations"] = [say(0.1, "a"), say(99.8, "b"), say(100.2, "c"), say(101.0, "d")]
    content["u"]["narration_pass_1"]["summaries"] = [summary(0, 120), summary(100, 130)]
    annotations = read(tmp_path, content, metadata=metadata)
    assert windows_of(annotations) == {
        ("u", 1, 0.1): (0.0, 0.6),
        ("u", 1, 99.8): (pytest.approx(99.3), 100.0),
        ("u", 1, 100.2): (pytest.approx(99.7), 100.0),
    }
    assert annotations.summaries["clip_end"].to_pylist() == [100.0]
    assert annotations.rejects["reason"].to_pylist() == ["past the end of the video"] * 2
    assert (
        "101" in annotations.rejects["detail"].to_pylist()[0] or "100.5" in annotations.rejects["detail"].to_pylist()[0]
    )


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (None, "malformed row"),
        (["x"], "malformed row"),
        ({}, "malformed timestamp_sec"),
        (say("12"), "malformed timestamp_sec"),
        (say(True), "malformed timestamp_sec"),
        (say(-0.1), "malformed timestamp_sec"),
        (say(math.nan), "malformed timestamp_sec"),
        (say(math.inf), "malformed timestamp_sec"),
        (say(10**400), "malformed timestamp_sec"),
        (say(1.0, None), "malformed text"),
        (say(1.0, ["#C"]), "malformed text"),
        (say(1.0, "\ud800"), "malformed text"),
    ],
)
def test_an_entry_of_a_wrong_type_is_rejected_with_its_location(tmp_path: Path, entry: Any, reason: str) -> None:
    content = file({("u", 1): [1.0, 2.0]})
    content["u"]["narration_pass_1"]["narrations"].insert(1, entry)
    annotations = read(tmp_path, content)
    (reject,) = annotations.rejects.to_pylist()
    assert (reject["reason"], reject["status"]) == (reason, "failed")
    assert reject["item"] == "narration.json:u.narration_pass_1.narrations[1]"
    assert annotations.narrations.num_rows == 2


@pytest.mark.parametrize(
    ("entry", "reason", "status"),
    [
        (summary(5, 4), "reversed times", "failed"),
        (summary(5, None), "malformed end_sec", "failed"),
        (summary(5, 5), "empty span", "filtered"),
        (summary(5, 6, ""), "empty text", "filtered"),
    ],
)
def test_an_unusable_summary_is_rejected(tmp_path: Path, entry: Any, reason: str, status: str) -> None:
    annotations = read(tmp_path, {"u": {"narration_pass_1": {"summaries": [entry]}}})
    (reject,) = annotations.rejects.to_pylist()
    assert (reject["set"], reject["reason"], reject["status"]) == ("summaries", reason, status)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"u": {"narration_pass_1": {"narrations": {}}}}, "malformed narrations"),
        ({"u": {"narration_pass_1": 5}}, "malformed pass"),
        ({"u": {"narration_pass_3": {"narrations": []}}}, "malformed narration_source"),
        ({"videos": {"u": [1]}}, "malformed video"),
        ({"u": 5}, "malformed video"),
        ({"a/b": {"narration_pass_1": {}}}, "malformed video_uid"),
    ],
)
def test_a_container_of_a_wrong_type_is_one_rejected_row(tmp_path: Path, content: Any, reason: str) -> None:
    assert read(tmp_path, content).rejects["reason"].to_pylist() == [reason]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1 column 1: not valid JSON: expected '{', found the end"),
        (b"[]", "contains no video"),
        (b"5", "expected '{'"),
        (b"{}", "contains no video"),
        (b'{"u": {"narration_pass_1": {"narrations": [{}', "line 1 column .*not valid JSON"),
        (b'{"u":\n {"status": 1}} x', "line 2 column 17: not valid JSON: text after the end"),
        (b'{"u": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"u": ' + b"[" * 200_000, "nested too deeply"),
        (b"{5: 6}", "expected a name in quotes"),
    ],
)
def test_malformed_json_is_an_error_with_line_and_column(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(AnnotationError, match=f"narration.json.*{message}"):
        read(tmp_path, content)


def test_a_video_without_narrations_is_in_the_videos_table(tmp_path: Path) -> None:
    annotations = read(tmp_path, {"u": {"status": "redacted"}, "v": {"narration_pass_1": {"narrations": [say(1)]}}})
    assert annotations.videos["video_uid"].to_pylist() == ["u", "v"]


@FAST
@given(data=st.data())
def test_every_entry_is_accounted_for_once(tmp_path: Path, data: st.DataObject) -> None:
    content = copy.deepcopy(file())
    junk = st.none() | st.booleans() | st.integers(-5, 10**30) | st.floats() | st.text(max_size=3) | st.just([{}])
    for entry in entries(content):
        if data.draw(st.integers(0, 3)) == 0:
            entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(junk)
    annotations = read(tmp_path, content)
    assert sum(annotations.input_rows[name] for name in ("clips", "summaries")) == len(entries(content))


def test_videos_in_a_list_and_repeated_names_are_read_like_an_object(tmp_path: Path) -> None:
    one = '{"narrations": [{"time": 1.0, "text": "a"}, {"time": 3.0, "text": "b"}]}'
    two = '{"narrations": [{"time": 5.0, "text": "c"}]}'
    forms = [
        f'{{"u": {{"narration_pass_1": {one}, "narration_pass_1": {two}}}}}',
        f'{{"u": {{"narration_pass_1": {one}}}, "u": {{"narration_pass_1": {two}}}}}',
        f'{{"u": {{"narration_pass_1": {{{one[1:-1]}, {two[1:-1]}}}}}}}',
        f'{{"videos": [{{"video_uid": "u", "narration_pass_1": {one}, "narration_pass_1": {two}}}]}}',
        f'[{{"video_uid": "u", "narration_pass_1": {one}}}, {{"video_uid": "u", "narration_pass_1": {two}}}]',
    ]
    tables = []
    for form in forms:
        path = tmp_path / "narration.json"
        path.write_text(form)
        annotations = read_annotations(AnnotationsConfig(narrations=path))
        assert annotations.rejects.num_rows == 0 and annotations.input_rows["clips"] == 3
        tables.append(annotations.narrations)
    assert all(table == tables[0] for table in tables)


def test_rows_that_differ_only_in_their_annotator_are_both_kept(tmp_path: Path) -> None:
    rows = [{"time": 1.0, "text": "a", "annotation_uid": name} for name in ("x", "y", "x")]
    keys = []
    for order in (rows, rows[::-1]):
        path = tmp_path / "narration.json"
        path.write_text(json.dumps({"u": {"narration_pass_1": {"narrations": order}}}))
        annotations = read_annotations(AnnotationsConfig(narrations=path))
        assert annotations.rejects["reason"].to_pylist() == ["duplicate row"]
        keys.append(annotations.narrations["key"].to_pylist())
    assert keys[0] == keys[1] and len(set(keys[0])) == 2


def test_a_row_with_a_field_twice_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "narration.json"
    path.write_text(
        '{"u": {"narrations": [{"time": 1.0, "time": 2.0, "text": "a"}, {"time": 1, "text": "b", "x": 1, "x": 2}]}}'
    )
    annotations = read_annotations(AnnotationsConfig(narrations=path))
    assert annotations.rejects["reason"].to_pylist() == ["repeated field"] and annotations.narrations.num_rows == 1
