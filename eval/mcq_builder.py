"""Generates multiple-choice questions from any set of clips: a text, its clip, and distractors.

A question depends on the split's fingerprint, the seed and the key of its clip alone: neither the order of rows nor the
number of questions changes it. The rules for a distractor:

- its text differs from the answer's;
- inter: it is from another video. intra: it is from the same video, overlaps neither the answer nor another distractor,
  and is the nearest in time that remains, as EgoMCQ's intra-video questions are about neighbouring clips (EgoVLP, 3.3);
- it does not share both a verb and a noun class with the answer, which EgoNCE counts as a positive pair. If a question
  is impossible for this rule alone, the rule is dropped for as many distractors as necessary, and that is counted.
"""

from __future__ import annotations

import bisect
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from eval.metrics.mcq import keyed_rng
from shards import schema
from shards.companions import Question, Questions
from shards.config import SourceConfig
from shards.dataset import read_rows
from shards.schema import ClipRecord, EpicRecord, MediaRecord
from shards.sources import Source, open_source

QuestionType = Literal["inter", "intra"]
_DRAWS = 50  # random draws per distractor before all clips are examined


@dataclass(frozen=True, kw_only=True)
class McqDataConfig:
    """How the dataset is read."""

    source: SourceConfig = field(default_factory=SourceConfig)


@dataclass(frozen=True, kw_only=True)
class McqConfig:
    """Which questions are generated."""

    seed: int = 0  # of the choice of questions and distractors
    options: Annotated[int, Field(ge=2)] = 5  # options per question, the correct one among them
    types: tuple[QuestionType, ...] = ("inter", "intra")  # distractors from other videos, from the same video
    questions: PositiveInt | None = None  # most questions of each type; null: one about every clip
    data: McqDataConfig = field(default_factory=McqDataConfig)

    def __post_init__(self) -> None:
        if not self.types or len(set(self.types)) < len(self.types):
            raise ValueError(f"types = {list(self.types)}: inter, intra or both are expected, each once")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A clip that may be the answer or a distractor of a question."""

    key: str
    video_uid: str
    clip_start: float  # s
    clip_end: float  # s
    text: str
    verbs: frozenset[int] = frozenset()  # verb classes; empty if the set has none
    nouns: frozenset[int] = frozenset()  # noun classes

    @property
    def has_text(self) -> bool:
        """Whether a question can be about this clip."""
        return bool(self.text.strip())

    def shares_classes(self, other: Candidate) -> bool:
        """Return whether both share a verb and a noun class, so that the other may be a correct answer, too."""
        return bool(self.verbs & other.verbs) and bool(self.nouns & other.nouns)

    def has_same_text(self, other: Candidate) -> bool:
        """Return whether both have the same words, ignoring case and whitespace."""
        return self.text.casefold().split() == other.text.casefold().split()

    def overlaps(self, other: Candidate) -> bool:
        """Return whether two clips of the same video overlap in time."""
        return self.clip_start == other.clip_start or (
            max(self.clip_start, other.clip_start) < min(self.clip_end, other.clip_end)
        )


@dataclass(frozen=True, kw_only=True)
class TypeCounts:
    """How many questions of one type were generated."""

    questions: int
    relaxed: int  # questions with a distractor that shares a verb and a noun class with the answer
    impossible: int  # clips without a question, for want of a text or of distractors


@dataclass(frozen=True, kw_only=True)
class BuiltQuestions:
    """Generated questions and their counts."""

    questions: Questions
    counts: dict[QuestionType, TypeCounts]
    fingerprint: str  # of the split


def read_candidates(source: Source, set_name: str, split: str) -> list[Candidate]:
    """Return the clips of a split without withdrawn videos.

    Raises `ShardError` or `SchemaError` if the shards cannot be read.
    """
    denied = source.dataset.denylist
    names = ["key", "video_uid", "clip_start", "clip_end", "text", "json_offset", "json_size"]
    has_classes = schema.record_class(set_name) not in (MediaRecord, schema.ChoiceRecord)
    found = []
    for shard in source.dataset.split(set_name, split).shards:
        for row in read_rows(source.parquet(shard), names).to_pylist():
            at, size = row.pop("json_offset"), row.pop("json_size")
            if row["video_uid"] in denied:
                continue
            verbs: frozenset[int] = frozenset()
            nouns: frozenset[int] = frozenset()
            if has_classes:
                verbs, nouns = _classes(_record(set_name, row["key"], source.read(shard, at, size)))
            found.append(Candidate(**row, verbs=verbs, nouns=nouns))
    return found


def build(
    candidates: Sequence[Candidate], config: McqConfig, *, fingerprint: str, set_name: str, split: str, name: str
) -> BuiltQuestions:
    """Return the questions that these clips allow, sorted by id within each type."""
    pool = sorted(candidates, key=lambda candidate: candidate.key)
    videos: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(pool, key=lambda c: (c.clip_start + c.clip_end, c.key)):
        videos[candidate.video_uid].append(candidate)
    questions: list[Question] = []
    counts: dict[QuestionType, TypeCounts] = {}
    for kind in config.types:
        parts = (fingerprint, config.seed, kind)
        answers = [candidate for candidate in pool if candidate.has_text]
        if config.questions is not None:  # a random choice that does not depend on the other clips
            answers.sort(key=lambda candidate: int(keyed_rng("which", *parts, candidate.key).integers(2**63)))
        found: list[Question] = []
        relaxed, impossible = 0, len(pool) - len(answers)
        for answer in answers:
            if len(found) == config.questions:
                break
            label = (*parts, answer.key)
            distractors = (
                _inter(answer, pool, config.options - 1, label)
                if kind == "inter"
                else _intra(answer, videos[answer.video_uid], config.options - 1)
            )
            if distractors is None:
                impossible += 1
                continue
            relaxed += any(answer.shares_classes(distractor) for distractor in distractors)
            found.append(_question(answer, distractors, kind, label))
        questions += sorted(found, key=lambda question: question.id)
        counts[kind] = TypeCounts(questions=len(found), relaxed=relaxed, impossible=impossible)
    return BuiltQuestions(
        questions=Questions(set=set_name, split=split, name=name, questions=tuple(questions)),
        counts=counts,
        fingerprint=fingerprint,
    )


def build_from(root: str, set_name: str, split: str, config: McqConfig, *, name: str) -> BuiltQuestions:
    """Return the questions that a split of the dataset at `root` (a path or URL) allows; raises as `read_candidates`.

    built = build_from("data/embedded/shards", "clips", "val", McqConfig(questions=100), name="mine")
    """
    source = open_source(root, config.data.source)
    fingerprint = source.dataset.split(set_name, split).fingerprint
    candidates = read_candidates(source, set_name, split)
    return build(candidates, config, fingerprint=fingerprint, set_name=set_name, split=split, name=name)


def _inter(
    answer: Candidate, pool: Sequence[Candidate], count: int, label: tuple[object, ...]
) -> list[Candidate] | None:
    """Return distractors drawn uniformly from other videos; None if there are not enough."""
    rng = keyed_rng("options", *label)
    chosen: dict[str, Candidate] = {}

    def is_allowed(other: Candidate, *, strict: bool) -> bool:
        return (
            other.video_uid != answer.video_uid
            and other.key not in chosen
            and not other.has_same_text(answer)
            and not (strict and other.shares_classes(answer))
        )

    for place in rng.integers(len(pool), size=_DRAWS * count).tolist():
        if len(chosen) < count and is_allowed(pool[place], strict=True):
            chosen[pool[place].key] = pool[place]
    for strict in (True, False):
        if len(chosen) < count:
            rest = [other for other in pool if is_allowed(other, strict=strict)]
            for place in rng.permutation(len(rest))[: count - len(chosen)].tolist():
                chosen[rest[place].key] = rest[place]
    return list(chosen.values()) if len(chosen) == count else None


def _intra(answer: Candidate, video: Sequence[Candidate], count: int) -> list[Candidate] | None:
    """Return the nearest distractors of the same video that do not overlap; None if there are not enough."""
    chosen: list[Candidate] = []
    for strict in (True, False):
        for other in _by_distance(answer, video):
            if len(chosen) == count:
                return chosen
            if other.has_same_text(answer) or (strict and other.shares_classes(answer)):
                continue
            if other in chosen or other.overlaps(answer) or any(other.overlaps(taken) for taken in chosen):
                continue
            chosen.append(other)
    return chosen if len(chosen) == count else None


def _by_distance(answer: Candidate, video: Sequence[Candidate]) -> Iterator[Candidate]:
    """Yield the other clips of a video from the nearest to the farthest; `video` is sorted by the clips' midpoints."""

    def midpoint(candidate: Candidate) -> tuple[float, str]:
        return candidate.clip_start + candidate.clip_end, candidate.key

    after = bisect.bisect_right(video, midpoint(answer), key=midpoint)
    before = after - 2  # after − 1 is the answer itself
    at = midpoint(answer)[0]
    while before >= 0 or after < len(video):
        if after == len(video) or (before >= 0 and at - midpoint(video[before])[0] <= midpoint(video[after])[0] - at):
            yield video[before]
            before -= 1
        else:
            yield video[after]
            after += 1


def _question(
    answer: Candidate, distractors: Sequence[Candidate], kind: QuestionType, label: tuple[object, ...]
) -> Question:
    rng = keyed_rng("places", *label)
    choices = [distractor.key for distractor in distractors]
    choices = [choices[place] for place in rng.permutation(len(choices)).tolist()]
    place = int(rng.integers(len(choices) + 1))
    choices.insert(place, answer.key)
    return Question(id=f"{kind}-{answer.key}", type=kind, text=answer.text, answer=place, choices=tuple(choices))


def _record(set_name: str, key: str, data: bytes) -> MediaRecord:
    try:
        return schema.from_json(set_name, json.loads(data))
    except (json.JSONDecodeError, UnicodeDecodeError, schema.SchemaError) as error:
        raise schema.SchemaError(f"{key}: malformed json: {error}; run shards.verify") from None


def _classes(record: MediaRecord) -> tuple[frozenset[int], frozenset[int]]:
    """Return verb and noun classes; the classes of a set with one kind of them count as both."""
    if isinstance(record, ClipRecord):
        return frozenset(record.tag_verb), frozenset(record.tag_noun)
    if isinstance(record, EpicRecord):
        return frozenset([record.verb_class]), frozenset(record.noun_classes)
    if isinstance(record, schema.CharadesRecord):
        return frozenset([record.action]), frozenset([record.action])
    if isinstance(record, schema.HowToRecord):
        return frozenset([record.label]), frozenset([record.label])
    return frozenset(), frozenset()
