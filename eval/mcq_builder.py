"""Makes multiple-choice questions of any set of clips: a text, its clip, distractors from other videos or its own.

Every question is a function of the split's fingerprint, the seed and the key of its clip: neither the order of rows nor
how many questions are wanted changes it. The rules for a distractor:

- its text is not the answer's;
- inter: it is of another video. intra: it is of the same video, overlaps neither the answer nor another distractor, and
  is the nearest in time that is left, as EgoMCQ's intra-video questions are of neighbouring clips (EgoVLP, 3.3);
- it does not share both a verb and a noun class with the answer, by which EgoNCE counts a pair as positive. Where a
  question would not come about for this rule alone, it is lifted for as many distractors as needed, and counted.
"""

from __future__ import annotations

import bisect
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from eval.metrics.mcq import rng_of
from shards import schema
from shards.companions import Question, Questions
from shards.config import SourceConfig
from shards.dataset import read_rows
from shards.schema import ClipRecord, EpicRecord, MediaRecord
from shards.sources import Source, open_source

QuestionType = Literal["inter", "intra"]
_DRAWS = 50  # draws per distractor before all clips are looked through


@dataclass(frozen=True, kw_only=True)
class McqConfig:
    """Which questions to make."""

    seed: int = 0
    options: int = 5  # the right one among them
    types: tuple[QuestionType, ...] = ("inter", "intra")
    questions: int | None = None  # of each type, at most; null: one of every clip
    source: SourceConfig = field(default_factory=SourceConfig)  # how a dataset at a URL is read

    def __post_init__(self) -> None:
        if self.options < 2:
            raise ValueError(f"options = {self.options}: at least 2 are needed")
        if not self.types or len(set(self.types)) < len(self.types):
            raise ValueError(f"types = {list(self.types)}: inter, intra or both are expected, each once")
        if self.questions is not None and self.questions < 1:
            raise ValueError(f"questions = {self.questions}: at least 1 is needed, or null for all")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A clip that a question may be about, or have among its options."""

    key: str
    video_uid: str
    clip_start: float  # s
    clip_end: float  # s
    text: str
    verbs: frozenset[int] = frozenset()  # classes; none is known to be shared where a set has none
    nouns: frozenset[int] = frozenset()

    @property
    def is_named(self) -> bool:
        """Whether there is a text to ask for."""
        return bool(self.text.strip())

    def means_the_same(self, other: Candidate) -> bool:
        """Return whether both share a verb and a noun, so that one may do for the other."""
        return bool(self.verbs & other.verbs) and bool(self.nouns & other.nouns)

    def reads_the_same(self, other: Candidate) -> bool:
        """Return whether both have the same words, apart from capitals and spaces."""
        return self.text.casefold().split() == other.text.casefold().split()

    def overlaps(self, other: Candidate) -> bool:
        """Return whether both show a common moment, given that they are of one video."""
        return self.clip_start == other.clip_start or (
            max(self.clip_start, other.clip_start) < min(self.clip_end, other.clip_end)
        )


@dataclass(frozen=True, kw_only=True)
class Made:
    """What came of one type of question."""

    questions: int
    relaxed: int  # of these, with a distractor that shares a verb and a noun with the answer
    impossible: (
        int  # clips of which no question could be made: without text, or too few others that may stand beside it
    )


@dataclass(frozen=True, kw_only=True)
class Built:
    """Questions, and an account of them."""

    questions: Questions
    made: dict[QuestionType, Made]
    fingerprint: str  # of the split that they are of


def read_candidates(source: Source, set_name: str, split: str) -> list[Candidate]:
    """Return the clips of a split, those of withdrawn videos left out; raise `ShardError` where it cannot be read."""
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
) -> Built:
    """Return the questions that can be made of these clips, sorted by key within each type."""
    pool = sorted(candidates, key=lambda candidate: candidate.key)
    videos: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(pool, key=lambda c: (c.clip_start + c.clip_end, c.key)):
        videos[candidate.video_uid].append(candidate)
    questions, made = [], {}
    for kind in config.types:
        parts = (fingerprint, config.seed, kind)
        named = [candidate for candidate in pool if candidate.is_named]
        if config.questions is not None:  # which of them: those whose keys come first in an order of their own
            named.sort(key=lambda candidate: int(rng_of("which", *parts, candidate.key).integers(2**63)))
        found: list[Question] = []
        relaxed, impossible = 0, len(pool) - len(named)
        for answer in named:
            if len(found) == config.questions:
                break
            label = (*parts, answer.key)
            others = (
                _inter(answer, pool, config.options - 1, label)
                if kind == "inter"
                else _intra(answer, videos[answer.video_uid], config.options - 1)
            )
            if others is None:
                impossible += 1
                continue
            relaxed += any(answer.means_the_same(other) for other in others)
            found.append(_question(answer, others, kind, label))
        questions += sorted(found, key=lambda question: question.id)
        made[kind] = Made(questions=len(found), relaxed=relaxed, impossible=impossible)
    return Built(
        questions=Questions(set=set_name, split=split, name=name, questions=tuple(questions)),
        made=made,
        fingerprint=fingerprint,
    )


def build_from(root: str, set_name: str, split: str, config: McqConfig, *, name: str) -> Built:
    """Return the questions of a split of the dataset at a path or URL."""
    source = open_source(root, config.source)
    fingerprint = source.dataset.split(set_name, split).fingerprint
    candidates = read_candidates(source, set_name, split)
    return build(candidates, config, fingerprint=fingerprint, set_name=set_name, split=split, name=name)


def _inter(
    answer: Candidate, pool: Sequence[Candidate], count: int, label: tuple[object, ...]
) -> list[Candidate] | None:
    """Return distractors of other videos, each as likely as the next; None where there are not enough."""
    rng = rng_of("options", *label)
    chosen: dict[str, Candidate] = {}

    def may_stand(other: Candidate, *, strict: bool) -> bool:
        return (
            other.video_uid != answer.video_uid
            and other.key not in chosen
            and not other.reads_the_same(answer)
            and not (strict and other.means_the_same(answer))
        )

    for place in rng.integers(len(pool), size=_DRAWS * count).tolist():
        if len(chosen) < count and may_stand(pool[place], strict=True):
            chosen[pool[place].key] = pool[place]
    for strict in (True, False):
        if len(chosen) < count:
            rest = [other for other in pool if may_stand(other, strict=strict)]
            for place in rng.permutation(len(rest))[: count - len(chosen)].tolist():
                chosen[rest[place].key] = rest[place]
    return list(chosen.values()) if len(chosen) == count else None


def _intra(answer: Candidate, video: Sequence[Candidate], count: int) -> list[Candidate] | None:
    """Return the nearest distractors of the same video that do not overlap; None where there are not enough."""
    chosen: list[Candidate] = []
    for strict in (True, False):
        for other in _by_distance(answer, video):
            if len(chosen) == count:
                return chosen
            if other.reads_the_same(answer) or (strict and other.means_the_same(answer)):
                continue
            if other in chosen or other.overlaps(answer) or any(other.overlaps(taken) for taken in chosen):
                continue
            chosen.append(other)
    return chosen if len(chosen) == count else None


def _by_distance(answer: Candidate, video: Sequence[Candidate]) -> Iterator[Candidate]:
    """Yield the other clips of a video, sorted by their middles, from the nearest to the farthest."""

    def middle(candidate: Candidate) -> tuple[float, str]:
        return candidate.clip_start + candidate.clip_end, candidate.key

    after = bisect.bisect_right(video, middle(answer), key=middle)
    before = after - 2  # the answer stands between
    at = middle(answer)[0]
    while before >= 0 or after < len(video):
        if after == len(video) or (before >= 0 and at - middle(video[before])[0] <= middle(video[after])[0] - at):
            yield video[before]
            before -= 1
        else:
            yield video[after]
            after += 1


def _question(
    answer: Candidate, others: Sequence[Candidate], kind: QuestionType, label: tuple[object, ...]
) -> Question:
    rng = rng_of("places", *label)
    choices = [other.key for other in others]
    choices = [choices[place] for place in rng.permutation(len(choices)).tolist()]
    place = int(rng.integers(len(choices) + 1))
    choices.insert(place, answer.key)
    return Question(id=f"{kind}-{answer.key}", type=kind, text=answer.text, answer=place, choices=tuple(choices))


def _record(set_name: str, key: str, data: bytes) -> MediaRecord:
    try:
        return schema.from_json(set_name, json.loads(data))
    except (ValueError, RecursionError) as error:
        raise schema.SchemaError(f"{key}: its json cannot be used: {error}; run shards.verify") from None


def _classes(record: MediaRecord) -> tuple[frozenset[int], frozenset[int]]:
    """Return verb and noun classes; a set of one kind of classes has it as both."""
    if isinstance(record, ClipRecord):
        return frozenset(record.tag_verb), frozenset(record.tag_noun)
    if isinstance(record, EpicRecord):
        return frozenset([record.verb_class]), frozenset(record.noun_classes)
    if isinstance(record, schema.CharadesRecord):
        return frozenset([record.action]), frozenset([record.action])
    if isinstance(record, schema.HowToRecord):
        return frozenset([record.label]), frozenset([record.label])
    return frozenset(), frozenset()
