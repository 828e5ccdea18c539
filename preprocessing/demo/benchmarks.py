"""Writes small versions of the benchmarks over the embedded dataset's videos, in their published formats.

Questions and test splits use val videos, splits to train on use train videos. The first questions contain a clip of the
missing video, so that scores cover fewer items than the benchmark has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.demo.config import DemoConfig
from preprocessing.demo.narrate import DemoAnnotation, DemoAnnotations
from preprocessing.demo.script import Action, Flaw, VideoScript
from preprocessing.demo.tables import write_table
from preprocessing.demo.vocabulary import NOUNS, VERBS, activities
from shards.files import json_bytes

CHOICES = 5
_INTER, _INTRA, _SUMMARY = 1, 2, 3
_TRAIN_VIDEOS = 8  # at most, in splits to train on
_VERB_CLASS = {name: number for number, name in enumerate(VERBS)}
_NOUN_CLASS = {name: number for number, name in enumerate(NOUNS)}
_EPIC_COLUMNS = (
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkFiles:
    """The paths of the benchmarks' files."""

    egomcq: Path
    summarymcq: Path
    epic_train: Path
    epic_train_sentences: Path
    epic_test: Path
    epic_test_sentences: Path
    charades_train: Path
    charades_test: Path
    charades_classes: Path
    howto_train: Path
    howto_val: Path
    howto_classes: Path

    @classmethod
    def at(cls, folder: Path) -> BenchmarkFiles:
        """Return the paths of the files in `folder`, whether or not they exist."""
        return cls(
            egomcq=folder / "egomcq.json",
            summarymcq=folder / "summarymcq_full.json",
            epic_train=folder / "EPIC_100_retrieval_train.csv",
            epic_train_sentences=folder / "EPIC_100_retrieval_train_sentence.csv",
            epic_test=folder / "EPIC_100_retrieval_test.csv",
            epic_test_sentences=folder / "EPIC_100_retrieval_test_sentence.csv",
            charades_train=folder / "charades_ego_train.csv",
            charades_test=folder / "CharadesEgo_v1_test_only1st.csv",
            charades_classes=folder / "Charades_v1_classes.txt",
            howto_train=folder / "howto100m_train.csv",
            howto_val=folder / "howto100m_val.csv",
            howto_classes=folder / "howto100m_classes.txt",
        )


def write_benchmarks(
    folder: Path, config: DemoConfig, scripts: Sequence[VideoScript], annotations: DemoAnnotations
) -> None:
    """Write all files into the existing `folder`; the same configuration gives the same bytes."""
    paths = BenchmarkFiles.at(folder)
    train = [script for script in scripts if script.split == "train" and script.flaw is Flaw.NONE][:_TRAIN_VIDEOS]
    val = [script for script in scripts if script.split == "val"]
    missing = next(script for script in scripts if script.flaw is Flaw.MISSING)
    val_uids = [script.video_uid for script in val]
    write_egomcq(paths.egomcq, config, val_uids, missing.video_uid, annotations.narrations)
    write_summarymcq(paths.summarymcq, config, val_uids, missing.video_uid, annotations.summaries)
    write_epic(paths.epic_train, paths.epic_train_sentences, train)
    write_epic(paths.epic_test, paths.epic_test_sentences, val)
    paths.charades_classes.write_text(
        "".join(f"c{i:03d} {_sentence(verb.phrase)}\n" for i, verb in enumerate(VERBS.values())), encoding="utf-8"
    )
    write_charades_train(paths.charades_train, train)
    write_charades_test(paths.charades_test, val)
    classes = [activity.name for activity in activities(config.n_pairs)]
    paths.howto_classes.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    write_howto(paths.howto_train, train, classes)
    write_howto(paths.howto_val, val, classes)


def write_egomcq(
    path: Path, config: DemoConfig, videos: Sequence[str], missing: str, narrations: Sequence[DemoAnnotation]
) -> None:
    """Write `egomcq.json`: for each narration of the first pass, an inter-video and an intra-video question."""
    rng = np.random.default_rng([config.seed, 101])
    clips = [
        annotation
        for annotation in narrations
        if annotation.narration_pass == 1 and annotation.clip_end > annotation.clip_start
    ]
    own = [annotation for annotation in clips if annotation.video_uid in videos]
    questions = []
    for number, annotation in enumerate(own):
        same = [other for other in own if other.video_uid == annotation.video_uid]
        others = [other for other in own if other.video_uid != annotation.video_uid]
        for kind, candidates in ((_INTER, others), (_INTRA, same)):
            absent = [other for other in clips if other.video_uid == missing] if number == 0 else []
            questions.append(_question(annotation, _unlike(annotation, candidates, rng), kind, rng, absent))
    _write_questions(path, [question for question in questions if question is not None])


def write_summarymcq(
    path: Path, config: DemoConfig, videos: Sequence[str], missing: str, summaries: Sequence[DemoAnnotation]
) -> None:
    """Write `summarymcq_full.json`: for each summary, a question whose other choices are different activities."""
    rng = np.random.default_rng([config.seed, 102])
    own = [annotation for annotation in summaries if annotation.video_uid in videos and annotation.narration_pass == 1]
    absent = [annotation for annotation in summaries if annotation.video_uid == missing]
    questions = [
        _question(annotation, _unlike(annotation, own, rng), _SUMMARY, rng, absent if number == 0 else [])
        for number, annotation in enumerate(own)
    ]
    _write_questions(path, [question for question in questions if question is not None])


def write_epic(path: Path, sentences: Path, scripts: Sequence[VideoScript]) -> None:
    """Write EPIC-KITCHENS-100's retrieval table of the videos' actions, and the table of its distinct sentences."""
    rows: list[tuple[Any, ...]] = []
    distinct: dict[str, str] = {}
    for script in scripts:
        for number, action in enumerate(script.actions):
            name, text = f"{script.video_uid}_{number}", f"{action.verb} {NOUNS[action.noun].looks}"
            start, stop = round(action.core_start, 2), round(action.core_end, 2)
            rows.append(
                (
                    name, "P01", script.video_uid, _clock(start), _clock(start), _clock(stop),
                    int(start * script.fps) + 1, int(stop * script.fps) + 1, text,
                    action.verb, _VERB_CLASS[action.verb], action.noun, _NOUN_CLASS[action.noun],
                    [action.noun], [_NOUN_CLASS[action.noun]],
                )
            )  # fmt: skip
            distinct.setdefault(text, name)
    write_table(path, _EPIC_COLUMNS, rows, delimiter=",")
    write_table(sentences, ("narration_id", "narration"), [(n, t) for t, n in distinct.items()], delimiter=",")


def write_charades_train(path: Path, scripts: Sequence[VideoScript]) -> None:
    """Write Charades-Ego's table of action segments; the class is the verb."""
    rows = [
        (script.video_uid, _class(action), round(action.start, 2), round(action.end, 2), _sentence_of(action))
        for script in scripts
        for action in script.actions
    ]
    write_table(path, ("id", "cls", "t_start", "t_end", "narration"), rows, delimiter="\t")


def write_charades_test(path: Path, scripts: Sequence[VideoScript]) -> None:
    """Write Charades-Ego's table of whole videos with all their actions."""
    rows = []
    for script in scripts:
        actions = ";".join(f"{_class(a)} {a.start:.2f} {a.end:.2f}" for a in script.actions)
        rows.append((script.video_uid, actions, round(script.duration, 2)))
    write_table(path, ("id", "actions", "length"), rows, delimiter=",")


def write_howto(path: Path, scripts: Sequence[VideoScript], classes: Sequence[str]) -> None:
    """Write HowTo100M's list of long clips: here one clip per activity, whose class is the activity."""
    rows = [
        (
            script.video_uid,
            episode.start,
            episode.end,
            round(float(script.fps), 3),
            classes.index(episode.activity.name),
        )
        for script in scripts
        for episode in script.episodes
    ]
    write_table(path, ("video_uid", "clip_start", "clip_end", "fps", "label"), rows, delimiter="\t")


def _unlike(
    annotation: DemoAnnotation, candidates: Sequence[DemoAnnotation], rng: np.random.Generator
) -> list[DemoAnnotation]:
    """Return up to four candidates in random order whose classes differ from those of `annotation` and each other."""
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], DemoAnnotation] = {}
    for index in rng.permutation(len(candidates)).tolist():
        other = candidates[index]
        if (other.tag_verb, other.tag_noun) != (annotation.tag_verb, annotation.tag_noun):
            found.setdefault((other.tag_verb, other.tag_noun), other)
    return list(found.values())[: CHOICES - 1]


def _question(
    right: DemoAnnotation,
    wrong: Sequence[DemoAnnotation],
    kind: int,
    rng: np.random.Generator,
    absent: Sequence[DemoAnnotation],
) -> dict[str, Any] | None:
    """Return a question in the format of the files; None if there is no wrong choice.

    The last wrong choice is replaced by an annotation of `absent` (those of the missing video), if one differs from the
    other choices.
    """
    if not wrong:
        return None
    taken = {(annotation.tag_verb, annotation.tag_noun) for annotation in (right, *wrong[:-1])}
    lost = next((annotation for annotation in absent if (annotation.tag_verb, annotation.tag_noun) not in taken), None)
    wrong = [*wrong[:-1], lost] if lost is not None else list(wrong)
    answer = int(rng.integers(len(wrong) + 1))
    choices = [*wrong[:answer], right, *wrong[answer:]]
    return {
        "query": _leaf(right),
        "answer": answer,
        "choices": {str(index): _leaf(choice) for index, choice in enumerate(choices)},
        "types": kind,
    }


def _leaf(annotation: DemoAnnotation) -> dict[str, Any]:
    """Return a narration or summary in the format of the question files, in which some fields are null."""
    return {
        "video_uid": annotation.video_uid,
        "video_dur": None,
        "narration_source": f"narration_pass_{annotation.narration_pass}",
        "narration_ind": annotation.index,
        "narration_time": annotation.time,
        "clip_start": annotation.clip_start,
        "clip_end": annotation.clip_end,
        "clip_text": annotation.text,
        "tag_verb": json.dumps(annotation.tag_verb),
        "tag_noun": json.dumps(annotation.tag_noun),
    }


def _write_questions(path: Path, questions: Sequence[dict[str, Any]]) -> None:
    path.write_bytes(json_bytes({str(number): question for number, question in enumerate(questions)}))


def _clock(seconds: float) -> str:
    """Return a time in the format of EPIC-KITCHENS, such as 00:01:59.56."""
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 100:02d}.{rest % 100:02d}"


def _class(action: Action) -> str:
    return f"c{_VERB_CLASS[action.verb]:03d}"


def _sentence(phrase: str) -> str:
    return f"Someone {phrase.format('something')}"


def _sentence_of(action: Action) -> str:
    return f"Someone {VERBS[action.verb].phrase.format(f'the {NOUNS[action.noun].looks}')}"
