"""Writes the annotations in the formats of Ego4D, EgoClip and HierVL, and the ground truth (`activities.json`)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from preprocessing.demo.config import DemoConfig
from preprocessing.demo.narrate import DemoAnnotation, DemoAnnotations
from preprocessing.demo.script import Flaw, VideoScript, stable_uuid
from preprocessing.demo.vocabulary import ACTIVITY_PAIRS, NOUNS, VERBS, Activity
from shards.files import json_bytes

_COLUMNS = (
    "video_uid",
    "video_dur",
    "narration_source",
    "narration_ind",
    "narration_time",
    "clip_start",
    "clip_end",
    "clip_text",
    "tag_verb",
    "tag_noun",
)


def write_egoclip(path: Path, scripts: list[VideoScript], narrations: Iterable[DemoAnnotation]) -> None:
    """Write `egoclip.csv`: tab-separated, quoted where needed, one row per narration."""
    rows = ([i, *row] for i, row in enumerate(_rows(scripts, narrations)))
    write_table(path, ("clip_idx", *_COLUMNS), rows)


def write_egosummary(path: Path, scripts: list[VideoScript], summaries: Iterable[DemoAnnotation]) -> None:
    """Write `egosummary_full.csv`: the format of `egoclip.csv` without its first column."""
    write_table(path, _COLUMNS, _rows(scripts, summaries))


def write_ego4d(path: Path, config: DemoConfig, scripts: list[VideoScript]) -> None:
    """Write `ego4d.json`: Ego4D's metadata of each video."""
    videos = [
        {
            "video_uid": script.video_uid,
            "duration_sec": script.duration,
            "scenarios": ["Kitchen table"],
            "video_metadata": {
                "fps": float(script.fps),
                "num_frames": script.num_frames,
                "video_codec": "h264",
                "audio_codec": None,
                "display_resolution_width": config.width,
                "display_resolution_height": config.height,
                "sample_resolution_width": config.width,
                "sample_resolution_height": config.height,
                "video_start_sec": 0.0,
            },
            "split_em": script.split,
            "split_av": None,
            "split_fho": script.split,
            "video_source": "rendered",
            "device": "rendered",
            "physical_setting_name": None,
            "is_stereo": False,
            "has_imu": False,
            "has_gaze": False,
        }
        for script in scripts
    ]
    path.write_bytes(
        json_bytes({"version": "demo", "description": "Rendered video in Ego4D's layout", "videos": videos})
    )


def write_narration(path: Path, scripts: list[VideoScript], annotations: DemoAnnotations) -> None:
    """Write `narration.json`: the same narrations and summaries in Ego4D's format.

    It also has some empty and `#unsure` narrations, which EgoClip leaves out.
    """
    tree: dict[str, Any] = {}
    by_uid = {script.video_uid: script for script in scripts}
    for script in scripts:
        tree[script.video_uid] = {"status": "complete"}
    for kind, items in (("narrations", annotations.narrations), ("summaries", annotations.summaries)):
        for annotation in items:
            passes = tree[annotation.video_uid]
            name = _source(annotation)
            section = passes.setdefault(name, {"narrations": [], "summaries": []})
            annotator = stable_uuid(kind, annotation.video_uid, annotation.narration_pass, annotation.index)
            if kind == "narrations":
                section[kind].append(
                    _narration(annotation.time, by_uid[annotation.video_uid], annotation.text, annotator)
                )
            else:
                section[kind].append(
                    {
                        "start_sec": annotation.clip_start,
                        "end_sec": annotation.clip_end,
                        "summary_text": annotation.text,
                        "annotation_uid": annotator,
                    }
                )
    odd = scripts[1]
    narrations = tree[odd.video_uid]["narration_pass_1"]["narrations"]
    for i, text in enumerate(("#C C #unsure", "", "#unsure")):
        time = round(narrations[4 * i]["timestamp_sec"] + 0.9, 4)
        narrations.append(_narration(time, odd, text, stable_uuid("unsure", odd.video_uid, i)))
    narrations.sort(key=lambda narration: narration["timestamp_sec"])
    path.write_bytes(json_bytes(tree))


def write_activities(path: Path, config: DemoConfig, scripts: list[VideoScript], annotations: DemoAnnotations) -> None:
    """Write `activities.json`: the vocabulary, the actions of each video, and the irregular videos and narrations."""
    flawed = {str(flaw): [s.video_uid for s in scripts if s.flaw is flaw] for flaw in Flaw if flaw is not Flaw.NONE}
    odd_rate = [script.video_uid for script in scripts if script.fps.denominator != 1]
    odd = {
        kind: [{"video_uid": uid, "narration_source": f"narration_pass_{p}", "narration_ind": i} for uid, p, i in items]
        for kind, items in annotations.odd.items()
    }
    tree = {
        "about": "The truth of a rendered world. A summary names an activity; which one follows from the order of its "
        "steps, each an action (verb, noun). Actions between them that are steps of no activity mean nothing.",
        "verbs": {v.name: {"tag_verb": v.tags, "says": [v.phrase, v.rephrased]} for v in VERBS.values()},
        "nouns": {n.name: {"tag_noun": n.tags, "looks": n.looks} for n in NOUNS.values()},
        "activities": [
            _activity(activity, pair[1 - side].name)
            for pair in ACTIVITY_PAIRS[: config.n_pairs]
            for side, activity in enumerate(pair)
        ],
        "special_videos": {**flawed, "odd_rate": odd_rate},
        "special_narrations": odd,
        "videos": {
            script.video_uid: {
                "actions": [
                    {"verb": a.verb, "noun": a.noun, "start": round(a.core_start, 3), "end": round(a.core_end, 3)}
                    for a in script.actions
                ],
                "activities": [{"name": e.activity.name, "start": e.start, "end": e.end} for e in script.episodes],
            }
            for script in scripts
        },
    }
    path.write_bytes(json_bytes(tree))


def _activity(activity: Activity, reverse: str) -> dict[str, Any]:
    return {
        "names": [activity.name, activity.rephrased],
        "tag_verb": activity.tag_verb,
        "tag_noun": activity.tag_noun,
        "steps": [list(step) for step in activity.steps],
        "same_steps_in_reverse": reverse,
    }


def _narration(time: float, script: VideoScript, text: str, uid: str) -> dict[str, Any]:
    return {
        "timestamp_sec": time,
        "timestamp_frame": round(time * script.fps),
        "_unmapped_timestamp_sec": time,
        "narration_text": text,
        "annotation_uid": uid,
    }


def _source(annotation: DemoAnnotation) -> str:
    return f"narration_pass_{annotation.narration_pass}"


def _rows(scripts: list[VideoScript], annotations: Iterable[DemoAnnotation]) -> Iterable[list[Any]]:
    durations = {script.video_uid: script.duration for script in scripts}
    for annotation in annotations:
        yield [
            annotation.video_uid,
            durations[annotation.video_uid],
            _source(annotation),
            annotation.index,
            annotation.time,
            annotation.clip_start,
            annotation.clip_end,
            annotation.text,
            json.dumps(annotation.tag_verb),
            json.dumps(annotation.tag_noun),
        ]


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Sequence[Any]], *, delimiter: str = "\t") -> None:
    """Write a delimited table in the dialect of pandas."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
