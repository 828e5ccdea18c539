"""Writes benchmarks over the embedded dataset's own videos, each in the format of the files that it is published in.

Questions and tests are about the val videos, which nobody trains on; what is trained or probed on is of train videos.
The first questions name a clip of the missing video, so that a score stands on fewer items than there are.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.demo.config import DemoConfig
from preprocessing.demo.narrate import DemoAnnotation, DemoAnnotations
from preprocessing.demo.script import Action, Flaw, VideoScript
from preprocessing.demo.vocabulary import NOUNS, VERBS, activities

CHOICES = 5
_INTER, _INTRA, _SUMMARY = 1, 2, 3
_TRAIN_VIDEOS = 8  # at most, of the sets that are fine-tuned on
_VERB_CLASS = {name: number for number, name in enumerate(VERBS)}
_NOUN_CLASS = {name: number for number, name in enumerate(NOUNS)}
_EPIC_COLUMNS = (
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkFiles:
    """Where the benchmarks' files are."""

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
        """Return the paths of the files in `folder`, made or not."""
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
    folder: Path, config: DemoConfig, scripts: Sequence[VideoScript], remarks: DemoAnnotations
) -> None:
    """Write all files into `folder`, which is there: the same bytes for the same config."""
    made = BenchmarkFiles.at(folder)
    train = [script for script in scripts if script.split == "train" and script.flaw is Flaw.NONE][:_TRAIN_VIDEOS]
    val = [script for script in scripts if script.split == "val"]
    missing = next(script for script in scripts if script.flaw is Flaw.MISSING)
    asked = [script.video_uid for script in val]
    write_egomcq(made.egomcq, config, asked, missing.video_uid, remarks.narrations)
    write_summarymcq(made.summarymcq, config, asked, missing.video_uid, remarks.summaries)
    write_epic(made.epic_train, made.epic_train_sentences, train)
    write_epic(made.epic_test, made.epic_test_sentences, val)
    made.charades_classes.write_text(
        "".join(f"c{i:03d} {_sentence(verb.phrase)}\n" for i, verb in enumerate(VERBS.values())), encoding="utf-8"
    )
    write_charades_train(made.charades_train, train)
    write_charades_test(made.charades_test, val)
    named = [activity.name for activity in activities(config.n_pairs)]
    made.howto_classes.write_text("".join(f"{name}\n" for name in named), encoding="utf-8")
    write_howto(made.howto_train, train, named)
    write_howto(made.howto_val, val, named)


def write_egomcq(
    path: Path, config: DemoConfig, videos: Sequence[str], missing: str, said: Sequence[DemoAnnotation]
) -> None:
    """Write `egomcq.json`: of each narration of the first pass, a question over videos and one within its own."""
    rng = np.random.default_rng([config.seed, 101])
    clips = [remark for remark in said if remark.narration_pass == 1 and remark.clip_end > remark.clip_start]
    own = [remark for remark in clips if remark.video_uid in videos]
    questions = []
    for number, remark in enumerate(own):
        same = [other for other in own if other.video_uid == remark.video_uid]
        others = [other for other in own if other.video_uid != remark.video_uid]
        for kind, candidates in ((_INTER, others), (_INTRA, same)):
            absent = [other for other in clips if other.video_uid == missing] if number == 0 else []
            questions.append(_question(remark, _unlike(remark, candidates, rng), kind, rng, absent))
    _write_questions(path, [question for question in questions if question is not None])


def write_summarymcq(
    path: Path, config: DemoConfig, videos: Sequence[str], missing: str, said: Sequence[DemoAnnotation]
) -> None:
    """Write `summarymcq_full.json`: of each summary, a question among summaries of other activities."""
    rng = np.random.default_rng([config.seed, 102])
    own = [remark for remark in said if remark.video_uid in videos and remark.narration_pass == 1]
    absent = [remark for remark in said if remark.video_uid == missing]
    questions = [
        _question(remark, _unlike(remark, own, rng), _SUMMARY, rng, absent if number == 0 else [])
        for number, remark in enumerate(own)
    ]
    _write_questions(path, [question for question in questions if question is not None])


def write_epic(path: Path, sentences: Path, scripts: Sequence[VideoScript]) -> None:
    """Write EPIC-KITCHENS-100's retrieval table over the videos' actions, and the table of its distinct sentences."""
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
    _write_table(path, _EPIC_COLUMNS, rows, delimiter=",")
    _write_table(sentences, ("narration_id", "narration"), [(n, t) for t, n in distinct.items()], delimiter=",")


def write_charades_train(path: Path, scripts: Sequence[VideoScript]) -> None:
    """Write Charades-Ego's table of action segments: what is done is the verb."""
    rows = [
        (script.video_uid, _class(action), round(action.start, 2), round(action.end, 2), _sentence_of(action))
        for script in scripts
        for action in script.actions
    ]
    _write_table(path, ("id", "cls", "t_start", "t_end", "narration"), rows, delimiter="\t")


def write_charades_test(path: Path, scripts: Sequence[VideoScript]) -> None:
    """Write Charades-Ego's table of whole videos with all that is done in them."""
    rows = []
    for script in scripts:
        actions = ";".join(f"{_class(a)} {a.start:.2f} {a.end:.2f}" for a in script.actions)
        rows.append((script.video_uid, actions, round(script.duration, 2)))
    _write_table(path, ("id", "actions", "length"), rows, delimiter=",")


def write_howto(path: Path, scripts: Sequence[VideoScript], named: Sequence[str]) -> None:
    """Write HowTo100M's list of long videos: here the stretches of activities, the activity being the class."""
    rows = [
        (script.video_uid, episode.start, episode.end, round(float(script.fps), 3), named.index(episode.activity.name))
        for script in scripts
        for episode in script.episodes
    ]
    _write_table(path, ("video_uid", "clip_start", "clip_end", "fps", "label"), rows, delimiter="\t")


def _unlike(
    remark: DemoAnnotation, candidates: Sequence[DemoAnnotation], rng: np.random.Generator
) -> list[DemoAnnotation]:
    """Return some of the candidates, in random order, that say something else than `remark` and than each other."""
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], DemoAnnotation] = {}
    for index in rng.permutation(len(candidates)).tolist():
        other = candidates[index]
        if (other.tag_verb, other.tag_noun) != (remark.tag_verb, remark.tag_noun):
            found.setdefault((other.tag_verb, other.tag_noun), other)
    return list(found.values())[: CHOICES - 1]


def _question(
    right: DemoAnnotation,
    wrong: Sequence[DemoAnnotation],
    kind: int,
    rng: np.random.Generator,
    absent: Sequence[DemoAnnotation],
) -> dict[str, Any] | None:
    """Return a question as the files have it, a wrong choice replaced by an `absent` one; None where none is wrong."""
    if not wrong:
        return None
    taken = {(remark.tag_verb, remark.tag_noun) for remark in (right, *wrong[:-1])}
    lost = next((remark for remark in absent if (remark.tag_verb, remark.tag_noun) not in taken), None)
    wrong = [*wrong[:-1], lost] if lost is not None else list(wrong)
    answer = int(rng.integers(len(wrong) + 1))
    choices = [*wrong[:answer], right, *wrong[answer:]]
    return {
        "query": _leaf(right),
        "answer": answer,
        "choices": {str(index): _leaf(choice) for index, choice in enumerate(choices)},
        "types": kind,
    }


def _leaf(remark: DemoAnnotation) -> dict[str, Any]:
    """Return a narration or summary as the leaves of the files have it: some fields are null there, too."""
    return {
        "video_uid": remark.video_uid,
        "video_dur": None,
        "narration_source": f"narration_pass_{remark.narration_pass}",
        "narration_ind": remark.index,
        "narration_time": remark.time,
        "clip_start": remark.clip_start,
        "clip_end": remark.clip_end,
        "clip_text": remark.text,
        "tag_verb": json.dumps(remark.tag_verb),
        "tag_noun": json.dumps(remark.tag_noun),
    }


def _write_questions(path: Path, questions: Sequence[dict[str, Any]]) -> None:
    tree = {str(number): question for number, question in enumerate(questions)}
    path.write_text(json.dumps(tree, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _clock(seconds: float) -> str:
    """Return a time as EPIC-KITCHENS writes it, 00:01:59.56."""
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 100:02d}.{rest % 100:02d}"


def _class(action: Action) -> str:
    return f"c{_VERB_CLASS[action.verb]:03d}"


def _sentence(phrase: str) -> str:
    return f"Someone {phrase.format('something')}"


def _sentence_of(action: Action) -> str:
    return f"Someone {VERBS[action.verb].phrase.format(f'the {NOUNS[action.noun].looks}')}"
