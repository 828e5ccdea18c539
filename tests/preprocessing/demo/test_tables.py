"""The annotation files: formats, agreement with each other, and the irregularities of real annotations."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from typing import Any

import av
import numpy as np
import pytest

from preprocessing.demo import DemoDataset
from preprocessing.demo.vocabulary import NOUNS, VERBS, activities
from tests.preprocessing.demo.conftest import CONFIG
from tests.preprocessing.demo.demo_files import EGOCLIP_COLUMNS

pytestmark = pytest.mark.medium


def test_egoclip_has_its_columns_and_types(clips: list[dict[str, Any]]) -> None:
    assert list(clips[0]) == EGOCLIP_COLUMNS
    assert [int(row["clip_idx"]) for row in clips] == list(range(len(clips)))
    assert {row["narration_source"] for row in clips} == {"narration_pass_1", "narration_pass_2"}
    assert all(re.match(r"#C C [a-z]", row["clip_text"]) for row in clips)
    for row in clips:
        assert all(0 <= tag < 118 for tag in row["tag_verb"])
        assert all(0 <= tag < 582 for tag in row["tag_noun"])
        assert row["clip_end"] > row["clip_start"] >= 0
    lengths = [row["clip_end"] - row["clip_start"] for row in clips]
    assert 0.8 < float(np.mean(lengths)) < 1.1


def test_egosummary_has_no_clip_idx(summaries: list[dict[str, Any]]) -> None:
    assert list(summaries[0]) == EGOCLIP_COLUMNS[1:]
    assert all(row["clip_text"].startswith("#Summary C ") for row in summaries)
    assert all(0 <= row["clip_start"] < row["clip_end"] <= row["video_dur"] for row in summaries)


def test_rows_are_identified_by_video_pass_and_index(
    clips: list[dict[str, Any]], summaries: list[dict[str, Any]]
) -> None:
    for rows in (clips, summaries):
        keys = [(row["video_uid"], row["narration_source"], row["narration_ind"]) for row in rows]
        assert len(set(keys)) == len(keys)


def test_narration_json_has_the_same_content(
    dataset: DemoDataset, clips: list[dict[str, Any]], summaries: list[dict[str, Any]]
) -> None:
    tree = json.loads(dataset.narration.read_text(encoding="utf-8"))
    narrations, spans, left_out = Counter[Any](), Counter[Any](), 0
    for uid, video in tree.items():
        assert video["status"] == "complete"
        for source in ("narration_pass_1", "narration_pass_2"):
            for item in video.get(source, {}).get("narrations", []):
                if item["narration_text"] and "#unsure" not in item["narration_text"]:
                    narrations[uid, source, item["timestamp_sec"], item["narration_text"]] += 1
                else:
                    left_out += 1
            for item in video.get(source, {}).get("summaries", []):
                spans[uid, source, item["start_sec"], item["end_sec"], item["summary_text"]] += 1
    columns = ("video_uid", "narration_source", "narration_time", "clip_text")
    assert narrations == Counter(tuple(row[c] for c in columns) for row in clips)
    columns = ("video_uid", "narration_source", "clip_start", "clip_end", "clip_text")
    assert spans == Counter(tuple(row[c] for c in columns) for row in summaries)
    assert left_out == 3


def test_ego4d_json_agrees_with_the_files(dataset: DemoDataset, videos: dict[str, dict[str, Any]]) -> None:
    assert {video["split_em"] for video in videos.values()} == {"train", "val"}
    for uid, video in videos.items():
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", uid)
        path, meta = dataset.videos / f"{uid}.mp4", video["video_metadata"]
        assert video["duration_sec"] == pytest.approx(meta["num_frames"] / meta["fps"])
        assert video["is_stereo"] is False
        if video["split_em"] == "val":
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                assert (stream.frames, stream.codec_context.name) == (meta["num_frames"], "h264")
                assert float(stream.average_rate or 0) == pytest.approx(meta["fps"])


def test_some_clips_are_shorter_than_seven_frames(clips: list[dict[str, Any]]) -> None:
    frames = sorted(round((row["clip_end"] - row["clip_start"]) * CONFIG.fps, 3) for row in clips)
    assert frames[:3] == [1, 3, 6]


def test_clips_lie_across_the_chunk_boundary(
    clips: list[dict[str, Any]], truth: dict[str, Any], videos: dict[str, dict[str, Any]]
) -> None:
    at = CONFIG.chunk_seconds
    crossing = {row["video_uid"] for row in clips if row["clip_start"] < at - 0.2 and row["clip_end"] > at + 0.2}
    spoiled = {uid for flaw in ("damaged", "truncated", "missing") for uid in truth["special_videos"][flaw]}
    assert crossing - spoiled


def test_one_video_is_missing_but_annotated(
    dataset: DemoDataset,
    truth: dict[str, Any],
    videos: dict[str, dict[str, Any]],
    clips: list[dict[str, Any]],
    summaries: list[dict[str, Any]],
) -> None:
    (missing,) = truth["special_videos"]["missing"]
    assert {path.stem for path in dataset.videos.iterdir()} == set(videos) - {missing}
    assert {row["video_uid"] for row in clips} == {row["video_uid"] for row in summaries} == set(videos)


def test_some_narrations_are_past_the_end(clips: list[dict[str, Any]]) -> None:
    assert sum(row["clip_start"] >= row["video_dur"] for row in clips) >= 2
    assert any(row["clip_start"] < row["video_dur"] < row["clip_end"] for row in clips)


def test_some_texts_have_quotes_and_non_ascii_characters(dataset: DemoDataset, clips: list[dict[str, Any]]) -> None:
    assert any('"' in row["clip_text"] for row in clips)
    assert any(not row["clip_text"].isascii() for row in clips)
    assert '""' in dataset.egoclip.read_text(encoding="utf-8")  # quoted as pandas does it


def test_some_tag_lists_are_empty(clips: list[dict[str, Any]]) -> None:
    empty = {(not row["tag_verb"], not row["tag_noun"]) for row in clips}
    assert empty == {(False, False), (True, False), (False, True), (True, True)}
    assert any(len(row["tag_verb"]) > 1 for row in clips)


def test_summaries_repeat_within_and_across_videos(summaries: list[dict[str, Any]]) -> None:
    per_video = Counter((row["video_uid"], row["narration_source"], row["clip_text"]) for row in summaries)
    assert max(per_video.values()) > 1
    where = defaultdict(set)
    for row in summaries:
        where[row["clip_text"]].add(row["video_uid"])
    assert max(map(len, where.values())) > 1
    assert max(Counter(row["video_uid"] for row in summaries).values()) > 1


def test_second_narrators_agree_on_some_summaries_only(summaries: list[dict[str, Any]]) -> None:
    said = defaultdict(dict)  # type: ignore[var-annotated]
    for row in summaries:
        said[row["video_uid"], row["narration_ind"]][row["narration_source"]] = row["clip_text"]
    agree = {len(set(texts.values())) == 1 for texts in said.values() if len(texts) == 2}
    assert agree == {True, False}


def test_no_narration_has_words_or_classes_of_an_activity_name(
    clips: list[dict[str, Any]], summaries: list[dict[str, Any]]
) -> None:
    everyday = {"c", "the", "a"}
    said = {word for row in clips for word in re.findall(r"\w+", row["clip_text"].lower())}
    said |= {w for v in VERBS.values() for t in (v.phrase, v.rephrased) for w in re.findall(r"\w+", t.lower())}
    said |= {w for noun in NOUNS.values() for w in noun.looks.split()}
    names = {w for a in activities(8) for t in (a.name, a.rephrased) for w in t.split()}
    assert not (names - everyday) & said
    nouns = {tag for row in clips for tag in row["tag_noun"]} | {t for n in NOUNS.values() for t in n.tags}
    assert not {tag for row in summaries for tag in row["tag_noun"]} & nouns
    assert not {tag for a in activities(8) for tag in a.tag_verb} & {t for v in VERBS.values() for t in v.tags}
