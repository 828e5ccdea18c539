"""Datasets whose hashes are all correct, but which state what cannot be: each forgery is found and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shards.verify.run import verify
from tests.media import make_jpg, make_mp4
from tests.shards import samples
from tests.shards.verify import forgery
from tests.shards.verify.damage import findings_text
from tests.shards.verify.forgery import CLIPS, QUESTIONS, SECOND, SUMMARIES

KEY = "video-a_c1_000001"
Forge = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset that is forged, not to be changed."""
    root = tmp_path_factory.mktemp("forged") / "shards"
    forgery.make(root)
    return root


def of(**changes: Any) -> Forge:
    """Return a change of the record of a clip from 10.0 to 10.7 s, stored from 9.9 s."""
    return lambda root: forgery.record(root, **changes)


def in_summary(**changes: Any) -> Forge:
    """Return a change of the second narration of a summary from 10.0 to 30.7 s."""
    return lambda root: forgery.records(root, SUMMARIES, lambda made: made[0]["json"]["narrations"][1].update(changes))


def of_records(shard: str, change: Callable[[list[dict[str, Any]]], object]) -> Forge:
    return lambda root: forgery.records(root, shard, change)


def manifest(change: Callable[[dict[str, Any]], object]) -> Forge:
    return lambda root: forgery.resign(root, change)


def chunk(**changes: Any) -> Forge:
    def change(value: dict[str, Any]) -> None:
        value["config"]["chunk"].update(changes)
        value["toolchain"].update({f"chunk.{name}": str(item) for name, item in changes.items()})

    return manifest(change)


def clips(change: Callable[[dict[str, Any]], object]) -> Forge:
    return manifest(lambda value: change(value["sets"]["clips"]["train"]))


def table(name: str, change: Callable[[list[dict[str, Any]]], object]) -> Forge:
    return lambda root: forgery.table(root, name, change)


def asked(change: Callable[[dict[str, Any]], object]) -> Forge:
    return lambda root: forgery.questions(root, change)


def copied_to_another_number(root: Path) -> None:
    for suffix in (".tar", ".parquet", "_stats.json"):
        text = (root / f"{SECOND}{suffix}").read_bytes().replace(b"00002.tar", b"00003.tar")
        (root / f"clips/train/00003{suffix}").write_bytes(text)
    forgery.resign(root)


def exchanged(member: str) -> Callable[[list[dict[str, Any]]], None]:
    def change(made: list[dict[str, Any]]) -> None:
        made[0][member], made[1][member] = made[1][member], made[0][member]

    return change


def row(**changes: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda rows: rows[0].update(changes)


CATALOGUE: dict[str, tuple[Forge, str]] = {
    # times and frames of a record
    "the clip ends before it starts": (of(clip_end=9.0), f"{CLIPS}.tar [{KEY}] json: invalid fps or clip interval"),
    "the media starts after the clip": (of(media_start=10.4), "json: its first frame shows 10.500 s"),
    "the media starts long before": (of(media_start=1.0), "json: its first frame shows 1.100 s"),
    "the media is one frame early": (of(media_start=9.8), "json: its last frame ends at 10.600 s"),
    "negative times": (of(media_start=-10.1, clip_start=-10.0, clip_end=-9.3), "before the video's first frame"),
    "a negative first frame": (of(first_frame=-1), "first_frame = -1"),
    "no frames of the clip": (of(clip_frames=0), "clip_frames = 0"),
    "frames beyond those stored": (of(clip_frames=8), "exceed the num_frames = 8 stored frames"),
    "one frame less than the clip has": (of(clip_frames=5), "json: its last frame ends at 10.500 s"),
    "more stored frames than the video": (of(num_frames=9), "mp4: the video has 8 frames; in the record 9"),
    "a billion frames": (of(num_frames=10**9), "num_frames = 1000000000; at most"),
    "the clip is longer than its frames": (of(clip_end=12.0), "but clip_end is 12.000 s"),
    "no frame rate": (of(fps=0.0), "invalid fps"),
    "a negative frame rate": (of(fps=-10.0), "invalid fps"),
    "an absurd frame rate": (of(fps=1e300), "invalid fps"),
    "another frame rate": (of(fps=12.5), "json: fps is 12.5; dataset.json says 10 for clips"),
    "another width": (of(width=66), "in the record 66×48"),
    "an odd height": (of(height=47), "the frame size 64×47 is odd"),
    "a frame that no memory holds": (of(width=10**6, height=10**6), "invalid frame size"),
    "beyond the video's spans": (
        of(clip_start=70.0, clip_end=70.7, media_start=69.9, narration_time=70.3, segment="video-a_1"),
        f"{CLIPS}.tar [{KEY}] its frames end at 70.700 s; the spans of its video end at 60.000 s",
    ),
    "in a failed span": (
        of(clip_start=45.0, clip_end=45.7, media_start=44.9),
        "its frames 44.900–45.700 s touch 40.000–60.000 s, a failed span",
    ),
    "an infinite time": (of(clip_end=float("inf")), "json: Infinity is not JSON"),
    "a time that is no number": (of(clip_start=float("nan")), "json: NaN is not JSON"),
    "a time as text": (of(clip_start="10.0"), "json: clips.clip_start: float is expected"),
    "a null": (of(narration_source=None), "json: clips.narration_source: str is expected"),
    "an unknown field": (of(further=1), "unknown fields ['further']"),
    # identity of a record
    "another segment": (of(segment="video-a_7"), "json: segment is 'video-a_7'"),
    "another video": (
        of(video_uid="video-b", segment="video-b_0"),
        "the key is not that of a sample of video 'video-b'",
    ),
    "a verb that is none": (of(tag_verb=[118]), "tag_verb = [118]; classes are 0 … 117"),
    "a negative noun": (of(tag_noun=[-1]), "tag_noun = [-1]; classes are 0 … 581"),
    "a negative time of narration": (of(narration_time=-1.0, segment="video-a_-1"), "narration_time is -1.0"),
    "another text than its summary has": (
        of(text="#C C lies"),
        f"{SUMMARIES}.tar [video-a_s1_000001] json: video, text",
    ),
    "a text that txt does not repeat": (
        of_records(CLIPS, lambda made: made[0].update(txt=b"#C C lies")),
        "txt is b'#C C lies', but the text in json is",
    ),
    "a text of another encoding": (of_records(CLIPS, lambda made: made[0].update(txt=b"\xff\xfe")), "txt is b'\\xff"),
    # narrations of a summary
    "a narration before its summary": (in_summary(clip_start=1.0), "1.0–20.7 s is outside the summary's 10.0–30.7 s"),
    "a narration after its summary": (in_summary(clip_end=40.0), "narrations[1]: 20.0–40.0 s is outside the summary"),
    "a narration that ends before it starts": (
        in_summary(clip_end=19.0),
        "clip_end 19.0 s is before clip_start 20.0 s",
    ),
    "a narration of no clip": (in_summary(key="video-a_c1_000099"), "is neither a sample of clips nor in the ledger"),
    "a narration of another video": (in_summary(key="val-video_c1_000000"), "is not of this summary's video"),
    "a narration twice": (in_summary(key=KEY), f"narrations[1]: {KEY} is repeated"),
    "a narration without a key": (in_summary(key="../x"), "'../x' is not a valid key"),
    "a narration with another text": (in_summary(text="#C C lies"), "differ from those of its clip"),
    "a narration with a tag that is none": (in_summary(tag_noun=[582]), "tag_noun is [582]"),
    "narrations out of order": (
        of_records(SUMMARIES, lambda made: made[0]["json"]["narrations"].reverse()),
        "the narrations are not in time order",
    ),
    # media
    "exchanged videos": (of_records(CLIPS, exchanged("mp4")), "mp4: the jpg does not show frame"),
    "exchanged images": (of_records(CLIPS, exchanged("jpg")), "mp4: the jpg does not show frame"),
    "an image of something else": (
        of_records(CLIPS, lambda made: made[1].update(jpg=make_jpg(3))),
        f"[{KEY}] mp4: the jpg does not show frame",
    ),
    "a video of another rate": (
        of_records(CLIPS, lambda made: made[1].update(mp4=make_mp4(8, seed=1, fps=20))),
        "mp4: the frame rate is 20/s; in the record 10",
    ),
    "a video that is empty": (of_records(CLIPS, lambda made: made[1].update(mp4=b"")), "mp4: "),
    "records of two samples exchanged": (of_records(CLIPS, exchanged("json")), "txt is"),
    # shards
    "a key twice in a shard": (
        of_records(CLIPS, lambda made: made.append(made[0])),
        "the key or its members are repeated",
    ),
    "a shard under two numbers": (copied_to_another_number, "another sample has the same key"),
    "a sample of another set": (
        lambda root: shutil.copytree(root / "clips/val", root / "clips/test"),
        "clips/test [] unexpected in a set",
    ),
    "a sample less": (of_records(SECOND, lambda made: made.pop()), "the packed row lists clips/train/00002.tar"),
    "an offset that overlaps another": (table(f"{CLIPS}.parquet", row(mp4_offset=512)), "row 0: mp4_offset is 512"),
    "a negative size": (table(f"{CLIPS}.parquet", row(mp4_size=-1)), "row 0: mp4_size is -1"),
    "an index with another text": (table(f"{CLIPS}.parquet", row(text="#C C lies")), "row 0: text is '#C C lies'"),
    "a row more": (
        table(f"{CLIPS}.parquet", lambda rows: rows.append(rows[0])),
        "5 rows, but 4 samples are listed",
    ),
    "rows in another order": (table(f"{CLIPS}.parquet", lambda rows: rows.reverse()), "row 0: key is"),
    # dataset.json
    "a shard listed twice": (clips(lambda e: e["shards"].append(e["shards"][0])), "00000.tar is listed more than once"),
    "a shard listed as filled and empty": (
        clips(lambda e: e["empty"].append({"name": "00000.tar", "stats_sha256": e["shards"][0]["stats_sha256"]})),
        "00000.tar is listed more than once",
    ),
    "another number of samples": (clips(lambda e: e.update(samples=8)), "clips/train: samples is 8"),
    "samples as text": (clips(lambda e: e.update(samples="7")), "clips/train: samples: int is expected"),
    "a negative number of samples": (clips(lambda e: e["shards"][0].update(samples=-4)), "-4 samples"),
    "another fingerprint": (clips(lambda e: e.update(fingerprint="0" * 64)), "clips/train: fingerprint is"),
    "another hash of a tar": (clips(lambda e: e["shards"][0].update(sha256="0" * 64)), "00000.tar: listed as"),
    "shards that are no list": (clips(lambda e: e.update(shards=None)), "clips/train: shards: a list is expected"),
    "a shard outside": (clips(lambda e: e["shards"][0].update(name="../00000.tar")), "is not the name of a shard"),
    "a split that is not there": (
        manifest(lambda v: v["sets"]["clips"].update(test=v["sets"]["clips"]["val"])),
        "it lists clips/test, which has no complete shard",
    ),
    "an unknown set": (manifest(lambda v: v["sets"].update(films={})), "sets: 'films' is not a set"),
    "sets that are a list": (manifest(lambda v: v.update(sets=[])), "sets: expected an object"),
    "a file outside": (manifest(lambda v: v["files"].update({"../x": "0" * 64})), "outside the dataset's folder"),
    "a file with NUL": (manifest(lambda v: v["files"].update({"x\0": "0" * 64})), "outside the dataset's folder"),
    "a hash that is a number": (manifest(lambda v: v["files"].update({"README.md": 7})), "README.md [] sha256 is"),
    "an odd short side": (chunk(short_side=47), "config.chunk.short_side is 47; expected an even number"),
    "a short side below that of the samples": (chunk(short_side=32), "the short side has at most 32 pixels"),
    "no frames a second": (chunk(fps=0), "config.chunk.fps is 0; expected int of 1 … 1000"),
    "another rate than the samples": (chunk(fps=30), "json: fps is 10; dataset.json says 30 for clips"),
    "a rate that does not divide": (chunk(summary_fps=3), "config.chunk.summary_fps is 3; it must divide fps"),
    "a rate that is no number": (chunk(fps="10"), "config.chunk.fps is '10'"),
    "a rate that is true": (chunk(summary_fps=True), "config.chunk.summary_fps is True"),
    "key frames further apart than a chunk": (chunk(gop_seconds=700.0), "config.chunk.gop_seconds is 700.0; at most"),
    "an impossible quality": (chunk(crf=99), "config.chunk.crf is 99"),
    "samples per shard": (
        manifest(lambda v: v["config"]["shard"].update(max_samples=0)),
        "config.shard.max_samples is 0",
    ),
    "a configuration that is a list": (manifest(lambda v: v.update(config=[1])), "config: expected an object"),
    "a chunk that is a number": (manifest(lambda v: v["config"].update(chunk=3)), "config.chunk: expected an object"),
    "a toolchain of other settings": (
        manifest(lambda v: v["config"]["chunk"].update(crf=24)),
        "toolchain: chunk.crf is '23'; config has 24",
    ),
    "another schema version": (manifest(lambda v: v.update(schema_version=99)), "schema version 99"),
    "other counts": (
        manifest(lambda v: v["provenance"]["counts"]["clips"].update(packed=1000)),
        "ledger.parquet [] clips has the rows",
    ),
    # ledger and spans
    "a packed row for no sample": (table("ledger.parquet", row(key="nobody_c1_000000")), "which has no such sample"),
    "a sample without a row": (table("ledger.parquet", lambda rows: rows.pop(0)), "has no packed row"),
    "two rows for a sample": (
        table("ledger.parquet", lambda rows: rows.append(rows[0])),
        "2 packed rows for one sample",
    ),
    "a packed row of another set": (table("ledger.parquet", row(set="summaries")), "a packed row of the set summaries"),
    "a packed row of another video": (table("ledger.parquet", row(video_uid="x")), "the packed row is of video 'x'"),
    "an unknown status": (table("ledger.parquet", row(status="lost")), "unknown status 'lost'"),
    "an unknown set in the ledger": (table("ledger.parquet", row(set="films")), "unknown set 'films'"),
    "a failure without a reason": (
        table("ledger.parquet", lambda rows: [r.update(reason="") for r in rows if r["status"] == "failed"]),
        "has no reason",
    ),
    "a failed sample without a row": (
        table("ledger.parquet", lambda rows: rows.remove(next(r for r in rows if r["item"] == "lost_c1_000000"))),
        "the sample failed in clips/train/00000.tar, but has no row",
    ),
    "overlapping spans": (table("spans.parquet", lambda rows: rows[-1].update(start=1.0)), "expected one from"),
    "a span that ends before it starts": (table("spans.parquet", row(end=-1.0)), "span 0.0–-1.0 s"),
    "a span that is no number": (table("spans.parquet", row(end=float("nan"))), "span 0.0–nan s"),
    "an endless span": (table("spans.parquet", row(end=float("inf"))), "span 0.0–inf s"),
    "a packed video without spans": (
        table("spans.parquet", lambda rows: rows.remove(next(r for r in rows if r["video_uid"] == "val-video"))),
        "[val-video] the ledger says that the video is packed, but it has no span",
    ),
    # questions
    "an answer out of range": (
        asked(lambda v: v["questions"][0].update(answer=9)),
        f"{QUESTIONS} [] question 0: answer = 9",
    ),
    "a negative answer": (asked(lambda v: v["questions"][0].update(answer=-1)), "question 0: answer = -1"),
    "a choice of no clip": (
        asked(lambda v: v["questions"][0].update(choices=["x_q0_0", "y_q0_0"])),
        "x_q0_0 is neither a sample of egomcq/test nor in the ledger",
    ),
    "a choice that is no key": (asked(lambda v: v["questions"][0]["choices"].__setitem__(0, "a/b")), "not a valid key"),
    "a question twice": (asked(lambda v: v["questions"].append(v["questions"][0])), "question 0 is repeated"),
    "questions of another set": (asked(lambda v: v.update(set="summarymcq")), "it is for summarymcq/test"),
    "a question without choices": (asked(lambda v: v["questions"][0].update(choices=[])), "0 choices"),
}  # fmt: skip


def test_the_forged_dataset_is_sound_before(sound: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sound, tmp_path / "shards")
    for nothing in (forgery.resign, forgery.record, partial(forgery.questions, change=lambda value: None)):
        nothing(root)
        assert verify(root).findings == ()
    assert pq.read_table(root / f"{CLIPS}.parquet").num_rows == 4
    assert samples.FPS == 10


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_forgery_is_named(sound: Path, tmp_path: Path, name: str) -> None:
    forge, expected = CATALOGUE[name]
    root = shutil.copytree(sound, tmp_path / "shards")
    forge(root)
    text = findings_text(root)
    assert expected in text, text
    assert "cannot be checked" not in text
    assert "sha256 is" not in text or expected.endswith("sha256 is"), text
