"""Writes the annotations as Ego4D, EgoClip and HierVL publish them, and the world's truth beside them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from preprocessing.demo.config import DemoConfig
from preprocessing.demo.narrate import DemoAnnotation, DemoAnnotations
from preprocessing.demo.script import Flaw, VideoScript, stable_uuid
from preprocessing.demo.vocabulary import ACTIVITY_PAIRS, NOUNS, VERBS, Activity

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
    """Write `egoclip.csv`: tab-separated, quoted where needed, one row a narration."""
    rows = ([i, *row] for i, row in enumerate(_rows(scripts, narrations)))
    _write_table(path, ("clip_idx", *_COLUMNS), rows)


def write_egosummary(path: Path, scripts: list[VideoScript], summaries: Iterable[DemoAnnotation]) -> None:
    """Write `egosummary_full.csv`: as `egoclip.csv`, without its first column."""
    _write_table(path, _COLUMNS, _rows(scripts, summaries))


def write_ego4d(path: Path, config: DemoConfig, scripts: list[VideoScript]) -> None:
    """Write `ego4d.json`: what Ego4D says about each video."""
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
    _write_json(path, {"version": "demo", "description": "Rendered video in Ego4D's layout", "videos": videos})


def write_narration(path: Path, scripts: list[VideoScript], remarks: DemoAnnotations) -> None:
    """Write `narration.json`: the same narrations and summaries in Ego4D's own form, and some that it alone has.

    Those are `#unsure` and empty ones, which EgoClip leaves out.
    """
    tree: dict[str, Any] = {}
    by_uid = {script.video_uid: script for script in scripts}
    for script in scripts:
        tree[script.video_uid] = {"status": "complete"}
    for kind, items in (("narrations", remarks.narrations), ("summaries", remarks.summaries)):
        for remark in items:
            passes = tree[remark.video_uid]
            name = _source(remark)
            section = passes.setdefault(name, {"narrations": [], "summaries": []})
            annotator = stable_uuid(kind, remark.video_uid, remark.narration_pass, remark.index)
            if kind == "narrations":
                section[kind].append(_narration(remark.time, by_uid[remark.video_uid], remark.text, annotator))
            else:
                section[kind].append(
                    {
                        "start_sec": remark.clip_start,
                        "end_sec": remark.clip_end,
                        "summary_text": remark.text,
                        "annotation_uid": annotator,
                    }
                )
    odd = scripts[1]
    narrations = tree[odd.video_uid]["narration_pass_1"]["narrations"]
    for i, text in enumerate(("#C C #unsure", "", "#unsure")):
        time = round(narrations[4 * i]["timestamp_sec"] + 0.9, 4)
        narrations.append(_narration(time, odd, text, stable_uuid("unsure", odd.video_uid, i)))
    narrations.sort(key=lambda narration: narration["timestamp_sec"])
    _write_json(path, tree)


def write_activities(path: Path, config: DemoConfig, scripts: list[VideoScript], remarks: DemoAnnotations) -> None:
    """Write `activities.json`: what the words mean, what was done when, and which videos and clips are awkward."""
    flawed = {str(flaw): [s.video_uid for s in scripts if s.flaw is flaw] for flaw in Flaw if flaw is not Flaw.NONE}
    odd_rate = [script.video_uid for script in scripts if script.fps.denominator != 1]
    odd = {
        what: [{"video_uid": uid, "narration_source": f"narration_pass_{p}", "narration_ind": i} for uid, p, i in found]
        for what, found in remarks.odd.items()
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
    _write_json(path, tree)


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


def _source(remark: DemoAnnotation) -> str:
    return f"narration_pass_{remark.narration_pass}"


def _rows(scripts: list[VideoScript], remarks: Iterable[DemoAnnotation]) -> Iterable[list[Any]]:
    durations = {script.video_uid: script.duration for script in scripts}
    for remark in remarks:
        yield [
            remark.video_uid,
            durations[remark.video_uid],
            _source(remark),
            remark.index,
            remark.time,
            remark.clip_start,
            remark.clip_end,
            remark.text,
            json.dumps(remark.tag_verb),
            json.dumps(remark.tag_noun),
        ]


def _write_table(path: Path, columns: Iterable[str], rows: Iterable[list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")  # the dialect that pandas writes
        writer.writerow(columns)
        writer.writerows(rows)


def _write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
