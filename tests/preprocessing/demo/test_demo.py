"""The embedded dataset: the same bytes every time, the real formats, and every awkward thing in it."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from configs.loading import ConfigError, from_dict, load
from preprocessing.annotations import Annotations, AnnotationsConfig, read_annotations
from preprocessing.build_shards import benchmark_annotations
from preprocessing.demo import DemoConfig, DemoDataset, generate, read_frame_code, read_video_code
from preprocessing.demo.contact_sheet import contact_sheet
from preprocessing.demo.narrate import narrate
from preprocessing.demo.script import Flaw, make_scripts
from preprocessing.demo.vocabulary import ACTIVITY_PAIRS, NOUNS, VERBS, activities

CONFIG = DemoConfig(size="tiny", frame_code=True)
SMALLEST = DemoConfig(size="tiny", videos=7, seconds=20, width=128, height=96)
EGOCLIP_COLUMNS = [
    "clip_idx",
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
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    return generate(CONFIG, tmp_path_factory.mktemp("demo") / "embedded", workers=1)


@pytest.fixture(scope="module")
def clips(dataset: DemoDataset) -> list[dict[str, Any]]:
    return read_table(dataset.egoclip)


@pytest.fixture(scope="module")
def summaries(dataset: DemoDataset) -> list[dict[str, Any]]:
    return read_table(dataset.egosummary)


@pytest.fixture(scope="module")
def truth(dataset: DemoDataset) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(dataset.activities.read_text(encoding="utf-8"))
    return tree


@pytest.fixture(scope="module")
def videos(dataset: DemoDataset) -> dict[str, dict[str, Any]]:
    return {video["video_uid"]: video for video in json.loads(dataset.ego4d.read_text(encoding="utf-8"))["videos"]}


def read_table(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file, delimiter="\t", strict=True))
    for row in rows:
        assert None not in row and None not in row.values()
        for column in ("video_dur", "narration_time", "clip_start", "clip_end"):
            row[column] = float(row[column])
        row["narration_ind"] = int(row["narration_ind"])
        for column in ("tag_verb", "tag_noun"):
            row[column] = json.loads(row[column])
            assert isinstance(row[column], list)
    return rows


def decode(path: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(path)) as container:
        yield from container.decode(video=0)


def hashes(root: Path) -> dict[str, str]:
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


class TestGenerating:
    def test_the_bytes_depend_on_the_config_and_not_on_the_workers(self, tmp_path: Path) -> None:
        one, two = generate(SMALLEST, tmp_path / "one", workers=1), generate(SMALLEST, tmp_path / "two", workers=2)
        assert hashes(one.root) == hashes(two.root)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]

    def test_another_seed_makes_other_uids_and_words(self) -> None:
        ours, other = make_scripts(CONFIG), make_scripts(dataclasses.replace(CONFIG, seed=1))
        assert not {s.video_uid for s in ours} & {s.video_uid for s in other}
        assert [s.actions for s in ours] != [s.actions for s in other]

    def test_a_second_call_does_nothing(self, dataset: DemoDataset) -> None:
        before = {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*")}
        assert generate(CONFIG, dataset.root) == dataset
        assert {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*")} == before

    def test_another_config_in_the_same_place_is_refused_with_both_values(self, dataset: DemoDataset) -> None:
        with pytest.raises(ConfigError, match="seed is 0 there, 5 here"):
            generate(dataclasses.replace(CONFIG, seed=5), dataset.root)

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(ConfigError, match="neither empty nor an embedded dataset"):
            generate(SMALLEST, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_failure_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("preprocessing.demo.build.make_video", fail)
        with pytest.raises(OSError, match="No space"):
            generate(SMALLEST, tmp_path / "demo", workers=1)
        assert list(tmp_path.iterdir()) == []

    def test_what_a_killed_run_left_is_cleared_away(
        self, dataset: DemoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("preprocessing.demo.build.make_video", lambda *_: None)
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        shutil.copytree(dataset.root, tmp_path / f".tmp-{gone.pid}-demo")
        generate(SMALLEST, tmp_path / "demo", workers=1)
        assert [path.name for path in tmp_path.iterdir()] == ["demo"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"videos": 3}, "videos = 3"),
            ({"seconds": 5.0}, "seconds = 5.0"),
            ({"width": 321}, "width = 321"),
            ({"width": 96, "height": 128}, "width = 96"),
            ({"chunk_seconds": 600.0}, "chunk_seconds = 600.0"),
            ({"activity_pairs": 9}, "activity_pairs = 9"),
            ({"fps": 0}, "fps = 0"),
            ({"seed": -1}, "seed = -1"),
        ],
    )
    def test_an_impossible_config_names_the_field_and_the_value(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            from_dict(DemoConfig, {"size": "tiny", **changes})

    def test_presets_fill_what_is_not_given(self) -> None:
        config = load(DemoConfig, overrides=["size=tiny", "videos=9"])
        assert (config.videos, config.seconds) == (9, 22.0)
        assert load(DemoConfig, overrides=["videos=8", "seconds=22", "activity_pairs=2"]).identity() == (
            DemoConfig(size="tiny").identity()
        )


class TestTables:
    def test_egoclip_has_its_columns_and_types(self, clips: list[dict[str, Any]]) -> None:
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

    def test_egosummary_has_no_clip_idx(self, summaries: list[dict[str, Any]]) -> None:
        assert list(summaries[0]) == EGOCLIP_COLUMNS[1:]
        assert all(row["clip_text"].startswith("#Summary C ") for row in summaries)
        assert all(0 <= row["clip_start"] < row["clip_end"] <= row["video_dur"] for row in summaries)

    def test_rows_are_identified_by_video_pass_and_index(
        self, clips: list[dict[str, Any]], summaries: list[dict[str, Any]]
    ) -> None:
        for rows in (clips, summaries):
            keys = [(row["video_uid"], row["narration_source"], row["narration_ind"]) for row in rows]
            assert len(set(keys)) == len(keys)

    def test_narration_json_says_the_same(
        self, dataset: DemoDataset, clips: list[dict[str, Any]], summaries: list[dict[str, Any]]
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

    def test_ego4d_json_agrees_with_the_files(self, dataset: DemoDataset, videos: dict[str, dict[str, Any]]) -> None:
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


class TestAwkwardThings:
    def test_some_clips_are_shorter_than_seven_frames(self, clips: list[dict[str, Any]]) -> None:
        frames = sorted(round((row["clip_end"] - row["clip_start"]) * CONFIG.fps, 3) for row in clips)
        assert frames[:3] == [1, 3, 6]

    def test_clips_lie_across_the_chunk_boundary(
        self, clips: list[dict[str, Any]], truth: dict[str, Any], videos: dict[str, dict[str, Any]]
    ) -> None:
        at = CONFIG.chunk_seconds
        crossing = {row["video_uid"] for row in clips if row["clip_start"] < at - 0.2 and row["clip_end"] > at + 0.2}
        spoiled = {uid for flaw in ("damaged", "truncated", "missing") for uid in truth["special_videos"][flaw]}
        assert crossing - spoiled

    def test_one_video_is_damaged_in_the_middle_and_decodes_around_it(
        self, dataset: DemoDataset, truth: dict[str, Any], videos: dict[str, dict[str, Any]]
    ) -> None:
        (uid,) = truth["special_videos"]["damaged"]
        good, errors = set(), 0
        with av.open(str(dataset.videos / f"{uid}.mp4")) as container:
            for packet in container.demux(video=0):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    errors += 1
                    continue
                good |= {frame.pts * frame.time_base * CONFIG.fps for frame in frames if not frame.is_corrupt}
        total = videos[uid]["video_metadata"]["num_frames"]
        assert errors > 3
        assert 0.5 * total < len(good) < 0.97 * total
        assert set(range(total // 3)) <= good

    def test_one_video_cannot_be_opened(self, dataset: DemoDataset, truth: dict[str, Any]) -> None:
        (uid,) = truth["special_videos"]["truncated"]
        assert (dataset.videos / f"{uid}.mp4").stat().st_size > 10_000
        with pytest.raises(av.FFmpegError):
            next(decode(dataset.videos / f"{uid}.mp4"))

    def test_one_video_is_missing_and_all_are_annotated(
        self,
        dataset: DemoDataset,
        truth: dict[str, Any],
        videos: dict[str, dict[str, Any]],
        clips: list[dict[str, Any]],
        summaries: list[dict[str, Any]],
    ) -> None:
        (missing,) = truth["special_videos"]["missing"]
        assert {path.stem for path in dataset.videos.iterdir()} == set(videos) - {missing}
        assert {row["video_uid"] for row in clips} == {row["video_uid"] for row in summaries} == set(videos)

    def test_some_narrations_are_past_the_end(self, clips: list[dict[str, Any]]) -> None:
        assert sum(row["clip_start"] >= row["video_dur"] for row in clips) >= 2
        assert any(row["clip_start"] < row["video_dur"] < row["clip_end"] for row in clips)

    def test_some_texts_have_quotes_and_other_alphabets(
        self, dataset: DemoDataset, clips: list[dict[str, Any]]
    ) -> None:
        assert any('"' in row["clip_text"] for row in clips)
        assert any(not row["clip_text"].isascii() for row in clips)
        assert '""' in dataset.egoclip.read_text(encoding="utf-8")  # quoted as pandas does it

    def test_some_tag_lists_are_empty(self, clips: list[dict[str, Any]]) -> None:
        empty = {(not row["tag_verb"], not row["tag_noun"]) for row in clips}
        assert empty == {(False, False), (True, False), (False, True), (True, True)}
        assert any(len(row["tag_verb"]) > 1 for row in clips)

    def test_one_video_has_the_broadcast_rate(self, dataset: DemoDataset, truth: dict[str, Any]) -> None:
        (odd,) = truth["special_videos"]["odd_rate"]
        rates = {}
        for path in dataset.videos.iterdir():
            if path.stem not in truth["special_videos"]["truncated"]:
                with av.open(str(path)) as container:
                    rates[path.stem] = container.streams.video[0].average_rate
        assert rates.pop(odd) == Fraction(30000, 1001)
        assert set(rates.values()) == {Fraction(30)}

    @pytest.mark.parametrize("size", ["tiny", "small", "large"])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_they_are_there_in_every_size(self, size: Any, seed: int) -> None:
        config = DemoConfig(size=size, seed=seed)
        scripts = make_scripts(config)
        assert Counter(s.flaw for s in scripts if s.flaw is not Flaw.NONE) == Counter(
            [Flaw.DAMAGED, Flaw.TRUNCATED, Flaw.MISSING]
        )
        remarks = narrate(config, scripts)
        assert {"short clip", "past the end", "no tags", "odd text", f"across {config.chunk_seconds:g} s"} <= set(
            remarks.odd
        )
        assert scripts[0].video_uid in {uid for uid, *_ in remarks.odd[f"across {config.chunk_seconds:g} s"]}
        assert all(len(s.episodes) >= 1 for s in scripts)
        assert [e.activity for e in scripts[0].episodes[:2]] == [scripts[0].episodes[0].activity] * 2
        for script in scripts:
            assert script.actions[-1].core_end < script.duration
            assert all(a.end <= b.start + 1e-6 for a, b in itertools.pairwise(script.actions))
            assert all(e.end <= script.duration for e in script.episodes)
        done = Counter(e.activity.name for s in scripts for e in s.episodes)
        assert len(done) == 2 * config.n_pairs
        assert max(done.values()) <= 2 * min(done.values())


class TestHierarchy:
    def test_summaries_repeat_within_and_across_videos(self, summaries: list[dict[str, Any]]) -> None:
        per_video = Counter((row["video_uid"], row["narration_source"], row["clip_text"]) for row in summaries)
        assert max(per_video.values()) > 1
        where = defaultdict(set)
        for row in summaries:
            where[row["clip_text"]].add(row["video_uid"])
        assert max(map(len, where.values())) > 1
        assert max(Counter(row["video_uid"] for row in summaries).values()) > 1

    def test_second_narrators_agree_on_some_summaries_only(self, summaries: list[dict[str, Any]]) -> None:
        said = defaultdict(dict)  # type: ignore[var-annotated]
        for row in summaries:
            said[row["video_uid"], row["narration_ind"]][row["narration_source"]] = row["clip_text"]
        agree = {len(set(texts.values())) == 1 for texts in said.values() if len(texts) == 2}
        assert agree == {True, False}

    @pytest.mark.parametrize("size", ["tiny", "small"])
    def test_the_order_of_the_actions_that_are_narrated_tells_the_activity(self, size: Any) -> None:
        config = DemoConfig(size=size)
        phrases = {
            "#C C " + phrase.format(f"the {noun.looks}"): (verb.name, noun.name)
            for verb in VERBS.values()
            for noun in NOUNS.values()
            for phrase in (verb.phrase, verb.rephrased)
        }
        known = {activity.steps: activity for activity in activities(config.n_pairs)}
        steps = {step for activity in known.values() for step in activity.steps}
        remarks = narrate(config, make_scripts(config))
        for summary in remarks.summaries:
            done = []
            for remark in remarks.narrations:
                same = (remark.video_uid, remark.narration_pass) == (summary.video_uid, summary.narration_pass)
                if same and summary.clip_start <= remark.time <= summary.clip_end:
                    done += [action for text, action in phrases.items() if is_said(text, remark.text)]
            activity = known[tuple(action for action in done if action in steps)]
            assert summary.text.removeprefix("#Summary C ") in (activity.name, activity.rephrased)
            assert (summary.tag_verb, summary.tag_noun) == (activity.tag_verb, activity.tag_noun)

    def test_every_activity_has_one_of_the_same_actions_in_reverse(self) -> None:
        for forward, backward in ACTIVITY_PAIRS:
            assert set(forward.steps) == set(backward.steps)
            assert forward.steps == backward.steps[::-1]
            assert forward.steps != backward.steps
            assert forward.tag_verb != backward.tag_verb
        for k in range(2, len(ACTIVITY_PAIRS) + 1):
            sets = [frozenset(pair[0].steps) for pair in ACTIVITY_PAIRS[:k]]
            assert len(set(sets)) == k
            for one in sets:  # not even the first step gives the pair away
                assert any(one & other for other in sets if other != one)

    def test_no_narration_has_an_activitys_words_or_classes(
        self, clips: list[dict[str, Any]], summaries: list[dict[str, Any]]
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

    def test_there_is_enough_to_learn_from(self) -> None:
        remarks = narrate(config := DemoConfig(), make_scripts(config))
        assert len({tag for remark in remarks.narrations for tag in remark.tag_verb}) >= 8
        assert len({tag for remark in remarks.narrations for tag in remark.tag_noun}) >= 10
        assert len(remarks.narrations) > 400
        assert len(remarks.summaries) > 80


def is_said(text: str, remark: str) -> bool:
    """Whether a remark is the phrase `text`, with or without an afterthought."""
    return remark == text or remark.startswith(text + " ")


class TestPictures:
    def test_frame_codes_are_exact_in_every_frame(
        self, dataset: DemoDataset, truth: dict[str, Any], videos: dict[str, dict[str, Any]]
    ) -> None:
        (uid,) = truth["special_videos"]["odd_rate"]
        numbers = [read_frame_code(frame.to_ndarray(format="rgb24")) for frame in decode(dataset.videos / f"{uid}.mp4")]
        assert numbers == list(range(videos[uid]["video_metadata"]["num_frames"]))

    def test_frame_codes_survive_scaling_and_another_encoding(self, dataset: DemoDataset, tmp_path: Path) -> None:
        uid = json.loads(dataset.ego4d.read_text(encoding="utf-8"))["videos"][0]["video_uid"]
        small = tmp_path / "small.mp4"
        with av.open(str(small), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"crf": "23", "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
            for i, frame in enumerate(decode(dataset.videos / f"{uid}.mp4")):
                if i == 200:
                    break
                container.mux(stream.encode(frame.reformat(128, 96, interpolation="BICUBIC")))
            container.mux(stream.encode(None))
        pictures = [frame.to_ndarray(format="rgb24") for frame in decode(small)]
        assert [read_frame_code(picture) for picture in pictures] == list(range(200))
        assert {read_video_code(picture) for picture in pictures} == {0}

    def test_a_picture_without_a_code_is_an_error(self) -> None:
        for level in (0, 128, 255):
            with pytest.raises(ValueError, match="no frame code"):
                read_frame_code(np.full((96, 128, 3), level, np.uint8))

    def test_things_move_where_the_script_says(self, dataset: DemoDataset, truth: dict[str, Any]) -> None:
        uid = json.loads(dataset.ego4d.read_text(encoding="utf-8"))["videos"][5]["video_uid"]
        frames = [
            frame.to_ndarray(format="gray")[:-30].astype(float) for frame in decode(dataset.videos / f"{uid}.mp4")
        ]
        assert all(30 < frame.mean() < 220 and frame.std() > 15 for frame in frames)
        changes = [float(np.abs(b - a).mean()) for a, b in itertools.pairwise(frames)]
        assert max(changes) < 25  # smooth: no cut, no flash
        assert float(np.median(changes)) > 0.3

    def test_the_contact_sheet_shows_clips(self, dataset: DemoDataset, tmp_path: Path) -> None:
        contact_sheet(dataset, tmp_path / "sheet.png", clips=4, width=80)
        assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_torch_is_not_imported() -> None:
    code = "import sys, preprocessing.demo.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class TestBenchmarks:
    """Every benchmark over the embedded dataset's own videos, as the real readers read it."""

    @pytest.fixture(scope="class", name="found")
    @staticmethod
    def annotations(dataset: DemoDataset) -> Annotations:
        return read_annotations(AnnotationsConfig(metadata=dataset.ego4d, **benchmark_annotations(dataset.benchmarks)))

    def test_no_row_is_malformed(self, found: Annotations) -> None:
        assert found.rejects.num_rows == 0
        assert list(found.sets) == ["egomcq", "summarymcq", "epic_mir", "charades_ego", "howto100m"]
        assert all(table.num_rows for table in found.sets.values())

    def test_tests_are_about_val_videos_and_training_about_train_videos(
        self, found: Annotations, videos: dict[str, dict[str, Any]], truth: dict[str, Any]
    ) -> None:
        missing = set(truth["special_videos"]["missing"])
        for set_name, items in found.sets.items():
            for item in items.to_pylist():
                expected = "train" if item["split"] == "train" else "val"
                uid = item["video_uid"]
                assert videos[uid]["split_em"] == expected or (uid in missing and set_name.endswith("mcq"))

    def test_a_question_has_one_right_answer_of_five(self, found: Annotations, clips: list[dict[str, Any]]) -> None:
        said = {(row["video_uid"], row["clip_start"], row["clip_end"]): row for row in clips}
        by_key = {item["key"]: item for item in found.sets["egomcq"].to_pylist()}
        questions = found.companions["egomcq/test/questions.json"]["questions"]
        assert {question["type"] for question in questions} == {"inter", "intra"}
        for question in questions:
            shown = [by_key[key] for key in question["choices"]]
            rows = [said[item["video_uid"], item["clip_start"], item["clip_end"]] for item in shown]
            tags = [(tuple(row["tag_verb"]), tuple(row["tag_noun"])) for row in rows]
            assert rows[question["answer"]]["clip_text"] == question["text"]
            assert tags.count(tags[question["answer"]]) == 1 and len(rows) == 5
            right, *others = (
                rows[question["answer"]]["video_uid"],
                *(row["video_uid"] for i, row in enumerate(rows) if i != question["answer"]),
            )
            if question["id"] not in ("0", "1"):  # these name a clip of the missing video
                assert all((other == right) == (question["type"] == "intra") for other in others)

    def test_a_dataset_of_before_there_were_benchmarks_gets_its_own(self, dataset: DemoDataset, tmp_path: Path) -> None:
        shutil.copytree(dataset.root, tmp_path / "old", copy_function=shutil.copy2)
        shutil.rmtree(tmp_path / "old" / "benchmarks")
        old = {path: path.stat().st_mtime_ns for path in (tmp_path / "old" / "videos").iterdir()}
        made = generate(CONFIG, tmp_path / "old")
        assert hashes(made.root) == hashes(dataset.root)
        assert {path: path.stat().st_mtime_ns for path in made.videos.iterdir()} == old
