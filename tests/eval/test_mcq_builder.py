"""Generated questions: no distractor is correct, the order of rows does not matter, impossible ones are counted."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.loading import ConfigError, load
from eval.build_mcq import main
from eval.mcq_builder import BuiltQuestions, Candidate, McqConfig, build, build_from
from shards.companions import read_questions
from shards.index import finish_split, write_dataset
from tests.paths import REPOSITORY
from tests.shards.samples import TOOLCHAIN, clip, make_dataset, write_shard


def candidates(rng: np.random.Generator, count: int, *, videos: int = 5, classes: int = 4) -> list[Candidate]:
    """Clips with few texts and classes, some overlapping, so that every rule has something to refuse."""
    return [
        Candidate(
            key=f"k{number:03d}",
            video_uid=f"video-{number % videos}",
            clip_start=(start := float(rng.integers(0, 200))),
            clip_end=start + float(rng.integers(1, 6)),
            text=f"#C C  does {rng.integers(12)}",
            verbs=frozenset(rng.integers(0, classes, 2).tolist()),
            nouns=frozenset(rng.integers(0, classes, 2).tolist()),
        )
        for number in range(count)
    ]


def questions_of(clips: list[Candidate], *, fingerprint: str = "f", **settings: object) -> BuiltQuestions:
    config = McqConfig(**settings)  # type: ignore[arg-type]
    return build(clips, config, fingerprint=fingerprint, set_name="clips", split="val", name="made")


@pytest.mark.parametrize("seed", range(4))
def test_no_distractor_is_correct(seed: int) -> None:
    clips = candidates(np.random.default_rng(seed), 120, videos=12)
    of = {candidate.key: candidate for candidate in clips}
    built = questions_of(clips, seed=seed)
    sharing = dict.fromkeys(("inter", "intra"), 0)
    for question in built.questions.questions:
        answer = of[question.choices[question.answer]]
        others = [of[key] for place, key in enumerate(question.choices) if place != question.answer]
        assert question.text == answer.text and question.id == f"{question.type}-{answer.key}"
        assert len(others) == 4 and len({answer.key, *(other.key for other in others)}) == 5
        assert all(other.text != answer.text for other in others)
        assert {other.video_uid == answer.video_uid for other in others} == {question.type == "intra"}
        if question.type == "intra":
            taken = sorted([answer, *others], key=lambda c: c.clip_start)
            assert all(a.clip_end <= b.clip_start for a, b in itertools.pairwise(taken))
        sharing[question.type] += any(o.verbs & answer.verbs and o.nouns & answer.nouns for o in others)
    for kind, counts in built.counts.items():
        count = sum(question.type == kind for question in built.questions.questions)
        assert (counts.questions, counts.relaxed) == (
            count,
            sharing[kind],
        ) and counts.questions + counts.impossible == 120
    assert sharing["inter"] == 0 < sharing["intra"]  # among 10 clips of a video the rule had to be lifted


def test_intra_distractors_are_the_nearest_that_are_allowed() -> None:
    clips = [
        Candidate(key=f"k{i}", video_uid="v", clip_start=10.0 * i, clip_end=10.0 * i + 5, text=f"t{i}")
        for i in range(9)
    ]
    found = {q.id: q for q in questions_of(clips, types=("intra",), options=4).questions.questions}
    assert set(found["intra-k4"].choices) == {"k2", "k3", "k4", "k5"}  # of equally near ones the earlier
    assert set(found["intra-k0"].choices) == {"k0", "k1", "k2", "k3"}


def test_if_all_share_the_answers_classes_the_rule_is_dropped_and_counted() -> None:
    clips = [
        Candidate(
            key=f"k{i}",
            video_uid=f"v{i}",
            clip_start=0,
            clip_end=1,
            text=f"t{i}",
            verbs=frozenset([1]),
            nouns=frozenset([2] if i else [3]),
        )
        for i in range(5)
    ]
    built = questions_of(clips, types=("inter",))
    assert (built.counts["inter"].questions, built.counts["inter"].relaxed) == (5, 4)


def test_equal_texts_and_a_single_video_give_no_question_and_are_counted() -> None:
    same = [
        Candidate(key=f"k{i}", video_uid=f"v{i}", clip_start=0, clip_end=1, text=("A b", "a  B ")[i % 2])
        for i in range(9)
    ]
    assert questions_of(same).counts["inter"].impossible == 9 and questions_of(same).questions.questions == ()
    alone = [Candidate(key=f"k{i}", video_uid="v", clip_start=i, clip_end=i + 1, text=f"t{i}") for i in range(9)]
    assert questions_of(alone).counts["inter"].impossible == 9 and questions_of(alone).counts["intra"].questions == 9
    assert questions_of([]).questions.questions == ()


def test_questions_depend_on_fingerprint_seed_and_key_but_not_on_the_order_of_rows() -> None:
    clips = candidates(np.random.default_rng(0), 60)
    first = questions_of(clips).questions
    assert questions_of(random.Random(1).sample(clips, 60)).questions == first
    assert questions_of(clips, fingerprint="g").questions != first and questions_of(clips, seed=1).questions != first


def test_fewer_questions_are_a_subset_that_depends_on_the_seed() -> None:
    clips = candidates(np.random.default_rng(0), 60)
    every = questions_of(clips).questions.questions
    few = questions_of(clips, questions=7).questions.questions
    assert [question.type for question in few] == ["inter"] * 7 + ["intra"] * 7 and set(few) <= set(every)
    assert {q.id for q in questions_of(clips, questions=7, seed=1).questions.questions} != {q.id for q in few}


def test_answers_are_at_every_position() -> None:
    built = questions_of(candidates(np.random.default_rng(0), 250), types=("inter",))
    places = [question.answer for question in built.questions.questions]
    assert min(places.count(place) for place in range(5)) > 25


@pytest.mark.parametrize("override", ["options=1", "types=[]", "types=[inter, inter]", "questions=0"])
def test_settings_out_of_range_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        load(McqConfig, None, [override])


def test_the_command_writes_questions_about_the_embedded_dataset(embedded: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.json"
    command = [
        sys.executable,
        "eval/build_mcq.py",
        str(embedded),
        "--set",
        "clips",
        "--split",
        "val",
        "--out",
        str(out),
    ]
    done = subprocess.run([*command, "options=3", "seed=4"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = read_questions(out)
    direct = build_from(str(embedded), "clips", "val", McqConfig(options=3, seed=4), name="made")
    assert found == direct.questions and (found.set, found.split, found.name) == ("clips", "val", "made")
    assert {question.type for question in found.questions} == {"inter", "intra"}
    made = json.loads((tmp_path / "made.made.json").read_text())
    assert made["config"]["seed"] == 4 and made["fingerprint"] == direct.fingerprint
    first = out.read_bytes()
    assert main([*command[2:], "options=3", "seed=4"]) == 0 and out.read_bytes() == first


def test_classes_come_from_the_samples_and_withdrawn_videos_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    texts = [f"#C C does {i}" for i in range(8)]
    samples = [clip(i, video=f"video-{i}", tags=(i // 4,), text=texts[i]) for i in range(8)]
    write_shard(root, samples[:3], number=0)
    write_shard(root, samples[3:], number=1)
    finish_split(root, "clips", "train")
    write_dataset(root, config={}, toolchain=TOOLCHAIN, provenance={})
    built = build_from(str(root), "clips", "train", McqConfig(options=4, types=("inter",)), name="x")
    assert built.counts["inter"].questions == 8 and built.counts["inter"].relaxed == 0
    for question in built.questions.questions:
        number = int(question.text[-1])
        keys = {samples[i].key for i in range(8) if i // 4 != number // 4}
        assert set(question.choices) - {samples[number].key} < keys  # the other three of its class never
    (root / "denylist.txt").write_text("video-6\n")
    after = build_from(str(root), "clips", "train", McqConfig(options=4, types=("inter",)), name="x")
    assert after.counts["inter"].questions == 7 and samples[6].key not in after.questions.keys()  # noqa: SIM118


def test_unusable_input_has_a_message_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "shards"
    make_dataset(root)
    out = ["--out", str(tmp_path / "q.json")]
    assert main([str(tmp_path / "none"), *out]) == 1 and "none" in capsys.readouterr().err
    assert main([str(root), "--split", "test", *out]) == 1 and "no split clips/test" in capsys.readouterr().err
    assert main([str(root), "sead=1", *out]) == 2 and "did you mean seed" in capsys.readouterr().err
    assert main([str(root), "options=9", *out]) == 1 and "allows no question" in capsys.readouterr().err
    assert not (tmp_path / "q.json").exists()
    with pytest.raises(SystemExit):
        main([str(root), "--out", str(tmp_path / "q.txt")])
